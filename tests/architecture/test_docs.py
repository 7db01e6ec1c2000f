"""Docs that describe the tree are true to it."""

import re
from pathlib import Path

import pytest

from tests.architecture import rules

DOCS = rules.ROOT.parent / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("0*.md"))
MAX_TERMS = 40


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.name[:4])
def test_a_decision_has_a_date_and_a_status(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(
        r"^Date: 20\d\d-\d\d-\d\d\. Status: (accepted|withdrawn|replaced by \[\d{4}\])", text, re.MULTILINE
    )
    assert f"]({path.name})" in (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")


def test_the_glossary_has_at_most_forty_terms_and_none_twice() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) == len(set(terms)) <= MAX_TERMS
