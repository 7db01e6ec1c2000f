"""The tables of `docs/design` list what there is in the source: no more, no less, and by its value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.architecture import design_tables
from tests.architecture.design_tables import ROOT

DESIGN = ROOT.parent / "docs" / "design"


@pytest.mark.parametrize(
    ("page", "heading", "found"),
    [
        ("time-limits.md", "Constants", design_tables.time_limits),
        ("threads-and-locks.md", "Threads", design_tables.threads),
        ("threads-and-locks.md", "Locks", design_tables.locks),
    ],
)
def test_a_table_lists_what_the_source_has(page: str, heading: str, found: Callable[..., Any]) -> None:
    listed, there = design_tables.rows(DESIGN / page, heading), found(ROOT)
    assert {"not in the table": there - listed, "not in the source": listed - there} == {
        "not in the table": set(),
        "not in the source": set(),
    }


def test_each_file_of_the_schedulers_core_answers_one_question() -> None:
    core = ROOT / "scheduler" / "core"
    files = [path.name for path in core.glob("*.py") if path.name != "__init__.py"]
    folders = [f"{path.parent.name}/" for path in core.glob("*/__init__.py")]
    assert sorted(design_tables.listed_files(DESIGN / "architecture.md", "Cores")) == sorted(files + folders)


SOURCE = """
import threading, trio
from _thread import start_new_thread
SHORT_S: float = 0.5
lock = threading.Lock()
class A:
    _shared = threading.Condition()
    def __init__(self):
        self._own = threading.RLock()
        threading.Thread(target=print).start()
    async def wait(self):
        await trio.to_thread.run_sync(print)
        token.run_sync_soon(print)
        nursery.run_sync(print)
def begin():
    own = trio.Lock()
    start_new_thread(print, ())
"""


def test_every_kind_of_constant_thread_and_lock_is_found(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "file.py").write_text(SOURCE)
    assert design_tables.time_limits(tmp_path) == {("SHORT_S", "room/file.py", "0.5")}
    assert {name for name, _ in design_tables.threads(tmp_path)} == {"A.__init__", "A.wait", "begin"}
    assert {name for name, _ in design_tables.locks(tmp_path)} == {"lock", "A._shared", "A._own", "begin.own"}
