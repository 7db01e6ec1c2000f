"""Who stops waiting: which tasks go on, and which are let go, also while the traceback of a Ctrl-C is kept."""

from collections.abc import Callable
from typing import Never

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster, open_async_client, open_client
from tests.waiting import until
from trio_dask import Client, Future, as_completed, wait
from trio_dask.protocol import messages as m


def increment(x: int) -> int:
    return x + 1


BLOCKING: dict[str, Callable[[Client], object]] = {
    "gather": lambda client: client.gather(client.map(increment, range(3))),
    "gather_list": lambda client: client.gather([client.submit(increment, x) for x in range(3)]),
    "get": lambda client: client.get({x: (increment, number) for number, x in enumerate("abc")}, [*"abc"]),
    "wait": lambda client: wait(client.map(increment, range(3))),
    "as_completed": lambda client: next(as_completed(client.map(increment, range(3)))),
    "as_completed_with_results": lambda client: next(as_completed(client.map(increment, range(3)), with_results=True)),
    "result": lambda client: client.submit(increment, 1).result(),
    "exception": lambda client: client.submit(increment, 1).exception(),
}


def let_go(cluster: MiniCluster) -> set[str]:
    """The keys that the client has released."""
    return {key for message in cluster.of_type(m.Release) for key in message.keys}


def asked_for(cluster: MiniCluster) -> set[str]:
    outputs = {message.keys[number] for message in cluster.of_type(m.SubmitGraph) for number in message.wanted}
    return outputs | {key for message in cluster.of_type(m.Submit) for key in message.keys}


def interrupt(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the next blocking call."""

    def block(signal: object, timeout_s: float | None) -> Never:
        raise KeyboardInterrupt

    monkeypatch.setattr(client.engine, "block", block)


@pytest.mark.parametrize("blocking", BLOCKING)
def test_what_nobody_holds_after_a_ctrl_c_is_let_go_though_the_traceback_is_kept(
    monkeypatch: pytest.MonkeyPatch, blocking: str
) -> None:
    cluster = MiniCluster(hold=True)
    with open_client(cluster) as client:
        interrupt(client, monkeypatch)
        with pytest.raises(KeyboardInterrupt) as kept:
            BLOCKING[blocking](client)
        # A graph may stop before it is sent.
        until(
            lambda: not client.engine.core.states and let_go(cluster) == asked_for(cluster),
            "the tasks are let go, though the traceback is kept",
        )
        assert kept.tb is not None


def test_what_has_a_name_goes_on_after_a_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = MiniCluster(hold=True)
    with open_client(cluster) as client:
        futures = client.map(increment, range(3))
        with monkeypatch.context() as patch:
            interrupt(client, patch)
            blocking: Callable[[list[Future]], object]
            for blocking in (client.gather, wait, lambda futures: next(as_completed(futures))):
                with pytest.raises(KeyboardInterrupt):
                    blocking(futures)
        cluster.from_thread(cluster.finish, *[future.key for future in futures])
        assert client.gather(futures) == [1, 2, 3]


async def test_a_scope_around_waiting_ends_the_waiting_alone() -> None:
    cluster = MiniCluster(hold=True)
    async with open_async_client(cluster) as client:
        future = client.submit(increment, 1)
        with trio.move_on_after(0.01):
            await future
        with trio.move_on_after(0.01):
            await client.gather([future])
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert let_go(cluster) == set()
        assert future.status == "pending"
        cluster.finish(future.key)
        assert await future == 2


async def test_a_scope_around_the_last_future_of_a_task_lets_the_task_go() -> None:
    cluster = MiniCluster(hold=True)
    async with open_async_client(cluster) as client:
        with trio.move_on_after(0.01):
            await client.submit(increment, 1)
        with trio.fail_after(5):
            while not let_go(cluster):  # noqa: ASYNC110 - nothing says when
                await trio.sleep(0.005)
        assert let_go(cluster) == asked_for(cluster)
