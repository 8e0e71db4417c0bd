"""Live metrics: the numbers of a run, in TensorBoard or MLflow, while it is under way.

They are for looking on; what counts is in the records. So nothing here can fail a run, or hold it up for long: the
first failure is said in one line, and is the end of live metrics for that run.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mlflow import MlflowClient

Log = Callable[[int, dict[str, float]], None]

CURE = "pip install '.[live]' (in the checkout)"
FLUSH_SECONDS = 5
BATCH = 100  # the parameters that MLflow takes at once

# MLflow's own limits are minutes, and it reports its use to its makers; where the user has set these, that counts.
MLFLOW_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # for the connection that the server closed meanwhile
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}

# A server that never answers would cost every run its timeout, and every run would say so: after a failure, the runs
# that this process starts in the next minute do without.
PAUSE_SECONDS = 60.0
_failed_at: dict[str, float] = {}  # by place

_mlflow_lock = threading.RLock()


class LiveError(Exception):
    """Live metrics cannot be had; the message is one line for the user."""


@dataclass(frozen=True)
class Live:
    """Where the numbers go.

    Attributes:
        tensorboard: Folder for event files.
        mlflow: Tracking URI of MLflow: `http://...`, or `sqlite:///FILE` where SQLAlchemy and Alembic are installed.
        mlflow_experiment: MLflow's experiment; made if absent.
    """

    tensorboard: str | None = None
    mlflow: str | None = None
    mlflow_experiment: str = "frankenstein"


def prepare(live: Live, report: Callable[[str], None]) -> None:
    """Say before anything is run what is missing, and make MLflow's database and experiment: workers cannot all do it.

    Args:
        live: Where the numbers will go.
        report: Called with one line if MLflow does not answer; runs will try again.

    Raises:
        LiveError: A package is missing, or MLflow takes no such URI.
    """
    if live.tensorboard is not None and find_spec("tensorboard") is None:
        raise LiveError(f"live metrics in TensorBoard need the package tensorboard: {CURE}")
    if live.mlflow is None:
        return
    _check_uri(live.mlflow)
    try:
        with _restrained():
            _experiment_id(_client(live.mlflow), live.mlflow_experiment)
    except Exception as error:
        report(f"no live metrics in {live.mlflow} for now: {_one_line(error)}")


def _check_uri(uri: str) -> None:
    if find_spec("mlflow") is None:
        raise LiveError(f"live metrics in MLflow need the package mlflow-skinny: {CURE}")
    scheme = uri.partition(":")[0] if ":" in uri else ""
    if scheme in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise LiveError(
            f"MLflow no longer writes to folders: name a server, http://..., or sqlite:///FILE, not {uri!r}"
        )
    is_database = re.match("sqlite|postgresql|mysql|mssql", scheme)
    if is_database and not (find_spec("sqlalchemy") and find_spec("alembic")):
        raise LiveError(f"MLflow at {uri} needs SQLAlchemy and Alembic: pip install mlflow; http://... needs neither")


@contextmanager
def watching(live: Live, name: str, params: dict[str, Any]) -> Iterator[Log]:
    """Yield a function that shows the numbers of a step; with nothing asked for it does nothing, and imports nothing.

    Nothing is raised: what cannot be shown is said once on standard error. In MLflow the run ends as FAILED where the
    block raises, else as FINISHED.

    Args:
        live: Where the numbers go.
        name: Name of the run; "/" makes folders in TensorBoard.
        params: What is run; nested dictionaries become `outer.inner`.
    """
    if live.tensorboard is None and live.mlflow is None:
        yield _nothing
        return
    sinks: list[_Guarded] = []
    if live.tensorboard is not None:
        sinks.append(_Guarded(name, live.tensorboard, partial(_TensorBoard, live.tensorboard, name, params)))
    if live.mlflow is not None:
        sinks.append(_Guarded(name, live.mlflow, partial(_MLflow, live.mlflow, live.mlflow_experiment, name, params)))

    def log(step: int, numbers: dict[str, float]) -> None:
        for sink in sinks:
            sink.log(step, numbers)

    is_finished = False
    try:
        yield log
        is_finished = True
    finally:
        for sink in sinks:
            sink.close(is_finished)


def _nothing(step: int, numbers: dict[str, float]) -> None:
    pass


class _Sink(Protocol):
    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Show the numbers of a step."""

    def close(self, is_finished: bool) -> None:
        """End the run."""


