from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
MODULES = {"my_problems.py"}  # for `frankenstein compare --module`, which has its own test below
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.name not in MODULES)
# What each example must print: it shows that it did its work, not only that it ran.
EXPECTED = {
    "ase_relax.py": r"Frankenstein\s+(1\d|2[0-5]) force calls, 5\.47\d eV, converged: True",
    "torch_digits.py": r"test accuracy after 20 epochs: 0\.9[5-9]\d",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path):
    done = subprocess.run([sys.executable, "-W", "error", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[path.name], done.stdout)


def test_the_module_of_docs_extend(tmp_path, capsys):
    """The command of docs/extend.md, shortened: a problem and an optimizer from outside the package."""
    from frankenstein.cli import main

    path = FOLDER / "my_problems.py"
    n_lines = len([line for line in path.read_text().splitlines() if line and not line.startswith(("import", "from"))])
    assert n_lines <= 40
    command = ["compare", "--module", str(path), "--problems", "diabetes", "--optimizers", "nadam", "adam"]
    assert main([*command, "--trials", "3", "--seeds", "2", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "diabetes: squared error (lower is better), target 0.56" in out
    assert "NAdam" in out
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert {record["outcome"] for record in records} == {"finished"}
    assert all(list(record["provenance"]["modules"]) == ["my_problems.py"] for record in records)
    assert min(record["score"] for record in records) < 0.56
