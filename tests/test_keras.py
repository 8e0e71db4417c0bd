"""The Keras optimizer on every backend that is installed, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
N_TESTS = 20  # of both files, that of JAX alone included
COPIES = "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # of Keras's own variables
FILES = [str(HERE / "keras_backend.py"), str(HERE.parent / "frankenstein" / "keras.py")]  # its doctest


@pytest.mark.skipif(find_spec("keras") is None, reason="needs Keras: pip install '.[keras]'")
@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_on_backend(backend):
    if find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", COPIES, *FILES]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    n_passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert n_passed == (N_TESTS if backend == "jax" else N_TESTS - 1)


@pytest.mark.parametrize(
    "missing, message",
    [
        (
            "keras",
            "frankenstein.keras needs Keras; pip install '.[keras]' (in the checkout), and torch, JAX or TensorFlow",
        ),
        ("jax", "Keras needs jax as it is set; install that, or set KERAS_BACKEND to another beforehand"),
    ],
)
def test_what_is_missing_is_one_line(missing, message):
    code = f"import sys; sys.modules[{missing!r}] = None\nimport frankenstein.keras"
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr.strip().splitlines()[-1] == f"ImportError: {message}"
