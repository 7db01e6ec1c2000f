"""Clients see in which functions tasks spend their time, where workers sample that."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_dask import AsyncClient, Client, UsageError, open_local_cluster, performance_report
from trio_dask.client.flame_graph import flame_graph
from trio_dask.client.profiles import Tree, merged, tree_of

go_on = threading.Event()
LIMIT_S = 20


def wait_outside() -> None:
    wait_inside()


def wait_inside() -> None:
    go_on.wait(LIMIT_S)


def until_sampled(client: Client, **options: Any) -> Tree:
    """Wait for a sample; each takes a moment of real time."""
    end = time.monotonic() + LIMIT_S
    while not (tree := client.profile(**options))["count"]:
        assert time.monotonic() < end
        time.sleep(0.01)
    return tree


def named(tree: Tree) -> list[str]:
    return [child["description"]["name"] for child in tree["children"].values()]


@pytest.fixture(autouse=True)
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "true")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PROFILE__INTERVAL", "1 ms")
    go_on.clear()


@pytest.fixture
def client(sampling: None) -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        yield client


def test_a_profile_is_a_tree_of_functions_with_samples(client: Client, tmp_path: Path) -> None:
    page, report = tmp_path / "profile.html", tmp_path / "report.html"
    began = time.time()
    with performance_report(report, client=client):
        future = client.submit(wait_outside)
        try:
            tree = until_sampled(client, key="wait_outside", filename=page)
        finally:
            go_on.set()
        future.result()
    assert tree["identifier"] == "root"
    (outside,) = tree["children"].values()
    (inside,) = outside["children"].values()
    assert outside["count"] == inside["count"] == tree["count"]
    assert outside["description"] == {
        "filename": __file__,
        "name": "wait_outside",
        "line_number": wait_outside.__code__.co_firstlineno,
        "line": "def wait_outside() -> None:",
    }
    assert named(outside) == ["wait_inside"]
    assert client.profile(key="other")["count"] == 0
    assert client.profile(stop=began - 1)["count"] == 0
    assert client.profile(start="1 min")["count"] > 0
    ((address, alone),) = client.profile(merge_workers=False).items()
    assert address in client.nthreads()
    assert client.profile(workers=[address]) == alone
    for path in (page, report):
        text = path.read_text(encoding="utf-8")
        assert "wait_inside</text>" in text
        assert not re.search(r"<script|\b(src|href)=|url\(|@import", text)


def test_profile_says_how_to_switch_samples_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED")
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        with pytest.raises(UsageError, match=r"set distributed.worker.profile.enabled to true .* before they start"):
            client.profile()
        with pytest.raises(UsageError, match=r"scheduler does not profile itself: set .* before it starts"):
            client.profile(scheduler=True)
        with pytest.raises(UsageError, match=r"workers do not profile themselves: set .* before they start"):
            client.profile(server=True)
        with performance_report(tmp_path / "report.html", client=client):
            client.submit(abs, 1).result()
    assert "<h2>Profile</h2>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


async def test_profile_has_a_form_for_trio(tmp_path: Path) -> None:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        assert await client.profile(plot=True, filename=tmp_path / "profile.html") == tree_of([], {})
    assert "No samples." in (tmp_path / "profile.html").read_text(encoding="utf-8")


def test_a_profile_of_the_workers_themselves_has_their_loops_and_functions_of_run(client: Client) -> None:
    blocked = threading.Thread(target=client.run, args=(wait_outside,))
    blocked.start()
    try:
        end = time.monotonic() + LIMIT_S
        while "wait_inside" not in str(tree := client.profile(server=True)):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        go_on.set()
        blocked.join()
    assert "_load_and_call" in named(tree)
    ((address, alone),) = client.profile(server=True, merge_workers=False).items()
    assert address in client.nthreads()
    assert alone["count"] >= tree["count"]
    assert client.profile()["count"] == 0


async def test_a_profile_of_the_scheduler_has_its_loop(sampling: None) -> None:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        with trio.fail_after(LIMIT_S):
            while "_serve_peer" not in str(tree := await client.profile(scheduler=True)):
                # So many that the scheduler works on a batch for longer than a thread keeps the interpreter.
                await client.gather(client.map(abs, range(20_000), pure=False))
        assert "unrolled_run" in named(tree)
        assert (await client.profile(scheduler=True, stop=1.0))["count"] == 0
        refused: list[tuple[dict[str, Any], str]] = [
            ({"scheduler": True, "server": True}, "ask twice"),
            ({"scheduler": True, "workers": "w"}, "ask twice"),
            ({"server": True, "key": "f"}, "key='f' picks tasks"),
        ]
        for options, said in refused:
            with pytest.raises(UsageError, match=said):
                await client.profile(**options)


async def wait_in_the_loop() -> None:
    await trio.to_thread.run_sync(go_on.wait, LIMIT_S)


def test_async_tasks_are_in_the_profile(client: Client) -> None:
    future = client.submit(wait_in_the_loop)
    try:
        tree = until_sampled(client, key="wait_in_the_loop")
    finally:
        go_on.set()
    future.result()
    assert named(tree) == ["wait_in_the_loop"]


def test_trees_of_workers_add_up() -> None:
    one = tree_of([(0, "f", "a.py", 1, "def f():"), (1, "g", "a.py", 5, "def g():")], {1: 1, 2: 3})
    other = tree_of([(0, "f", "a.py", 1, "def f():"), (1, "h", "b.py", 7, "")], {2: 2})
    tree = merged({"w1": one, "w2": other})
    assert tree["count"] == 6
    (f,) = tree["children"].values()
    assert f["count"] == 6
    assert {name: child["count"] for name, child in f["children"].items()} == {"g;a.py;5": 3, "h;b.py;7": 2}
    assert one["count"] == 4


def test_a_flame_graph_escapes_names_is_as_wide_as_the_time_and_lists_own_time() -> None:
    tree = tree_of(
        [(0, "<f>", "<a>", 1, ""), (1, "g", "b.py", 2, ""), (0, "seldom", "b.py", 9, "")], {1: 250, 2: 749, 3: 1}
    )
    text = "\n".join(flame_graph({**tree, "count": tree["count"] + 1000}))
    assert not re.search("<(f|a)>", text)
    assert 'x="0.000%" y="18" width="49.950%"' in text
    assert 'x="0.000%" y="36" width="37.450%"' in text
    assert "seldom</text>" not in text
    assert '<td>g (b.py:2)</td><td class="n">749</td>' in text
    assert '<td>&lt;f&gt; (&lt;a&gt;:1)</td><td class="n">250</td>' in text
