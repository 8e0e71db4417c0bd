from __future__ import annotations

import gzip
import json
import re

import pytest

from frankenstein.compare import records as R


def record(cell, **fields):
    values = {"schema": 1, "problem": "p", "optimizer": "o", "lr": 1e-3, "seed": 0, "split": "test"}
    return {**values, "cell": cell, "outcome": "finished", "provenance": {}, **fields}


def write(folder, *cells):
    with R.appending(folder) as append:
        for cell in cells:
            append(record(cell))


def cells(folder, report=pytest.fail):
    return [entry["cell"] for entry in R.read(folder, report)]


def test_round_trip_appends_and_replaces(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert cells(folder) == []
    write(folder, "a", "b")
    write(folder, "c")
    with R.appending(folder) as append:
        append(record("a", outcome="diverged"))
    assert cells(folder) == ["a", "b", "c"]
    assert R.read(folder, pytest.fail)[0]["outcome"] == "diverged"
    assert len((folder / R.FILE).read_text().splitlines()) == 4  # append-only


@pytest.mark.parametrize("damage", [b'{"schema": 1, "ce', b"\x00\xff{", b'{"schema": 1}', b"[1]"])
@pytest.mark.parametrize("ends", [b"", b"\n"])
def test_damaged_last_line_is_reported_and_skipped(tmp_path, damage, ends):
    write(tmp_path, "a", "b")
    with open(tmp_path / R.FILE, "ab") as file:
        file.write(damage + ends)
    said = []
    assert cells(tmp_path, said.append) == ["a", "b"]
    assert len(said) == 1
    assert re.search(r"records.jsonl: line 3, the last one, .*skipped", said[0])


@pytest.mark.parametrize("n_bytes", range(1, 60, 7))
def test_going_on_after_a_kill_in_mid_line(tmp_path, n_bytes):
    """Whatever part of the last line was written, the next append leaves a file without damage."""
    write(tmp_path, "a", "b")
    path = tmp_path / R.FILE
    path.write_bytes(path.read_bytes()[:-n_bytes])
    write(tmp_path, "c")
    assert cells(tmp_path) == ["a", "c"]


def test_going_on_after_a_damaged_whole_line(tmp_path):
    write(tmp_path, "a")
    with open(tmp_path / R.FILE, "ab") as file:
        file.write(b"garbage\n")
    write(tmp_path, "b")
    assert cells(tmp_path) == ["a", "b"]


def test_damage_in_the_middle_is_an_error(tmp_path):
    write(tmp_path, "a")
    with open(tmp_path / R.FILE, "ab") as file:
        file.write(b"garbage\n")
        file.write(json.dumps(record("b")).encode() + b"\n")
    with pytest.raises(R.RecordError, match=r"records.jsonl: line 2 is not a JSON object; mend or remove"):
        cells(tmp_path)


def test_other_schema_is_an_error(tmp_path):
    (tmp_path / R.FILE).write_text(json.dumps(record("a", schema=99)) + "\n" + json.dumps(record("b")) + "\n")
    with pytest.raises(R.RecordError, match="line 1 has schema 99, this version reads schema 1"):
        cells(tmp_path)


def test_gzipped_records_are_read_and_added_to(tmp_path):
    write(tmp_path, "a")
    path = tmp_path / R.FILE
    (tmp_path / f"{R.FILE}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    write(tmp_path, "b")
    assert cells(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("content", [b"no gzip at all", gzip.compress(b"x" * 1000)[:20]])
def test_damaged_gzip_is_an_error(tmp_path, content):
    (tmp_path / f"{R.FILE}.gz").write_bytes(content)
    with pytest.raises(R.RecordError, match=r"cannot read .*records.jsonl.gz"):
        cells(tmp_path)


def test_one_writer_at_a_time(tmp_path):
    with R.appending(tmp_path), pytest.raises(R.RecordError, match="in use by another run"):
        write(tmp_path, "a")
    write(tmp_path, "a")
    assert cells(tmp_path) == ["a"]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(R.RecordError, match=r"cannot write .*; choose a writable folder with --out"):
        write(tmp_path / "file" / "folder", "a")


def test_a_record_that_is_not_json_never_reaches_the_file(tmp_path):
    with R.appending(tmp_path) as append:
        with pytest.raises(ValueError, match="not JSON compliant"):
            append(record("a", score=float("nan")))
        append(record("b"))
    assert cells(tmp_path) == ["b"]


def test_provenance_names_what_a_reader_needs():
    origin = R.provenance()
    assert origin["versions"].keys() == {"python", "frankenstein", "numpy", "torch", "scikit-learn"}
    assert all(origin["versions"].values())
    assert origin["git"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", origin["git"])
    assert "cores" in origin["device"]
    json.dumps(origin, allow_nan=False)
