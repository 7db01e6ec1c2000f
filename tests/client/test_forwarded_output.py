"""What tasks print with plain `print` goes to the clients, where somebody asks for it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

import trio_dask
from tests.client.cluster import MiniCluster, open_client
from tests.untyped_dask import db
from trio_dask import Client, ForwardOutput, UsageError
from trio_dask.protocol import messages as m
from trio_dask.protocol.logged_events import load_event
from trio_dask.protocol.pickling import load_value
from trio_dask.worker.forwarded_output import LONGEST
from trio_dask.worker.task_context import WorkerHandle


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=2, processes=False) as client:
        yield client


@pytest.fixture(autouse=True)
def streams_stay_as_they_are() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    yield
    assert (sys.stdout, sys.stderr) == before


def told(client: Client) -> list[tuple[int, str]]:
    """What the events say: number of the stream, and text."""
    return [(event["file"], *event["args"]) for _, event in client.get_events("print")]


def work(number: int) -> int:
    print("number", number)
    print("begun", end="", file=sys.stderr)
    return number


def fail() -> None:
    print("before")
    raise ZeroDivisionError


async def work_under_trio() -> None:
    print("a", end=" ")
    await trio.sleep(0.01)
    print("b")


def print_ours() -> None:
    trio_dask.print("ours")
    print("plain")


def warn_ours() -> None:
    with pytest.warns(UserWarning, match="careful"):
        trio_dask.warn("careful")


def save(number: int, output: str = "nowhere") -> str:
    return f"{number} in {output}"


def test_a_task_forwards_what_it_prints_line_by_line_and_others_do_not(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.submit(work, 1).result()
    assert client.submit(work, 2, output="forward").result() == 2
    assert told(client) == [(1, "number 2\n"), (2, "begun")]
    assert client.gather(client.map(work, [3, 4], output="forward")) == [3, 4]
    assert sorted(told(client))[:3] == [(1, "number 2\n"), (1, "number 3\n"), (1, "number 4\n")]
    assert sorted(capsys.readouterr().out.splitlines()) == [f"number {number}" for number in (1, 2, 3, 4)]


def test_a_task_that_raises_or_awaits_forwards_as_well(client: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        client.submit(fail, output="forward").result()
    client.submit(work_under_trio, output="forward").result()
    assert told(client) == [(1, "before\n"), (1, "a b\n")]


def test_collections_forward_as_well(client: Client) -> None:
    client.compute(db.from_sequence([5], npartitions=1).map(work).sum(), output="forward").result()
    assert (1, "number 5\n") in told(client)
    with pytest.raises(UsageError, match="output is"):
        client.compute(db.from_sequence([5], npartitions=1).sum(), output="else")  # type: ignore[arg-type]


@pytest.mark.parametrize("registered", [True, False])
def test_what_goes_to_the_clients_in_another_way_is_told_once(client: Client, registered: bool) -> None:
    if registered:
        client.register_plugin(ForwardOutput())
    for function in (print_ours, warn_ours):
        (client.submit(function) if registered else client.submit(function, output="forward")).result()
    events = [event["args"] for _, event in client.get_events("print")]
    assert events == [("ours",), ("plain\n",)]
    assert len(client.get_events("warn")) == 1


def test_the_plugin_forwards_what_all_tasks_print_until_it_is_unregistered(client: Client) -> None:
    client.register_plugin(ForwardOutput())
    client.register_plugin(ForwardOutput())
    client.submit(work, 1).result()
    print("this program's own")
    assert told(client) == [(1, "number 1\n")]
    client.unregister_worker_plugin("forward-output")
    assert told(client) == [(1, "number 1\n"), (2, "begun")]
    client.submit(work, 2).result()
    assert len(told(client)) == 2


def test_an_output_that_is_for_the_function_reaches_it() -> None:
    cluster = MiniCluster()
    with open_client(cluster) as client:
        assert client.submit(save, 1, output="a.csv").result() == "1 in a.csv"
        assert client.gather(client.map(save, [2], output="b.csv")) == ["2 in b.csv"]
        with pytest.raises(UsageError, match="could be meant for save"):
            client.submit(save, 1, output="forward")
        with pytest.raises(UsageError, match="could be meant for save"):
            client.map(save, [1], output="forward")
        assert client.submit(save, 1, "here", output="forward").result() == "1 in here"
    assert [message.extra for message in cluster.of_type(m.Submit)] == [{}, {}, {"output": "forward"}]


class Worker:
    """A worker alone in its process, with the plugin."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.handle = WorkerHandle(name="w", nthreads=1, log=self._log)
        self.handle.address = "tcp://w:1"

    def _log(self, message: m.LogEvent) -> None:
        self.events.append(load_event(message.payload, load_value)["args"][0])

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[list[Any]]:
        plugin = ForwardOutput()
        plugin.setup(self.handle)
        try:
            yield self.events
        finally:
            plugin.teardown(self.handle)


def test_a_worker_alone_in_its_process_forwards_what_is_printed_beside_tasks() -> None:
    with Worker().forwarding() as events:
        thread = threading.Thread(target=print, args=("in a thread",))
        thread.start()
        thread.join()
        print("here")
        assert events == ["in a thread\n", "here\n"]


def test_lines_of_two_threads_are_not_mixed() -> None:
    with Worker().forwarding() as events:
        print("one", end="")
        thread = threading.Thread(target=print, args=("two",))
        thread.start()
        thread.join()
        print(" line")
    assert events == ["two\n", "one line\n"]


def test_a_line_is_sent_when_it_is_flushed_or_too_long_or_the_last() -> None:
    with Worker().forwarding() as events:
        print("1 ", end="", flush=True)
        assert events.pop() == "1 "
        print("x" * LONGEST + "y")
        assert events == ["x" * LONGEST, "y\n"]
        sys.stdout.writelines(["a", "b"])
        assert len(events) == 2
    assert events[2:] == ["ab"]


def test_a_thread_that_has_ended_leaves_its_last_line_and_nothing_else() -> None:
    with Worker().forwarding() as events:
        for number in range(3):
            thread = threading.Thread(target=print, args=(number,), kwargs={"end": ""})
            thread.start()
            thread.join()
        assert events == ["0", "1"]
    assert events == ["0", "1", "2"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_writes_to_the_stream_alone() -> None:
    with Worker().forwarding() as events:
        child = os.fork()
        if not child:
            print("in the child", flush=True)
            os._exit(len(events))
        assert os.waitpid(child, 0)[1] == 0


def test_a_stream_that_was_replaced_meanwhile_stays_and_forwards_nothing_later() -> None:
    before, worker = sys.stdout, Worker()
    with worker.forwarding():
        redirected = contextlib.redirect_stdout(io.StringIO())
        kept = redirected.__enter__()
        print("kept")
    assert sys.stdout is kept
    redirected.__exit__(None, None, None)
    print("after")
    assert kept.getvalue() == "kept\n"
    assert worker.events == []
    with worker.forwarding() as events:
        print("again")
    assert events == ["again\n"]
    assert sys.stdout is before


def test_the_proxy_is_like_the_stream() -> None:
    with Worker().forwarding():
        assert sys.stdout.encoding.lower() == "utf-8"
        assert not sys.stdout.isatty()
        with pytest.raises(TypeError):
            sys.stdout.write(b"bytes")  # type: ignore[arg-type]
