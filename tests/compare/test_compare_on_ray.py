"""The whole command on a real Ray cluster of two nodes, with real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from driven import wait_until

from frankenstein.cli import main

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install '.[ray]'"),
    # JAX, where another test has loaded it, warns of every fork; Ray's are followed by exec at once.
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),
]

COMMAND = [sys.executable, "-c", "import sys; from frankenstein.cli import main; sys.exit(main())", "compare"]
WHAT = ["--problems", "beale", "--optimizers", "sgd,adam", "--trials", "12", "--seeds", "2"]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of this machine, one processor each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


def records(folder):
    path = folder / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def workers(cluster):
    """The processes of this cluster that run cells at this moment: Ray names them so."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (path / "cmdline").read_bytes().startswith(b"ray::_run"):
                found.append(int(path.name))
    return found


def has_failed(cluster, folder):
    """Kill workers until one was hit in the middle of a run."""
    for pid in workers(cluster)[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return any(record["outcome"] == "failed" for record in records(folder))


def test_kills_cost_no_finished_run(cluster, tmp_path):
    """A worker is killed, then the driver; the same command goes on, and the scores are those of local processes."""
    remote = [*COMMAND, *WHAT, "--executor", "ray", "--ray-address", cluster.address, "--out", str(tmp_path / "ray")]
    first = subprocess.Popen(remote, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(records(tmp_path / "ray")) >= 3)
    wait_until(lambda: has_failed(cluster, tmp_path / "ray"))
    first.kill()
    first.communicate()
    kept = records(tmp_path / "ray")
    reasons = {record["reason"] for record in kept if record["outcome"] == "failed"}
    assert reasons == {"the worker process died (killed, or out of memory?)"}
    again = subprocess.run(remote, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert records(tmp_path / "ray")[: len(kept)] == kept

    assert main(["compare", *WHAT, "--workers", "2", "--out", str(tmp_path / "local")]) == 0
    scores = [
        {record["cell"]: record["score"] for record in records(tmp_path / name) if record["outcome"] != "failed"}
        for name in ("ray", "local")
    ]
    assert scores[0] == scores[1]
