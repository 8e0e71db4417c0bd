from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frankenstein.cli import main

COMMAND = [sys.executable, "-c", "import sys; from frankenstein.cli import main; sys.exit(main())"]
SMALL = ["--problems", "beale", "stairs", "--optimizers", "sgd,adam", "--trials", "8", "--seeds", "2"]
SMALL += ["--workers", "2"]
N_CELLS = (2 * 2 * (8 + 2), 2 * 2 * (8 + 4))  # tuned and default settings may coincide


@pytest.fixture(scope="module")
def start():
    """Start the command in a process group of its own; whatever a failed test leaves running is killed."""
    processes = []

    def launch(*arguments):
        pipe = subprocess.PIPE
        command = [*COMMAND, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        processes.append(process)
        return process

    yield launch
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def records(folder):
    path = Path(folder) / "records.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def wait_for_records(folder, n_records, process):
    """Wait until the run has written some records; fail if it ends before."""
    while len(records(folder)) < n_records:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    process = start("compare", *SMALL, "--out", folder)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return folder, out


def scores(folder):
    return {record["cell"]: record["score"] for record in map(json.loads, records(folder))}


def test_compare_ends_with_a_table_and_a_report(finished):
    folder, out = finished
    assert N_CELLS[0] <= len(records(folder)) <= N_CELLS[1]
    for text in ("beale: log10 of the final value (lower is better)", "SGD (Nesterov)", "Adam", "to target"):
        assert text in out
    assert out.rstrip().endswith(f"report: {folder / 'report.html'}")
    record = json.loads(records(folder)[0])
    assert {"provenance", "wall_seconds", "finished_at", "problem_config", "optimizer_config", "curve"} <= record.keys()


def test_the_same_command_again_runs_nothing(finished, capsys):
    folder, _ = finished
    before = records(folder)
    assert main(["compare", *SMALL, "--out", str(folder)]) == 0
    assert records(folder) == before
    assert main(["report", str(folder)]) == 0
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize("kill", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_killed_run_goes_on_where_it_stopped(start, finished, tmp_path, kill):
    """Ctrl-C (to the whole group, as a terminal sends it), a polite kill and a hard one."""
    process = start("compare", *SMALL, "--out", tmp_path)
    wait_for_records(tmp_path, 3, process)
    if kill == signal.SIGINT:
        os.killpg(process.pid, kill)
    else:
        process.send_signal(kill)
    _, err = process.communicate()
    kept = [line for line in records(tmp_path) if line.endswith(b"}")]
    assert 3 <= len(kept) < N_CELLS[0]
    if kill != signal.SIGKILL:
        assert process.returncode == 130
        assert f"stopped; {len(kept)} of " in err
        assert f"runs are kept in {tmp_path}: `frankenstein compare --problems beale stairs" in err
        assert "Traceback" not in err
    again = start("compare", *SMALL, "--out", tmp_path)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert records(tmp_path)[: len(kept)] == kept
    assert scores(tmp_path) == scores(finished[0])


def test_a_polite_kill_ends_a_run_in_the_background_of_a_script(start, tmp_path):
    """There shells have Ctrl-C ignored, and only SIGTERM is heard."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("compare", *SMALL, "--out", tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for_records(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; " in err and "Traceback" not in err


def workers_of(process):
    """The process ids of a run's workers, from /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the worker processes in /proc")
def test_a_killed_worker_fails_its_own_run_only(start, finished, tmp_path):
    process = start("compare", *SMALL, "--out", tmp_path)
    for n_records in range(3, N_CELLS[0], 6):  # one that is between two runs costs none: then another is killed
        wait_for_records(tmp_path, n_records, process)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        wait_for_records(tmp_path, n_records + 2, process)
        if any(b'"outcome":"failed"' in line for line in records(tmp_path)):
            break
    out, err = process.communicate()
    assert process.returncode == 1
    failed = [r for r in map(json.loads, records(tmp_path)) if r["outcome"] == "failed"]
    assert f"{len(failed)} runs failed; the report names them and why, and the same comparison tries them" in err
    assert "Traceback" not in err
    assert {record["reason"] for record in failed} == {"the worker process was ended by SIGKILL (out of memory?)"}
    assert f"report: {tmp_path / 'report.html'}" in out
    again = start("compare", *SMALL, "--out", tmp_path)
    again.communicate()
    assert again.returncode == 0
    assert scores(tmp_path) == scores(finished[0])


def test_no_worker_outlives_a_killed_run(start, tmp_path):
    process = start("compare", *SMALL, "--out", tmp_path)
    wait_for_records(tmp_path, 3, process)
    workers = workers_of(process)
    assert workers
    process.kill()
    process.communicate()
    for _ in range(1000):
        alive = [pid for pid in workers if is_running(pid)]
        if not alive:
            break
        time.sleep(0.01)
    assert not alive


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 96 KiB, which fills up."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_no_finished_run(start, finished, tiny_disk):
    """The run stops with one line; with room again, the same command goes on from the last whole record."""
    process = start("compare", *SMALL, "--out", tiny_disk)
    _, err = process.communicate()
    kept = [line for line in records(tiny_disk) if line.endswith(b"}")]
    assert process.returncode == 1
    assert f"error: cannot write {tiny_disk / 'records.jsonl'}: No space left on device; {len(kept)} of " in err
    assert "Traceback" not in err
    assert 3 <= len(kept) < N_CELLS[0]
    subprocess.run(["mount", "-o", "remount,size=16m", tiny_disk], check=True)
    again = start("compare", *SMALL, "--out", tiny_disk)
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert records(tiny_disk)[: len(kept)] == kept
    assert scores(tiny_disk) == scores(finished[0])


def test_a_truncated_record_file_goes_on(start, finished, tmp_path):
    """Cut in the middle of a line, as a power failure may leave it."""
    lines = records(finished[0])
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(lines[:20]) + b"\n" + lines[20][:100])
    process = start("compare", *SMALL, "--out", tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "line 21, the last one, is not JSON (killed while writing?); skipped" in err
    assert records(tmp_path)[:20] == lines[:20]
    assert scores(tmp_path) == scores(finished[0])


def test_merge_and_export(finished, tmp_path, capsys):
    """Two halves of a run, merged, are the run; a moved folder is as good as where it was."""
    lines = records(finished[0])
    for name, part in (("a", lines[:25]), ("b", lines[15:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").write_bytes(b"\n".join(part) + b"\n")
    (tmp_path / "b").rename(tmp_path / "moved")
    assert main(["merge", *(str(tmp_path / name) for name in ("all", "a", "moved"))]) == 0
    n_added = len(lines)
    assert f"{n_added} runs added, 0 replaced, 0 there already" in capsys.readouterr().out
    assert scores(tmp_path / "all") == scores(finished[0])
    assert main(["merge", *(str(tmp_path / name) for name in ("all", "a", "moved"))]) == 0
    assert f"0 runs added, 0 replaced, {n_added} there already" in capsys.readouterr().out
    assert main(["compare", *SMALL, "--out", str(tmp_path / "all")]) == 0
    assert len(records(tmp_path / "all")) == n_added
    capsys.readouterr()
    assert main(["export", str(tmp_path / "all"), "--format", "csv", "--out", str(tmp_path / "tables")]) == 0
    files = capsys.readouterr().out.split()
    assert [Path(file).name for file in files] == ["runs.csv", "curves.csv"]
    assert len((tmp_path / "tables" / "runs.csv").read_text().splitlines()) == 1 + n_added


def test_live_curves_on_request(tmp_path, capsys):
    """One TensorBoard folder for each run, with the curve that its record has."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    what = ["--problems", "beale", "--optimizers", "sgd", "--trials", "2", "--seeds", "1", "--workers", "1"]
    assert main(["compare", *what, "--tensorboard", "--out", str(tmp_path)]) == 0
    runs = sorted({path.parent for path in (tmp_path / "tensorboard").rglob("events*")})
    assert len(runs) == len(records(tmp_path))
    shown = []
    for run in runs:
        events = EventAccumulator(str(run)).Reload()
        shown.append([(event.step, round(event.value, 4)) for event in events.Scalars("score")])
    finished = [record for record in map(json.loads, records(tmp_path)) if record["outcome"] == "finished"]
    assert finished
    for curve in (record["curve"] for record in finished):
        kept = [
            (step, pytest.approx(score, abs=1e-3)) for step, score in zip(curve["step"], curve["score"], strict=True)
        ]
        assert kept in shown


def test_report_of_several_folders_with_figures(finished, tmp_path, capsys):
    lines = records(finished[0])
    for name, problem in (("a", b"beale"), ("b", b"stairs")):
        (tmp_path / name).mkdir()
        mine = [line for line in lines if json.loads(line)["problem"].encode() == problem]
        (tmp_path / name / "records.jsonl").write_bytes(b"\n".join(mine) + b"\n")
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["report", *folders, "--out", str(tmp_path / "both"), "--figures"]) == 0
    out = capsys.readouterr().out
    assert f"report: {tmp_path / 'both' / 'report.html'}" in out
    assert re.search(r"figures and tables: \d+ files in ", out)
    few = ["--problems", "beale", "--optimizers", "sgd,adam"]
    assert main(["report", *folders, "--out", str(tmp_path / "few"), *few]) == 0
    assert "stairs" not in capsys.readouterr().out
    for wrong, message in (
        (["--problems", "rosenbrock"], "no runs of problem 'rosenbrock'; there are beale, stairs"),
        (["--optimizers", "lion"], "no runs of optimizer 'lion'; there are adam, sgd"),
    ):
        assert main(["report", *folders, *wrong]) == 2
        assert capsys.readouterr().err == f"frankenstein: error: {message}\n"
    page = (tmp_path / "both" / "report.html").read_text()
    assert "beale" in page
    assert "stairs" in page


@pytest.mark.parametrize("n_interrupts", [1, 2])
@pytest.mark.parametrize("at", ["import", "start", "work"])
def test_interrupted_at_any_moment(start, tmp_path, at, n_interrupts):
    """Guards against a Ctrl-C that breaks an import, shows a worker's traceback, or, hit twice, hangs."""
    process = start("compare", *SMALL, "--out", tmp_path)
    if at == "start":
        while not tmp_path.joinpath("records.jsonl").exists():
            time.sleep(0.01)
    if at == "work":
        wait_for_records(tmp_path, 1, process)
    if at == "import":
        while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():  # the command is in main by then
            time.sleep(0.01)
    for _ in range(n_interrupts):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert re.search(r"frankenstein: (interrupted|stopped; \d+ of \d+ runs are kept)", err)


def test_a_second_run_in_the_same_folder_is_refused(start, tmp_path):
    first = start("compare", *SMALL, "--out", tmp_path)
    wait_for_records(tmp_path, 1, first)
    second = start("compare", *SMALL, "--out", tmp_path)
    _, err = second.communicate()
    assert second.returncode == 2
    assert (
        err.strip() == f"frankenstein: error: {tmp_path} is in use by another run; wait for it, or choose another --out"
    )
    first.communicate()
    assert first.returncode == 0


def test_damaged_last_line_is_reported(finished, tmp_path, capsys):
    (tmp_path / "records.jsonl").write_bytes(b"\n".join(records(finished[0])) + b'\n{"schema":1,"ce')
    assert main(["report", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "the last one, is not JSON (killed while writing?); skipped" in captured.err
    assert "beale" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--problems", "bael"], r"unknown problem 'bael'; did you mean 'beale'\?"),
        (["compare", "--problems", "zzz"], r"unknown problem 'zzz'; known: digits-cnn, "),
        (["compare", "--optimizers", "adam,adamx"], r"unknown optimizer 'adamx'; did you mean 'adam"),
        (["compare", "--optimizers", ","], r"no optimizer named; known: "),
        (["compare", "--seeds", "0"], r"argument --seeds: '0' is not a whole number of at least 1"),
        (["compare", "--seeds", "many"], r"'many' is not a whole number"),
        (["compare", "--workers", "-1"], r"'-1' is not a whole number|expected one argument"),
        (
            ["compare", "--out", "{file}/folder"],
            r"cannot use .*: Not a directory; choose a writable folder with --out",
        ),
        (["report", "{empty}"], r"no records in "),
        (["report"], r"the following arguments are required: DIR"),
        (["compare", "--module", "no/such.py"], r"--module no/such.py: there is no such file"),
        (["compare", "--optimizers", "torch.optim:Nonsense"], r"torch.optim has no class 'Nonsense'"),
        (["compare", "--timeout", "-3"], r"argument --timeout: (expected one argument|'-3' is not a number above 0)"),
        (["compare", "--gpus", "nan"], r"'nan' is not a number above 0"),
        (["compare", "--gpus", "4096"], r".*GPU"),
        (["compare", "--retries", "x"], r"'x' is not a whole number of at least 0"),
        (["compare", "--trials", "99999"], r"--trials 99999 is more than 10000"),
        (["compare", "--ray-address", "auto"], r"--ray-address is for --executor ray"),
        (["compare", "--slurm", "a=b"], r"--slurm is for --executor slurm"),
        (["compare", "--executor", "slurm", "--slurm", "time"], r"--slurm time: write KEY=VALUE, as partition=gpu"),
        (["compare", "--executor", "pigeons"], r"argument --executor: invalid choice: 'pigeons'"),
        (["merge", "{out}", "{empty}"], r"no records in "),
        (["export", "{empty}"], r"no records in "),
        (["report", "{damaged}"], r"records.jsonl: line 1 is not JSON; mend or remove that line"),
        (["compare", "--out", "{damaged}"], r"records.jsonl: line 1 is not JSON"),
        (["nonsense"], r"invalid choice: 'nonsense'"),
        ([], r"required: COMMAND"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "records.jsonl").write_text("garbage\n{}\n")
    monkeypatch.chdir(tmp_path)
    places = {name: str(tmp_path / name) for name in ("file", "empty", "damaged", "out")}
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.match(f"frankenstein: error: .*{message}", captured.err)


def test_missing_packages_are_named_with_the_cure():
    code = "import sys; sys.modules['sklearn'] = None; from frankenstein.cli import main; sys.exit(main(['compare']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "frankenstein: error: this command needs sklearn: pip install '.[experiments]' (in the checkout)"
    assert done.stderr.strip() == expected


def test_list(capsys):
    assert main(["compare", "--list"]) == 0
    out = capsys.readouterr().out
    assert "problem    digits-cnn" in out
    assert "optimizer  adamw                 AdamW: torch.optim:AdamW" in out


def test_doctor(capsys, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from frankenstein.cli import doctor

    real = doctor.version

    def without_jax(name):
        if name == "jax":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", without_jax)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"torch +2\.\d+", out)
    assert re.search(r"devices +cpu \(\d+ cores", out)
    assert re.search(r"jax +missing", out)
    assert "to get jax: pip install '.[jax]' (in the checkout)" in out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert re.match(r"frankenstein-optimizer \d+\.\d+", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["doctor", "report"])
def test_a_reader_that_stops_early_is_no_error(finished, command):
    arguments = [command, *([str(finished[0])] if command == "report" else [])]
    quoted = " ".join(f"'{part}'" for part in (*COMMAND, *arguments))
    done = subprocess.run(
        ["bash", "-c", f"{quoted} | head -c 1; exit ${{PIPESTATUS[0]}}"], capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written(finished):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "report", str(finished[0])], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == b"frankenstein: error: No space left on device"
