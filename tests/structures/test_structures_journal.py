from __future__ import annotations

import numpy as np
import pytest

from frankenstein.models import Prediction
from frankenstein.structures.journal import Call, Journal


def made(i, has_stress=False):
    rng = np.random.default_rng(i)
    stress = rng.normal(size=(3, 3)) if has_stress else None
    prediction = Prediction(float(rng.normal()), rng.normal(size=(4, 3)), stress)
    return Call(rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), float(i), prediction)


def assert_same(one, other):
    np.testing.assert_array_equal(one.positions, other.positions)
    np.testing.assert_array_equal(one.cell, other.cell)
    np.testing.assert_array_equal(one.prediction.forces, other.prediction.forces)
    assert (one.seconds, one.prediction.energy) == (other.seconds, other.prediction.energy)
    if one.prediction.stress is None:
        assert other.prediction.stress is None
    else:
        np.testing.assert_array_equal(one.prediction.stress, other.prediction.stress)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "one.calls", 4)
    for i in range(3):
        journal.append(made(i, has_stress=i == 1))
    return journal


def test_what_is_written_is_read(journal):
    for i, call in enumerate(journal.calls()):
        assert_same(call, made(i, has_stress=i == 1))
    assert i == 2


def test_no_file_is_no_calls(tmp_path):
    journal = Journal(tmp_path / "none.calls", 4)
    journal.mend()
    assert list(journal.calls()) == []


def test_a_call_that_was_cut_short_is_cut_off(journal):
    n_whole = journal.path.stat().st_size
    with open(journal.path, "ab") as file:
        file.write(b"\1" * (journal.n_bytes - 1))
    journal.mend()
    assert journal.path.stat().st_size == n_whole
    journal.append(made(3))
    assert len(list(journal.calls())) == 4


@pytest.mark.parametrize("where", [0, 100, -1])
def test_a_damaged_call_is_the_end(journal, where):
    data = bytearray(journal.path.read_bytes())
    data[journal.n_bytes + where % journal.n_bytes] ^= 1  # a bit of the second
    journal.path.write_bytes(data)
    journal.mend()
    (only,) = journal.calls()
    assert_same(only, made(0))
