"""What MkDocs does beside building pages: formulas become MathML, published records become reports."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from frankenstein.compare import report

RECORDS = Path(__file__).parent / "records"
FORMULA = re.compile(r"\$([^$\n]+)\$")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace formulas between dollar signs, leaving code alone: no script, no request to anybody."""
    parts = CODE.split(markdown)
    return "".join(
        part if i % 2 else FORMULA.sub(lambda match: convert(match[1]), part) for i, part in enumerate(parts)
    )


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the report of each published comparison, as `frankenstein report` writes it."""
    for folder in ("compare", "small"):
        with tempfile.TemporaryDirectory() as place:
            page = report.write_html(Path(place), report.load(RECORDS / folder, print))
            files.append(File.generated(config, f"reports/{folder}.html", content=page.read_text(encoding="utf-8")))
    return files
