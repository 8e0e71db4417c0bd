"""Generated blocks of README and docs are filled; `docs/generate.py --check` says whether they are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "<!-- gen" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_generated_block_is_empty(page):
    """Guards against a marker that the generator does not recognise and leaves as it is."""
    blocks = re.findall(r"<!-- generated: (.*?) -->\n(.*?)<!-- end -->", page.read_text(), re.DOTALL)
    assert len(blocks) == page.read_text().count("<!-- generated:")
    assert [name for name, content in blocks if not content.strip()] == []
