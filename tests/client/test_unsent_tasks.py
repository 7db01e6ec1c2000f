"""Graphs on their way: what the core says of tasks that have futures and are not sent yet."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.client.cluster import FUNCTION
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import Ended, KeyState, NotSent
from trio_dask.client.core.outbox import GraphPart, Row
from trio_dask.client.core.unsent_tasks import ExpectedGraph
from trio_dask.errors import KeyConflict
from trio_dask.protocol import messages as m

M = TypeVar("M")
OOPS = ValueError("oops")


def part(
    keys: Sequence[str], *, held: Sequence[int] = (), unheld: Sequence[str] = (), inputs: Sequence[str] = ()
) -> GraphPart:
    """A part in which each task may be an output."""
    count = len(keys)
    message = m.SubmitGraph(
        functions=(FUNCTION[0],),
        function_of=(0,) * count,
        keys=tuple(keys),
        calls=(b"call",) * count,
        inputs=tuple(inputs),
        dependencies=(tuple(range(count, count + len(inputs))), *((),) * (count - 1)),
        blobs=(),
        tokens=(),
        options=(),
        options_of=(),
        wanted=(),
        held=tuple(held),
        unheld=tuple(unheld),
    )
    return GraphPart(message, list(enumerate(keys)), [FUNCTION])


def expect(core: ClientCore, *keys: str) -> tuple[ExpectedGraph, list[KeyState]]:
    graph = core.expect_graph(dict.fromkeys(keys, b""))
    return graph, graph.states


def sent(core: ClientCore, kind: type[M]) -> list[M]:
    """What the core says, of one kind."""
    return [message for message in core.drain() if isinstance(message, kind)]


def submit(core: ClientCore, key: str, *needs: str) -> KeyState:
    return core.submit(FUNCTION, [Row(key, b"call", needs)], ())[0]


def wanted_keys(messages: Iterable[m.SubmitGraph]) -> list[str]:
    return [message.keys[number] for message in messages for number in message.wanted]


def test_the_client_wants_the_outputs_of_each_part_and_nothing_else() -> None:
    core = ClientCore()
    graph, _ = expect(core, "a", "d")
    assert core.submit_graph(graph, part(["a", "b"]))
    assert core.submit_graph(graph, part(["c", "d"]))
    core.end_graph(graph)
    assert wanted_keys(sent(core, m.SubmitGraph)) == ["a", "d"]


@pytest.mark.parametrize("how", ["released", "cancelled"])
def test_an_output_that_is_given_up_before_its_part_is_sent_is_not_wanted(how: str) -> None:
    core = ClientCore()
    graph, (a, _) = expect(core, "a", "b")
    if how == "cancelled":
        core.cancel([a], False, "")
    core.dereference([a])
    core.drain()
    assert core.submit_graph(graph, part(["a", "b"]))
    core.end_graph(graph)
    assert wanted_keys(sent(core, m.SubmitGraph)) == ["b"]


@pytest.mark.parametrize("how", ["released", "cancelled"])
def test_a_graph_stops_when_nobody_waits_for_what_is_not_sent(how: str) -> None:
    core = ClientCore()
    graph, (a, b) = expect(core, "a", "b")
    assert core.submit_graph(graph, part(["a", "x"], held=[1]))
    core.drain()
    if how == "cancelled":
        core.cancel([b], False, "")
    else:
        core.dereference([b])
    assert not core.needs(graph)
    assert not core.submit_graph(graph, part(["b"], unheld=["x"], inputs=["x"]))
    core.end_graph(graph)
    (message,) = sent(core, m.SubmitGraph)
    assert message == m.SubmitGraph(*((),) * 12, unheld=("x",))
    assert a.status == "pending"


def test_what_a_part_would_have_let_go_is_let_go_when_the_part_is_not_sent() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    core.submit_graph(graph, part(["x", "y"], held=[0, 1]))
    core.submit_graph(graph, part(["z"], held=[0], unheld=["x"], inputs=["x"]))
    core.dereference([a])
    core.drain()
    assert not core.submit_graph(graph, part(["a"], unheld=["y", "z"], inputs=["y", "z"]))
    core.end_graph(graph)
    (message,) = sent(core, m.SubmitGraph)
    assert sorted(message.unheld) == ["y", "z"]
    core.end_graph(graph)
    assert not core.drain()


def test_a_graph_whose_outputs_are_all_known_need_not_be_sent() -> None:
    core = ClientCore()
    a = submit(core, "a")
    graph, states = expect(core, "a")
    assert states == [a]
    assert not graph.outputs
    assert a.refs == 2


def test_a_new_life_of_an_output_is_not_the_old_graphs() -> None:
    """The graph that it was cancelled in still brings its key, perhaps as another task."""
    core = ClientCore()
    first, (old, _) = expect(core, "a", "b")
    core.cancel([old], False, "")
    second, (new,) = expect(core, "a")
    dependent = submit(core, "c", "a")
    core.submit_graph(first, part(["a", "b"]))
    core.end_graph(first)
    assert wanted_keys(sent(core, m.SubmitGraph)) == ["b"]
    core.submit_graph(second, part(["a"]))
    core.end_graph(second)
    messages = core.drain()
    assert [type(message) for message in messages if type(message) is not m.Blob] == [m.SubmitGraph, m.Submit]
    assert (new.status, dependent.status) == ("pending", "pending")


def test_an_output_that_no_part_brings_is_asked_for_by_its_key() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    core.end_graph(graph)
    assert sent(core, m.Want) == [m.Want(("a",))]
    core.handle(m.Dropped("a", "lost", "unknown"))
    assert a.status == "lost"


def test_two_calls_under_one_key_are_a_conflict() -> None:
    core = ClientCore()
    core.expect_graph({"a": b"one"})
    with pytest.raises(KeyConflict):
        core.expect_graph({"b": b"", "a": b"two"})
    assert list(core.states) == ["a"]
    assert core.expect_graph({"a": b"one"}).states[0].refs == 2
    with pytest.raises(KeyConflict):
        core.submit(FUNCTION, [Row("a", b"call", token=b"two")], ())


# ------------------------------------------------------------------------------------------ graphs that fail


def test_what_a_graph_raises_is_the_error_of_what_was_not_sent() -> None:
    core = ClientCore()
    graph, (a, b) = expect(core, "a", "b")
    core.submit_graph(graph, part(["a", "x"], held=[1]))
    core.end_graph(graph, OOPS)
    assert a.status == "pending"
    assert (b.status, b.failure) == ("error", NotSent(OOPS))
    assert sent(core, m.SubmitGraph)[-1].unheld == ("x",)


def test_what_depends_on_a_task_that_was_not_sent_fails_with_its_error() -> None:
    core = ClientCore()
    graph, _ = expect(core, "a")
    b, c = submit(core, "b", "a"), submit(core, "c", "b")
    core.detach([b])
    core.end_graph(graph, OOPS)
    late = submit(core, "d", "c", "a")
    assert [state.failure for state in (b, c, late)] == [NotSent(OOPS)] * 3
    other, (e,) = expect(core, "e")
    with pytest.raises(ValueError, match="oops"):
        core.submit_graph(other, part(["e"], inputs=["a"]))
    core.end_graph(other, OOPS)
    assert e.status == "error"
    assert not sent(core, m.Submit)


def test_what_was_not_sent_can_be_computed_anew() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    core.end_graph(graph, OOPS)
    again, (new,) = expect(core, "a")
    assert new is not a
    assert core.submit_graph(again, part(["a"]))
    core.end_graph(again)
    core.dereference([a])
    core.handle(m.KeyReady("a", 1, "int", b"v", ()))
    assert new.status == "finished"


@pytest.mark.parametrize("graph_first", [True, False])
def test_a_failed_key_can_be_submitted_anew(graph_first: bool) -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    core.end_graph(graph, OOPS)
    new = submit(core, "a") if graph_first else core.want(["a"])[0]
    assert new is not a
    assert submit(core, "b", "a").status == "pending"


def test_an_output_that_a_later_graph_will_send_does_not_fail_with_the_first() -> None:
    core = ClientCore()
    first, (a, b) = expect(core, "a", "b")
    second, (same,) = expect(core, "a")
    assert same is a
    core.end_graph(first, OOPS)
    assert (a.status, b.status) == ("pending", "error")
    assert core.submit_graph(second, part(["a"]))
    core.end_graph(second, None)
    assert wanted_keys(sent(core, m.SubmitGraph)) == ["a"]


# ------------------------------------------------------------------------------------------ what waits for them


def test_what_depends_on_an_unsent_task_keeps_it_and_follows_it() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    b = submit(core, "b", "a")
    c = submit(core, "c", "b")
    core.dereference([a, b])
    assert not sent(core, m.Submit)
    assert core.submit_graph(graph, part(["a"]))
    core.end_graph(graph)
    messages = core.drain()
    assert [type(message) for message in messages if type(message) is not m.Blob] == [
        m.SubmitGraph,
        m.Submit,
        m.Release,
    ]
    (message,) = [message for message in messages if isinstance(message, m.Submit)]
    assert message.keys == ("b", "c")
    assert c.status == "pending"
    core.dereference([c])
    assert not core.states


def test_what_depends_on_an_unsent_task_keeps_the_others_that_it_depends_on() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    sent_before = submit(core, "b")
    c = submit(core, "c", "a", "b")
    core.dereference([a, sent_before])
    core.submit_graph(graph, part(["a"]))
    core.end_graph(graph)
    kinds = [type(message) for message in core.drain() if type(message) is not m.Blob]
    assert kinds == [m.Submit, m.SubmitGraph, m.Submit, m.Release]
    core.dereference([c])
    assert not core.states


def test_a_long_chain_that_nobody_wants_any_more_is_given_up_whole() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    last = a
    for number in range(5000):
        state = submit(core, f"k{number}", last.key)
        core.dereference([last])
        last = state
    core.dereference([last])
    assert not core.states
    assert not core.submit_graph(graph, part(["a"]))
    core.end_graph(graph)
    assert {type(message) for message in core.drain()} <= {m.Blob}


def test_what_depends_on_a_cancelled_task_is_cancelled_with_it() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    b, c = submit(core, "b", "a"), submit(core, "c", "b")
    core.cancel([a], False, "enough")
    assert [state.status for state in (a, b, c)] == ["cancelled"] * 3
    assert not core.needs(graph)
    core.dereference([a, b, c])
    assert not core.states


def test_a_detached_task_is_sent_and_finishes_though_its_futures_are_gone() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    b = submit(core, "b", "a")
    for _ in range(2):
        core.detach([a, b])
    core.dereference([a, b])
    core.drain()
    assert core.submit_graph(graph, part(["a"]))
    core.end_graph(graph)
    messages = core.drain()
    assert [type(message) for message in messages] == [m.SubmitGraph, m.Submit, m.FireAndForget, m.Release]
    assert not core.states


def test_a_detached_task_of_a_graph_that_fails_leaves_nothing_behind() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    core.detach([a])
    core.dereference([a])
    core.end_graph(graph, OOPS)
    assert not core.states


def test_when_all_is_cancelled_the_graphs_stop_and_nothing_is_left() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    b = submit(core, "b", "a")
    core.detach([b])
    core.cancel_all("the cluster was restarted")
    assert not core.submit_graph(graph, part(["a"]))
    core.end_graph(graph)
    core.dereference([a, b])
    assert not core.states


def test_a_value_that_is_scattered_under_the_key_of_an_output_is_released_with_it() -> None:
    core = ClientCore()
    graph, (a,) = expect(core, "a")
    core.expect(["a"])
    core.handle(m.KeyReady("a", 1, "int", None, ("tcp://1:1",)))
    core.dereference([a, a])
    assert sent(core, m.Release) == [m.Release(("a",))]
    core.end_graph(graph)


# ------------------------------------------------------------------------------------------ sessions


@pytest.mark.parametrize("lost", [True, False])
def test_when_the_session_ends_graphs_end_with_it_and_the_next_scheduler_hears_nothing(lost: bool) -> None:
    core = ClientCore()
    core.connected("s1", None)
    graph, (a, b) = expect(core, "a", "b")
    c = submit(core, "c", "b")
    core.submit_graph(graph, part(["a", "x"], held=[1]))
    core.drain()
    core.end_session(Ended(lost, "over"))
    assert {state.status for state in (a, b, c)} == {"lost" if lost else "cancelled"}
    assert not core.submit_graph(graph, part(["b"]))
    core.end_graph(graph)
    assert not core.has_messages
    core.connected("s2", None)
    again, _ = expect(core, "b")
    assert core.submit_graph(again, part(["b"]))
    core.end_graph(again)
    assert wanted_keys(sent(core, m.SubmitGraph)) == ["b"]


def test_parts_that_the_scheduler_has_not_handled_are_sent_again_in_their_order() -> None:
    core = ClientCore()
    core.connected("s1", None)
    graph, _ = expect(core, "a", "b")
    core.submit_graph(graph, part(["a"]))
    core.drain()
    core.submit_graph(graph, part(["b"]))  # the connection is lost meanwhile
    core.connected("s1", 1)
    core.end_graph(graph)
    assert wanted_keys(sent(core, m.SubmitGraph)) == ["a", "b"]


# ------------------------------------------------------------------------------------------ any course of events


class UnsentMachine(RuleBasedStateMachine):
    """Graphs, submissions, and users that change their minds, against a scheduler that knows what it was told."""

    @initialize()
    def start(self) -> None:
        self.core = ClientCore()
        self.graphs: list[tuple[ExpectedGraph, list[str]]] = []
        self.futures: list[KeyState] = []
        self.known: set[str] = set()
        """What the scheduler knows, as it forgets nothing but what is released or cancelled."""
        self.wanted: set[str] = set()
        self.held: dict[str, int] = {}
        self.count = 0

    @rule(number=st.integers(1, 3), data=st.data())
    def compute(self, number: int, data: st.DataObject) -> None:
        names: list[str] = []
        for _ in range(number):
            self.count += 1
            names.append(f"g{self.count}")
        shared = data.draw(st.lists(st.sampled_from(["s1", "s2"]), max_size=1))
        graph, states = expect(self.core, *names, *shared)
        self.futures += states
        if graph.outputs:
            self.graphs.append((graph, [*names, *shared]))

    @precondition(lambda self: self.graphs)
    @rule(count=st.integers(1, 3))
    def send_part(self, count: int) -> None:
        graph, rest = self.graphs[0]
        now, rest[:count] = rest[:count], []
        held = [0] if rest else []
        unheld = list(graph.held)
        if not self.core.submit_graph(graph, part(now, held=held, unheld=unheld, inputs=unheld)) or not rest:
            self.core.end_graph(graph)
            del self.graphs[0]

    @precondition(lambda self: self.graphs)
    @rule()
    def fail_graph(self) -> None:
        self.core.end_graph(self.graphs.pop(0)[0], OOPS)

    @precondition(lambda self: self.futures)
    @rule(data=st.data())
    def submit_dependent(self, data: st.DataObject) -> None:
        need = data.draw(st.sampled_from(self.futures))
        self.count += 1
        # The scheduler refuses what depends on a key whose last life was cancelled; that is no matter of this core.
        if need.status in ("pending", "error") and self.core.states.get(need.key) is need:
            self.futures.append(submit(self.core, f"d{self.count}", need.key))

    @precondition(lambda self: self.futures)
    @rule(data=st.data(), what=st.sampled_from(("drop", "cancel", "detach")))
    def change_mind(self, data: st.DataObject, what: str) -> None:
        state = data.draw(st.sampled_from(self.futures))
        if what == "drop":
            self.futures.remove(state)
            self.core.dereference([state])
        elif what == "cancel":
            self.core.cancel([state], False, "")
        else:
            self.core.detach([state])

    @rule()
    def deliver(self) -> None:
        for message in self.core.drain():
            self.hear(message)

    def hear(self, message: m.Message) -> None:
        match message:
            case m.SubmitGraph():
                for key in message.inputs:
                    assert key in self.held, f"{key} is not there any more"
                self.known.update(message.keys)
                self.wanted.update(message.keys[number] for number in message.wanted)
                for number in message.held:
                    self.held[message.keys[number]] = self.held.get(message.keys[number], 0) + 1
                for key in message.unheld:
                    self.held[key] -= 1
                    if not self.held[key]:
                        del self.held[key]
            case m.Submit(_, keys, _, rows):
                for key, needs in zip(keys, rows or ((),) * len(keys), strict=True):
                    assert self.wanted.issuperset(needs), f"{key} is refused"
                    self.wanted.add(key)
            case m.Release(keys) | m.Cancel(keys):
                self.wanted -= set(keys)
            case m.Want(keys):
                self.wanted.update(keys)
            case m.Query(number):
                self.core.handle(m.Reply(number, None))
            case _:
                pass

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        while self.graphs:
            self.send_part(2)
        self.deliver()
        alive = {state.key for state in self.futures if self.core.states.get(state.key) is state}
        pending = {state.key for state in self.futures if state.status == "pending"}
        assert pending <= self.wanted, f"nobody computes {pending - self.wanted}"
        assert not self.held
        assert alive >= pending
        self.core.dereference(self.futures)
        self.deliver()
        assert not self.core.states
        assert not self.wanted
        unsent = self.core._unsent
        assert not any((unsent.states, unsent.unneeded, unsent._graphs, unsent._postponed, unsent._detached))


TestUnsentMachine = UnsentMachine.TestCase
TestUnsentMachine.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