class _Guarded:
    """A sink that is done with at its first failure."""

    def __init__(self, name: str, where: str, start: Callable[[], _Sink]) -> None:
        self.name, self.where = name, where
        self.sink: _Sink | None = None
        if time.monotonic() - _failed_at.get(where, -math.inf) >= PAUSE_SECONDS:
            with self.guard():
                self.sink = start()

    def log(self, step: int, numbers: dict[str, float]) -> None:
        if self.sink:
            with self.guard():
                self.sink.log(step, numbers)

    def close(self, is_finished: bool) -> None:
        if self.sink:
            with self.guard():
                self.sink.close(is_finished)

    @contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.sink = None
            _failed_at[self.where] = time.monotonic()
            why = f"{self.where}: {_one_line(error)}"
            print(f"no live metrics of {self.name}, nor of runs within a minute: {why}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    """Return what is wrong; of a failed connection the cause alone, which HTTP libraries wrap in many words."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, (ConnectionError, socket.gaierror)) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; {CURE}"
    return text if len(text) <= 200 else f"{text[:200]}..."


class _TensorBoard:
    def __init__(self, folder: str, name: str, params: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        parts = [re.sub(r"[^\w.=,+ -]", "_", part).strip(". ") or "_" for part in name.split("/")]
        # purge_step hides what an earlier attempt at the same run left in this folder
        self.writer = SummaryWriter(str(Path(folder, *parts)), purge_step=0, flush_secs=FLUSH_SECONDS)
        rows = [f"| {key} | {value} |".replace("\n", " ") for key, value in _flat(params).items()]
        self.writer.add_text("params", "\n".join(["| name | value |", "|---|---|", *rows]), 0)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, float(value), step)

    def close(self, is_finished: bool) -> None:
        self.writer.close()


class _MLflow:
    def __init__(self, uri: str, experiment: str, name: str, params: dict[str, Any]) -> None:
        with _restrained():
            from mlflow.entities import Metric, Param

            self.metric, self.client = Metric, _client(uri)
            self.run_id = self.client.create_run(_experiment_id(self.client, experiment), run_name=name).info.run_id
            entries = [Param(_mlflow_key(key), value) for key, value in _flat(params).items()]
            for i in range(0, len(entries), BATCH):
                self.client.log_batch(self.run_id, params=entries[i : i + BATCH], synchronous=True)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        now = int(1000 * time.time())
        values = {_mlflow_key(key): float(value) for key, value in numbers.items()}
        # an infinity would come back as 1.8e308 and flatten every chart; NaN is shown as a gap
        finite = {key: value if math.isfinite(value) else math.nan for key, value in values.items()}
        metrics = [self.metric(key, value, now, step) for key, value in finite.items()]
        with _restrained():
            self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def close(self, is_finished: bool) -> None:
        with _restrained():
            self.client.set_terminated(self.run_id, "FINISHED" if is_finished else "FAILED")


@contextmanager
def _restrained() -> Iterator[None]:
    """Hold MLflow to `MLFLOW_LIMITS` in the block; it reads them from the environment, which is put right again."""
    with _mlflow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its libraries, about each other
        ours = {key: value for key, value in MLFLOW_LIMITS.items() if key not in os.environ}
        os.environ.update(ours)
        try:
            yield
        finally:
            for key in ours:
                os.environ.pop(key, None)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient  # its own object: the module's functions share one active run in the whole process

    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:  # another process was faster
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise


def _mlflow_key(name: str) -> str:
    """Return the name with what MLflow allows in names: `betas[0]` becomes `betas_0`."""
    return re.sub(r"[^\w. :/-]+", "_", name).strip("_")


def _flat(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the parameters as text, those of nested dictionaries as `outer.inner`."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat
