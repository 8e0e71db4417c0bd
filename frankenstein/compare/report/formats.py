"""A table as data, and as CSV, LaTeX or Markdown. What the tables hold is decided in `tables.py`."""

from __future__ import annotations

import csv as csv_files
import io
import math
import re
from dataclasses import dataclass, field

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # a bracket or a star at the beginning of a row would be an argument of the \\ before it
    "*": "{*}",
}
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: What people read.
        is_best: Whether it is the best of its kind, or level with it: shown bold.
        numbers: The same in full for a CSV file, by what each is; the name of the main number is empty.
    """

    text: str
    is_best: bool = False
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table as data.

    Attributes:
        name: For files and anchors: lower case, with hyphens.
        title: For people.
        columns: Headings; the first column names what a row is about.
        rows: As many cells each as there are columns.
        notes: What a reader must know beside it.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def csv(table: Table) -> str:
    """Return the table with all digits: a column for each number of a cell ("tuned", "tuned low", ...).

    A miss is `inf`; what was not measured is empty.
    """
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    header: list[str] = []
    values: list[list[str]] = []
    for name, cells in zip(table.columns, columns, strict=True):
        keys = list(dict.fromkeys(key for cell in cells for key in cell.numbers))
        header += [f"{name} {key}".strip() for key in keys] or [name]
        values += [[_number(cell.numbers.get(key)) for cell in cells] for key in keys] or [[c.text for c in cells]]
    file = io.StringIO()
    csv_files.writer(file, lineterminator="\n").writerows([header, *zip(*values, strict=True)])
    return file.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else str(value)


def latex(table: Table) -> str:
    """Return the table for LaTeX; it needs the package booktabs."""

    def line(texts: list[str]) -> str:
        return " & ".join(texts) + r" \\"

    rows = [[_latex_bold(_latex(cell.text), cell.is_best) for cell in row] for row in table.rows]
    notes = [rf"\par\smallskip\footnotesize {_latex('; '.join(table.notes))}"] if table.notes else []
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            line([_latex(name) for name in table.columns]),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def _latex(text: str) -> str:
    pieces = _MINUS.split(" ".join(text.split()))
    return "$-$".join("".join(_LATEX.get(letter, letter) for letter in piece) for piece in pieces)


def _latex_bold(text: str, is_bold: bool) -> str:
    return rf"\textbf{{{text}}}" if is_bold else text


def markdown(table: Table) -> str:
    """Return the table for Markdown, without title and notes."""

    def line(texts: list[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    rows = [[f"**{_markdown(c.text)}**" if c.is_best else _markdown(c.text) for c in row] for row in table.rows]
    rule = "|---|" + "---:|" * (len(table.columns) - 1)
    return "\n".join([line([_markdown(name) for name in table.columns]), rule, *map(line, rows)])


def _markdown(text: str) -> str:
    """Return the text with everything escaped that Markdown would take for its own."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*_`]|(?<=\])\()", r"\\\1", text)
