"""Injected bugs: the proof that the simulation would find the real ones.

Each takes a `World` and is a context within which that world is broken in one classic way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, Final
from unittest import mock

from tests.simulation.simulate import World
from trio_dask.client.actor_lines import ActorLines
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.local_leases import Lease, LocalLeases
from trio_dask.client.core.outbox import GraphPart, Row
from trio_dask.client.core.resend_buffer import ResendBuffer
from trio_dask.client.core.unsent_tasks import ExpectedGraph, UnsentTasks
from trio_dask.ids import Key, PeerId, RunId
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import (
    ActorHeld,
    Inventory,
    Message,
    RunFinished,
    SettleActor,
    SubmitGraph,
    TopicEvent,
)
from trio_dask.scheduler.core import (
    clients,
    copies,
    message_handlers,
    placement,
    plugins,
    reconnect,
    retirement,
    task_transitions,
    worker_membership,
    worker_transitions,
)
from trio_dask.scheduler.core.coordination.handlers import client_left
from trio_dask.scheduler.core.coordination.requests import Request
from trio_dask.scheduler.core.coordination.semaphore import Lock
from trio_dask.scheduler.core.copy_records import Spread
from trio_dask.scheduler.core.state import Client, State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory, Processing, Waiting

__all__ = ["INJECTED_BUGS"]


@contextmanager
def dropped_message(world: World) -> Generator[None]:
    """A link loses one message and goes on as if nothing had happened."""

    def drop() -> None:
        link = world.rng.choice(list(world.scheduler.links.values()))
        world.rng.choice((link.to_peer, link.to_scheduler)).drop_next = True

    world.timeline.at(world.rng.random() * 0.1, drop)
    yield


@contextmanager
def stale_result(world: World) -> Generator[None]:
    """A result of a run that was given up is taken for the result of the task that has its key now."""
    keys: dict[RunId, Key] = {}
    assign = placement.assign
    run_finished = message_handlers.FROM_WORKER[RunFinished]

    def remember(state: State, task: Task, worker: Worker, missing: int) -> None:
        assign(state, task, worker, missing)
        keys[RunId(state.last_run)] = task.key

    def accept(state: State, worker: Worker, message: RunFinished) -> None:
        task = state.tasks.get(keys.get(message.run, ""))
        if message.run not in worker.processing and task is not None and isinstance(task.phase, Processing):
            task_transitions.finish(state, task, worker, message.nbytes, message.type_name, message.value)
        else:
            run_finished(state, worker, message)

    with (
        mock.patch.object(placement, "assign", remember),
        mock.patch.dict(message_handlers.FROM_WORKER, {RunFinished: accept}),
    ):
        yield


@contextmanager
def miscounted_dependency(world: World) -> Generator[None]:
    """The arrival of one input is counted twice for a task that misses more than one."""
    input_ready = task_transitions.input_ready

    def twice(state: State, task: Task, worker: Worker) -> None:
        input_ready(state, task, worker)
        for dependent in task.dependents or ():
            phase = dependent.phase
            if isinstance(phase, Waiting) and phase.missing:
                phase.missing -= 1
                if not phase.missing:
                    state.ready.append(dependent)

    with mock.patch.object(task_transitions, "input_ready", twice):
        yield


@contextmanager
def lost_wakeup(world: World) -> Generator[None]:
    """A worker that has come to have room is not noticed."""
    end_run = task_transitions.end_run

    def forgetful(state: State, task: Task) -> None:
        before = list(state.index.dirty)
        end_run(state, task)
        state.index.take_dirty()
        for worker in before:
            state.index.mark_dirty(worker)

    with mock.patch.object(task_transitions, "end_run", forgetful):
        yield


@contextmanager
def leaked_slot(world: World) -> Generator[None]:
    """A slot whose run was cancelled never comes back."""
    for worker in world.workers:
        worker.leak_slots = True
    yield


@contextmanager
def merged_state(world: World) -> Generator[None]:
    """What was believed of a worker before it was away is believed after its return."""
    reconcile = reconnect.reconcile

    def merge(state: State, worker: Worker, inventory: Inventory) -> None:
        reconcile(state, worker, inventory._replace(runs=(*inventory.runs, *worker.processing)))

    with mock.patch.dict(message_handlers.FROM_WORKER, {Inventory: merge}):
        yield


@contextmanager
def trusted_keys(world: World) -> Generator[None]:
    """A value that a worker brings back is taken for the result of the task that has its key now."""
    reconcile = reconnect.reconcile

    def trust(state: State, worker: Worker, inventory: Inventory) -> None:
        for key, _, nbytes, type_name in inventory.held:
            task = state.tasks.get(key)
            if task is not None and isinstance(task.phase, Processing) and task.phase.worker is worker:
                task_transitions.finish(state, task, worker, nbytes, type_name, None)
        reconcile(state, worker, inventory)

    with mock.patch.dict(message_handlers.FROM_WORKER, {Inventory: trust}):
        yield


@contextmanager
def half_removed_worker(world: World) -> Generator[None]:
    """A worker is gone, and stays among those that can be given work."""
    remove_worker = worker_membership.remove_worker

    def leave_behind(state: State, worker: Worker, reason: str, **how: Any) -> None:
        had_room = worker in state.index.has_capacity
        remove_worker(state, worker, reason, **how)
        if had_room:
            # No public way exists to break the index.
            state.index._has_capacity[worker] = None  # pyright: ignore[reportPrivateUsage]

    with (
        mock.patch.object(worker_membership, "remove_worker", leave_behind),
        mock.patch.object(reconnect, "remove_worker", leave_behind),
    ):
        yield


@contextmanager
def blamed_innocents(world: World) -> Generator[None]:
    """All that was assigned to a worker that died is blamed, whether it ran or not."""
    remove_worker = worker_membership.remove_worker

    def blame_all(state: State, worker: Worker, reason: str, *, expected: bool, **how: Any) -> None:
        remove_worker(state, worker, reason, expected=expected, ran=tuple(worker.processing))

    with (
        mock.patch.object(worker_membership, "remove_worker", blame_all),
        mock.patch.object(reconnect, "remove_worker", blame_all),
    ):
        yield


@contextmanager
def hasty_retirement(world: World) -> Generator[None]:
    """A worker is dismissed once nothing runs there, whatever it holds."""
    with mock.patch.object(retirement, "_held_alone", return_value=[]):
        yield


@contextmanager
def kept_holds(world: World) -> Generator[None]:
    """What was held for parts of a graph stays held when they have come."""
    submit_graph = message_handlers.FROM_CLIENT[SubmitGraph]

    def forgetful(state: State, client: Client, message: SubmitGraph) -> None:
        submit_graph(state, client, message._replace(unheld=()))

    with mock.patch.dict(message_handlers.FROM_CLIENT, {SubmitGraph: forgetful}):
        yield


@contextmanager
def early_letting_go(world: World) -> Generator[None]:
    """A graph lets go of what it holds with the next part, whatever parts come after that."""
    submit_graph = message_handlers.FROM_CLIENT[SubmitGraph]

    def hasty(state: State, client: Client, message: SubmitGraph) -> None:
        held = tuple(task.key for task in client.holds)
        submit_graph(state, client, message._replace(unheld=held))

    with mock.patch.dict(message_handlers.FROM_CLIENT, {SubmitGraph: hasty}):
        yield


@contextmanager
def immortal_holds(world: World) -> Generator[None]:
    """A client has left, and what it held for parts to come stays held."""
    remove_client = clients.remove_client

    def leave_behind(state: State, client: Client) -> None:
        client.holds.clear()
        remove_client(state, client)

    with mock.patch.object(clients, "remove_client", leave_behind):
        yield


@contextmanager
def unwanted_repetition(world: World) -> Generator[None]:
    """A part of a graph that is sent again, after a lost link, no longer says what the client wants."""
    take = ResendBuffer.take_unacknowledged

    def forgetful(self: ResendBuffer, number: int) -> list[Message]:
        return [
            message._replace(wanted=()) if isinstance(message, SubmitGraph) else message
            for message in take(self, number)
        ]

    with mock.patch.object(ResendBuffer, "take_unacknowledged", forgetful):
        yield


@contextmanager
def early_dependents(world: World) -> Generator[None]:
    """A submission that depends on a task which was not sent goes out at once."""

    def postpone(self: UnsentTasks, rows: list[Row], *rest: object) -> list[Row]:
        return rows

    with mock.patch.object(UnsentTasks, "postpone", postpone):
        yield


@contextmanager
def wanted_again(world: World) -> Generator[None]:
    """An output that was given up before its part is sent is asked for all the same."""
    submit_graph = ClientCore.submit_graph

    def ask_for_all(self: ClientCore, graph: ExpectedGraph, part: GraphPart) -> bool:
        every = tuple(number for number, _ in part.outputs)
        put = self._outbox.put  # pyright: ignore[reportPrivateUsage] - no public way exists to break it

        def put_all(message: Message) -> None:
            put(message._replace(wanted=every) if isinstance(message, SubmitGraph) else message)

        with mock.patch.object(self._outbox, "put", put_all):  # pyright: ignore[reportPrivateUsage]
            return submit_graph(self, graph, part)

    with mock.patch.object(ClientCore, "submit_graph", ask_for_all):
        yield


@contextmanager
def lost_lease(world: World) -> Generator[None]:
    """What a client holds is free as soon as its link is lost, though it comes back within its grace."""
    connection_lost = clients.connection_lost

    def forget(state: State, client: Client) -> None:
        connection_lost(state, client)
        client_left(state, client)

    with mock.patch.object(clients, "connection_lost", forget):
        yield


@contextmanager
def lease_held_twice(world: World) -> Generator[None]:
    """A request that waits no longer frees what another one holds."""
    end = Lock.end

    def free_another(self: Lock, request: Request) -> None:
        is_waiting = request in list(self.requests())[self.max_leases :]
        end(self, request)
        if is_waiting:
            end(self, next(self.requests()))

    with mock.patch.object(Lock, "end", free_another):
        yield


@contextmanager
def forgotten_waiter(world: World) -> Generator[None]:
    """A lease that comes free is given to the second that waits, and the first is forgotten."""
    end = Lock.end

    def skip(self: Lock, request: Request) -> None:
        waiting = list(self.requests())[self.max_leases :]
        if len(waiting) > 1 and request not in waiting:
            del self._waiting[waiting[0]]  # pyright: ignore[reportPrivateUsage] - no public way exists to break it
        end(self, request)

    with mock.patch.object(Lock, "end", skip):
        yield


@contextmanager
def missed_plugin(world: World) -> Generator[None]:
    """A worker that joins while a plugin is being registered does not get it."""
    worker_joined = plugins.worker_joined

    def ignore_new(state: State, worker: Worker, hello: Hello) -> None:
        new = [order.plugin for order in state.plugin_orders if not order.tears_down]
        kept = dict(state.plugins)
        for place in [place for place, plugin in kept.items() if plugin in new]:
            del state.plugins[place]
        worker_joined(state, worker, hello)
        state.plugins.clear()
        state.plugins.update(kept)

    with mock.patch.object(plugins, "worker_joined", ignore_new):
        yield


@contextmanager
def hasty_worker(world: World) -> Generator[None]:
    """A worker that joins is given work before it has set its plugins up."""
    worker_joined = plugins.worker_joined

    def do_not_wait(state: State, worker: Worker, hello: Hello) -> None:
        worker_joined(state, worker, hello)
        worker.setting_up.clear()
        worker_transitions.set_capacity(state, worker, worker.capacity)

    with mock.patch.object(plugins, "worker_joined", do_not_wait):
        yield


@contextmanager
def answer_never_expected(world: World) -> Generator[None]:
    """A registration waits for the answer of a worker that is gone."""
    with mock.patch.object(plugins, "forget_ended_sessions"):
        yield


@contextmanager
def missed_event(world: World) -> Generator[None]:
    """What is logged while a client is away does not reach it."""
    keep_sent = clients.keep_sent

    def forget(state: State, outboxes: dict[PeerId, list[Message]]) -> None:
        for peer, messages in outboxes.items():
            client = state.clients.get(peer)
            if client is not None and client.away is not None:
                messages[:] = [message for message in messages if not isinstance(message, TopicEvent)]
        keep_sent(state, outboxes)

    with mock.patch.object(clients, "keep_sent", forget):
        yield


@contextmanager
def repeated_event(world: World) -> Generator[None]:
    """A client that comes back hears of the last event of each of its topics once more."""
    resume_client = clients.resume_client

    def repeat(state: State, client: Client, received: int) -> bool:
        is_back = resume_client(state, client, received)
        for topic, subscribers in state.topics.subscribers.items():
            if is_back and client.peer in subscribers and topic in state.topics.events:
                last = state.topics.events[topic][-1]
                state.send(client.peer, TopicEvent(topic, last.at, last.payload))
        return is_back

    with mock.patch.object(clients, "resume_client", repeat):
        yield


@contextmanager
def lost_rescheduled_task(world: World) -> Generator[None]:
    """A task that asked to be run elsewhere may run on the workers of that moment only, which may leave."""
    keep_off = placement.keep_off

    def insist(state: State, task: Task, worker: Worker) -> None:
        keep_off(state, task, worker)
        task.options = task.options._replace(allow_other_workers=False)

    with mock.patch.object(message_handlers, "keep_off", insist):
        yield


@contextmanager
def early_drop(world: World) -> Generator[None]:
    """The original of a result that moves is dropped when its copy is ordered, not when it is there."""

    def hasty(state: State, spreads: list[Spread]) -> None:
        copies.spread(state, spreads)
        for one in spreads:
            phase = one.task.phase
            if one.moved_from is not None and isinstance(phase, InMemory):
                for target in one.targets:
                    task_transitions.add_replica(one.task, phase, target)
                copies.drop(state, one.task, one.moved_from, "moved")

    with mock.patch("trio_dask.scheduler.core.rebalancing.spread", hasty):
        yield


@contextmanager
def lease_handed_over_twice(world: World) -> Generator[None]:
    """A lease that one user releases goes to two others of its client, if two wait."""
    release = LocalLeases.release

    def give_two(self: LocalLeases, lease: Lease) -> None:
        release(self, lease)
        release(self, lease)

    with mock.patch.object(LocalLeases, "release", give_two):
        yield


@contextmanager
def lost_actor_call(world: World) -> Generator[None]:
    """What waits for an actor hears nothing when its worker dies without a word."""
    # No public way exists to break it.
    with mock.patch.object(ActorLines, "_give_up"):
        yield


@contextmanager
def forgotten_caller(world: World) -> Generator[None]:
    """A lease that goes from user to user of a client takes a request along that another one there needs."""
    release = LocalLeases.release

    def forget(self: LocalLeases, lease: Lease) -> None:
        release(self, lease)
        line = self._lines.get(lease.place)  # pyright: ignore[reportPrivateUsage] - no public way exists to break it
        while line is not None and line.waiters and len(line.requests) >= len(line.waiters):
            self._end_last(lease.place, line)  # pyright: ignore[reportPrivateUsage]

    with mock.patch.object(LocalLeases, "release", forget):
        yield


@contextmanager
def starved_client(world: World) -> Generator[None]:
    """With each hand-over within a client the time for such hand-overs begins anew."""
    release = LocalLeases.release

    def keep(self: LocalLeases, lease: Lease) -> None:
        release(self, lease._replace(granted_at=world.timeline.now))

    with mock.patch.object(LocalLeases, "release", keep):
        yield


@contextmanager
def actor_made_twice(world: World) -> Generator[None]:
    """An actor that is lost is made again, and what it has counted is gone without a word."""
    with mock.patch.object(Task, "is_home_of_actor", return_value=False):
        yield


@contextmanager
def restless_actor(world: World) -> Generator[None]:
    """An actor goes on with calls at its old place once its object is pickled, until the new place has it."""
    held = message_handlers.FROM_WORKER[ActorHeld]

    def go_on(state: State, worker: Worker, message: ActorHeld) -> None:
        held(state, worker, message)
        state.send(worker.peer, SettleActor(message.key, True))

    with mock.patch.dict(message_handlers.FROM_WORKER, {ActorHeld: go_on}):
        yield


Bug = Callable[[World], AbstractContextManager[None]]

INJECTED_BUGS: Final[Mapping[str, Bug]] = MappingProxyType(
    {
        bug.__name__: bug
        for bug in (
            dropped_message,
            stale_result,
            miscounted_dependency,
            lost_wakeup,
            leaked_slot,
            merged_state,
            trusted_keys,
            half_removed_worker,
            blamed_innocents,
            hasty_retirement,
            kept_holds,
            early_letting_go,
            immortal_holds,
            unwanted_repetition,
            early_dependents,
            wanted_again,
            lost_lease,
            lease_held_twice,
            forgotten_waiter,
            lease_handed_over_twice,
            forgotten_caller,
            starved_client,
            early_drop,
            missed_plugin,
            hasty_worker,
            answer_never_expected,
            missed_event,
            repeated_event,
            lost_rescheduled_task,
            lost_actor_call,
            actor_made_twice,
            restless_actor,
        )
    }
)
