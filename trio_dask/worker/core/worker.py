"""The worker core: what to run, what to fetch, what to hold, what to send.

A run that the scheduler has assigned is *current* until its outcome was reported, it was handed back, or it is no
longer wanted. A current run is in exactly one of three states:

    waiting     some of its inputs are not here: they are being fetched, or computed by another current run; it may be
                *chained* after that run, and a slot may then take it before the core hears of the result
    ready       it is offered to the slots, best (priority, arrival) first
    executing   a slot has taken it

    Run ──► waiting ──► ready ──► executing ──► RunFinished | RunFailed
               │          │           │
               │          │           └──► cancelled | RunFailed(timeout): its slot is *stopping*, later *overdue*
               └──────────┴──► RunsReturned | InputMissing | cancelled

A slot whose run was stopped has `grace_s` to leave it. After that the worker reports one slot less, and one more again
when the slot returns.

A worker takes runs while it is *open*: neither paused nor draining, with at least one slot that is not overdue. When
that ends it hands back the runs that have not started, and every run that is assigned until it is open again.

Sessions come and go. Between them work goes on: slots run what is ready, peers are asked for missing keys, and outcomes
are kept, as values or in `ResendOnReturn`. Then either the scheduler takes the worker back, which reports what it has;
or `reset` makes it forget everything.

The slots move runs from ready to executing on their own (see `ReadyQueue`), so a run is executing when it is current
and neither waiting nor ready. Events name a run by the very object that was offered, for a new scheduler may count its
runs from one again; the outcome of a run that is not current is dropped.

This file is long because all events and messages change the same tables, and each is a few lines.

This file is long because each message and each report changes the same tables, by a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from trio_dask.errors import ProtocolError
from trio_dask.ids import Digest, Key, RunId, actor_state
from trio_dask.protocol import messages as m
from trio_dask.worker.core.blobs import BlobTable
from trio_dask.worker.core.effects import (
    CancelFetch,
    CancelRun,
    Effects,
    EndSession,
    FetchId,
    ForgetFunctions,
    FreeKeys,
    Request,
    Then,
)
from trio_dask.worker.core.fetch_plan import FetchLimits, FetchPlan, UnfetchableKey
from trio_dask.worker.core.held_keys import HeldKeys
from trio_dask.worker.core.resume import ResendOnReturn, take_inventory
from trio_dask.worker.core.run_table import RunTable
from trio_dask.worker.core.slot_states import SlotStates


class WorkerCore:
    """One worker's decisions, over all its sessions. `slots` is how many runs can execute at once.

    Events come in by method, with the time where it matters; effects gather until `take_effects`.
    """

    def __init__(
        self, slots: int, *, limits: FetchLimits | None = None, blobs: BlobTable | None = None, grace_s: float = 0.2
    ) -> None:
        self.slots = SlotStates(slots, grace_s)
        self.blobs = BlobTable() if blobs is None else blobs
        self.fetches = FetchPlan(limits or FetchLimits(), self._is_awaited, self._cancel_fetch)
        self.held = HeldKeys()
        self.paused = False
        self.draining = ""
        """Why this worker drains; empty if it does not."""
        self.is_open = True
        """Whether it takes runs."""
        self.table = RunTable(self.fetches.pending, self.fetches.drop_unwanted)
        self.ready = self.table.ready
        self.runs = self.table.current
        """Every current run, oldest first."""
        self._waiters = self.table.waiters
        self._address: str | None = None  # None between sessions
        self._resend = ResendOnReturn()
        self._replicas: dict[Key, int] = {}
        """What was fetched and not reported yet, with the order for it, or 0."""
        self._outbox: list[m.FromWorker] = []
        self._requests: list[Request] = []

    # ------------------------------------------------------------------------------------------ what others may read

    @property
    def capacity(self) -> int:
        """How many runs can execute at once now. A seceded run uses no slot."""
        slots = 0 if self.paused else self.slots.capacity
        return slots + sum(map(self.is_current, self.slots.outside.values())) if slots else 0

    def is_current(self, run: m.Run) -> bool:
        """Whether the outcome of this run is still wanted."""
        return self.runs.get(run.run) is run

    def take_effects(self) -> Effects:
        """Everything to be done since the last call. Call it once per batch of events."""
        if self.blobs.expiring:
            self._forget(self.blobs.forget_before(next(iter(self.runs), None)))
        if self.fetches.queues:
            self._requests.extend(self.fetches.launch())
        if self._replicas:
            by_order: dict[int, list[Key]] = {}
            for key, order in self._replicas.items():
                by_order.setdefault(order, []).append(key)
            self._outbox += [m.Replicas(tuple(keys), order) for order, keys in by_order.items()]
            self._replicas.clear()
        effects = Effects(self._outbox, self._requests, self.ready.offered)
        self._outbox, self._requests, self.ready.offered = [], [], 0
        return effects

    # ------------------------------------------------------------------------------------------ sessions

    def session_began(self, address: str, returned: bool = False) -> None:
        """The scheduler has registered this worker, or (`returned`) taken it back; peers reach it at `address`.

        A worker that is not taken back has been reset before.
        """
        self._address = address
        self._outbox.clear()
        self._replicas.clear()
        if returned or self.capacity != self.slots.slots:
            self._outbox.append(m.Capacity(self.capacity))
        if returned:
            self._report_all()
        if self.draining:
            self._outbox.append(m.Drain(self.draining))

    def session_lost(self, now: float) -> None:
        """The connection to the scheduler is lost. Keep everything: the scheduler may take this worker back."""
        self._address = None
        acquiring = tuple(self.fetches.acquiring)
        self.fetches.cancel_acquire(acquiring)
        self._resend.session_lost(acquiring, now)

    def reset(self, now: float) -> None:
        """Drop everything: none of it means anything to the next scheduler."""
        self._address = None
        for number in list(self.runs):
            self._cancel(number, now)
        self.fetches.clear()
        if self.held:
            self._requests.append(FreeKeys(self.held.clear()))
        self._replicas.clear()
        self._outbox.clear()
        self._resend.clear()
        self._forget(self.blobs.clear())

    def _report_all(self) -> None:
        """Send what may not have arrived, and the inventory."""
        # The scheduler sends functions anew to a worker that has returned, so these may not be needed again.
        self.blobs.expire_all_after(next(reversed(self.runs), RunId(-1)))
        if self.slots.announced:
            self._outbox.append(m.Started(tuple(self.slots.announced)))
        self._outbox += self._resend.take_messages(self.held)
        inventory, beyond = take_inventory(self.held, self.runs)
        self._free(beyond)
        self._outbox.append(inventory)

    # ------------------------------------------------------------------------------------------ open or not

    def set_paused(self, paused: bool) -> None:
        """Take no runs for now, for want of memory, or take them again. Executing runs go on."""
        if paused != self.paused:
            self.paused = paused
            self._capacity_changed()

    def drain_began(self, reason: str) -> None:
        """Take no more runs, and tell the scheduler. Executing runs go on."""
        if not self.draining:
            self.draining = reason
            self._update_open()
            self._outbox.append(m.Drain(reason))

    def _capacity_changed(self) -> None:
        self._outbox.append(m.Capacity(self.capacity))
        self._update_open()

    def _update_open(self) -> None:
        self.is_open = not self.draining and self.capacity > 0
        if self.is_open:
            return
        unstarted = self.table.withdraw_all()
        if unstarted:
            self._outbox.append(m.RunsReturned(tuple(run.run for run in unstarted)))

    # ------------------------------------------------------------------------------------------ from the scheduler

    def handle(self, message: m.ToWorker, now: float) -> None:
        """Take one message of the scheduler.

        Raises:
          ProtocolError: the message makes no sense; the session should end.
        """
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a scheduler does not send {type(message).__name__} to a worker")
        handler(self, message, now)

    def _run(self, run: m.Run, now: float) -> None:
        number = run.run
        if number in self.runs:
            raise ProtocolError(f"run {number} was assigned twice")
        if run.function not in self.blobs.complete:
            raise ProtocolError(f"run {number} calls a function that was never sent")
        if run.extra:
            if not isinstance(run.extra.get("time_limit", 0), int | float):
                raise ProtocolError(f"run {number} has a time limit that is no number")
            if not isinstance(run.extra.get("executor", ""), str):
                raise ProtocolError(f"run {number} names an executor by something that is no text")
        if not self.is_open:
            self._outbox.append(m.RunsReturned((number,)))
            return
        if run.dependencies:
            missing = {
                key: source for key, source in run.dependencies if isinstance(source, tuple) and key not in self.held
            }
            if missing:
                self._wait_for(run, missing)
                return
        self.table.begin(run)

    def _wait_for(self, run: m.Run, missing: Mapping[Key, tuple[str, ...]]) -> None:
        """Have the run wait for these inputs, or hand it back if one of them can never come."""
        remote = {key: [at for at in holders if at != self._address] for key, holders in missing.items()}
        for key, holders in remote.items():
            if not (holders or key in self.table.producers or key in self.fetches.pending):
                self._outbox.append(m.InputMissing(run.run, key, missing[key][0] if missing[key] else ""))
                return
        for key, holders in remote.items():
            if holders:
                self.fetches.seek(key, holders)
        self.table.begin_waiting(run, missing)

    def _blob(self, message: m.Blob, now: float) -> None:
        self.blobs.add(message)

    def _forget_blobs(self, message: m.ForgetBlobs, now: float) -> None:
        self.blobs.expire_after(message.digests, next(reversed(self.runs), RunId(-1)))

    def _acquire(self, message: m.Acquire, now: float) -> None:
        refused: list[Key] = []
        for key, holders in message.keys:
            remote = [at for at in holders if at != self._address]
            if key in self.held:
                self._replicas[key] = message.order
            elif key not in self.fetches.acquiring and (self.paused or self.draining or not remote):
                refused.append(key)
            else:
                self.fetches.acquire(key, remote, message.order)
        if refused:
            self._outbox.append(m.NotAcquired(tuple(refused), message.order))

    def _free_keys(self, message: m.Free, now: float) -> None:
        self.fetches.cancel_acquire(message.keys)
        self._free(message.keys)

    def _free(self, keys: Iterable[Key]) -> None:
        freed = [key for key in keys if self.held.drop(key)]
        if self._replicas:
            for key in freed:
                self._replicas.pop(key, None)
        if freed:
            self._requests.append(FreeKeys(tuple(freed)))

    def _return_runs(self, message: m.ReturnRuns, now: float) -> None:
        returned: list[RunId] = []
        keys: list[Key] = []
        for number in message.runs:
            run = self.runs.get(number)
            if run is not None and self.table.withdraw(number):
                self._remove(run)
                returned.append(number)
                keys.append(run.key)
        if returned:
            self._outbox.append(m.RunsReturned(tuple(returned)))
        self._return_dependents(keys)

    def _cancel_runs(self, message: m.CancelRuns, now: float) -> None:
        self._return_dependents([key for number in message.runs if (key := self._cancel(number, now)) is not None])
        # The scheduler has not heard of a result that crosses its cancellation, so it will not free it.
        self._free([key for number in message.runs if (key := self.held.results.get(number)) is not None])

    def _set_up_plugin(self, message: m.SetUpPlugin, now: float) -> None:
        self._requests.append(message)

    def _tear_down_plugin(self, message: m.TearDownPlugin, now: float) -> None:
        self._requests.append(message)

    def _hand_over_actor(self, message: m.HandOverActor, now: float) -> None:
        self._requests.append(message)

    def _take_actor(self, message: m.TakeActor, now: float) -> None:
        self._requests.append(message)

    def _settle_actor(self, message: m.SettleActor, now: float) -> None:
        self._free((actor_state(message.key),))
        self._requests.append(message)

    def _leave(self, message: m.Leave, now: float) -> None:
        self._requests.append(EndSession(message.reason, Then.RESTART if message.restart else Then.LEAVE))

    def _scheduler_stops(self, message: m.SchedulerStops, now: float) -> None:
        self._requests.append(EndSession("the scheduler stopped", Then.SUCCESSOR))

    HANDLERS: ClassVar[Mapping[type[Any], Callable[[Any, Any, float], None]]] = {
        m.Run: _run,
        m.Blob: _blob,
        m.ForgetBlobs: _forget_blobs,
        m.Free: _free_keys,
        m.Acquire: _acquire,
        m.ReturnRuns: _return_runs,
        m.CancelRuns: _cancel_runs,
        m.SetUpPlugin: _set_up_plugin,
        m.TearDownPlugin: _tear_down_plugin,
        m.HandOverActor: _hand_over_actor,
        m.TakeActor: _take_actor,
        m.SettleActor: _settle_actor,
        m.Leave: _leave,
        m.SchedulerStops: _scheduler_stops,
    }

    # ------------------------------------------------------------------------------------------ from the slots

    def started(self, runs: Iterable[m.Run], now: float) -> None:
        """Slots have taken these runs, which are to be announced, have a time limit, or have run for long.

        Where `announce` asks for it, the slot waits until the messages of this batch have left.
        """
        fresh = [run.run for run in runs if self.is_current(run) and self.slots.begin(run, now)]
        if fresh:
            self._outbox.append(m.Started(tuple(fresh)))

    def finished(self, run: m.Run, nbytes: int, type_name: str, value: bytes | None, duration_s: float) -> bool:
        """A run gave a result. True if it is kept; its value must have been stored before this call."""
        number = run.run
        if self.runs.get(number) is not run:
            self._slot_returned(run)
            return False
        self._remove(run)
        self.held.add(run.key, nbytes, number, type_name)
        self._outbox.append(m.RunFinished(number, nbytes, type_name, duration_s, value))
        if run.key in self._waiters or run.key in self.fetches.acquiring:
            self._arrived(run.key)
        return True

    def failed(self, run: m.Run, error: bytes | None, text: str, duration_s: float) -> None:
        """A run raised, or its result cannot be kept."""
        self._ended_without(run, m.RunFailed(run.run, "exception", error, text, duration_s))

    def declined(self, run: m.Run) -> None:
        """A slot has taken this run and does not begin it: the worker's `max_tasks` have begun."""
        self._ended_without(run, m.RunsReturned((run.run,)))

    def rescheduled(self, run: m.Run, duration_s: float) -> None:
        """A task has asked to be run elsewhere."""
        self._ended_without(run, m.RunFailed(run.run, "reschedule", None, "", duration_s))

    def input_gone(self, run: m.Run, key: Key) -> None:
        """A slot has taken this run, and an input is not here any more."""
        self._ended_without(run, m.InputMissing(run.run, key, ""))

    def seceded(self, run: m.Run) -> None:
        """A run has given its slot back and goes on: another one can execute in its place."""
        self.slots.seceded(run)
        self._capacity_changed()

    def rejoined(self, run: m.Run) -> None:
        """A seceded run has a slot again, or has ended."""
        self.slots.rejoined(run)
        self._capacity_changed()

    def tick(self, now: float) -> None:
        """Fail the runs that are out of time, and count slots as overdue."""
        for number in self.slots.expired(now):
            run = self.runs[number]
            limit = float(run.extra["time_limit"])
            text = f"{run.key} ran longer than its time limit of {limit:g} s"
            message = m.RunFailed(number, "timeout", None, text, limit)
            self._outbox.append(message)
            self._resend.failed(message)
            self._cancel(number, now)
            self._return_dependents([run.key])
        if self.slots.mark_overdue(now):
            self._capacity_changed()

    # ------------------------------------------------------------------------------------------ from the data plane

    def fetched(self, fetch: FetchId, key: Key, nbytes: int) -> bool:
        """A value came from a peer. True if it is kept; it must have been stored before this call."""
        if not self.fetches.arrived(fetch, key):
            return False
        self._replicas[key] = 0
        self.held.add(key, nbytes)
        self._arrived(key)
        return True

    def absent(self, fetch: FetchId, key: Key) -> None:
        """The peer does not have this key, or cannot send it."""
        given_up = self.fetches.absent(fetch, key)
        if given_up is not None:
            self._give_up([given_up])

    def fetch_ended(self, fetch: FetchId, *, unreachable: bool, is_silent: bool = False) -> None:
        """The fetch is over; what it has not answered will not come. `unreachable`: the peer is gone.

        A peer that `is_silent` may have the keys all the same. The scheduler knows whether it is lost.
        """
        self._give_up(self.fetches.ended(fetch, unreachable=unreachable), hand_back=is_silent)

    def stored(self, key: Key, nbytes: int, type_name: str, client: str, now: float) -> bool:
        """A client has put a value here. True if it is kept; it must have been stored before this call."""
        if self._address is None:
            return False
        self.held.add(key, nbytes, None, type_name)
        message = m.Scattered(key, nbytes, type_name, client)
        self._outbox.append(message)
        self._resend.stored(message, now)
        if key in self._waiters or key in self.fetches.acquiring:
            self._arrived(key)
        return True

    # ------------------------------------------------------------------------------------------ from actors that move

    def actor_held(self, held: m.ActorHeld, nbytes: int) -> None:
        """An actor rests, and its pickled object was stored; or it goes on, as the text says."""
        if not held.text:
            self.held.add(actor_state(held.key), nbytes)
        self._outbox.append(held)

    def actor_taken(self, taken: m.ActorTaken, nbytes: int) -> None:
        """An actor has come, and its proxy was stored; or it has not, as the text says."""
        if not taken.text:
            self.held.add(taken.key, nbytes)
            if taken.key in self._waiters or taken.key in self.fetches.acquiring:
                self._arrived(taken.key)
        self._outbox.append(taken)

    # ------------------------------------------------------------------------------------------ from the store

    def lost_values(self, keys: Iterable[Key]) -> None:
        """These values could not be kept. Tasks that need them lack them; the scheduler has them computed again."""
        lost = tuple(key for key in keys if key in self.held)
        if lost:
            self._free(lost)
            self._outbox.append(m.Lost(lost))

    # ------------------------------------------------------------------------------------------ steps

    def _arrived(self, key: Key) -> None:
        """A key that runs wait for, or that was to be acquired, is here, from wherever it came first."""
        order = self.fetches.came(key)
        if order is not None:
            self._replicas[key] = order
        self.table.input_arrived(key)

    def _ended_without(self, run: m.Run, message: m.FromWorker) -> None:
        """A run has left its slot without a result. The message says why, if anybody still wants to know."""
        if not self.is_current(run):
            self._slot_returned(run)
            return
        self._outbox.append(message)
        if isinstance(message, m.RunFailed):
            self._resend.failed(message)
        self._remove(run)
        self._return_dependents([run.key])

    def _remove(self, run: m.Run) -> None:
        """Take a run out of every table. A slot that has taken it keeps it."""
        self.table.remove(run)
        if self.slots.announced:
            self.slots.end(run.run)

    def _is_awaited(self, key: Key) -> bool:
        return key in self._waiters

    def _cancel_fetch(self, fetch: FetchId) -> None:
        self._requests.append(CancelFetch(fetch))

    def _cancel(self, number: RunId, now: float) -> Key | None:
        """Drop a run that is not wanted any more. Returns its key, or None if it is not current."""
        run = self.runs.get(number)
        if run is None:
            return None
        executing = not self.table.withdraw(number)
        self._remove(run)
        if executing:
            self._requests.append(CancelRun(run))
            if not self.slots.stop(run, now):
                self._capacity_changed()
        return run.key

    def _slot_returned(self, run: m.Run) -> None:
        """A run that is not current has left its slot."""
        if self.slots.returned(run):
            self._capacity_changed()

    def _give_up(self, given_up: list[UnfetchableKey], *, hand_back: bool = False) -> None:
        """No peer could give these keys."""
        for order, keys in self.fetches.missed(given_up).items():
            self._outbox.append(m.NotAcquired(tuple(keys), order))
        returned = self.table.return_dependents(given_up)
        if hand_back and returned:
            self._outbox.append(m.RunsReturned(tuple(missing.run for missing in returned)))
        else:
            self._outbox += returned

    def _return_dependents(self, keys: Iterable[Key]) -> None:
        """The runs that computed these keys are gone."""
        self._outbox += self.table.return_dependents((key, "") for key in keys)

    def _forget(self, digests: tuple[Digest, ...]) -> None:
        if digests:
            self._requests.append(ForgetFunctions(digests))
