from __future__ import annotations

import gzip
import itertools
import json
import signal
import subprocess
import sys
import textwrap

import pytest
from compare.made_records import made_records

from frankenstein.compare.store import records as R
from frankenstein.compare.store.merge import Merged, merge, read_references

RECORDS = made_records(n_problems=1, n_optimizers=2, n_trials=2, n_seeds=2, n_points=4)


def folder(path, records, references=None):
    with R.appending(path, pytest.fail) as (_, append):
        for record in records:
            append(record)
    if references is not None:
        (path / "references.json").write_text(json.dumps(references))
    return path


def held(path):
    return R.read(path, pytest.fail)


def content(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def by_cell(records):
    return {record["cell"]: record for record in records}


def test_all_records_are_there_once_and_merging_again_changes_nothing(tmp_path):
    one, two = folder(tmp_path / "one", RECORDS[:7]), folder(tmp_path / "two", RECORDS[5:])
    before = content(one), content(two)
    target = tmp_path / "new" / "target"
    n = len(RECORDS)
    assert merge(target, [one, two], pytest.fail) == Merged(n, 0, 0)
    assert held(target) == RECORDS
    after = content(target)
    assert after.keys() == {R.FILE}
    assert merge(target, [one, two], pytest.fail) == Merged(0, n, 0)
    assert merge(target, [two, one], pytest.fail) == Merged(0, n, 0)
    assert content(target) == after
    assert (content(one), content(two)) == before


def test_a_target_with_records_keeps_them(tmp_path):
    target, source = folder(tmp_path / "target", RECORDS[:3]), folder(tmp_path / "source", RECORDS[1:])
    start = (target / R.FILE).read_bytes()
    assert merge(target, [source], pytest.fail) == Merged(len(RECORDS) - 3, 2, 0)
    assert held(target) == RECORDS
    assert (target / R.FILE).read_bytes().startswith(start)  # append-only


def version(outcome, when):
    return RECORDS[0] | {"outcome": outcome, "finished_at": when}


EARLY, LATE = "2026-05-01T00:00:00+00:00", "2026-05-01T00:30:00+00:00"
BETTER = [  # the better one, the other one
    (version("finished", LATE), version("finished", EARLY)),
    (version("finished", EARLY), version("failed", LATE)),
    (version("diverged", EARLY), version("failed", LATE)),
    (version("diverged", LATE), version("finished", EARLY)),
    (version("failed", LATE), version("failed", EARLY)),
    (version("finished", "2026-05-01T00:30:00+00:00"), version("finished", "2026-05-01T02:00:00+02:00")),
    (version("finished", EARLY), version("finished", "yesterday")),
]


@pytest.mark.parametrize("better, other", BETTER)
def test_of_two_records_of_a_cell_the_better_one_wins_in_either_order(tmp_path, better, other):
    good, bad = folder(tmp_path / "good", [better, RECORDS[1]]), folder(tmp_path / "bad", [other])
    told = [True] if better["outcome"] != other["outcome"] else []  # that the times differ need not be said
    for name, sources in {"one": [good, bad], "two": [bad, good]}.items():
        said = []
        assert merge(tmp_path / name, sources, said.append) == Merged(2, 0, 0)
        assert by_cell(held(tmp_path / name)) == by_cell([better, RECORDS[1]])
        assert [f"{sources[1]}: 1 runs were there already, 1 with another result" in line for line in said] == told
    assert merge(good, [bad], said.append) == Merged(0, 1, 0)
    assert merge(bad, [good], said.append) == Merged(1, 0, 1)
    assert by_cell(held(bad)) == by_cell(held(good)) == by_cell([better, RECORDS[1]])


def test_records_that_only_differ_in_content_are_chosen_alike_in_every_order(tmp_path):
    versions = [RECORDS[0] | {"score": score} for score in (0.25, 0.5, 0.75)]
    sources = [folder(tmp_path / f"source{i}", [record]) for i, record in enumerate(versions)]
    results = []
    for i, order in enumerate(itertools.permutations(sources)):
        merge(tmp_path / str(i), order, lambda _: None)
        results += held(tmp_path / str(i))
    assert len(results) == 6
    assert all(record == results[0] for record in results)


def test_records_are_appended_in_the_order_they_were_finished(tmp_path):
    """A reader takes a folder's last lines for its newest configuration."""
    sources = [folder(tmp_path / "late", RECORDS[6:]), folder(tmp_path / "early", RECORDS[:6])]
    merge(tmp_path / "target", sources, pytest.fail)
    assert held(tmp_path / "target") == RECORDS


def test_sources_may_be_gzipped_read_only_or_written_to_right_now(tmp_path):
    zipped = folder(tmp_path / "zipped", RECORDS[:4])
    (zipped / f"{R.FILE}.gz").write_bytes(gzip.compress((zipped / R.FILE).read_bytes()))
    (zipped / R.FILE).unlink()
    read_only = folder(tmp_path / "read-only", RECORDS[4:8])
    for path in (read_only / R.FILE, read_only):
        path.chmod(0o555)
    busy = folder(tmp_path / "busy", RECORDS[8:-1])
    said = []
    with R.appending(busy, pytest.fail) as (_, append):
        append(RECORDS[-1])
        with open(busy / R.FILE, "ab") as file:
            file.write(b'{"schema":2,"cell":"half a l')
        before = content(zipped), content(read_only), content(busy)
        merge(tmp_path / "target", [zipped, read_only, busy], said.append)
        assert (content(zipped), content(read_only), content(busy)) == before
    assert held(tmp_path / "target") == RECORDS
    assert len(said) == 1 and "busy" in said[0] and "skipped" in said[0]


def refused(target, sources, match):
    with pytest.raises(R.RecordError, match=match) as error:
        merge(target, sources, pytest.fail)
    assert "\n" not in str(error.value)


def test_wrong_folders_are_refused_and_nothing_is_touched(tmp_path):
    good, empty = folder(tmp_path / "good", RECORDS), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(good)
    target = tmp_path / "target"
    before = content(good)
    for source in ("good", "good/../good", "link"):
        refused(good, [tmp_path / source], "is both source and target of the merge; leave it out")
    refused(target, [good, tmp_path / "absent"], "absent is no folder; name a run folder")
    refused(target, [good, tmp_path / "file"], "file is not a folder; name a run folder")
    refused(target, [good, empty], r"no records in .*empty")
    refused(tmp_path / "file", [good], "cannot use .*file")
    assert not target.exists()
    assert content(good) == before


def test_a_folder_in_use_is_no_target(tmp_path):
    source, target = folder(tmp_path / "source", RECORDS[:2]), folder(tmp_path / "target", RECORDS[2:])
    with R.appending(target, pytest.fail):
        refused(target, [source], "is in use by another run")
    assert held(target) == RECORDS[2:]


def test_records_of_another_schema_are_named(tmp_path):
    source, target = folder(tmp_path / "source", RECORDS), tmp_path / "target"
    lines = (source / R.FILE).read_text().splitlines()
    lines[1] = lines[1].replace('"schema":2', '"schema":1')
    (source / R.FILE).write_text("\n".join(lines))
    refused(target, [source], r"source.records.jsonl: line 2 has schema 1, this version reads schema 2")
    assert not target.exists()


KILLED = """
    import os, signal, sys
    from contextlib import contextmanager
    from pathlib import Path
    from frankenstein.compare.store import merge, records

    target, n = Path(sys.argv[1]), int(sys.argv[2])
    appending = records.appending

    @contextmanager
    def killed_after_n(folder, report):
        with appending(folder, report) as (known, append):
            def append_or_die(record, done=[]):
                append(record)
                done.append(record)
                if len(done) == n:
                    path = target / records.FILE
                    os.truncate(path, path.stat().st_size - 40)
                    os.kill(os.getpid(), signal.SIGKILL)
            yield known, append_or_die

    merge.appending = killed_after_n
    merge.merge(target, [Path(name) for name in sys.argv[3:]], print)
"""


@pytest.mark.parametrize("n", [1, 5, 11])
def test_a_kill_in_the_middle_of_a_line_loses_nothing(tmp_path, n):
    sources = [folder(tmp_path / "one", RECORDS[3:8]), folder(tmp_path / "two", RECORDS[8:])]
    target = folder(tmp_path / "target", RECORDS[:3])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), target, str(n), *sources]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    n_left = len(RECORDS) - 3 - (n - 1)
    said = []
    assert merge(target, sources, said.append) == Merged(n_left, n - 1, 0)
    assert len(said) == 1 and "killed while writing" in said[0]
    assert held(target) == RECORDS


