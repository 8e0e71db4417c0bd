"""Formulas between dollar signs become MathML when the site is built: no script, no request to anybody."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r"\$([^$\n]+)\$")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the formulas of a page, leaving code alone (called by MkDocs)."""
    parts = CODE.split(markdown)
    return "".join(
        part if i % 2 else FORMULA.sub(lambda match: convert(match[1]), part) for i, part in enumerate(parts)
    )
