"""The blocking `Client`: the same cluster, a thread that blocks, and a loop of its own behind it."""

import asyncio
import gc
import operator
import pickle
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never

import pytest
import trio

from tests.client.cluster import WORKER, MiniCluster, open_client
from trio_dask import (
    AsyncClient,
    CancelledError,
    Client,
    as_completed,
    default_client,
    fire_and_forget,
    futures_of,
    get_client,
    open_local_cluster,
    rpc,
    wait,
)
from trio_dask.client import default_clients
from trio_dask.client.shared_state import Connection
from trio_dask.errors import FutureCancelledError, KeyConflict, NoScheduler, SchedulerLost, UsageError
from trio_dask.protocol import messages as m
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH


def increment(x: int, by: int = 1) -> int:
    return x + by


def fail(x: object) -> Never:
    raise ValueError(x)


def test_a_script_for_distributed(client: Client) -> None:
    future = client.submit(increment, 1, by=2)
    assert future.result(timeout=10) == 3
    assert future.exception() is None
    assert future.traceback() is None
    futures = client.map(increment, range(100))
    assert client.gather(futures) == list(range(1, 101))
    total = client.submit(sum, futures)
    assert total.result() == 5050
    assert wait(futures).done == set(futures)
    assert {future.result() for future in as_completed(futures)} == set(range(1, 101))
    assert sum(len(batch) for batch in as_completed(futures, with_results=True).batches()) == 100
    assert client.get({"x": 1, "y": (increment, "x")}, ["y", "x"]) == [2, 1]
    scattered = client.scatter([1, 2])
    assert client.gather(scattered) == [1, 2]
    assert client.run(increment, 1) == {WORKER: 2}
    assert client.nthreads() == {WORKER: 2}
    assert client.who_has(future) == {future.key: (WORKER,)}
    client.wait_for_workers(1, timeout=5)


def test_a_remote_error_names_task_and_worker(client: Client) -> None:
    with pytest.raises(ValueError, match="boom") as caught:
        client.submit(fail, "boom").result()
    assert "in task 'fail-" in " ".join(caught.value.__notes__)
    future = client.submit(fail, "boom")
    assert isinstance(future.exception(), ValueError)
    assert future.traceback() is not None
    assert client.gather([future], errors="skip") == []


def test_timeouts_leave_the_task_alone(client: Client, cluster: MiniCluster) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    for wait_for_it in (
        lambda: future.result(timeout=0.01),
        lambda: future.exception(timeout="10ms"),
        lambda: wait([future], timeout=0.01),
        lambda: next(as_completed([future], timeout=0.01)),
        lambda: client.wait_for_workers(9, timeout=0.01),
    ):
        with pytest.raises(TimeoutError):
            wait_for_it()
    cluster.from_thread(cluster.finish, future.key)
    assert future.result() == 2


def test_results_wake_threads_that_wait(client: Client, cluster: MiniCluster) -> None:
    cluster.hold = True
    futures = client.map(increment, range(20))
    results = {}
    threads = [threading.Thread(target=lambda f=f: results.update({f.key: f.result()})) for f in futures]
    for thread in threads:
        thread.start()
    cluster.from_thread(cluster.finish, *[future.key for future in futures])
    for thread in threads:
        thread.join()
    assert [results[future.key] for future in futures] == list(range(1, 21))


def test_threads_that_submit_and_drop_at_once_disturb_nothing(client: Client, cluster: MiniCluster) -> None:
    """Each key ends up released, and every result is right, whatever the order of the threads' steps."""
    wrong = []

    def hammer(seed: int) -> None:
        for number in range(300):
            shared = client.submit(increment, number % 7)
            own = client.submit(operator.add, shared, seed * 1000 + number, pure=False)
            if number % 3 == 0:
                del shared
            if number % 5 == 0:
                own.cancel()
            elif own.result(timeout=30) != number % 7 + 1 + seed * 1000 + number:
                wrong.append(own)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    client.nthreads()  # behind the releases
    assert client.engine.core.states == {}
    assert not +cluster.wanted


