"""The thread that sends graphs: their order, graphs inside graphs, what they raise, and graphs that never end."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import pytest
import trio

from tests.client.test_unsent_tasks import part
from trio_dask.client.core.key_state import Ended, KeyState, NotSent
from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.graph_sender import LEAD_S, GraphSender, Lead, lead_of_call
from trio_dask.client.outgoing import Outgoing
from trio_dask.client.shared_state import SharedState
from trio_dask.protocol import messages as m

PATIENCE_S = 10
NO_LEAD = Lead(False, 0.0)


class _Outgoing:
    def wake(self) -> None:
        pass


class Desk:
    """A sender, and what it has put into the core."""

    def __init__(self) -> None:
        self.shared = SharedState()
        self.core = self.shared.core
        self.sender = GraphSender(self.shared, cast("Outgoing", _Outgoing()))

    def send(self, keys: str, parts: Iterable[GraphPart], lead: Lead = NO_LEAD) -> list[KeyState]:
        """Send a graph with these outputs."""
        with self.shared.lock:
            graph = self.core.expect_graph(dict.fromkeys(keys, b""))
        self.sender.send(parts, graph, lead)
        return graph.states

    def rest(self, *, except_for: Sequence[threading.Thread] = ()) -> None:
        """Wait until no thread sends graphs."""
        for thread in threading.enumerate():
            if thread.name == "trio_dask-graphs" and thread not in except_for:
                thread.join(PATIENCE_S)
                assert not thread.is_alive(), "a thread still sends graphs"

    def keys(self) -> str:
        """All tasks that were sent, in order."""
        with self.shared.lock:
            messages = self.core.drain()
        return "".join(key for message in messages if isinstance(message, m.SubmitGraph) for key in message.keys)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.rest()


def parts(*groups: str, before: Callable[[], object] = lambda: None) -> Iterator[GraphPart]:
    """A part for each group of keys; `before` is called before the second one is made."""
    for number, group in enumerate(groups):
        if number == 1:
            before()
        yield part(group)


def test_graphs_leave_in_the_order_of_the_calls(desk: Desk) -> None:
    begin = threading.Event()
    desk.send("b", parts("a", "b", before=begin.wait))
    desk.send("d", parts("c", "d"))
    desk.send("e", parts("e"))
    begin.set()
    desk.rest()
    assert desk.keys() == "abcde"
    desk.send("f", parts("f"))  # the thread had ended
    desk.rest()
    assert desk.keys() == "f"


def test_a_graph_inside_a_graph_is_sent_before_the_part_that_needs_it(desk: Desk) -> None:
    desk.send("b", parts("a", "b", before=lambda: desk.send("y", parts("x", "y"))))
    desk.rest()
    assert desk.keys() == "axyb"


def test_a_call_waits_for_the_first_part_or_the_whole_of_its_graph(desk: Desk) -> None:
    begin = threading.Event()
    desk.send("b", parts("a", "b", before=begin.wait), Lead(False, PATIENCE_S))
    assert desk.keys() == "a"
    begin.set()
    desk.send("d", parts("c", "d"), Lead(True, PATIENCE_S))
    assert desk.keys() == "bcd"


def test_a_program_gets_its_values_back_when_they_are_pickled_and_a_trio_loop_goes_on() -> None:
    assert lead_of_call(waits=False) == (True, None)
    assert lead_of_call(waits=True) == (False, LEAD_S)

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        assert lead_of_call(waits=False) == (True, LEAD_S)
        assert lead_of_call(waits=True) == (True, 0.0)

    trio.run(main)


def test_what_making_a_part_raises_is_the_error_of_the_outputs_and_the_next_graph_is_sent(desk: Desk) -> None:
    error = SystemExit("oops")

    def fail() -> None:
        raise error

    a, b = desk.send("ab", parts("a", "b", before=fail))
    (c,) = desk.send("c", parts("c"))
    desk.rest()
    assert desk.keys() == "ac"
    assert (a.status, c.status) == ("pending", "pending")
    assert b.failure == NotSent(error)


def test_a_graph_of_a_closed_client_ends_and_its_futures_have_ended_before(desk: Desk) -> None:
    begin, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        begin.wait()

    (a,) = desk.send("b", parts("a", "b", "c", before=wait))
    begun.wait()
    with desk.shared.lock:
        desk.core.end_session(Ended(False, "closed"))
    assert a.status == "cancelled"
    begin.set()
    desk.rest()
    assert desk.keys() == ""


def test_a_graph_that_is_given_up_and_never_made_holds_up_no_other(desk: Desk) -> None:
    begin, begun = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def wait() -> None:
        threads.append(threading.current_thread())
        begun.set()
        begin.wait()

    (stuck,) = desk.send("b", parts("a", "b", before=wait))
    begun.wait()
    with desk.shared.lock:
        desk.core.dereference([stuck])
    desk.send("c", parts("c"))
    desk.send("d", parts("d"))
    try:
        desk.rest(except_for=threads)
        assert desk.keys() == "acd"
    finally:
        begin.set()
    desk.rest()
    assert desk.keys() == ""
