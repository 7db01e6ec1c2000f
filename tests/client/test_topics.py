"""Programs and tasks log events; those that subscribe are told, in order, whatever their handlers do."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trio_dask
from tests.client.cluster import MiniCluster
from trio_dask import AsyncClient, Client, get_worker, open_local_cluster
from trio_dask.client import remote_output
from trio_dask.client.remote_output import show_print, show_warning
from trio_dask.errors import UsageError
from trio_dask.ids import Incarnation
from trio_dask.plugins.forwarded_logs import place_of_output
from trio_dask.protocol import messages as m
from trio_dask.protocol.logged_events import load_event, log_message
from trio_dask.protocol.pickling import load_value

ELSEWHERE = {"process": ("another", 1)}


def log_from_task(topic: str, value: Any) -> Any:
    get_worker().log_event(topic, value)
    return value


def print_and_warn(text: str) -> str:
    trio_dask.print(text, 1, sep="-")
    trio_dask.warn(text)
    return text


def print_to(file: Any) -> None:
    trio_dask.print("a", file=file)


class Recorder(list[Any]):
    """Events as a handler gets them, without their times."""

    def __call__(self, event: tuple[float, Any]) -> None:
        self.append(event[1])


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        yield client


def test_events_of_programs_and_tasks_are_kept_and_told_in_order(client: Client) -> None:
    told = Recorder()
    client.subscribe_topic("a", told)
    client.log_event("a", {"by": "the program"})
    assert client.submit(log_from_task, "a", (1, {2})).result() == (1, {2})
    client.log_event(["a", "b"], None)
    expected = [{"by": "the program"}, (1, {2}), None]
    assert [value for _, value in client.get_events("a")] == expected
    times = [at for at, _ in client.get_events("a")]
    assert times == sorted(times)
    assert [value for _, value in client.get_events()["b"]] == [None]
    assert client.get_events("never") == ()
    client.unsubscribe_topic("a")
    client.log_event("a", "not heard")
    client.submit(int).result()
    assert told == expected


def test_a_topic_without_a_handler_and_a_handler_that_is_none_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="there is no handler for topic 'c'"):
        client.unsubscribe_topic("c")
    with pytest.raises(TypeError, match="is a function"):
        client.subscribe_topic("c", 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the limit is 1 MiB"):
        client.log_event("c", bytes(2**21))
    with pytest.raises(UsageError, match="a text, not 5"):
        client.log_event([5], 1)  # type: ignore[list-item]


@pytest.mark.parametrize("topic", [5, "half a pair: \udcff", "x" * 5000])
def test_what_no_message_can_carry_is_no_topic_and_leaves_the_session_alone(client: Client, topic: Any) -> None:
    future = client.submit(abs, -1)
    for call in (
        client.get_events,
        lambda name: client.subscribe_topic(name, print),
        lambda name: client.log_event([name], 1),
    ):
        with pytest.raises(UsageError, match="the name of a topic"):
            call(topic)
    if isinstance(topic, str):
        for forward in (client.forward_logging, client.unforward_logging):
            with pytest.raises(UsageError, match="the name of a topic"):
                forward(topic)
    assert future.result() == 1


async def test_async_handlers_run_one_after_the_other_and_what_they_raise_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[int] = []
    last = trio.Event()

    async def handle(event: tuple[float, Any]) -> None:
        await trio.lowlevel.checkpoint()
        if event[1] == 1:
            raise ValueError("one")
        done.append(event[1])
        if event[1] == 3:
            last.set()

    def broken(event: tuple[float, Any]) -> None:
        raise ValueError("broken")

    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        client.subscribe_topic("a", handle)
        client.subscribe_topic("b", broken)
        for number in range(4):
            await client.log_event(["a", "b"], number)
        with trio.fail_after(10):
            await last.wait()
    assert done == [0, 2, 3]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert sorted(said) == ["an async handler of a topic failed", *["the handler of topic 'b' failed"] * 4]


async def test_a_new_scheduler_is_told_of_the_subscriptions(async_client: AsyncClient, cluster: MiniCluster) -> None:
    subscriptions: list[m.Message] = []
    cluster.handlers[m.Subscribe] = subscriptions.append
    async_client.subscribe_topic("a", print)
    async_client.subscribe_topic("b", print)
    async_client.unsubscribe_topic("b")
    await trio.testing.wait_all_tasks_blocked()
    subscriptions.clear()
    cluster.lose()
    await trio.testing.wait_all_tasks_blocked()
    assert subscriptions == []  # the same scheduler has not forgotten
    cluster.incarnation, cluster.takes_back = Incarnation("s2"), False
    cluster.lose()
    await trio.testing.wait_all_tasks_blocked()
    assert subscriptions == [m.Subscribe("a", True)]


def test_tasks_of_this_process_print_and_warn_once(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="careful") as caught:
        assert client.submit(print_and_warn, "careful").result() == "careful"
    assert len(caught) == 1
    assert capsys.readouterr().out == "careful-1\n"
    with pytest.raises(TypeError, match=r"sys\.stdout or sys\.stderr"):
        client.submit(print_to, "a file").result()


async def test_what_a_task_prints_is_shown_before_its_result(
    async_client: AsyncClient, cluster: MiniCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.hold = True
    future = async_client.submit(int)
    await trio.testing.wait_all_tasks_blocked()
    args = {"args": ("hello",), "sep": None, "end": None, "file": 2, "flush": False, **ELSEWHERE}
    cluster.say(m.TopicEvent("print", 0.0, log_message("print", args).payload))
    cluster.finish(future.key)
    assert await future == 0
    assert capsys.readouterr().err == "hello\n"


def test_what_stands_where_this_program_writes_is_not_shown_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"args": ("hello",), "sep": None, "end": None, "file": 2, "flush": False, **ELSEWHERE}
    monkeypatch.setattr(remote_output, "place_of_output", lambda number: ("host", 1, number))
    for place, shown in ((("host", 1, 2), ""), (("another", 1, 2), "hello\n"), (None, "hello\n")):
        show_print((0.0, {**args, "place": place}))
        assert capsys.readouterr().err == shown


def test_an_output_that_was_replaced_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    assert place_of_output(1) is not None
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert place_of_output(1) is None
    monkeypatch.setattr(sys, "__stderr__", None)
    assert place_of_output(2) is None


def test_whatever_else_is_printed_or_warned_of_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_print((0.0, "text"))
    assert capsys.readouterr().out == "text\n"
    with pytest.warns(UserWarning, match="text"):
        show_warning((0.0, "text"))
    with pytest.warns(RuntimeWarning, match="by a class"):
        show_warning((0.0, {"message": "by a class", "category": RuntimeWarning, **ELSEWHERE}))
    for event, show in (
        ({"args": "no tuple"}, show_print),
        ({"args": (), "file": 3}, show_print),
        ({}, show_warning),
    ):
        with pytest.raises(TypeError):
            show((0.0, event))


def test_a_warning_names_the_line_of_the_task_that_warned() -> None:
    with pytest.warns(UserWarning, match="far away") as caught:
        show_warning((0.0, {"message": "far away", "category": None, "place": ("task.py", 7), **ELSEWHERE}))
    assert (caught[0].filename, caught[0].lineno) == ("task.py", 7)


def test_a_task_tells_where_it_warned(client: Client) -> None:
    with pytest.warns(UserWarning, match="careful"):
        client.submit(print_and_warn, "careful").result()
    _, told = client.get_events("warn")[-1]
    filename, line = told["place"]
    assert filename == __file__
    assert "trio_dask.warn(text)" in Path(filename).read_text(encoding="utf-8").splitlines()[line - 1]


def test_outside_of_tasks_print_and_warn_are_those_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    trio_dask.print("a", 1, sep="", end="!")
    assert capsys.readouterr().out == "a1!"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trio_dask.warn("here", RuntimeWarning)
    assert [(str(warning.message), warning.category, warning.filename) for warning in caught] == [
        ("here", RuntimeWarning, __file__)
    ]


def test_an_event_survives_its_way() -> None:
    payload = log_message("a", [1, "x", {2.5}]).payload
    assert load_event(payload, load_value) == [1, "x", {2.5}]
    assert load_event(("plain",), load_value) == "plain"
