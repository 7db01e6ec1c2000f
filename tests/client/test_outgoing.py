"""Who sends what callers ask for: a lone caller by himself, so that nobody has to be woken; bursts gather."""

import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster, open_client
from trio_dask import Client, wait
from trio_dask.client.shared_state import Connection
from trio_dask.protocol import messages as m


def increment(x: int) -> int:
    return x + 1


class Wire:
    """One link of the client. Threads of all kinds send on it; all of it leaves in the client's loop, in that order."""

    thread_safe_send = True

    def __init__(self, cluster: "AnyThreadCluster") -> None:
        self.cluster = cluster
        self._connection = cluster.wire
        self._given: list[m.Message] = []
        self._given_up = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __aenter__(self) -> Coroutine[Any, Any, object]:
        return self._connection.__aenter__()

    def __aexit__(self, *error: object) -> Coroutine[Any, Any, bool | None]:
        return self._connection.__aexit__(*error)

    def send_many_nowait(self, messages: Iterable[m.Message]) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.cluster.before_loop_sends()
        self._given += messages

    def flush_nowait(self) -> None:
        cluster = self.cluster
        given, self._given = self._given, []
        cluster.sends.append((threading.get_ident(), given))
        interrupted = cluster.interrupt_after is not None and threading.current_thread() is threading.main_thread()
        if interrupted:
            given, cluster.interrupt_after = given[: cluster.interrupt_after], None
        assert cluster.token is not None
        cluster.token.run_sync_soon(self._send, given)
        if interrupted:
            raise KeyboardInterrupt

    def _send(self, messages: list[m.Message]) -> None:
        if not self._given_up:
            self._connection.send_many_nowait(messages)
            self._connection.flush_nowait()

    def abort(self, reason: str = "") -> None:
        """What was sent before still arrives."""
        self._given_up = True
        trio.lowlevel.spawn_system_task(self._abort_when_heard, reason)

    async def _abort_when_heard(self, reason: str) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self._connection.abort(reason)


class AnyThreadCluster(MiniCluster):
    """Notes who sends what."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sends: list[tuple[int, list[m.Message]]] = []
        self.interrupt_after: int | None = None
        self.before_loop_sends: Callable[[], object] = lambda: None

    async def dial(self, lost: str, received: int) -> Connection:
        await super().dial(lost, received)
        return Wire(self)

    def submits_of(self, thread: int) -> list[list[m.Message]]:
        return [sent for sender, sent in self.sends if sender == thread and any(type(x) is m.Submit for x in sent)]


@pytest.fixture
def cluster() -> AnyThreadCluster:
    return AnyThreadCluster()


@pytest.fixture
def client(cluster: AnyThreadCluster) -> Iterator[Client]:
    with open_client(cluster) as client:
        wait(client.submit(increment, -1))
        yield client


def a_turn_of_the_loop(cluster: AnyThreadCluster) -> None:
    cluster.from_thread(bool)


def test_a_lone_caller_sends_by_himself_and_wakes_nobody(client: Client, cluster: AnyThreadCluster) -> None:
    woken = []
    calls: Any = client.engine.calls
    token = calls.token
    me = threading.get_ident()
    a_turn_of_the_loop(cluster)

    def note_and_wake(*args: object) -> None:
        woken.append(args)
        token.run_sync_soon(*args)

    calls.token = SimpleNamespace(run_sync_soon=note_and_wake)
    kept = []  # a future that is dropped may wake the loop
    for number in range(50):
        kept.append(client.submit(increment, number))
        wait(kept[-1])
        assert kept[-1].result() == number + 1
        a_turn_of_the_loop(cluster)  # in which the loop says what it has to say about the result
    client.engine.calls.token = token
    assert len(cluster.submits_of(me)) == 50
    assert woken == []


def test_of_a_burst_the_first_is_sent_and_the_rest_gathers(client: Client, cluster: AnyThreadCluster) -> None:
    cluster.hold = True
    blocked = threading.Event()
    a_turn_of_the_loop(cluster)
    client.engine.run_soon(blocked.wait)
    before = len(cluster.sends)
    futures = [client.submit(increment, number) for number in range(100)]
    assert len(cluster.submits_of(threading.get_ident())) == 1
    blocked.set()
    a_turn_of_the_loop(cluster)
    a_turn_of_the_loop(cluster)
    assert len(cluster.sends) - before <= 3
    cluster.from_thread(cluster.finish, *[future.key for future in futures])
    assert client.gather(futures) == list(range(1, 101))


def test_while_results_come_in_and_nobody_waits_all_gathers(client: Client, cluster: AnyThreadCluster) -> None:
    before = len(cluster.submits_of(threading.get_ident()))
    futures = []
    for number in range(50):
        futures.append(client.submit(increment, number))
        a_turn_of_the_loop(cluster)
    assert len(cluster.submits_of(threading.get_ident())) == before + 1
    assert client.gather(futures) == list(range(1, 51))


def test_of_a_lone_map_the_loop_sends_all(client: Client, cluster: AnyThreadCluster) -> None:
    a_turn_of_the_loop(cluster)
    before = len(cluster.submits_of(threading.get_ident()))
    assert client.gather(client.map(increment, range(1000))) == list(range(1, 1001))
    assert len(cluster.submits_of(threading.get_ident())) == before


def test_nobody_overtakes_what_the_loop_is_about_to_send(client: Client, cluster: AnyThreadCluster) -> None:
    about_to_send, go_on = threading.Event(), threading.Event()
    a_turn_of_the_loop(cluster)

    def announce_and_wait() -> None:
        about_to_send.set()
        go_on.wait(20)

    cluster.before_loop_sends = announce_and_wait
    futures = client.map(increment, range(2))
    assert about_to_send.wait(20)
    futures.append(client.submit(increment, 2))
    go_on.set()
    assert client.gather(futures) == [1, 2, 3]
    keys = [key for message in cluster.of_type(m.Submit)[1:] for key in message.keys]
    assert keys == [future.key for future in futures]


@pytest.mark.parametrize("heard", [0, 1, 2])
def test_a_caller_who_is_interrupted_while_he_sends_loses_nothing(
    client: Client, cluster: AnyThreadCluster, heard: int
) -> None:
    """Of what he was sending any part may have left; on the next link both sides go on where they were."""
    a_turn_of_the_loop(cluster)
    cluster.interrupt_after = heard
    with pytest.raises(KeyboardInterrupt):
        client.submit(increment, 100)
    assert client.submit(increment, 200).result(timeout=20) == 201
    assert client.submit(increment, 100).result(timeout=20) == 101
    assert len(cluster.dials) == 2
    assert max(cluster.computed.values()) == 1


def test_whoever_sends_both_sides_count_the_same(client: Client, cluster: AnyThreadCluster) -> None:
    """Threads submit while links break; each side knows how much the other has heard, or the link would be refused."""
    wrong: list[int] = []

    def work(seed: int) -> None:
        numbers = range(seed * 1000, seed * 1000 + 150)
        wrong.extend(number for number in numbers if client.submit(increment, number).result(timeout=20) != number + 1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        cluster.from_thread(cluster.lose)
        threads[0].join(0.01)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(cluster.dials) > 2
    assert {lost for lost, _ in cluster.dials[1:]} == {cluster.incarnation}
