from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
import warnings
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from frankenstein.compare import live as L
from frankenstein.compare.live import Live, LiveError, prepare, watching

NAME = "problem/optimizer/lr=0.1 betas[0]=0.9 test seed 3"
PARAMS = {"lr": 0.1, "betas[0]": 0.9, "problem_config": {"n_steps": 10, "version": None}, "split": "test", "tied": []}
FLAT = {"lr": "0.1", "problem_config.n_steps": "10", "problem_config.version": "null", "split": "test", "tied": "[]"}
WORST_SECONDS = 15  # a dead server may hold a run up for so long, once a minute


@pytest.fixture(autouse=True)
def forget_failures(monkeypatch):
    monkeypatch.setattr(L, "_failed_at", {})


def test_with_nothing_asked_for_nothing_is_imported():
    code = """
        import sys
        from frankenstein.compare.live import Live, prepare, watching
        prepare(Live(), print)
        with watching(Live(), "name", {}) as log:
            log(1, {"score": 1.0})
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "tensorboard", "mlflow", "numpy"}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_it_can_be_sent_to_a_worker():
    live = Live(tensorboard="folder", mlflow="http://127.0.0.1:1", mlflow_experiment="other")
    assert pickle.loads(pickle.dumps(live)) == live


# TensorBoard


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    return scalars, found.Tensors("params/text_summary")[-1].tensor_proto.string_val[0].decode()


def folders(path):
    return sorted({str(file.parent.relative_to(path)) for file in path.rglob("events.out.*")})


def test_tensorboard_shows_every_number_and_the_parameters(tmp_path, capfd):
    with watching(Live(tensorboard=str(tmp_path)), NAME, PARAMS) as log:
        log(0, {"score": 0.5})
        log(10, {"score": 0.75, "train_loss": math.inf})
        log(20, {"score": math.nan})
    assert folders(tmp_path) == ["problem/optimizer/lr=0.1 betas_0_=0.9 test seed 3"]
    scalars, text = events(tmp_path / folders(tmp_path)[0])
    assert scalars["score"][:2] == [(0, 0.5), (10, 0.75)]
    assert scalars["score"][2][0] == 20 and math.isnan(scalars["score"][2][1])
    assert scalars["train_loss"] == [(10, math.inf)]
    for name, value in (FLAT | {"betas[0]": "0.9"}).items():
        assert f"| {name} | {value} |" in text.splitlines()
    assert capfd.readouterr() == ("", "")


def test_another_attempt_hides_the_points_of_the_one_before(tmp_path):
    for scores in ([0.1, 0.2, 0.3], [0.5, 0.6]):
        with watching(Live(tensorboard=str(tmp_path)), "run", {}) as log:
            for step, score in enumerate(scores):
                log(step, {"score": score})
    scalars, _ = events(tmp_path / "run")
    assert scalars["score"] == [(0, pytest.approx(0.5)), (1, pytest.approx(0.6))]


@pytest.mark.parametrize(
    "name, folder", [("../../outside", "_/_/outside"), ("/etc/x", "_/etc/x"), ("a\\b:c*?", "a_b_c__"), ("", "_")]
)
def test_no_name_leads_out_of_the_folder(tmp_path, name, folder):
    with watching(Live(tensorboard=str(tmp_path / "in")), name, {}):
        pass
    assert folders(tmp_path) == [f"in/{folder}"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    place = f"{tmp_path}/file"
    with watching(Live(tensorboard=place), "run", {}) as log:
        log(0, {"score": 0.5})
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"no live metrics of run, nor of runs within a minute: {place}: ")


# MLflow without a server: whichever store mlflow-skinny can open


@pytest.fixture(params=["folder", "sqlite"])
def store(request, tmp_path, monkeypatch):
    """A tracking URI, ready for use."""
    if request.param == "folder":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (tmp_path / "mlruns").as_uri()
    else:
        pytest.importorskip("alembic", reason="MLflow needs Alembic for sqlite")
        uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    prepare(Live(mlflow=uri, mlflow_experiment="test"), pytest.fail)
    return uri


def runs(uri):
    """Return name, status, parameters and (step, value) of every metric, for each run of the experiment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, about MLflow
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("test")
        found = {}
        for run in client.search_runs([experiment.experiment_id]):
            history = {
                key: [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            }
            found[run.info.run_name] = run.info.status, run.data.params, history
        return found


def test_mlflow_shows_every_number_and_leaves_no_trace_in_the_process(store, capfd, monkeypatch):
    import mlflow

    for name in L.MLFLOW_LIMITS:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ), mlflow.get_tracking_uri(), list(warnings.filters)
    with watching(Live(mlflow=store, mlflow_experiment="test"), NAME, PARAMS) as log:
        log(0, {"score": 0.5})
        log(10, {"score": 0.75, "train_loss": math.inf})
        log(20, {"train_loss": 2.0, "score": math.nan})
        assert mlflow.active_run() is None
        assert runs(store)[NAME][0] == "RUNNING"  # while it is under way, not at its end
        assert len(runs(store)[NAME][2]["score"]) == 3
    assert (dict(os.environ), mlflow.get_tracking_uri(), list(warnings.filters)) == before
    status, params, metrics = runs(store)[NAME]
    assert status == "FINISHED"
    assert params == FLAT | {"betas_0": "0.9"}
    assert metrics["score"][:2] == [(0, 0.5), (10, 0.75)]
    assert metrics["score"][2][0] == 20 and math.isnan(metrics["score"][2][1])
    assert metrics["train_loss"][0][0] == 10 and math.isnan(metrics["train_loss"][0][1])  # no infinity in a chart
    assert metrics["train_loss"][1] == (20, 2.0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("of the run"), KeyboardInterrupt()])
