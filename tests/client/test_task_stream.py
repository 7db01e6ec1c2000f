"""A program sees what ran during a block, as data and as a page that loads nothing."""

import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_dask import AsyncClient, Client, get_task_stream, open_local_cluster, performance_report
from trio_dask.client import report_page
from trio_dask.client.report_page import lanes, page


def pause(number: int) -> int:
    time.sleep(0.002)
    return number


def fail() -> None:
    raise ZeroDivisionError("as asked")


def run(worker: str, start: float, stop: float, key: str = "f-1") -> dict[str, Any]:
    span = {"action": "compute", "start": start, "stop": stop}
    return {"key": key, "worker": worker, "status": "OK", "nbytes": 1, "type": "int", "startstops": [span]}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=2, processes=False) as client:
        yield client


def test_a_block_shows_the_runs_within_it(client: Client, tmp_path: Path) -> None:
    report, drawn = tmp_path / "report.html", tmp_path / "stream.html"
    client.submit(pause, -1).result()
    with performance_report(report, client=client), get_task_stream(client, plot="save", filename=drawn) as stream:
        futures = client.map(pause, range(5))
        client.gather(futures)
        client.submit(fail).exception()
    assert {run["key"] for run in stream.data if run["status"] == "OK"} == {future.key for future in futures}
    assert [run["status"] for run in stream.data].count("error") == 1
    (span,) = stream.data[0]["startstops"]
    assert 0.002 <= span["stop"] - span["start"] < 10
    for path, title in ((report, "Performance report"), (drawn, "Task stream")):
        text = path.read_text(encoding="utf-8")
        assert f"<title>{title}</title>" in text
        assert len(re.findall("<rect ", text)) == 6
        assert not re.search(r"<script|\b(src|href)=|url\(|@import", text)
    assert "<th>Failed</th><td>1</td>" in report.read_text(encoding="utf-8")
    assert len(client.get_task_stream(count=2)) == 2
    assert client.get_task_stream(count=0) == []
    assert len(client.get_task_stream(start="1 min")) >= 6
    assert client.get_task_stream(stop=1.0) == []


async def test_both_blocks_have_a_form_for_trio(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        async with performance_report(report, client=client), get_task_stream(client) as stream:
            await client.gather(client.map(pause, range(3)))
        assert len(stream.data) == len(await client.get_task_stream()) == 3
    assert "<th>Runs of tasks</th><td>3</td>" in report.read_text(encoding="utf-8")


def test_runs_at_the_same_time_on_one_worker_have_rows_of_their_own() -> None:
    runs = [run("a", 0, 2), run("a", 1, 3), run("b", 0, 1), run("a", 2, 4)]
    assert lanes(runs) == [("a", 0), ("a", 1), ("b", 0), ("a", 0)]


def test_a_page_escapes_names_and_draws_the_longest_of_too_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "MOST_DRAWN", 2)
    text = page("<title>", [("<a>", "<b>")], [run("<w>", 0, stop, "<f>-1") for stop in (1, 3, 2)])
    assert not re.search("<(a|b|w|f|title>&)>", text)
    assert text.count("<rect ") == 2
    assert "the 2 longest of 3 runs" in text
    assert "No task ran." in page("empty", [], [])


def test_a_report_takes_the_arguments_of_distributed(client: Client, tmp_path: Path) -> None:
    fsspec: Any = importlib.import_module("fsspec")
    target = tmp_path / "report.html"
    with performance_report(target, 1, None, None, client=client):
        client.submit(pause, -2).result()
    assert "Performance report" in target.read_text(encoding="utf-8")
    assert client.get_task_stream(bokeh_resources="cdn")
    with performance_report("memory://report.html", stacklevel=2, mode="inline", storage_options={}, client=client):
        pass
    with fsspec.open("memory://report.html", "rb") as file:
        assert b"Performance report" in file.read()
