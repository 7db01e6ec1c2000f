"""The messages about primitives, and what their effects do to clients and tasks."""

from __future__ import annotations

from trio_dask.ids import Key
from trio_dask.protocol.messages import Coordinate, EndRequest, Reply
from trio_dask.scheduler.core.coordination.requests import Answer, Keep, Request
from trio_dask.scheduler.core.state import COORDINATION, Client, State, Task
from trio_dask.scheduler.core.task_states import RELEASED
from trio_dask.scheduler.core.task_transitions import activate, release_unneeded, unwant


def coordinate(state: State, client: Client, message: Coordinate) -> None:
    """A client asks for something.

    Raises `ProtocolError` if there is no such kind or operation.
    """
    number, kind, name, operation, arguments = message
    state.coordination.begin(Request(client.peer, number), kind, name, operation, arguments)
    _apply_effects(state)


def end_request(state: State, client: Client, message: EndRequest) -> None:
    """A client is done with a request."""
    number, kind, name, is_taken = message
    state.coordination.end(Request(client.peer, number), kind, name, is_taken=is_taken)
    _apply_effects(state)


def client_left(state: State, client: Client) -> None:
    """What this client held is free, and it waits for nothing."""
    if state.coordination:
        state.coordination.session_ended(client.peer)
        _apply_effects(state)


def _apply_effects(state: State) -> None:
    for effect in state.coordination.take_effects():
        if isinstance(effect, Answer):
            state.send(effect.request.peer, Reply(effect.request.number, (effect.outcome, effect.value)))
        elif isinstance(effect, Keep):
            _keep(state, effect.keys)
        else:
            _drop(state, effect.keys)


def _keep(state: State, keys: tuple[Key, ...]) -> None:
    """Count that a primitive needs these results. What the scheduler does not know is lost for the receiver as well."""
    for key in keys:
        task = state.tasks.get(key)
        if task is None:
            continue
        count = state.coordinated.get(task, 0)
        state.coordinated[task] = count + 1
        if not count:
            task.wanted += (COORDINATION,)
        if task.phase is RELEASED:
            activate(state, task)


def _drop(state: State, keys: tuple[Key, ...]) -> None:
    released: list[Task] = []
    for key in keys:
        task = state.tasks.get(key)
        count = 0 if task is None else state.coordinated.get(task, 0)
        if task is None or not count:
            continue  # it was cancelled for all
        if count > 1:
            state.coordinated[task] = count - 1
        else:
            unwant(state, task, COORDINATION)
            released.append(task)
    release_unneeded(state, released)