def test_a_run_that_raises_is_failed_and_its_error_goes_on(store, error):
    def run():
        with watching(Live(mlflow=store, mlflow_experiment="test"), "run", {}) as log:
            log(0, {"score": 0.5})
            raise error

    with pytest.raises(type(error)):
        run()
    assert runs(store) == {"run": ("FAILED", {}, {"score": [(0, 0.5)]})}


def test_runs_at_once_do_not_mix(store):
    live = Live(mlflow=store, mlflow_experiment="test")
    barrier = threading.Barrier(3)

    def run(number):
        with watching(live, f"run {number}", {"number": number}) as log:
            barrier.wait()
            for step in range(5):
                log(step, {"score": 100.0 * number + step})

    before = dict(os.environ)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(os.environ) == before
    for number in range(3):
        points = [(step, 100.0 * number + step) for step in range(5)]
        assert runs(store)[f"run {number}"] == ("FINISHED", {"number": str(number)}, {"score": points})


def test_many_parameters_go_in_several_batches(store):
    params = {f"name{i}": i for i in range(2 * L.BATCH + 1)}
    with watching(Live(mlflow=store, mlflow_experiment="test"), "run", params):
        pass
    assert runs(store)["run"][1] == {name: str(value) for name, value in params.items()}


# MLflow over HTTP: a server that answers, stops answering, or was never there


