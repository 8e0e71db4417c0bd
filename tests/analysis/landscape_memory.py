"""The plane of a trajectory of 20 GB, in a process of its own: `python landscape_memory.py FOLDER` prints its peak."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np

N_PARAMETERS, N_SNAPSHOTS = 100_000_000, 50
N_NUMBERS = 250_000  # at the end of each file, that are not holes
SHAPE = (10_000, 10_000)


def write(folder):
    """Write snapshots as `Snapshots` does, without their zeros: a random walk of the last parameters."""
    from frankenstein.analysis.landscape.buffers import packed

    folder.mkdir()
    parameters = [{"name": "weight", "shape": SHAPE, "dtype": "float32"}]
    (folder / "layout.json").write_text(json.dumps({"format": 1, "parameters": parameters}))
    buffers = packed({})
    zeros = zlib.crc32(bytes(4 * (N_PARAMETERS - N_NUMBERS)))
    rng, place = np.random.default_rng(0), np.zeros(N_NUMBERS, "<f4")
    for step in range(N_SNAPSHOTS):
        place += rng.standard_normal(N_NUMBERS, "f4")
        checksum, of_buffers = zlib.crc32(place.data, zeros), f"buffers-{zlib.crc32(buffers):08x}"
        (folder / f"step-{step:09}.{of_buffers}.pt").write_bytes(buffers)
        with (folder / f"step-{step:09}.weights-{checksum:08x}.{of_buffers}.npy").open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (N_PARAMETERS,)}
            np.lib.format.write_array_header_1_0(file, header)
            file.seek(4 * (N_PARAMETERS - N_NUMBERS), 1)
            file.write(place.data)


def main(folder):
    from frankenstein.analysis.landscape import Snapshots, trajectory_plane

    trajectory_plane(Snapshots(folder / "run"), folder / "plane")
    status = Path("/proc/self/status").read_text()  # not ru_maxrss, which begins at that of the parent
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
