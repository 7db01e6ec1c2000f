"""Actors that move, because their worker retires: each to a worker that may have it, if it says that it may move.

    source     rests, and pickles the object     HandOverActor ──► ActorHeld
    target     fetches and makes it              TakeActor ──► ActorTaken
    scheduler  names the target as its home      SettleActor to both

Until the last step the source is the home of the actor, and whatever goes wrong it goes on there. From that step on it
is the target. Neither makes a call between its answer and `SettleActor`, so no call is ever made at two places.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trio_dask.protocol.messages import ActorHeld, ActorTaken, HandOverActor, SettleActor, TakeActor
from trio_dask.scheduler.core.copies import takes_copies
from trio_dask.scheduler.core.copy_records import ActorMove, give_up_actor, withdraw_move
from trio_dask.scheduler.core.placement import is_named, offers_resources
from trio_dask.scheduler.core.state import State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory
from trio_dask.scheduler.core.task_transitions import move_home
from trio_dask.scheduler.core.worker_states import ActorTrouble, Retirement

ATTEMPTS: Final = 3
"""Workers that may fail to make an actor anew; then it stays."""

NOWHERE: Final = "no other worker is there that may have it"


def hosted_actors(worker: Worker) -> list[Task]:
    """The actors that live on this worker."""
    return [task for task in worker.holds if task.is_home_of_actor(worker)]


def why_actors_stay(state: State, worker: Worker, staying: Iterable[Worker]) -> str:
    """Why an actor of this worker cannot move: none of those `staying` may have it. Empty if each can."""
    for task in hosted_actors(worker):
        if not _candidates(task, [other for other in staying if takes_copies(other)]):
            return _refusal(worker, task, NOWHERE)
    return ""


def move_actors(state: State, worker: Worker, retirement: Retirement) -> tuple[bool, str]:
    """Have the actors of a retiring worker move; whether some are on their way, and why another one stays."""
    refusal = ""
    are_moving = False
    for task in hosted_actors(worker):
        trouble = retirement.actors.get(task)
        if task not in state.actor_moves and not (trouble and trouble.is_final):
            tried = trouble.tried if trouble else []
            targets = [other for other in state.workers.values() if takes_copies(other) and other not in tried]
            found = _candidates(task, targets)
            if found:
                _begin(state, task, worker, min(found, key=lambda target: _load(state, target)))
            elif trouble is None:
                refusal = refusal or _refusal(worker, task, NOWHERE)
        if task in state.actor_moves:
            are_moving = True
        elif trouble is not None:
            refusal = refusal or _refusal(worker, task, trouble.text)
    return are_moving, refusal


def held(state: State, worker: Worker, message: ActorHeld) -> None:
    """An actor rests, and its pickled object is there; or it does not move."""
    task = state.tasks.get(message.key)
    move = None if task is None else state.actor_moves.get(task)
    if task is None or move is None or move.order != message.order or move.source is not worker:
        return  # it was withdrawn, and the worker was told so
    if message.text:
        _note_trouble(worker, task, message.text, None)
        withdraw_move(state, task)
        state.check_retirements_soon()
    else:
        state.send(move.target.peer, TakeActor(task.key, message.run, move.order, worker.info.address))


def taken(state: State, worker: Worker, message: ActorTaken) -> None:
    """A worker has made an actor anew, or could not; if it has, it is its home from now on."""
    task = state.tasks.get(message.key)
    move = None if task is None else state.actor_moves.get(task)
    if task is None or move is None or move.order != message.order or move.target is not worker:
        if task is None:
            state.send(worker.peer, SettleActor(message.key, False))
            state.free(worker.peer, message.key)
        elif not task.is_home_of_actor(worker):
            give_up_actor(state, task, worker)
        return
    if message.text:
        text = f"worker {worker.info.title} could not make it anew: {message.text}"
        _note_trouble(move.source, task, text, worker)
        withdraw_move(state, task)
    else:
        phase = task.phase
        assert isinstance(phase, InMemory)
        del state.actor_moves[task]
        move_home(task, phase, move.source, worker, message.value)
        state.note(task.key, f"moved from {move.source.info.name} to {worker.info.name}")
        state.send(worker.peer, SettleActor(task.key, True))
        state.send(move.source.peer, SettleActor(task.key, False))
        state.free(move.source.peer, task.key)
    state.check_retirements_soon()


def _begin(state: State, task: Task, source: Worker, target: Worker) -> None:
    state.last_order += 1
    state.actor_moves[task] = ActorMove(state.last_order, source, target)
    state.send(source.peer, HandOverActor(task.key, state.last_order))


def _candidates(task: Task, workers: list[Worker]) -> list[Worker]:
    """Those of these workers that may have the actor."""
    options = task.options
    able = [worker for worker in workers if offers_resources(worker, options)]
    named = [worker for worker in able if is_named(worker, options)]
    return named or (able if options.allow_other_workers else [])


def _load(state: State, target: Worker) -> tuple[int, int]:
    """How many actors are on their way to a worker, and what it holds: actors go where that is least."""
    return sum(move.target is target for move in state.actor_moves.values()), target.managed_bytes


def _note_trouble(source: Worker, task: Task, text: str, target: Worker | None) -> None:
    """The actor cannot move, or (with a `target`) not to this one."""
    retirement = source.phase.retirement
    assert retirement is not None
    trouble = retirement.actors.setdefault(task, ActorTrouble(text, target is None))
    trouble.text = text
    if target is not None:
        trouble.tried.append(target)
    trouble.is_final = target is None or len(trouble.tried) >= ATTEMPTS


def _refusal(worker: Worker, task: Task, why: str) -> str:
    return (
        f"the actor {task.key!r} lives on worker {worker.info.title}, and cannot move: {why}; "
        "release it first, or restart the worker if it may be lost"
    )
