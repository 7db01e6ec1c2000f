"""Tasks that have futures already, and are not sent yet.

A graph is sent in parts while the program goes on. Until the part with a task is sent, the scheduler does not know the
key, so what refers to it has to wait here: submissions that depend on it, and the wish that it finishes in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from trio_dask.client.core.key_state import KeyState
from trio_dask.client.core.outbox import Content, Row
from trio_dask.ids import Key


class _Submission(NamedTuple):
    row: Row
    state: KeyState
    function: Content
    contents: tuple[Content, ...]
    extra: Mapping[str, Any]


class UnsentTasks:
    """The unsent tasks of one client, by key."""

    def __init__(self) -> None:
        self.states: dict[Key, KeyState] = {}
        self._submissions: list[_Submission] = []
        self._detached: list[KeyState] = []

    def add(self, states: Iterable[KeyState]) -> None:
        """These tasks are parts of a graph that will be sent."""
        for state in states:
            self.states[state.key] = state

    def postpone(
        self,
        rows: list[Row],
        states: Mapping[Key, KeyState],
        function: Content,
        contents: Iterable[Content],
        extra: Mapping[str, Any],
    ) -> list[Row]:
        """Keep the rows that depend on unsent tasks; returns the others."""
        unsent, contents = self.states, tuple(contents)
        now: list[Row] = []
        for row in rows:
            if unsent.keys().isdisjoint(row.dependencies):
                now.append(row)
            else:
                state = unsent[row.key] = states[row.key]
                self._submissions.append(_Submission(row, state, function, contents, extra))
        return now

    def detach(self, state: KeyState) -> bool:
        """Whether this task is unsent; then it is to finish whatever becomes of its futures."""
        if self.states.get(state.key) is not state:
            return False
        state.refs += 1
        self._detached.append(state)
        return True

    def sent(
        self,
        keys: Iterable[Key],
        submit: Callable[[Content, Iterable[Content], Mapping[str, Any], Row], None],
        detach: Callable[[list[KeyState]], None],
        is_alive: Callable[[KeyState], bool],
    ) -> None:
        """These tasks are sent now, or never will be. What waited for them is passed on, in its order."""
        unsent = self.states
        for key in keys:
            unsent.pop(key, None)
        if self._submissions:
            waiting, self._submissions = self._submissions, []
            for item in waiting:
                if not is_alive(item.state):
                    unsent.pop(item.row.key, None)
                elif unsent.keys().isdisjoint(item.row.dependencies):
                    submit(item.function, item.contents, item.extra, item.row)
                    unsent.pop(item.row.key, None)
                else:
                    self._submissions.append(item)
        if self._detached:
            ready = [state for state in self._detached if state.key not in unsent]
            if ready:
                self._detached = [state for state in self._detached if state.key in unsent]
                detach(ready)
