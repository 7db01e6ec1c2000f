"""Docs that describe the tree are true to it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

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


@pytest.fixture
def check_links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_links", DOCS / "check_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_of_the_docs_leads_somewhere_and_every_file_that_they_name_exists(check_links: ModuleType) -> None:
    assert check_links.main() == 0


def test_a_file_that_was_renamed_is_found_in_the_docs(check_links: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "trio_dask").mkdir()
    (tmp_path / "trio_dask" / "new.py").touch()
    page = tmp_path / "page.md"
    page.write_text(
        "`trio_dask/new.py`, `new.py`,\n`python docs/old.py`, `python mine.py`, `old.py`\n```\n`mine.py`\n```\n",
        encoding="utf-8",
    )
    assert check_links.misnamed(page, tmp_path) == [
        f"page.md:2: no such file: {name}" for name in ("docs/old.py", "old.py")
    ]
