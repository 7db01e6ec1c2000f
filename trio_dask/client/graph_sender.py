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
from typing import NamedTuple

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

    def send(self, parts: Iterable[GraphPart], expected: ExpectedGraph, *, lead_s: float = 0.0) -> None:
        """Have this graph sent. Returns at once, or at most `lead_s` later. Iterating over `parts` makes them.

        From the thread that sends graphs it sends this one first: making a graph can need the results of another.
        A caller that has more to do gives the thread a lead until the first part is sent, since two threads that run
        Python hold each other up.
        """
        graph = _Graph(parts, expected, copy_context(), threading.Event())
        if self._thread is threading.current_thread():
            self._send(graph)
            return
        with self._lock:
            self._waiting.append(graph)
            if self._thread is None or not self._thread.is_alive() or self._is_given_up(self._current):
                self._thread = threading.Thread(target=self._run, name="trio_dask-graphs", daemon=True)
                self._thread.start()
        if lead_s:
            graph.has_begun.wait(lead_s)

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
