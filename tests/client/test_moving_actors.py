"""Actors whose class says `movable = True` move to another worker when theirs retires; callers notice a pause only."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.waiting import until
from trio_dask import Actor, ActorLost, AsyncClient, Client, ClusterError, LocalCluster, get_worker, open_local_cluster

GATE = threading.Event()
ENTERED = threading.Event()
BEGAN: list[str] = []
"""The cluster is in this process."""


class Log:
    """Remembers the calls, and where each was made."""

    movable = True
    n: int

    def __init__(self) -> None:
        self.n = 0
        self.calls: list[tuple[str, int]] = []
        self.places: list[str] = []

    def add(self, caller: str, number: int) -> int:
        self.calls.append((caller, number))
        self.places.append(self.where())
        self.n += 1
        return self.n

    def wait(self) -> str:
        ENTERED.set()
        assert GATE.wait(20)
        return self.where()

    def where(self) -> str:
        return str(get_worker().address)

    def all_calls(self) -> list[tuple[str, int]]:
        return self.calls

    def all_places(self) -> list[str]:
        return self.places

    def keep(self, other: Any) -> None:
        self.other = other

    def use_kept(self) -> int:
        return int(self.other.add("kept", 0).result(20))

    def say(self, movable: bool) -> None:
        self.movable = movable


class Unpicklable(Log):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Unmakeable(Log):
    def __setstate__(self, state: dict[str, Any]) -> None:
        raise LookupError("not here")


class Staying(Log):
    movable = False


class Gate:
    """Its calls wait for each other, and none of them is under way at the end."""

    movable = True

    def __init__(self) -> None:
        self.waiting: list[trio.Event] = []
        self.opened = 0

    async def wait(self) -> str:
        event = trio.Event()
        self.waiting.append(event)
        ENTERED.set()
        await event.wait()
        self.waiting.remove(event)
        return str(get_worker().address)

    async def open(self) -> int:
        for event in self.waiting:
            event.set()
        self.opened += 1
        await trio.lowlevel.checkpoint()
        return self.opened

    async def where(self) -> str:
        await trio.lowlevel.checkpoint()
        return str(get_worker().address)


def call_all(log: Any, caller: str, times: int) -> list[int]:
    """Makes calls, each while those before it may be under way."""
    answers: list[Any] = []
    for number in range(times):
        answers.append(log.add(caller, number))
        if number % 5 == 4:
            answers[-1].result(20)
    return [int(answer.result(20)) for answer in answers]


def hold_slot(log: Any, caller: str, times: int) -> list[int]:
    """Makes calls once the actor has moved, from a task that began before."""
    BEGAN.append(caller)
    assert GATE.wait(20)
    return call_all(log, caller, times)


def check_calls(log: Any, callers: dict[str, int]) -> None:
    """Each call was made once, those of each caller in their order."""
    calls = log.all_calls().result(20)
    for caller, times in callers.items():
        assert [number for name, number in calls if name == caller] == list(range(times))
    assert len(calls) == sum(callers.values()) == log.n


class Retiring:
    """Retires a worker in a thread of its own; `join` returns what it raised."""

    def __init__(self, client: Client, address: str) -> None:
        self.error: list[Exception] = []
        self._thread = threading.Thread(target=self._run, args=(client, address))
        self._thread.start()

    def _run(self, client: Client, address: str) -> None:
        try:
            client.retire_workers([address])
        except ClusterError as error:
            self.error.append(error)

    def join(self) -> list[Exception]:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.error


@pytest.fixture
def client() -> Iterator[Client]:
    GATE.clear()
    ENTERED.clear()
    BEGAN.clear()
    with LocalCluster(2, 2, processes=False) as cluster, Client(cluster) as client:
        yield client
        GATE.set()


def test_the_call_that_runs_ends_first_and_all_others_are_made_once_and_in_order_where_the_actor_goes(
    client: Client,
) -> None:
    future = client.submit(Log, actor=True)
    log = future.result(20)
    home = log.where().result(20)
    (other,) = set(client.nthreads()) - {home}
    held = log.wait()
    assert ENTERED.wait(20)
    tasks = [client.submit(hold_slot, log, worker, 20, workers=[worker], pure=False) for worker in (home, other)]
    waiting = [log.add("client", number) for number in range(20)]
    until(lambda: len(BEGAN) == 2)
    retiring = Retiring(client, home)
    until(lambda: is_asked(client, home, log))
    waiting += [log.add("client", number) for number in range(20, 40)]
    assert not any(answer.done() for answer in waiting)
    GATE.set()
    assert held.result(20) == home
    assert [answer.result(20) for answer in waiting] == sorted(answer.result(20) for answer in waiting)
    client.gather(tasks)
    assert not retiring.join()
    check_calls(log, {"client": 40, home: 20, other: 20})
    assert set(log.all_places().result(20)) == {other}
    assert log.where().result(20) == other
    assert list(client.nthreads()) == [other]
    again = future.result(20)
    assert type(again) is Actor
    assert again.add("client", 40).result(20) == 81
    assert client.submit(call_all, future, "task", 2).result(20) == [82, 83]


def is_asked_to_move(key: str, dask_worker: Any) -> bool:
    """Whether the word that the actor is to move has come to its worker."""
    return dask_worker.actors.present(key)._offer is not None


def is_asked(client: Client, home: str, actor: Any) -> bool:
    answers = client.run(is_asked_to_move, actor.key, workers=[home])
    assert answers is not None
    return bool(answers[home])


def _retires(client: Client, address: str) -> bool:
    """The worker gets no more work: it retires."""
    return bool(client.scheduler_info()["workers"][address]["slots"] == 0)


def test_callers_in_many_threads_and_tasks_lose_and_repeat_nothing(client: Client) -> None:
    log = client.submit(Log, actor=True).result(20)
    home = log.where().result(20)
    callers = [threading.Thread(target=call_all, args=(log, f"thread-{number}", 100)) for number in range(3)]
    tasks = [client.submit(call_all, log, f"task-{number}", 100, pure=False) for number in range(3)]
    for caller in callers:
        caller.start()
    until(lambda: log.n > 20)
    assert home in client.retire_workers([home])
    for caller in callers:
        caller.join()
    client.gather(tasks)
    check_calls(log, {f"{kind}-{number}": 100 for kind in ("thread", "task") for number in range(3)})
    assert log.where().result(20) != home


def test_a_proxy_that_was_kept_finds_the_actor_after_its_first_worker_is_gone(client: Client) -> None:
    log = client.submit(Log, actor=True).result(20)
    home = log.where().result(20)
    (other,) = set(client.nthreads()) - {home}
    keeper = client.submit(Log, actor=True, workers=[other]).result(20)
    keeper.keep(log).result(20)
    stale = pickle.dumps(log)
    client.retire_workers([home])
    assert keeper.use_kept().result(20) == 1
    with Client(client.cluster) as second:  # it has never called it
        assert second.submit(call_all, pickle.loads(stale), "second", 2).result(20) == [2, 3]
        assert pickle.loads(stale).n == 3


def test_an_actor_may_move_again_and_again() -> None:
    with LocalCluster(4, 1, processes=False) as cluster, Client(cluster) as client:
        log = client.submit(Log, actor=True).result(20)
        for number in range(3):
            assert log.add("client", number).result(20) == number + 1
            client.retire_workers([log.where().result(20)])
        check_calls(log, {"client": 3})
        assert list(client.nthreads()) == [log.where().result(20)]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Staying, "neither its class nor the object says `movable = True`"),
        (Unpicklable, "it cannot be pickled: .*lock"),
        (Unmakeable, "could not make it anew: LookupError: not here"),
    ],
)
def test_an_actor_that_cannot_move_goes_on_where_it_is_and_the_refusal_says_why(
    client: Client, kind: type[Log], why: str
) -> None:
    log = client.submit(kind, actor=True).result(20)
    home = log.where().result(20)
    log.add("client", 0).result(20)
    with pytest.raises(
        ClusterError, match=rf"the actor '{kind.__name__}-.*' lives on worker .*, and cannot move: .*{why}"
    ):
        client.retire_workers([home])
    assert log.add("client", 1).result(20) == 2
    assert log.where().result(20) == home
    assert sorted(client.nthreads()) == sorted(client.submit(list, client.nthreads()).result(20))


def test_the_object_itself_may_say_that_it_moves(client: Client) -> None:
    log = client.submit(Staying, actor=True).result(20)
    home = log.where().result(20)
    log.say(True).result(20)
    client.retire_workers([home])
    assert log.where().result(20) != home


def test_an_actor_moves_when_no_async_call_is_under_way_and_others_get_in_until_then(client: Client) -> None:
    gate = client.submit(Gate, actor=True).result(20)
    home = gate.where().result(20)
    waiting = [gate.wait() for _ in range(3)]
    assert ENTERED.wait(20)
    retiring = Retiring(client, home)
    until(lambda: is_asked(client, home, gate))
    assert gate.open().result(20) == 1
    assert client.gather(waiting) == [home] * 3
    assert not retiring.join()
    assert gate.where().result(20) != home
    assert gate.open().result(20) == 2


def test_an_actor_that_is_released_while_its_worker_retires_keeps_nobody(client: Client) -> None:
    log = client.submit(Log, actor=True).result(20)
    home = log.where().result(20)
    held = log.wait()
    assert ENTERED.wait(20)
    retiring = Retiring(client, home)
    until(lambda: _retires(client, home))
    client.cancel(client.future(log.key))
    with pytest.raises(ActorLost):
        held.result(20)
    GATE.set()
    assert not retiring.join()
    with pytest.raises(ActorLost):
        log.add("client", 0).result(20)


async def test_under_trio_an_actor_moves_as_well() -> None:
    GATE.clear()
    ENTERED.clear()
    async with open_local_cluster(2, 2, processes=False) as cluster, cluster.get_client() as client:
        log = await client.submit(Log, actor=True)
        home = await log.where()
        held = log.wait()
        await trio.to_thread.run_sync(ENTERED.wait, 20)
        waiting = [log.add("client", number) for number in range(20)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.retire_workers, [home])
            await wait_retires(client, home)
            waiting += [log.add("client", number) for number in range(20, 40)]
            GATE.set()
            assert await held == home
            assert await client.gather(waiting) == list(range(1, 41))
        assert await log.n == 40
        assert await log.where() != home


async def wait_retires(client: AsyncClient, address: str) -> None:
    while (await client.scheduler_info())["workers"][address]["slots"]:  # noqa: ASYNC110 - nothing says when
        await trio.lowlevel.checkpoint()