class Stub(ThreadingHTTPServer):
    """The little of MLflow's REST interface that is used; it keeps what it is sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, dict]] = []
        self.timeouts: set[str] = set()
        self.is_silent = False
        self.end = threading.Event()


class StubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length", 0))
        what = self.path.partition("?")[0].rpartition("/mlflow/")[2]
        self.server.asked.append((what, json.loads(self.rfile.read(length) or b"{}")))
        self.server.timeouts.add(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])  # the client is in this process
        if self.server.is_silent:
            self.server.end.wait()
            self.close_connection = True
            return
        info = {"run_id": "r1", "experiment_id": "e1", "status": "RUNNING", "start_time": 1, "artifact_uri": "a"}
        answers = {
            "experiments/get-by-name": {"experiment": {"experiment_id": "e1", "name": "test"}},
            "runs/create": {"run": {"info": info, "data": {}}},
            "runs/update": {"run_info": info},
        }
        content = json.dumps(answers.get(what, {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def stub():
    server = Stub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.end.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_sent_over_http(stub, capfd):
    with watching(Live(mlflow=stub.uri, mlflow_experiment="test"), "run", {"lr": 0.1}) as log:
        log(3, {"score": 0.5, "train_loss": math.inf})
    assert [what for what, _ in stub.asked] == [
        "experiments/get-by-name",
        "runs/create",
        "runs/log-batch",
        "runs/log-batch",
        "runs/update",
    ]
    created, params, metrics, end = (sent for _, sent in stub.asked[1:])
    assert (created["experiment_id"], created["run_name"]) == ("e1", "run")
    assert params["params"] == [{"key": "lr", "value": "0.1"}]
    assert [(m["key"], m["value"], m["step"]) for m in metrics["metrics"]] == [
        ("score", 0.5, 3),
        ("train_loss", "NaN", 3),
    ]
    assert (end["run_id"], end["status"]) == ("r1", "FINISHED")
    assert capfd.readouterr() == ("", "")


def test_a_server_that_stops_answering_is_asked_no_more(stub, capsys, monkeypatch):
    """The timeout is the user's own here, which counts: the test need not wait for ours."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    live = Live(mlflow=stub.uri, mlflow_experiment="test")
    with watching(live, "run", {}) as log:
        log(0, {"score": 0.5})
        stub.is_silent, n_before = True, len(stub.asked)
        log(1, {"score": 0.6})
        log(2, {"score": 0.7})
    with watching(live, "another", {}) as log:
        log(0, {"score": 0.5})
    assert len(stub.asked) == n_before + 2  # once, and once more in case the connection was old
    assert stub.timeouts == {"1"}
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert capsys.readouterr().err.splitlines() == [
        f"no live metrics of run, nor of runs within a minute: {stub.uri}: no answer in time"
    ]
    stub.is_silent = False
    monkeypatch.setattr(L, "PAUSE_SECONDS", 0.0)
    with watching(live, "later", {}):
        pass
    assert stub.asked[-1][0] == "runs/update"


def test_our_own_limits_are_short():
    seconds, retries = (int(L.MLFLOW_LIMITS[f"MLFLOW_HTTP_REQUEST_{name}"]) for name in ("TIMEOUT", "MAX_RETRIES"))
    assert seconds * (1 + retries) <= WORST_SECONDS


