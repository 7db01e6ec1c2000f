"""Tasks that do bad things: each gives a clear, typed error or the value, and the cluster goes on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trio_dask import Client, KilledWorker, LocalCluster, RemoteError, SerializationError, TaskExited, TaskTimeout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        yield client


def goes_on(client: Client) -> None:
    assert client.gather(client.map(lambda x: x + 1, range(20), pure=False)) == list(range(1, 21))


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle of me")


class Unloadable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text of me")

    __repr__ = __str__


class OfItsOwnKind(BaseException):
    pass


def raising(error: Callable[[], BaseException]) -> Callable[[], None]:
    def task() -> None:
        raise error()

    return task


def endless(depth: int = 0) -> int:
    return endless(depth + 1) + 1


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (lambda: ValueError("an ordinary one"), ValueError, "an ordinary one"),
        (lambda: Unpicklable("hello"), RemoteError, "Unpicklable: hello"),
        (lambda: Unloadable(1, 2), (RemoteError, Unloadable), "1 and 2"),
        (lambda: Hostile(), (RemoteError, Hostile), ""),
        (lambda: SystemExit(3), TaskExited, "SystemExit(3)"),
        (lambda: KeyboardInterrupt(), TaskExited, "KeyboardInterrupt"),
        (lambda: GeneratorExit(), TaskExited, "GeneratorExit"),
        (lambda: StopIteration(7), (StopIteration, RuntimeError), ""),
        (lambda: OfItsOwnKind("base"), (OfItsOwnKind, RemoteError), "base"),
        (lambda: ExceptionGroup("several", [ValueError("one"), TypeError("two")]), ExceptionGroup, "several"),
    ],
    ids=["plain", "unpicklable", "unloadable", "hostile", "exit", "interrupt", "generator", "stop", "base", "group"],
)
def test_whatever_is_raised_arrives(
    client: Client,
    error: Callable[[], BaseException],
    expected: type[BaseException] | tuple[type[BaseException], ...],
    text: str,
) -> None:
    future = client.submit(raising(error), pure=False)
    with pytest.raises(expected) as caught:
        future.result(timeout=20)
    if text:
        assert text in str(caught.value)
    assert future.status == "error"
    goes_on(client)


def test_infinite_recursion_is_a_recursion_error(client: Client) -> None:
    with pytest.raises(RecursionError):
        client.submit(endless, pure=False).result(timeout=20)
    goes_on(client)


def test_a_remote_exception_has_the_users_frames_first_and_a_note_of_where(client: Client) -> None:
    def inner() -> None:
        raise LookupError("here")

    def outer() -> None:
        inner()

    with pytest.raises(LookupError) as caught:
        client.submit(outer, key="outer-key").result(timeout=20)
    frames = [entry.name for entry in caught.traceback]
    assert frames[-2:] == ["outer", "inner"]
    notes = "\n".join(caught.value.__notes__)
    assert "outer-key" in notes
    assert "attempt 1" in notes


@pytest.mark.parametrize(
    ("make", "type_name"),
    [
        (lambda: threading.Lock(), "lock"),
        (lambda: (number for number in range(3)), "generator"),
        (lambda: {"deep": [1, open(os.devnull)]}, "TextIOWrapper"),  # noqa: SIM115
    ],
    ids=["lock", "generator", "file"],
)
def test_a_result_that_cannot_be_pickled_fails_its_task_and_names_the_type(
    client: Client, make: Callable[[], Any], type_name: str
) -> None:
    with pytest.raises(SerializationError, match=type_name):
        client.submit(make, pure=False).result(timeout=20)
    goes_on(client)


def test_a_result_of_500_megabytes_arrives(client: Client) -> None:
    assert len(client.submit(bytes, 500_000_000).result(timeout=60)) == 500_000_000
    goes_on(client)


@pytest.mark.parametrize(
    "end",
    # The last one has as like as not returned when its process dies.
    [lambda: os._exit(7), lambda: ctypes.string_at(0), lambda: os.kill(os.getpid(), signal.SIGSEGV)],
    ids=["exit", "segfault", "signal"],
)
def test_a_task_that_ends_its_process_is_given_up_and_says_where(client: Client, end: Callable[[], Any]) -> None:
    future = client.submit(end, pure=False)
    with pytest.raises(KilledWorker) as caught:
        future.result(timeout=60)
    assert caught.value.key == future.key
    assert len(caught.value.deaths) == 4
    assert "pid" in str(caught.value)
    client.wait_for_workers(2, timeout=30)
    goes_on(client)


def test_a_task_that_holds_the_interpreter_for_ten_seconds_gives_its_value(client: Client) -> None:
    def hold() -> str:
        sys.setswitchinterval(1000)
        try:
            end = time.monotonic() + 10
            while time.monotonic() < end:
                pass
        finally:
            sys.setswitchinterval(0.005)
        return "done"

    assert client.submit(hold, pure=False).result(timeout=40) == "done"
    goes_on(client)


def test_a_thread_that_exceeds_its_time_limit_fails_its_future_at_once(client: Client) -> None:
    start = time.monotonic()
    with pytest.raises(TaskTimeout):
        client.submit(time.sleep, 4, time_limit=0.5).result(timeout=20)
    assert time.monotonic() - start < 3
    goes_on(client)
