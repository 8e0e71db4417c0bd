"""ASE's own tests of optimizers, on ours."""

from __future__ import annotations

import re

import pytest
from ase_suite import run

# Those of ASE 3.29 that use an optimizer and need no program or package beside it; some are expected to differ.
N_PASSED = 40


@pytest.mark.slow
def test_ases_own_tests_pass():
    try:
        done = run(None)
    except FileNotFoundError as missing:
        pytest.skip(f"this ASE came without its tests: {missing}")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= N_PASSED, done.stdout[-3000:]
