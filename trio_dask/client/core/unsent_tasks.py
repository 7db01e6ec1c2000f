"""Tasks that have futures already, and are not sent yet.

A graph is sent in parts while the program goes on. Until the part with a task is sent, the scheduler does not know the
key, so what refers to it waits here: submissions that depend on it, and the wish that it finishes in any case.

A task that could not be sent stays here until its futures are gone: what depends on it fails with its error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from trio_dask.client.core.key_state import KeyState, NotSent
from trio_dask.client.core.outbox import Content, Row
from trio_dask.ids import Key


class ExpectedGraph:
    """A graph that this client is about to send."""

    __slots__ = ("candidates", "held", "outputs", "states")

    def __init__(self, states: list[KeyState], outputs: dict[Key, KeyState]) -> None:
        self.states: Final = states
        """Of all its outputs."""
        self.outputs: Final = outputs
        """Those that were not sent before. If there are none, the graph need not be sent."""
        self.candidates: Final = deque(outputs.values())
        """Those that may still be unsent."""
        self.held: Final[dict[Key, None]] = {}
        """What the scheduler keeps for parts to come."""


class Postponed(NamedTuple):
    """A submission that depends on unsent tasks, and perhaps on others; it keeps each of them with a reference."""

    row: Row
    state: KeyState
    needs: tuple[KeyState, ...]
    function: Content
    contents: tuple[Content, ...]
    extra: Mapping[str, Any]


class UnsentTasks:
    """The unsent tasks of one client in one session."""

    def __init__(self) -> None:
        self.states: dict[Key, KeyState] = {}
        """Pending, or failed with `NotSent`. Those that were cancelled or have no futures are not among them."""
        self.unneeded: list[KeyState] = []
        """References that are to be given back: `ClientCore.dereference` does so."""
        self._graphs: dict[ExpectedGraph, None] = {}
        self._postponed: dict[Key, Postponed] = {}
        self._detached: dict[KeyState, None] = {}

    # ------------------------------------------------------------------------------------------ graphs

    def expect(self, states: list[KeyState], new: Iterable[KeyState]) -> ExpectedGraph:
        """A graph with these outputs will be sent; the `new` ones were not known before."""
        unsent = self.states
        for state in new:
            unsent[state.key] = state
        outputs = {state.key: state for state in states if unsent.get(state.key) is state}
        graph = ExpectedGraph(states, outputs)
        if outputs:
            self._graphs[graph] = None
        return graph

    def expects(self, graph: ExpectedGraph) -> bool:
        """Whether parts of this graph can still be sent: it is of this session, and has not ended."""
        return graph in self._graphs

    def is_needed(self, graph: ExpectedGraph) -> bool:
        """Whether anybody waits for an output of this graph that was not sent."""
        candidates = graph.candidates
        while candidates and not self._is_pending(candidates[0]):
            candidates.popleft()  # it stays so
        return bool(candidates)

    def end(self, graph: ExpectedGraph) -> list[KeyState]:
        """This graph will not be sent any further. Returns its outputs that no later graph will send either."""
        graphs = list(self._graphs)
        later = graphs[graphs.index(graph) + 1 :]
        del self._graphs[graph]
        return [
            state
            for state in graph.outputs.values()
            if self._is_pending(state) and not any(other.outputs.get(state.key) is state for other in later)
        ]

    # ------------------------------------------------------------------------------------------ what waits for them

    def postpone(
        self,
        rows: list[Row],
        states: Mapping[Key, KeyState],
        known: Mapping[Key, KeyState],
        function: Content,
        contents: Iterable[Content],
        extra: Mapping[str, Any],
    ) -> list[Row]:
        """Keep the rows that depend on unsent tasks, and fail those that depend on failed ones; returns the others.

        `states` are those of the rows, `known` those of all other keys.
        """
        unsent, contents = self.states, tuple(contents)
        now: list[Row] = []
        for row in rows:
            unsent.pop(row.key, None)  # an earlier life of the key failed
            if unsent.keys().isdisjoint(row.dependencies):
                now.append(row)
                continue
            needs = tuple([need for name in row.dependencies if (need := unsent.get(name) or known.get(name))])
            state = unsent[row.key] = states[row.key]
            failure = _failure_of(needs)
            if failure is not None:
                state.status, state.failure = "error", failure
                continue
            for need in needs:
                need.refs += 1
            self._postponed[row.key] = Postponed(row, state, needs, function, contents, extra)
        return now

    def detach(self, state: KeyState) -> bool:
        """Whether this task is unsent; then it is to finish whatever becomes of its futures."""
        if self.states.get(state.key) is not state:
            return False
        if state.status == "pending" and state not in self._detached:
            state.refs += 1
            self._detached[state] = None
        return True

    def sent(self, keys: Iterable[Key]) -> tuple[list[Postponed], list[KeyState]]:
        """These tasks are sent now. Returns the submissions that waited for them, in order, and what is detached."""
        unsent = self.states
        for key in keys:
            unsent.pop(key, None)
            self._withdraw(key)
        ready: list[Postponed] = []
        for key, item in list(self._postponed.items()):
            if not any(unsent.get(need.key) is need for need in item.needs):
                ready.append(item)
                unsent.pop(key, None)
                self._withdraw(key)
        detached = [state for state in self._detached if unsent.get(state.key) is not state]
        for state in detached:
            del self._detached[state]
        self.unneeded += detached
        return ready, detached

    def drop(self, state: KeyState) -> bool:
        """Whether this task was unsent; then it is given up."""
        if self.states.get(state.key) is not state:
            return False
        del self.states[state.key]
        self.failed(state)
        return True

    def failed(self, state: KeyState) -> None:
        """This task will not be sent: what it needs it does not need, and it does not have to finish."""
        self._withdraw(state.key)
        if state in self._detached:
            del self._detached[state]
            self.unneeded.append(state)

    def dependents(self, states: Iterable[KeyState]) -> list[KeyState]:
        """What waits for these, directly or through others."""
        above = set(states)
        found: list[KeyState] = []
        for item in self._postponed.values():  # each after those that it needs
            if not above.isdisjoint(item.needs):
                above.add(item.state)
                found.append(item.state)
        return found

    def failing(self) -> Iterator[tuple[KeyState, NotSent]]:
        """What waits for failed tasks, and why. The caller lets each fail before it takes the next."""
        for item in list(self._postponed.values()):
            failure = _failure_of(item.needs)
            if failure is not None:
                yield item.state, failure

    def _withdraw(self, key: Key) -> None:
        item = self._postponed.pop(key, None)
        if item is not None:
            self.unneeded += item.needs

    def _is_pending(self, state: KeyState) -> bool:
        return self.states.get(state.key) is state and state.status == "pending"


def _failure_of(needs: Iterable[KeyState]) -> NotSent | None:
    return next((need.failure for need in needs if type(need.failure) is NotSent), None)
