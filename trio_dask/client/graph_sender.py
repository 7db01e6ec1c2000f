"""Sends graphs in parts, in a thread of its own, so that the scheduler begins with the first part.

Graphs leave in the order of the calls: a later one may need tasks of an earlier one. The thread ends when there is
nothing left to send. It makes the next part only if somebody still waits for an output that was not sent, so a graph
that was cancelled, or whose caller was interrupted, stops there. Nothing stops the making of one part: if the user's
code does not return, the next graph gets another thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from contextvars import Context, copy_context
from typing import Final, NamedTuple

from trio.lowlevel import in_trio_run

from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.core.unsent_tasks import ExpectedGraph
from trio_dask.client.outgoing import Outgoing
from trio_dask.client.shared_state import SharedState


class _Graph(NamedTuple):
    parts: Iterable[GraphPart]
    expected: ExpectedGraph
    context: Context
    has_begun: threading.Event
    """Whether its first part is sent, or it has ended without one."""
    has_ended: threading.Event
    """Whether it is sent whole, or given up."""


class Lead(NamedTuple):
    """What a call waits for before it goes on: the first part of its graph, or the whole; and how long at most."""

    whole: bool
    at_most_s: float | None


LEAD_S: Final = 0.05
"""Making the first part, or the whole of a small graph, takes less."""


def lead_of_call(*, waits: bool) -> Lead:
    """What a call waits for in this thread; one that `waits` for results does so anyway.

    Any other call gives the program back the values in the graph, which it may change, so they have to be pickled
    before. In a Trio loop that would hold up all other tasks, so only a short time is spent on it. A call that waits
    for results leaves the sending thread in peace until the first part is sent, since two threads that run Python hold
    each other up.
    """
    if in_trio_run():
        return Lead(True, 0.0 if waits else LEAD_S)
    return Lead(False, LEAD_S) if waits else Lead(True, None)


class GraphSender:
    """The graphs of one client, on their way to the scheduler."""

    def __init__(self, shared: SharedState, outgoing: Outgoing) -> None:
        self._shared = shared
        self._outgoing = outgoing
        # Around the three below. The lock of the core may be taken under it, not the other way round.
        self._lock = threading.Lock()
        self._waiting: deque[_Graph] = deque()
        self._current: _Graph | None = None
        self._thread: threading.Thread | None = None
        """Sends what waits, after the current graph."""

    def send(self, parts: Iterable[GraphPart], expected: ExpectedGraph, lead: Lead) -> None:
        """Have this graph sent, and wait for the `lead`. Iterating over `parts` makes them.

        From the thread that sends graphs it sends this one first: making a graph can need the results of another.
        """
        graph = _Graph(parts, expected, copy_context(), threading.Event(), threading.Event())
        if self._thread is threading.current_thread():
            self._send(graph)
            return
        with self._lock:
            self._waiting.append(graph)
            if self._thread is None or not self._thread.is_alive() or self._is_given_up(self._current):
                self._thread = threading.Thread(target=self._run, name="trio_dask-graphs", daemon=True)
                self._thread.start()
        (graph.has_ended if lead.whole else graph.has_begun).wait(lead.at_most_s)

    def _is_given_up(self, graph: _Graph | None) -> bool:
        """Whether nobody waits for this graph any more. To make its next part may take for ever all the same."""
        with self._shared.lock:
            return graph is not None and not self._shared.core.needs(graph.expected)

    def _run(self) -> None:
        thread = threading.current_thread()
        while True:
            with self._lock:
                if self._thread is not thread:
                    return  # another one has taken over
                self._current = None
                if not self._waiting:
                    self._thread = None
                    return
                graph = self._current = self._waiting.popleft()
            graph.context.run(self._send, graph)
            del graph  # it may hold large values

    def _send(self, graph: _Graph) -> None:
        core, lock = self._shared.core, self._shared.lock
        failure: BaseException | None = None
        try:
            for part in graph.parts:
                with lock:
                    if not core.submit_graph(graph.expected, part):
                        break
                self._outgoing.wake()
                graph.has_begun.set()
        except BaseException as error:  # of the user's objects: the outputs raise it
            failure = error
        with lock:
            core.end_graph(graph.expected, failure)
        self._outgoing.wake()
        graph.has_begun.set()
        graph.has_ended.set()
