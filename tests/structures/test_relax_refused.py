"""What `frankenstein relax` refuses, in one line, before it computes anything."""

from __future__ import annotations

import importlib.util
import os

import pytest
from relax_cases import CALCULATORS, outcomes, write_clusters

SMALL = ("--calculator", "lj", "--maxstep", "0.1")


@pytest.mark.parametrize(
    "arguments, told",
    [
        ((), "the following arguments are required: --calculator"),
        (("--calculator", "xtb"), "unknown calculator 'xtb'; allowed are lj, emt, chgnet, sevennet, module:Factory"),
        ((*SMALL, "--cell"), "--cell is for periodic structures, and lj is for clusters"),
        ((*SMALL, "--device", "cuda"), "--device is for chgnet, sevennet; lj takes one structure at a time"),
        ((*SMALL, "--batch", "100"), "--batch is for chgnet, sevennet"),
        ((*SMALL, "--index", "first"), "--index 'first' says no frames"),
        ((*SMALL, "--fmax", "-1"), "'-1' is not a number above 0"),
        (("--calculator", "lj", "--maxstep", "2"), "--maxstep 2 is more than 1"),
        ((*SMALL, "--maxcalls", "0"), "'0' is not a whole number of at least 1"),
        ((*SMALL, "--workers", "0"), "'0' is not a whole number of at least 1"),
        ((*SMALL, "--compare", "fyre"), "unknown optimizer 'fyre'; did you mean 'fire'?"),
        (("--calculator", f"{CALCULATORS}:Counted", "--cell"), "does not give it"),
        (("--calculator", "slow.py"), "which class? slow.py:NAME"),
        (("--calculator", "mace"), "mace is mace.calculators:mace_mp"),
        ((*SMALL, "-o"), "unrecognized arguments: -o (see `frankenstein relax --help`)"),
    ],
)
def test_wrong_arguments_are_one_line(relax, tmp_path, arguments, told):
    code, _, said = relax(write_clusters(tmp_path / "some.xyz"), *arguments)
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith("frankenstein: error: ")
    assert told in said[0]
    assert not (tmp_path / "out").exists()


def test_missing_packages_name_the_extra(relax, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    for name, extra in (("ase", "ase"), ("rich", "report")):
        monkeypatch.setattr(
            "frankenstein.cli.inputs.find_spec", lambda asked, name=name: None if asked == name else there(asked)
        )
        code, _, said = relax(tmp_path / "some.xyz", *SMALL)
        assert code == 2
        assert said == [f"frankenstein: error: this command needs {name}: pip install '.[{extra}]' (in the checkout)"]


def test_another_run_in_the_same_folder_is_refused(relax, tmp_path):
    file = write_clusters(tmp_path / "some.xyz")
    out = tmp_path / "out"
    relax(file, *SMALL)
    for arguments, told in (
        ((file, *SMALL, "--fmax", "0.02"), f"{out} holds a relaxation with fmax 0.01, not 0.02; choose another folder"),
        ((file, "--calculator", f"{CALCULATORS}:Failing"), f"with calculator lj, not {CALCULATORS}:Failing"),
        ((file, *SMALL, "--index", "0"), "with index :, not 0"),
        ((write_clusters(tmp_path / "more.xyz"), *SMALL), "which is not named now"),
    ):
        code, _, said = relax(*arguments)
        assert code == 2
        assert told in said[-1]
    write_clusters(file, 2)
    assert "another content of" in relax(file, *SMALL)[2][0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    code, _, said = relax(file, *SMALL, out=tmp_path / "mine")
    assert code == 2
    assert "is not empty and holds no relaxation" in said[0]


def test_a_folder_in_use_is_refused(relax, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    file = write_clusters(tmp_path / "some.xyz")
    relax(file, *SMALL)
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        code, _, said = relax(file, *SMALL)
    finally:
        os.close(handle)
    assert code == 2
    assert "is in use by another run" in said[0]


def test_damaged_files_of_the_folder(relax, tmp_path):
    file, curves = write_clusters(tmp_path / "some.xyz"), tmp_path / "out" / "curves.jsonl"
    relax(file, *SMALL)
    whole, lines = outcomes(tmp_path / "out"), curves.read_bytes().splitlines(keepends=True)
    curves.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # a kill in the middle of a line
    assert relax(file, *SMALL)[0] == 0
    assert outcomes(tmp_path / "out") == whole
    curves.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    code, _, said = relax(file, *SMALL)
    assert code == 2
    assert "line 2: damaged" in said[0]
    (tmp_path / "out" / "settings.json").write_text("{")
    code, _, said = relax(file, *SMALL)
    assert code == 2
    assert "settings.json is damaged" in said[0]


def test_a_folder_that_is_a_file_is_said_to_be_one(relax, tmp_path):
    file = write_clusters(tmp_path / "some.xyz")
    code, _, said = relax(file, *SMALL, out=file)
    assert code == 2
    assert said == [f"frankenstein: error: cannot use {file}: it is a file; choose another folder with --out"]
