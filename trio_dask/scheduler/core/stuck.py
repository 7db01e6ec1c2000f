"""Which tasks wait for a worker that is not there, and who is told.

A ready task whose demands no worker meets waits in its queue, as long as it takes: the worker may come. But whoever
waits for its result should know why nothing happens. So its clients are told the reason, in one sentence: at once, in
case they give up, and as something worth saying aloud once it has lasted for `stuck_after_s`, or has changed since.

Nothing is counted per task: the queues without workers are looked at a moment after something was put there, and then
now and then, until there is nothing left in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from trio_dask.identity import PeerId
from trio_dask.protocol.messages import Stuck
from trio_dask.scheduler.core.tables import Client, Notice, Queue, Queued, State, Task, Terms

__all__ = ["look", "look_soon"]

SOON_S: Final = 0.05
"""After this long what comes together has come."""

INTERVAL_S: Final = 2.0
MOST_TASKS: Final = 10_000
"""So many are looked at; how many more there are nobody needs to know."""

MOST_STEPS: Final = 1000
"""From a task that nobody wants for itself, to find those who want what depends on it."""

MOST_REASONS: Final = 3
MOST_GROUPS: Final = 4


def look_soon(state: State) -> None:
    """Something may have become stuck, or is stuck no more."""
    state.stuck_at = min(state.stuck_at, state.now + SOON_S)


def look(state: State) -> None:
    """Tell clients why tasks of theirs wait for a worker, if any do, and say when to look again."""
    state.stuck_at = float("inf")
    everybody: dict[Queue, int] = {}
    of_client: dict[Client, dict[Queue, int]] = {}
    for task, queue in _stuck_tasks(state):
        everybody[queue] = everybody.get(queue, 0) + 1
        for client in _clients_of(state, task):
            counts = of_client.setdefault(client, {})
            counts[queue] = counts.get(queue, 0) + 1
    for client in state.clients.values():
        _tell(state, client, of_client.get(client, {}))
    _note(state, everybody)
    if everybody:
        state.stuck_at = state.now + INTERVAL_S


def _tell(state: State, client: Client, counts: Mapping[Queue, int]) -> None:
    text = _sentence(state, counts)
    if not text:
        client.stuck_since = client.stuck_said_at = float("inf")
        client.stuck_said = ""
    else:
        client.stuck_since = min(client.stuck_since, state.now)
    delay_s = state.settings.stuck_after_s
    is_due = state.now >= client.stuck_since + delay_s and text != client.stuck_said
    if is_due and client.stuck_said and state.now < client.stuck_said_at + delay_s:
        is_due = False  # it changes all the time
    if is_due:
        client.stuck_said, client.stuck_said_at = text, state.now
    if is_due or text != client.stuck:
        client.stuck = text
        state.send(client.peer, Stuck(text, is_due))


def _note(state: State, counts: Mapping[Queue, int]) -> None:
    """Say it to whoever runs the cluster, once for each reason."""
    noted = {queue: since for queue, since in state.stuck_queues.items() if queue in counts}
    state.stuck_queues = noted
    new: dict[Queue, int] = {}
    for queue, count in counts.items():
        since = noted.setdefault(queue, state.now)
        if since + state.settings.stuck_after_s <= state.now:
            noted[queue] = float("inf")  # it is said
            new[queue] = count
    if new:
        state.requests.append(Notice(_sentence(state, new)))


def _stuck_tasks(state: State) -> Iterable[tuple[Task, Queue]]:
    left = MOST_TASKS
    for queue in (state.queue, *state.queues.values()):
        if queue.eligible or queue.line.first() is None:
            continue
        for task in dict.fromkeys(queue.line):
            if type(task.phase) is Queued and task.phase.queue is queue:
                yield task, queue
                left -= 1
                if not left:
                    return


def _clients_of(state: State, task: Task) -> Iterable[Client]:
    """Those who want this task, or anything that depends on it, as far as a few steps show."""
    peers: dict[PeerId, None] = {}
    seen: dict[Task, None] = {task: None}
    stack = [task]
    while stack and len(seen) < MOST_STEPS:
        for peer in (above := stack.pop()).wanted:
            peers[peer] = None
        if not above.wanted:
            for dependent in above.dependents or ():
                if dependent not in seen:
                    seen[dependent] = None
                    stack.append(dependent)
    return [client for peer in peers if (client := state.clients.get(peer)) is not None]


# ------------------------------------------------------------------------------------------------- in words


def _sentence(state: State, counts: Mapping[Queue, int]) -> str:
    parts = [
        f"{count}{'+' if count >= MOST_TASKS else ''} {'tasks wait' if count > 1 else 'task waits'}: "
        f"{_reason(state, queue.terms)}"
        for queue, count in list(counts.items())[:MOST_REASONS]
    ]
    more = len(counts) - MOST_REASONS
    if more > 0:
        parts.append(f"and so do others, for {more} more reason{'s' if more > 1 else ''}")
    return "; ".join(parts)


def _reason(state: State, terms: Terms) -> str:
    if not state.workers:
        return "no worker is connected"
    names = _listed(terms.workers)
    demands = ", ".join(f"{name}={amount:g}" for name, amount in terms.resources)
    offers = _grouped([_offer(worker.info.resources, terms) for worker in state.workers.values()])
    if names and demands:
        return f"none of the workers {names} offers {demands} ({offers})"
    if demands:
        return f"no worker offers {demands} ({offers})"
    if names:
        there = _listed([worker.info.name for worker in state.workers.values()])
        return f"no worker is called {names} ({_count(len(state.workers))}: {there})"
    return f"no worker takes tasks ({_count(len(state.workers))}, all of which are leaving or returning)"


def _offer(resources: Mapping[str, float], terms: Terms) -> str:
    return ", ".join(
        f"{name}={resources[name]:g}" if name in resources else f"no {name}" for name, _ in terms.resources
    )


def _grouped(offers: list[str]) -> str:
    counts: dict[str, int] = {}
    for offer in offers:
        counts[offer] = counts.get(offer, 0) + 1
    groups = sorted(counts.items(), key=lambda group: -group[1])
    parts = [f"{_count(count)}: {offer}" for offer, count in groups[:MOST_GROUPS]]
    return "; ".join([*parts, "..."] if len(groups) > MOST_GROUPS else parts)


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return " or ".join(shown[:MOST_GROUPS]) + (" or others" if len(shown) > MOST_GROUPS else "")


def _count(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"
