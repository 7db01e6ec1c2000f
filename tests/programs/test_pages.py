"""Every block of the README and of docs/*.md is typed into a terminal, or says why it is not."""

import socket
from pathlib import Path

import pytest

from tests.programs.pages import RUN, blocks, run_page, shape
from tests.programs.programs import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.reason or block.language in RUN, f"{page.name}:{block.line}: precede it with <!-- not run: why -->"


def that_run() -> list[Path]:
    """All pages with something to type, but the one that needs SSH servers; `test_dask_ssh` has these."""
    pages = [page for page in PAGES if page.name != "ssh.md"]
    return [page for page in pages if any(block.commands and block.reason is None for block in blocks(page))]


@pytest.mark.parametrize("page", that_run(), ids=lambda page: page.name)
def test_a_page_does_what_it_shows(page: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_page(page, tmp_path, port)


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        ("Registered to: tcp://10.0.0.5:8786", "Registered to:   tcp://127.0.0.1:41003", True),
        ("took 1.76 s on 2 workers", "took 0.9 s on 16 workers", True),
        ("sum: 285", "sum: none", False),
        ("killed by ...", "x killed by SIGKILL; starting it again", True),
        ("killed by SIGKILL", "killed by SIGTERM", False),
    ],
)
def test_the_shape_of_a_line(shown: str, printed: str, alike: bool) -> None:
    assert bool(shape(shown).search(printed)) is alike


def test_a_page_that_promises_too_much_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.programs.pages.PATIENCE_S", 3)
    monkeypatch.setattr("tests.programs.pages.REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo one 1\none 2\ntwo\n```\n")
    with pytest.raises(AssertionError, match=r"\['page.md:1: two'\]"):
        run_page(page, tmp_path, 1)


@pytest.mark.parametrize("block", ["raise SystemExit(1)", ">>> 1 + 1\n3"])
def test_a_program_that_fails_is_found(tmp_path: Path, block: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```python\n{block}\n```\n")
    with pytest.raises(AssertionError, match="@@failed"):
        run_page(page, tmp_path, 1)
