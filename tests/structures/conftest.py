from __future__ import annotations

import pytest

from frankenstein.cli import main
from frankenstein.structures import charts, page


@pytest.fixture
def relax(tmp_path, capsys, monkeypatch):
    """Run the command in this process; return its exit code, its output, and the lines that it said.

    Charts, and the script that draws them, take seconds and are left out; `test_relax_report.py` has them.
    """
    monkeypatch.setattr(page, "vega_script", lambda: "")
    monkeypatch.setattr(charts, "write_figure", lambda *_: None)

    def run(*arguments, out=tmp_path / "out"):
        capsys.readouterr()
        code = main(["relax", *map(str, arguments), "--out", str(out)])
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("frankenstein: ")]

    return run
