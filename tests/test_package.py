"""What importing the package loads, and says when something is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_import_needs_numpy_only():
    code = (
        "import sys, frankenstein, frankenstein.rule, numpy; "
        "heavy = {'torch', 'jax', 'keras', 'scipy', 'sklearn', 'vl_convert', 'rich', 'ase'} & set(sys.modules); "
        "assert not heavy, heavy; assert frankenstein.__version__; "
        "assert frankenstein.Frankenstein.__module__ == 'frankenstein.torch' and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch():
    """Guards against "No module named 'torch'", which does not say what to install."""
    code = (
        "import sys; sys.modules['torch'] = None; from frankenstein import Rule; from frankenstein import Frankenstein"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and "pip install '.[torch]'" in last
    assert "The above exception was the direct cause" in done.stderr


def test_unknown_attribute():
    import frankenstein

    assert set(frankenstein.__all__) <= set(dir(frankenstein))
    with pytest.raises(AttributeError, match="nothing"):
        frankenstein.nothing  # noqa: B018
