"""All that the scheduler knows comes out as plain values, in pages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scheduler.kit import Client, Kit
from trio_dask.errors import ProtocolError
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core import dump


def ask(client: Client, what: str, *arguments: str) -> Any:
    client.send(m.Query(1, what, arguments))
    (reply,) = client.take(m.Reply)
    return reply.payload


def tasks_of(client: Client) -> list[dict[str, dict[str, Any]]]:
    pages: list[dict[str, dict[str, Any]]] = []
    page = 0
    while not pages or page:
        page, rows = ask(client, "dump_tasks", str(page))
        pages.append(rows)
    return pages


def test_a_dump_has_a_row_for_each_task_with_what_is_true_in_its_state() -> None:
    kit = Kit()
    client = kit.client()
    worker = kit.worker()
    client.submit("a", "b", "c")
    client.submit("d", needs=("a", "c"), priority=-3.5)
    client.submit("gpu", resources={"GPU": 1})
    first, second = worker.runs()
    worker.finish(first)
    worker.fail(second)
    (third,) = (run for run in worker.runs() if run.key == "c")
    (rows,) = tasks_of(client)
    everything = ask(client, "dump")
    address = next(iter(everything["workers"]))
    assert {key: row["state"] for key, row in rows.items()} == {
        "a": "memory", "b": "erred", "c": "processing", "d": rows["d"]["state"], "gpu": "no-worker",
    }  # fmt: skip
    assert rows["a"]["holders"] == (address,)
    assert rows["b"]["blamed"] == "b"
    assert (rows["c"]["worker"], rows["c"]["run"]) == (address, third.run)
    assert (rows["d"]["dependencies"], rows["a"]["dependents"]) == (("a", "c"), 1)
    assert rows["gpu"]["options"] == {"resources": {"GPU": 1.0}}
    assert rows["d"]["options"] == {"priority": -3.5}
    assert [rows[key]["submission"] for key in "abcd"] == [1, 2, 3, 4]
    (known,) = everything["clients"]
    assert all(row["clients"] == (known,) for row in rows.values())
    assert everything["task_count"] == 5
    assert everything["workers"][address]["phase"] == "here"
    assert [(queue["tasks"], queue["eligible"]) for queue in everything["queues"]] == [(1, ())]


def test_pages_of_a_dump_have_each_task_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "PAGE_BYTES", 3 * dump.TASK_BYTES)
    client = Kit().client()
    client.submit(*(f"k{number}" for number in range(10)))
    pages = tasks_of(client)
    assert [len(rows) for rows in pages] == [4, 4, 2]
    assert len({key for rows in pages for key in rows}) == 10


@pytest.mark.parametrize("arguments", [(), ("x",), ("-1",), ("1", "2")])
def test_a_page_is_asked_for_by_a_number(arguments: tuple[str, ...]) -> None:
    kit = Kit()
    client = kit.client()
    with pytest.raises(ProtocolError, match="dump_tasks takes a number"):
        kit.core.handle(client.peer, m.Query(1, "dump_tasks", arguments), 0.0)
