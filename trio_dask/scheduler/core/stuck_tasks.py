"""Which tasks wait for a worker that is not there, and which clients are told.

A ready task whose demands no worker meets waits in its queue, as long as it takes: the worker may come. But users who
wait for its result should know why nothing happens. So its clients are told the reason, in one sentence: at once, in
case they give up, and as something worth saying aloud once it has lasted for `stuck_after_s`, or has changed since.

The scheduler counts nothing per task. It checks the queues without workers a moment after one of them has got its
first task, soon after a client wants more, and now and then until they are empty. What one check costs is bounded, and
each such queue has an equal share of that, so that a long one does not hide the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Final, NamedTuple

from trio_dask.ids import Key, PeerId
from trio_dask.parsing import counted
from trio_dask.protocol.messages import Stuck
from trio_dask.scheduler.core.state import Client, LogLine, Queue, State, StuckNews, Task, TaskOptions
from trio_dask.scheduler.core.task_states import Waiting

SOON_S: Final = 0.05
"""Tasks that become stuck together have arrived within this time."""

AGAIN_S: Final = 0.25
INTERVAL_S: Final = 2.0
MOST_TASKS: Final = 10_000
"""One check reads at most this many entries of queues. Its sentence says "+" where there are more."""

MOST_DEPENDENTS: Final = 10_000
"""The same for the dependents of these."""

MOST_KEY_CHARACTERS: Final = 2**18
"""The scheduler tells a client at most this much text of keys."""

NOBODY: Final = "no worker is connected"
MOST_REASONS: Final = 3
MOST_GROUPS: Final = 4


def check_soon(state: State) -> None:
    """Tasks may have become stuck, or may no longer be stuck."""
    state.stuck_at = min(state.stuck_at, state.now + SOON_S)


def recheck_soon(state: State) -> None:
    """A client wants new tasks, which may depend on stuck ones, if there are any."""
    if state.stuck_at < float("inf"):
        state.stuck_at = min(state.stuck_at, state.now + AGAIN_S)


def has_become_stuck(state: State, queue: Queue) -> bool:
    """Whether tasks wait in a queue without workers, and no check has found them yet."""
    return not queue.eligible and queue not in state.stuck_queues and queue.tasks.first() is not None


def note_arrivals(state: State, queue: Queue) -> None:
    """Tasks were put into this queue: they are stuck if it has no workers."""
    if has_become_stuck(state, queue):
        check_soon(state)
    elif not queue.eligible:
        recheck_soon(state)


class _Findings(NamedTuple):
    """What one check has found: the tasks that wait in queues without workers, and what waits for those."""

    counts: dict[Queue, int]
    held_up: dict[Task, None]
    keys: dict[PeerId, dict[Queue, list[Key]]]
    """What each client wants and does not get, by the queue that holds it up."""
    partial: dict[Queue, None]
    """Queues that hold up more than the check has read."""


def check_stuck(state: State) -> None:
    """Tell clients why tasks of theirs wait for a worker, if any do, and schedule the next check."""
    state.stuck_at = float("inf")
    queues = [
        queue
        for queue in (state.queue, *state.queues.values())
        if not queue.eligible and queue.tasks.first() is not None
    ]
    found = _Findings({}, {}, {}, {})
    for queue in queues:
        _survey(queue, found, max(1, MOST_TASKS // len(queues)), max(1, MOST_DEPENDENTS // len(queues)))
    for peer, client in state.clients.items():
        _tell(state, client, found.keys.get(peer, {}), found.partial)
    _note(state, found.counts, found.partial)
    if found.counts:
        state.stuck_at = state.now + INTERVAL_S


def _survey(queue: Queue, found: _Findings, most_tasks: int, most_dependents: int) -> None:
    """Find what waits in one queue, and for whom."""
    held_up = found.held_up
    row: list[Task] = []
    for task in islice(queue.tasks, most_tasks):
        if task.phase is queue.phase and task not in held_up:
            held_up[task] = None
            row.append(task)
    if not row:
        return  # its entries belong to tasks that wait in another queue by now
    found.counts[queue] = len(row)
    if len(queue.tasks) > most_tasks:
        found.partial[queue] = None
    left = most_dependents
    for task in row:  # grows meanwhile
        for peer in task.wanted:
            found.keys.setdefault(peer, {}).setdefault(queue, []).append(task.key)
        dependents = task.dependents
        if dependents:
            for dependent in islice(dependents, left):
                if type(dependent.phase) is Waiting and dependent not in held_up:
                    held_up[dependent] = None
                    row.append(dependent)
            if len(dependents) > left:
                found.partial[queue] = None
            left = max(0, left - len(dependents))


def _tell(state: State, client: Client, waiting: Mapping[Queue, list[Key]], partial: Collection[Queue]) -> None:
    if not waiting:
        if client.stuck is not None:
            client.stuck = None
            state.send(client.peer, Stuck("", False, ()))
        return
    news = client.stuck
    if news is None:
        news = client.stuck = StuckNews(since=state.now)
    text = _sentence(state, {queue: len(keys) for queue, keys in waiting.items()}, partial)
    # The text may change at any moment; the scheduler logs it at most once in `stuck_after_s`.
    is_due = text != news.aloud and state.now >= max(news.since, news.aloud_at) + state.settings.stuck_after_s
    if is_due:
        news.aloud, news.aloud_at = text, state.now
    told = Stuck(text, False, _reasons(state, waiting))
    if is_due or told != news.told:
        news.told = told
        state.send(client.peer, told._replace(aloud=is_due))


def _note(state: State, counts: Mapping[Queue, int], partial: Collection[Queue]) -> None:
    """Tell the operator, once for each reason."""
    noted = {queue: since for queue, since in state.stuck_queues.items() if queue in counts}
    state.stuck_queues = noted
    new: dict[Queue, int] = {}
    for queue, count in counts.items():
        since = noted.setdefault(queue, state.now)
        if since + state.settings.stuck_after_s <= state.now:
            noted[queue] = float("inf")  # it is said
            new[queue] = count
    if new:
        state.requests.append(LogLine(_sentence(state, new, partial)))


def _reasons(state: State, waiting: Mapping[Queue, Iterable[Key]]) -> tuple[tuple[str, tuple[Key, ...] | None], ...]:
    if waiting and not state.workers:
        return ((NOBODY, None),)
    left = MOST_KEY_CHARACTERS
    reasons: list[tuple[str, tuple[Key, ...] | None]] = []
    for queue, keys in waiting.items():
        told: list[Key] = []
        for key in keys:
            left -= len(key)
            if left < 0:
                break
            told.append(key)
        reasons.append((reason_of(state, queue.options), tuple(told)))
    return tuple(reasons)


# ------------------------------------------------------------------------------------------------- in words


def _sentence(state: State, counts: Mapping[Queue, int], partial: Collection[Queue]) -> str:
    parts = [
        f"{count}{'+' if queue in partial else ''} {'tasks wait' if count > 1 else 'task waits'}: "
        f"{reason_of(state, queue.options)}"
        for queue, count in list(counts.items())[:MOST_REASONS]
    ]
    more = len(counts) - MOST_REASONS
    if more > 0:
        parts.append(f"and so do others, for {counted(more, 'more reason')}")
    return "; ".join(parts)


def reason_of(state: State, options: TaskOptions) -> str:
    """Why no worker takes tasks with these demands."""
    if not state.workers:
        return NOBODY
    workers = list(state.workers.values())
    names = _listed(options.workers)
    named = [worker for worker in workers if not names or worker.info.is_among(options.workers)]
    if not named:
        there = _listed([worker.info.title for worker in workers])
        return f"no worker is called {names} ({counted(len(workers), 'worker')}: {there})"
    able = [worker for worker in named if _has(worker.info.resources, options)]
    if able:
        what = "such tasks" if names or options.resources else "tasks"
        all_of_which = "which is" if len(able) == 1 else "all of which are"
        return f"no worker takes {what} ({counted(len(able), 'worker')}, {all_of_which} leaving or returning)"
    subject = "no worker offers"
    if names:
        subject = (
            f"worker {names} does not offer" if len(options.workers) == 1 else f"none of the workers {names} offers"
        )
    demands = ", ".join(f"{name}={amount:g}" for name, amount in options.resources)
    offers = _grouped([_offer(worker.info.resources, options) for worker in named])
    return f"{subject} {demands} ({offers})"


def _has(resources: Mapping[str, float], options: TaskOptions) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in options.resources)


def _offer(resources: Mapping[str, float], options: TaskOptions) -> str:
    return ", ".join(
        f"{name}={resources[name]:g}" if name in resources else f"no {name}" for name, _ in options.resources
    )


def _grouped(offers: list[str]) -> str:
    counts: dict[str, int] = {}
    for offer in offers:
        counts[offer] = counts.get(offer, 0) + 1
    groups = sorted(counts.items(), key=lambda group: -group[1])
    parts = [f"{counted(count, 'worker')}: {offer}" for offer, count in groups[:MOST_GROUPS]]
    return "; ".join([*parts, "..."] if len(groups) > MOST_GROUPS else parts)


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return " or ".join(shown[:MOST_GROUPS]) + (" or others" if len(shown) > MOST_GROUPS else "")