def test_submit_never_waits_for_the_loop(client: Client, cluster: MiniCluster) -> None:
    """While the client's own loop stands still, submitting goes on."""
    block, blocked = threading.Event(), threading.Event()

    def stand_still() -> None:
        blocked.set()
        block.wait()

    client.engine.run_soon(stand_still)
    blocked.wait()
    futures = client.map(increment, range(1000)) + [client.submit(increment, -i) for i in range(1000)]
    assert not cluster.of_type(m.Submit)
    del futures[500:]
    block.set()
    assert client.gather(futures) == list(range(1, 501))


def test_a_burst_wakes_the_loop_once(client: Client, cluster: MiniCluster) -> None:
    block = threading.Event()
    client.engine.run_soon(block.wait)
    wakes = []
    calls: Any = client.engine.calls
    token = calls.token

    class Counting:
        def run_sync_soon(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
            wakes.append(function)
            token.run_sync_soon(function, *args, **kwargs)

    calls.token = Counting()
    futures = [client.submit(increment, i) for i in range(100)]
    calls.token = token
    block.set()
    assert client.gather(futures) == list(range(1, 101))
    assert len(wakes) <= 2


def test_who_waits_for_what_was_asked_for_already_wakes_no_loop(client: Client, cluster: MiniCluster) -> None:
    """The loop would compete with its own caller for the interpreter, to find that there is nothing to do."""
    cluster.hold = True
    future = client.submit(increment, 1)
    cluster.from_thread(bool)  # the task is sent
    woken: list[object] = []
    calls: Any = client.engine.calls
    token = calls.token
    calls.token = SimpleNamespace(run_sync_soon=lambda function, *_: woken.append(function))
    for wait_for in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            wait_for(timeout=0.001)
    calls.token = token
    assert cluster.of_type(m.Submit)
    assert woken == []
    cluster.from_thread(cluster.finish, future.key)
    assert future.result() == 2


def test_a_key_can_be_used_again_as_soon_as_its_futures_are_gone(client: Client) -> None:
    for number in range(20):
        future = client.submit(increment, number, key="x")
        assert future.result() == number + 1
        with pytest.raises(KeyConflict):
            client.submit(increment, -1, key="x")
        del future


def test_callbacks_run_on_one_thread_of_their_own(client: Client) -> None:
    seen = []
    done = threading.Event()
    futures = client.map(increment, range(10))
    for future in futures:
        future.add_done_callback(lambda future: seen.append((threading.current_thread(), future.result())))
    futures[-1].add_done_callback(lambda _: done.set())
    assert done.wait(10)
    assert sorted(result for _, result in seen) == list(range(1, 11))
    (thread,) = {thread for thread, _ in seen}
    loop: list[threading.Thread] = []
    client.engine.run_soon(lambda: loop.append(threading.current_thread()))
    client.nthreads()  # the loop has come round
    assert thread not in (threading.main_thread(), *loop)
    assert len(loop) == 1


def test_a_callback_that_exits_does_not_end_the_others(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    client.submit(increment, 1).add_done_callback(lambda _: sys.exit(1))
    client.submit(increment, 2).add_done_callback(lambda _: done.set())
    assert done.wait(10)
    assert "a callback of a future failed" in caplog.text


def test_futures_travel_by_key_and_arrive_at_the_current_client(client: Client, cluster: MiniCluster) -> None:
    future = client.submit(increment, 1, key="x")
    with client.as_current():
        copy = pickle.loads(pickle.dumps(future))
    assert copy is not future
    assert copy.state is future.state
    assert copy.result() == 2


def test_a_result_that_is_a_future_becomes_one_of_the_client_that_reads_it(
    client: Client, cluster: MiniCluster
) -> None:
    one = client.submit(increment, 1)
    assert one.result() == 2
    cluster.hold = True
    outer = client.submit(increment, 5)
    client.nthreads()  # behind the submission
    cluster.values[outer.key] = one
    cluster.from_thread(cluster.say, cluster.ready(outer.key))
    found = outer.result()
    assert found.engine is client.engine
    assert found.state is one.state
    assert found.result() == 2


def test_a_lost_scheduler_wakes_everybody(client: Client, cluster: MiniCluster) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    heard = []

    def expect(wait_for_it: Callable[[], object]) -> None:
        with pytest.raises(SchedulerLost, match="nobody"):
            wait_for_it()
        heard.append(wait_for_it)

    waits = [
        future.result,
        lambda: client.gather([future]),
        lambda: wait([future]),
        lambda: client.wait_for_workers(9),
        lambda: client.get({"x": (increment, 5)}, "x"),
    ]
    threads = [threading.Thread(target=expect, args=(wait_for_it,)) for wait_for_it in waits]
    for thread in threads:
        thread.start()
    cluster.unreachable = NoScheduler("nobody is there")
    cluster.from_thread(cluster.lose)
    for thread in threads:
        thread.join(10)
    assert len(heard) == len(waits)
    assert future.status == "lost"
    with pytest.raises(SchedulerLost, match="nobody"):
        client.submit(increment, 1).result()
    assert client.status == "lost"
    cluster.unreachable, cluster.hold = None, ()
    assert client.submit(increment, 1).result() == 2
    assert client.status == "running"


def test_close_says_goodbye_and_ends_both_threads(cluster: MiniCluster) -> None:
    before = set(threading.enumerate())
    with open_client(cluster) as client:
        future = client.submit(increment, 1)
        future.add_done_callback(lambda _: None)
        fire_and_forget(future)
        assert future.result() == 2
    client.close()
    assert type(cluster.received[-1]) is m.Goodbye
    assert cluster.of_type(m.FireAndForget)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before
    assert client.status == "closed"
    assert future.cancelled()
    with pytest.raises(FutureCancelledError):
        future.result()
    with pytest.raises(RuntimeError, match="closed"):
        client.submit(increment, 1)
    with pytest.raises(RuntimeError, match="closed"):
        client.nthreads()


def test_an_interrupted_call_is_cancelled_in_the_loop(
    client: Client, cluster: MiniCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()

    async def never() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    def interrupted(self: object, timeout_s: float | None = None) -> Never:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trio_dask.client.wait_signals.ThreadSignal.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.engine.call(never)
    assert client.nthreads() == {WORKER: 2}
    assert cancelled.is_set()


BLOCKING = [
    lambda client, future: Client("tcp://127.0.0.1:1"),
    lambda client, future: future.result(),
    lambda client, future: future.exception(),
    lambda client, future: client.gather([future]),
    lambda client, future: client.nthreads(),
    lambda client, future: client.get({}, "x"),
    lambda client, future: client.scatter([1]),
    lambda client, future: wait([future]),
    lambda client, future: next(as_completed([future])),
]


@pytest.mark.parametrize("block", BLOCKING)
def test_blocking_calls_are_refused_in_an_event_loop(client: Client, block: Callable[..., Any]) -> None:
    future = client.submit(increment, 1)
    future.result()

    def refuse() -> None:
        with pytest.raises(RuntimeError, match="blocks"):
            block(client, future)

    async def under_asyncio() -> None:
        refuse()
        await asyncio.sleep(0)

    async def under_trio() -> None:
        refuse()
        await trio.lowlevel.checkpoint()

    asyncio.run(under_asyncio())
    trio.run(under_trio)


def test_a_future_of_a_blocking_client_can_be_awaited_under_trio(client: Client, cluster: MiniCluster) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)

    async def main() -> None:
        async def finish_later() -> None:
            await trio.to_thread.run_sync(cluster.from_thread, cluster.finish, future.key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish_later)
            assert await future == 2
            assert [f async for f in as_completed([future])] == [future]

    trio.run(main)


async def enter(block: Any) -> None:
    async with block:
        pass


NEEDS_TRIO: dict[str, Callable[[Any], Awaitable[object]]] = {
    "Client": lambda future: enter(AsyncClient("tcp://127.0.0.1:1")),
    "LocalCluster": lambda future: enter(open_local_cluster(1)),
    "with rpc": lambda future: enter(rpc("tcp://127.0.0.1:1")),
    "the blocking calls of Client": lambda future: future,
}


@pytest.mark.parametrize("instead", NEEDS_TRIO)
def test_what_needs_trio_says_so_under_asyncio_and_names_what_does_not(
    client: Client, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    future = client.submit(increment, 1)

    async def main() -> None:
        await NEEDS_TRIO[instead](future)

    said = f"needs Trio, but this thread runs asyncio; use .*{instead}.*"
    with pytest.raises(RuntimeError, match=f"{said} in a thread"):
        asyncio.run(main())
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with pytest.raises(RuntimeError, match=f"{said} in a notebook"):
        asyncio.run(main())


def test_the_loop_of_a_notebook_is_no_obstacle(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))

    async def cell() -> object:
        await asyncio.sleep(0)
        return client.submit(increment, 1).result()

    assert asyncio.run(cell()) == 2
    del shell.kernel  # IPython in a terminal
    with pytest.raises(RuntimeError, match="asyncio"):
        asyncio.run(cell())


def test_the_default_client_is_the_newest_that_is_open(cluster: MiniCluster) -> None:
    with open_client(cluster) as first, open_client(MiniCluster()) as second:
        for ask in (get_client, default_client):
            with pytest.raises(ValueError, match="no client"):
                ask()
        default_clients.remember(first)
        default_clients.remember(second)
        assert get_client() is default_client() is Client.current() is second
        assert default_client(first) is first
        with first.as_current():
            assert get_client() is first
        second.close()
        assert get_client() is first
    with pytest.raises(ValueError, match="no client"):
        Client.current()


def test_futures_are_found_in_containers_once_each(client: Client) -> None:
    one, two = client.submit(increment, 1), client.submit(increment, 2)
    assert futures_of([one, {"two": (two, one)}, 3, "three"]) == [one, two]
    assert futures_of(one) == [one]
    two.cancel()
    with pytest.raises(CancelledError):
        futures_of([one, two])


def test_calls_wait_for_a_connection_that_is_still_being_made(cluster: MiniCluster) -> None:
    gate = threading.Event()

    async def dial_late(lost: str, received: int) -> Connection:
        await trio.to_thread.run_sync(gate.wait)
        return await cluster.dial(lost, received)

    with open_client(cluster, dial=dial_late, wait=False) as client:
        future = client.submit(increment, 1)
        assert client.status == "connecting"
        threading.Thread(target=gate.set).start()
        assert client.run(increment, 1) == {WORKER: 2}
        assert future.result() == 2


def test_a_connection_that_fails_later_is_a_lost_scheduler(cluster: MiniCluster) -> None:
    gate = threading.Event()
    heard = []

    def expect_loss(call: Callable[[], object]) -> None:
        with pytest.raises(SchedulerLost, match="nothing listens"):
            call()
        heard.append(call)

    async def dial(*lost: object) -> Never:
        await trio.to_thread.run_sync(gate.wait)
        raise NoScheduler("nothing listens there")

    with open_client(cluster, dial=dial, wait=False) as client:
        future = client.submit(increment, 1)
        early = threading.Thread(target=expect_loss, args=(client.nthreads,))
        early.start()
        gate.set()
        early.join(30)
        for late in (future.result, client.nthreads, lambda: client.submit(increment, 2)):
            expect_loss(late)
        assert len(heard) == 4


def test_closing_gives_up_connecting(cluster: MiniCluster) -> None:
    cluster.hangs = True
    with open_client(cluster, wait=False) as client:
        future = client.submit(increment, 1)
    assert future.cancelled()


def test_a_view_for_trio_of_a_client_that_lives_in_a_thread(client: Client, cluster: MiniCluster) -> None:
    async def main() -> None:
        async with AsyncClient.over(client.engine) as view:
            futures = view.map(increment, range(100))
            assert await view.gather(futures) == list(range(1, 101))
            assert await view.run(increment, 1) == {WORKER: 2}
            assert await view.gather(await view.scatter([1, 2])) == [1, 2]
            assert [future async for future in view.as_completed(futures)]
            with trio.move_on_after(0):
                await view.wait_for_workers(99)

    trio.run(main)
    assert client.submit(increment, 1).client is client
    assert client.nthreads() == {WORKER: 2}


@pytest.mark.parametrize(
    "ask",
    [
        lambda client, text: client.submit(increment, 1, key=text),
        lambda client, text: client.map(increment, [1], key=text),
        lambda client, text: client.map(increment, [1], key=[text]),
        lambda client, text: client.submit(increment, 1, workers=text),
        lambda client, text: client.submit(increment, 1, resources={text: 1}),
        lambda client, text: client.get({text: (increment, 1)}, text),
        lambda client, text: client.scatter({text: 1}),
        lambda client, text: client.future(text),
        lambda client, text: client.who_has(text),
        lambda client, text: client.nthreads([text]),
        lambda client, text: client.story(text),
    ],
)
@pytest.mark.parametrize("text", ["\udc80", "x" * (MAX_KEY_LENGTH + 1)], ids=["surrogate", "huge"])
def test_a_name_that_cannot_be_sent_is_refused_where_it_is_given(
    client: Client, ask: Callable[[Client, str], object], text: str
) -> None:
    """No message can carry it, and a message that cannot be sent is the end of everything else that is asked for."""
    with pytest.raises(UsageError, match=r"cannot be sent|are allowed"):
        ask(client, text)
    assert client.submit(increment, 1).result(timeout=10) == 2


def test_what_cannot_be_said_fails_whoever_waits_and_not_the_client(
    client: Client, cluster: MiniCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It can be a bug of ours only; but that must not look like a client that somebody has closed."""
    cluster.hold = True
    future = client.submit(increment, 1)
    with pytest.raises(SchedulerLost, match="cannot be sent"):
        client.engine.call(client.engine.request, m.Query, "story", ("\udc80",))
    with pytest.raises(UsageError, match="cannot be sent"):
        client.engine.call(client.engine.ask, "story", ("\udc80",))
    with pytest.raises(SchedulerLost, match="cannot be sent"):
        future.result(timeout=10)
    assert "the client failed" in caplog.text
    cluster.hold = ()
    assert client.submit(increment, 2).result(timeout=10) == 3


def test_a_client_that_fails_is_not_called_closed(
    client: Client, cluster: MiniCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_send() -> Never:
        raise ZeroDivisionError

    monkeypatch.setattr(cluster.wire, "flush_nowait", fail_to_send)
    with pytest.raises(SchedulerLost, match="the client failed"):
        client.submit(increment, 1).result(timeout=10)
    client.close()
    assert "the client failed" in caplog.text


def test_futures_of_another_client_are_refused(client: Client) -> None:
    with open_client(MiniCluster()) as other, pytest.raises(ValueError, match="another client"):
        client.gather([other.submit(increment, 1)])


def test_what_cannot_be_understood_is_refused_at_once() -> None:
    for arguments, options in (
        ((5,), {}),
        (("tcp://127.0.0.1:8786",), {"n_workers": 2}),
        (("tcp://127.0.0.1:8786",), {"scheduler_file": "x"}),
        (("not an address at all",), {}),
        ((), {"asynchronous": True, "timeout": 1}),
        (("tcp://127.0.0.1:8786",), {"timeout": "soon"}),
    ):
        with pytest.raises((UsageError, TypeError)):
            Client(*arguments, **options)


def test_no_scheduler_is_an_os_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoScheduler, match="nothing listens"):
        Client("tcp://127.0.0.1:1", timeout=0.1)
    with pytest.raises(OSError, match="does not exist"):
        Client(scheduler_file=tmp_path / "absent.json", timeout="50ms")


def test_a_scheduler_without_a_port_is_at_the_default_one() -> None:
    with pytest.raises(NoScheduler, match=r"no scheduler at tcp://nowhere\.invalid:8786: "):
        Client("nowhere.invalid", timeout=0.1)
    assert repr(rpc("node7")) == "<rpc tcp://node7:8786>"


def test_a_cluster_object_or_the_environment_name_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoScheduler, match="nothing listens"):
        Client(SimpleNamespace(scheduler_address="tcp://127.0.0.1:2"), timeout=0.05)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "127.0.0.1:3")
    with pytest.raises(NoScheduler, match="nothing listens"):
        Client(timeout=0.05)