def curve(title, score=0.5):
    return {"title": title, "source": "a paper", "step": [0, 10], "score": [0.1, score]}


def test_references_are_joined_and_a_different_one_of_the_same_title_is_left_out(tmp_path):
    ours = {"p": [curve("A"), curve("B")], "q": [curve("A", 0.7)]}
    theirs = {"p": [curve("C"), curve("B", 0.9), curve("A")], "r": [curve("D")]}
    target = folder(tmp_path / "target", RECORDS[:1], ours)
    sources = [folder(tmp_path / "source", RECORDS, theirs), folder(tmp_path / "plain", RECORDS[:1])]
    said = []
    merge(target, sources, said.append)
    joined = {"p": [curve("A"), curve("B"), curve("C")], "q": [curve("A", 0.7)], "r": [curve("D")]}
    assert read_references(target) == joined
    assert len(said) == 1 and "'B' of p differs from the one held; left out" in said[0]
    before = content(target)
    merge(target, sources, said.append)
    assert content(target) == before
    assert before.keys() == {R.FILE, "references.json"}


@pytest.mark.parametrize(
    "text, message",
    [("{", "is not JSON"), ("[]", "is not of the form"), ('{"p": [{"step": [1]}]}', "is not of the form")],
)
@pytest.mark.parametrize("where", ["source", "target"])
def test_damaged_references_are_an_error_and_nothing_is_added(tmp_path, text, message, where):
    source, target = folder(tmp_path / "source", RECORDS), folder(tmp_path / "target", RECORDS[:1])
    (tmp_path / where / "references.json").write_text(text)
    refused(target, [source], f"{where}.references.json {message}")
    assert held(target) == RECORDS[:1]


def test_records_that_cannot_be_read(tmp_path):
    source = tmp_path / "source"
    (source / R.FILE).mkdir(parents=True)
    refused(tmp_path / "target", [source], r"cannot read .*records.jsonl: Is a directory")
