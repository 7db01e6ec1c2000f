"""What distributed has is here, or is missing with a sentence, and the page for those who come from there says so."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask._task_spec  # noqa: F401 - futures have the methods of its `TaskRef` then
import pytest

import trio_dask
from tests.client.cluster import MiniCluster, open_client
from trio_dask import Client, Future, LocalCluster, as_completed, unsupported_names

PAGE = Path(__file__).parents[1] / unsupported_names.PAGE
NAMES = json.loads((Path(__file__).parent / "distributed_names.json").read_text())
"""Public names of the version of distributed that it names, by the object that has them; `distributed` is the module.

Made with `distributed.__all__`, and with what `dir` says of the classes.
"""

OWNERS: dict[str, tuple[Any, Mapping[str, str], str]] = {
    "distributed": (trio_dask, unsupported_names.MODULE, ""),
    "Client": (Client, unsupported_names.CLIENT, "Client."),
    "Future": (Future, unsupported_names.FUTURE, "Future."),
    "as_completed": (as_completed, unsupported_names.AS_COMPLETED, "as_completed."),
    "LocalCluster": (LocalCluster, unsupported_names.CLUSTER, "LocalCluster."),
}


def rows(page: str, heading: str) -> list[tuple[str, ...]]:
    """The two columns of the tables under a heading."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ", 1)) for line in lines]


def names_of(owner: object) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_") and hasattr(owner, name)]


@pytest.mark.parametrize("kind", OWNERS)
def test_each_name_of_distributed_is_either_here_or_missing_for_a_reason(kind: str) -> None:
    owner, reasons, _ = OWNERS[kind]
    here = set(owner.__all__ if kind == "distributed" else names_of(owner))
    assert set(NAMES[kind]) - here == set(reasons)


def test_the_page_has_each_missing_name_with_its_reason_and_no_other() -> None:
    page = PAGE.read_text()
    assert f"distributed {NAMES['version']}" in page
    expected = [(f"`{name}`", reason) for _, reasons, _ in OWNERS.values() for name, reason in sorted(reasons.items())]
    assert rows(page, "What is missing") == expected


def test_the_page_has_each_name_that_is_new() -> None:
    told = {name for name, _ in rows(PAGE.read_text(), "What is new")}
    for kind, (owner, _, prefix) in OWNERS.items():
        ours = owner.__all__ if kind == "distributed" else names_of(owner)
        assert {f"`{prefix}{name}`" for name in set(ours) - set(NAMES[kind])} <= told


def test_a_name_can_be_asked_for_before_anything_else_is_loaded() -> None:
    code = "import trio_dask; print(hasattr(trio_dask, 'sync'), hasattr(trio_dask, 'no_such_name'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20).stdout
    assert said == "False False\n"


def test_what_is_missing_says_why_and_where_more_is_written_and_does_not_exist() -> None:
    with open_client(MiniCluster()) as client:
        future = client.submit(abs, 1)
        cluster = LocalCluster.__new__(LocalCluster)
        for owner, name, said in (
            (
                trio_dask,
                "sync",
                "module 'trio_dask' has no attribute 'sync', which distributed has: there is no asyncio",
            ),
            (future, "executor", "Future has no attribute 'executor', which distributed has: use client"),
            (cluster, "from_name", "LocalCluster has no attribute 'from_name', which distributed has: connect to a"),
        ):
            assert not hasattr(owner, name)
            with pytest.raises(AttributeError, match=said) as caught:
                getattr(owner, name)
            assert unsupported_names.PAGE in str(caught.value)
            with pytest.raises(AttributeError, match=r"has no attribute 'no_such_name'$"):
                getattr(owner, "no_such_name")  # noqa: B009 - it is what is tested