@contextmanager
def closed_port():
    """Yield a port that refuses connections: bound, so that nobody else takes it, and not listened to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_server_that_is_not_there_costs_one_line_and_no_run():
    """In a process of its own: libraries that log on their own would add lines."""
    code = """
        import sys
        from frankenstein.compare.live import Live, watching
        for name in ("first", "second"):
            with watching(Live(mlflow=sys.argv[1]), name, {}) as log:
                log(0, {"score": 0.5})
        print("done")
    """
    with closed_port() as port:
        uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), uri]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
    assert done.stderr == f"no live metrics of first, nor of runs within a minute: {uri}: Connection refused\n"


# Before anything is run


def test_prepare_makes_what_runs_need(store):
    prepare(Live(mlflow=store, mlflow_experiment="test"), pytest.fail)  # again: it is there already
    assert runs(store) == {}


def test_a_new_database_is_made_in_silence(tmp_path):
    """In a process of its own, where nothing has been imported or muted before."""
    pytest.importorskip("alembic", reason="MLflow needs Alembic for sqlite")
    code = """
        import sys
        from frankenstein.compare.live import Live, prepare, watching
        live = Live(mlflow=sys.argv[1])
        prepare(live, print)
        with watching(live, "name", {}) as log:
            log(0, {"score": 0.5})
    """
    command = [sys.executable, "-c", textwrap.dedent(code), f"sqlite:///{tmp_path}/new.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_prepare_reports_a_server_that_is_not_there():
    said = []
    with closed_port() as port:
        uri = f"http://127.0.0.1:{port}"
        prepare(Live(mlflow=uri), said.append)
    assert said == [f"no live metrics in {uri} for now: Connection refused"]


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", ""])
def test_a_folder_is_refused_as_mlflow_refuses_it(uri, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(LiveError, match="MLflow no longer writes to folders: name a server"):
        prepare(Live(mlflow=uri), pytest.fail)


@pytest.mark.parametrize(
    "live, missing, message",
    [
        (Live(tensorboard="x"), "tensorboard", r"TensorBoard need the package tensorboard: pip install '.\[live\]'"),
        (
            Live(mlflow="http://127.0.0.1:1"),
            "mlflow",
            r"MLflow need the package mlflow-skinny: pip install '.\[live\]'",
        ),
        (Live(mlflow="sqlite:///x.db"), "alembic", r"needs SQLAlchemy and Alembic: pip install mlflow; http://"),
    ],
)
def test_a_missing_package_is_named_with_its_cure(live, missing, message, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LiveError, match=message) as error:
        prepare(live, pytest.fail)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("live, missing", [(Live(tensorboard="x"), "tensorboard"), (Live(mlflow="http://x"), "mlflow")])
def test_a_worker_without_the_package_runs_all_the_same(live, missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with watching(live, "run", {}) as log:
        log(0, {"score": 0.5})
    said = capsys.readouterr().err
    assert missing in said and said.endswith(f"; {L.CURE}\n") and said.count("\n") == 1


# MLflow's own server


@pytest.fixture
def server(tmp_path):
    """The tracking URI of a real server. mlflow-skinny, which is enough to log, has the command but no server."""
    command = shutil.which("mlflow")
    if command is None:
        pytest.skip("needs the command mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--default-artifact-root", str(tmp_path)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [command, "server", *options], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        while not is_healthy(uri):
            if process.poll() is not None:
                said = Path(tmp_path / "log").read_text()
                if "No module named 'flask'" in said:
                    pytest.skip("needs the server of the package mlflow; this is mlflow-skinny")
                pytest.fail(said)
        yield uri
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # its workers too
        process.wait()


def is_healthy(uri):
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        threading.Event().wait(0.1)  # between two questions
        return False


def ask(uri, path, **content):
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/{path}", json.dumps(content).encode() if content else None)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
def test_a_real_server_has_it_all(server, capfd):
    """Read back by REST, without MLflow's client."""
    live = Live(mlflow=server, mlflow_experiment="test")
    prepare(live, pytest.fail)
    with watching(live, NAME, PARAMS) as log:
        log(0, {"score": 0.5, "train_loss": math.inf})
        log(10, {"score": 0.75})
    with pytest.raises(ZeroDivisionError), watching(live, "fails", {}):
        raise ZeroDivisionError
    experiment = ask(server, "experiments/get-by-name?experiment_name=test")["experiment"]["experiment_id"]
    found = {run["info"]["run_name"]: run for run in ask(server, "runs/search", experiment_ids=[experiment])["runs"]}
    assert {name: run["info"]["status"] for name, run in found.items()} == {NAME: "FINISHED", "fails": "FAILED"}
    params = {param["key"]: param["value"] for param in found[NAME]["data"]["params"]}
    assert params == FLAT | {"betas_0": "0.9"}
    run_id = found[NAME]["info"]["run_id"]
    history = {
        key: ask(server, f"metrics/get-history?run_id={run_id}&metric_key={key}")["metrics"]
        for key in ("score", "train_loss")
    }
    assert [(point.get("step", 0), point["value"]) for point in history["score"]] == [(0, 0.5), (10, 0.75)]
    assert [math.isnan(float(point["value"])) for point in history["train_loss"]] == [True]
    assert capfd.readouterr() == ("", "")
