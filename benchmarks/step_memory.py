"""Measure what one optimizer step needs in memory beside parameters, gradients and state, and what the state needs.

    python benchmarks/step_memory.py [--write]

Each row is a process of its own, on the shapes of ResNet-18. After three steps what the allocator holds for later is
given back, the system's mark of the largest resident memory is put down to where that stands, and one more step moves
it: that counts torch's tensors and what C code allocates alike, and only what is touched. Linux only. The tensors'
bytes alone are counted by torch's profiler. `--write` keeps the result in docs/records/step_memory.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step_time import RESNET, prepared, tensors_of
from torch import Tensor
from torch.optim import AdamW, Optimizer

from frankenstein.compare.store.provenance import provenance
from frankenstein.torch import Frankenstein

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "step_memory.json"
N_THREADS, N_REPEATS = 2, 3
PATHS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "plain": {"fused": False, "foreach": False},
}
FORMATS = ("float32", "bfloat16", "8bit")


def maker(optimizer: str, path: str, state_dtype: str) -> Callable[[list[Tensor]], Optimizer]:
    """Return what makes the optimizer of a row."""
    if optimizer == "AdamW":
        options = PATHS[path] if path != "plain" else {"foreach": False}
        return lambda params: AdamW(params, **options)
    return lambda params: Frankenstein(params, state_dtype=state_dtype, **PATHS[path])


def row_of(wanted: tuple[str, str, str]) -> dict[str, Any]:
    return measure(*wanted)


def measure(optimizer: str, path: str, state_dtype: str) -> dict[str, Any]:
    """Return a row of the table; to be called in a fresh process."""
    torch.set_num_threads(N_THREADS)
    ready = prepared(maker(optimizer, path, state_dtype), tensors_of(RESNET))
    peaks = [resident_peak(ready) for _ in range(N_REPEATS)]
    params = ready.param_groups[0]["params"]
    n_params = sum(param.numel() for param in params)
    entries = [value for param in params for value in ready.state[param].values() if isinstance(value, Tensor)]
    state = sum(value.nbytes for value in entries if value.dim())  # without AdamW's step counts
    return {
        "optimizer": optimizer,
        "path": path,
        "state_dtype": state_dtype,
        "state_bytes_per_param": state / n_params,
        "step_mib": median(peaks),
        "step_mib_range": [min(peaks), max(peaks)],
        "step_mib_of_tensors": profiled_peak(ready),
    }


def resident_peak(optimizer: Optimizer) -> float:
    """Return by how many MiB a step raises resident memory at its highest."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # puts VmHWM down to VmRSS
    before = status("VmRSS")
    optimizer.step()
    return (status("VmHWM") - before) / 1024


def status(name: str) -> int:
    """Return a number of kB that the system keeps about this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1])


def profiled_peak(optimizer: Optimizer) -> float:
    """Return the largest sum of MiB of tensors that exist at a time within a step only."""
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        parser.error("memory is measured with /proc/self/clear_refs, which this system lacks; run it on Linux")
    wanted = [("Frankenstein", path, state_dtype) for path in PATHS for state_dtype in FORMATS]
    wanted += [("AdamW", path, "float32") for path in PATHS]
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(row_of, wanted):
            rows.append(row)
            low, high = row["step_mib_range"]
            print(
                f"{row['optimizer']:12} {row['path']:8} {row['state_dtype']:9} state "
                f"{row['state_bytes_per_param']:6.3f} bytes per parameter; step {row['step_mib']:7.2f} MiB "
                f"({low:.2f} to {high:.2f}; tensors {row['step_mib_of_tensors']:.2f})",
                flush=True,
            )
    if options.write:
        n_params = sum(torch.Size(shape).numel() for shape in RESNET)
        content = {"network": "ResNet-18", "n_params": n_params, "n_threads": N_THREADS, "rows": rows}
        RECORD.write_text(json.dumps(content | {"provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
