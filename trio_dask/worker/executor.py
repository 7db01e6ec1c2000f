"""Where user code runs: slot threads that take ready runs back to back, and the Trio thread for `async def` tasks.

Nothing here happens per task in Trio: slots take from the core's `ReadyQueue` on their own, outcomes gather in a deque,
and the Trio thread is woken once for all that have gathered.

This file is long because slots share every line of a run's way with the Trio thread: which thread may touch what can
only be seen in one place.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, MutableSequence
from contextlib import suppress
from functools import partial
from math import inf
from queue import SimpleQueue
from time import perf_counter
from types import GeneratorType
from typing import Any, NamedTuple

import trio

from trio_dask.errors import Reschedule, TaskCancelled, UsageError
from trio_dask.hooks import hooks
from trio_dask.ids import Digest, Key
from trio_dask.protocol.changing_code import changes_given
from trio_dask.protocol.error_text import mention_loading
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.messages import Run
from trio_dask.protocol.pickled_calls import CHANGES, COMPUTED, WITHOUT_DEFINITIONS, form_of
from trio_dask.protocol.pickled_functions import brings_classes
from trio_dask.protocol.pickled_nodes import GivenArguments
from trio_dask.protocol.pickling import (
    describe_exception,
    load_call,
    load_function,
    measure_value,
    pickle_value,
    sendable,
)
from trio_dask.protocol.rebuilt_classes import brings_class, noting_renewed
from trio_dask.protocol.wire_constants import SMALL_VALUE_BYTES
from trio_dask.worker import forwarded_output
from trio_dask.worker.async_tasks import AsyncCall, raiser, run_async
from trio_dask.worker.core.ready_queue import ReadyQueue
from trio_dask.worker.memory_reservations import Reservations
from trio_dask.worker.named_executors import Call, call_in_executor
from trio_dask.worker.result_store import load_frames
from trio_dask.worker.running_table import RunningTable
from trio_dask.worker.secede import Rejoined, Seceded, SecededTasks
from trio_dask.worker.serial_loading import load_alone
from trio_dask.worker.task_context import TaskContext, WorkerHandle, enter
from trio_dask.worker.turns import Turn, turns


class Finished(NamedTuple):
    """A run returned this value."""

    run: Run
    value: Any
    nbytes: int
    type_name: str
    inline: bytes | None
    duration_s: float
    copied_bytes: int


class Failed(NamedTuple):
    """A run raised, or its value cannot be pickled."""

    run: Run
    error: bytes | None
    text: str
    duration_s: float


class InputGone(NamedTuple):
    """A run could not start, as an input is not in the store any more."""

    run: Run
    key: Key


class Begun(NamedTuple):
    """A slot has taken a run that is to be announced or has a time limit. It waits for `go`, if given."""

    run: Run
    go: SimpleQueue[None] | None


class Declined(NamedTuple):
    """A slot has taken this run and does not begin it: `max_tasks` tasks have begun."""

    run: Run


class Rescheduled(NamedTuple):
    """A task has asked to be run elsewhere."""

    run: Run
    duration_s: float


Outcome = Finished | Failed | InputGone | Begun | Declined | Rescheduled | Seceded | Rejoined
_ENDS = (Finished, Failed, InputGone, Rescheduled)


class _Crashed(NamedTuple):
    """A slot thread has ended by a fault of ours."""

    error: BaseException


DECAY = 7 / 8

REST_S = 0.0002
"""How long results that no client waits for may gather in the slots, while these have work."""

_Posted = Outcome | AsyncCall | _Crashed
"""What slots post to the Trio thread."""


class _Absent(Exception):
    """An input is not in the store."""

    def __init__(self, key: Key) -> None:
        self.key = key


_NO_VALUES: Mapping[Key, Any] = {}


class Executor:
    """`slots` threads and what they need. `run` hosts it; every public method is for the Trio thread.

    `ready`, `blobs` and `values` belong to others and change while slots read them. After `max_tasks` tasks it is
    `spent`. Each slot writes what it executes into `running_table`. A task whose result is expected to have
    `reserve_from` bytes or more reserves them before it begins.
    """

    def __init__(
        self,
        slots: int,
        *,
        ready: ReadyQueue,
        blobs: Mapping[Digest, bytes | bytearray | memoryview],
        values: Mapping[Key, Any],
        worker: WorkerHandle,
        inline_limit_bytes: int,
        max_tasks: int | None = None,
        host_actor: Callable[[TaskContext, Any], Any] | None = None,
        running_table: RunningTable | None = None,
        reservations: Reservations | None = None,
        reserve_from: int = 0,
    ) -> None:
        self._slots: list[TaskContext | None] = [None] * slots
        self._ready = ready
        self._blobs = blobs
        self._values = values
        self._worker = worker
        self._inline_limit = inline_limit_bytes
        self._host_actor = host_actor
        self._task_budget = None if max_tasks is None else iter(range(max_tasks - 1, -1, -1))
        self._running_table = running_table
        self._cells: MutableSequence[int] | memoryview = [0] * slots if running_table is None else running_table.cells
        self.spent = False
        """Whether `max_tasks` tasks have begun."""
        self._functions: dict[Digest, tuple[Callable[..., Any], bool]] = {}
        """Functions that tasks share, and whether they are `async def`."""
        self._known: set[Digest] = set()
        """Functions that have run."""
        self._reservations = reservations
        self._reserve_from = reserve_from
        self._large: dict[Digest, int] = {}  # the expected size of results, for functions with large ones
        self._largest = 0  # the same for functions that have not run yet
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._execute_one = self._execute
        """Something else while the starts of runs are watched."""
        self.threads: set[int] = set()
        """The identifiers of the threads that run tasks."""
        self._seceded = SecededTasks(self._slots, self._cells, start=self._start_slot, post=self._post, wake=self.wake)
        self._posted: deque[_Posted] = deque()
        self._cancelled_runs: dict[int, Run] = {}  # by identity, until their outcome comes
        self._woken = False
        self._is_resting = False
        """Whether the Trio thread will look soon for what can wait; other outcomes still wake it."""
        self._rest_begun = trio.Event()
        self._closed = False
        self._take: Callable[[list[Outcome]], None] | None = None
        self._tasks: trio.Nursery | None = None
        self._trio_token: trio.lowlevel.TrioToken | None = None
        self._failure: BaseException | None = None
        self._failed = trio.Event()

    async def run(self, take: Callable[[list[Outcome]], None]) -> None:
        """Run the slots, and give `take` their outcomes, in order, as they come. Ends only by cancellation.

        Threads inside the user's code cannot be stopped then; they are daemons and end when that code returns.

        Raises:
          BaseException: a slot thread crashed, which is a fault of ours.
        """
        self._take = take
        self._trio_token = trio.lowlevel.current_trio_token()
        turns.add(self._with_definitions)
        assert hooks.around_tasks is not None, "trio_dask sets it"
        try:
            async with trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._end_rests)
                try:
                    with hooks.around_tasks():
                        for number in range(len(self._slots)):
                            self._start_slot(number)
                        await self._failed.wait()
                finally:
                    self._close()  # first: no `async def` task can be started in a nursery that has ended
                    self._tasks.cancel_scope.cancel()
        finally:
            turns.remove(self._with_definitions)
        if self._failure is not None:
            raise self._failure

    def wake(self, offered: int) -> None:
        """Tell the slots that this many runs have become ready."""
        for _ in range(offered):
            self._tokens.put(None)

    def cancel(self, run: Run) -> None:
        """Stop this run if a slot has it: `async def` code at once, other code when it calls `check_cancelled`."""
        # Before the loop below: a slot that takes the run meanwhile shows it first, and then reads this.
        self._cancelled_runs[id(run)] = run
        for context in (*self._slots, *self._seceded.outside):
            if context is not None and context.run is run:
                context.cancel()

    def watch(self, started: Callable[[Key], None] | None) -> None:
        """Have this called, by the slots, with the key of each run that begins; or no longer."""
        if started is None:
            self._execute_one = self._execute
            return

        def execute(context: TaskContext, number: int, carried: Mapping[Key, Any]) -> Outcome:
            started(context.key)
            return self._execute(context, number, carried)

        self._execute_one = execute

    def running_for(self, seconds: float) -> list[Run]:
        """The runs that have been executing for at least this long."""
        before = perf_counter() - seconds
        contexts = (*self._slots, *self._seceded.outside)
        return [context.run for context in contexts if context is not None and context.started_at <= before]

    def trio_tasks(self) -> Collection[trio.lowlevel.Task]:
        """The Trio tasks in which `async def` tasks run, and others of this executor. From any thread."""
        return () if self._tasks is None else self._tasks.child_tasks

    @property
    def slots_are_free(self) -> bool:
        """Whether no slot has a run; seceded runs may go on."""
        return all(context is None for context in self._slots)

    @property
    def busy(self) -> bool:
        """Whether there is a run in a slot, or a seceded one."""
        return any(context is not None for context in (*self._slots, *self._seceded.outside))

    def forget(self, digests: Iterable[Digest]) -> None:
        """Drop these unpickled functions."""
        for digest in digests:
            self._functions.pop(digest, None)
            self._known.discard(digest)
            self._large.pop(digest, None)

    def forget_all(self) -> None:
        """Drop all unpickled functions. From any thread: a slot that misses one unpickles it again."""
        self._functions.clear()

    def _deliver(self) -> None:
        """Pass on what has gathered. Trio calls this directly when a slot asks: a Trio task would come later."""
        if self._closed:
            return
        batch: list[Outcome] = []
        try:
            for outcome in self._collect():
                if isinstance(outcome, AsyncCall):
                    assert self._tasks is not None
                    self._tasks.start_soon(run_async, outcome)
                elif isinstance(outcome, _Crashed):
                    raise outcome.error
                else:
                    batch.append(outcome)
            if batch and self._take is not None:
                self._take(batch)
                if self._running_table is not None:
                    self._running_table.mark_reported(
                        {outcome.run.run for outcome in batch if isinstance(outcome, _ENDS)}
                    )
                if self._can_wait(batch[-1]) and self._ready:
                    self._begin_rest()
        except BaseException as error:  # `run` raises it; raised here it would be an internal error of Trio
            self._failure = error
            self._failed.set()

    def _collect(self) -> Iterable[_Posted]:
        """Take what is there, and have later outcomes call again."""
        self._woken = self._is_resting = False  # before the count: what is appended after it calls again
        outcomes = [self._posted.popleft() for _ in range(len(self._posted))]
        if self._cancelled_runs:
            for outcome in outcomes:
                if isinstance(outcome, Finished | Failed | InputGone | Declined | Rescheduled):
                    self._cancelled_runs.pop(id(outcome.run), None)
        return outcomes

    def _begin_rest(self) -> None:
        """Have results that can wait gather for a moment: each wake-up of the Trio thread costs as much as a task."""
        self._is_resting = True
        self._rest_begun.set()

    async def _end_rests(self) -> None:
        while True:
            await self._rest_begun.wait()
            self._rest_begun = trio.Event()
            await trio.sleep(REST_S)
            if self._is_resting:
                self._deliver()

    def _can_wait(self, outcome: _Posted) -> bool:
        return type(outcome) is Finished and not outcome.run.wanted

    def _close(self) -> None:
        self._closed = True
        for context in self._slots:
            if context is not None:
                context.cancel()
        self._seceded.close()
        self.wake(len(self._slots))
        for outcome in self._collect():
            self._turn_away(outcome)

    # ------------------------------------------------------------------------------------------ in a slot's thread

    def _start_slot(self, number: int) -> None:
        threading.Thread(target=self._serve, args=(number,), name=f"slot-{number}", daemon=True).start()

    def _serve(self, number: int) -> None:
        slot: int | None = number
        self.threads.add(threading.get_ident())
        try:
            while slot is not None:
                if self._is_resting and self._tokens.empty():
                    self._wake_loop()  # this slot has nothing to do until its results are known
                self._tokens.get()
                if self._closed or self._seceded.hand_over(slot):
                    return
                run = self._ready.take()
                if run is None:
                    continue
                if self._task_budget is None:
                    slot = self._work_off(slot, run)
                else:
                    slot = self._work_off_one(slot, run, next(self._task_budget, None))
        except BaseException as error:  # a slot that ended silently would be missed for ever
            self._post(_Crashed(error))
        finally:
            self.threads.discard(threading.get_ident())

    def context_of(self, run: Run) -> TaskContext:
        """For code that runs on this worker outside of the slots."""
        return TaskContext(run, self._worker, self._seceded, None)

    def _work_off(self, number: int, run: Run) -> int | None:
        """A run, then those chained after it. Returns the slot that this thread has at the end, if any."""
        carried: dict[Key, Any] = {}
        following: Run | None = run
        while following is not None:
            run = following
            context = TaskContext(run, self._worker, self._seceded, number)
            execute = self._execute_with_reservation if self._largest else self._execute_one
            outcome = execute(context, number, carried)
            self._post(outcome)
            if type(outcome) is not Finished or context.slot is None:
                return context.slot
            number = context.slot
            following = self._ready.take_chained(run)
            carried = {run.key: outcome.value} if following is not None else {}
        return number

    def _work_off_one(self, number: int, run: Run, left: int | None) -> int | None:
        """A run, if it may still begin: `left` is how many may begin after it."""
        if left is None:
            self._post(Declined(run))
            return number
        if not left:
            self.spent = True
            self._post(Begun(run, None))  # so that the loop sees `spent`
        context = TaskContext(run, self._worker, self._seceded, number)
        execute = self._execute_with_reservation if self._largest else self._execute_one
        self._post(execute(context, number, {}))
        return context.slot

    def _execute_with_reservation(self, context: TaskContext, number: int, carried: Mapping[Key, Any]) -> Outcome:
        """One run, which reserves memory before it starts if its result may be large."""
        expected = self._expected(context.run.function)
        if not expected or self._reservations is None:
            return self._execute_one(context, number, carried)
        context.started_at = inf
        self._slots[number] = context  # it has its slot while it waits
        self._reservations.reserve(expected)
        try:
            context.started_at = perf_counter()
            return self._execute_one(context, number, carried)
        finally:
            self._reservations.release(expected)

    def _execute(self, context: TaskContext, number: int, carried: Mapping[Key, Any]) -> Outcome:
        """One run, start to end; `carried` is the value of the run that it is chained after, if it is.

        When this returns, nothing here keeps the arguments or the value alive.
        """
        run = context.run
        self._slots[number] = context
        context.has_memory = True
        enter(context)
        turn: Turn | None = None
        elsewhere = ""
        try:
            known = self._functions.get(run.function)
            is_computed = run.call[0] == COMPUTED
            marker = run.call[is_computed]
            if turns.busy or marker == CHANGES or (known is None and self._blobs[run.function][0] == CHANGES):
                turn = self._wait_for_turn(context)
            if run.extra:
                elsewhere = self._begin(context)
            self._cells[number] = run.run
            if self._cancelled_runs and id(run) in self._cancelled_runs:
                context.cancelled = True
                raise TaskCancelled(f"task {context.key!r} was cancelled before it started")
            values = self._inputs(run, carried) if run.dependencies else _NO_VALUES
            if turn is None:
                function, is_async = known or self._load(run.function)
                if is_computed or marker not in WITHOUT_DEFINITIONS:
                    args, kwargs = load_alone(load_call, run.call, self._blobs, values)
                else:
                    args, kwargs = load_call(run.call, self._blobs, values)
                if marker not in WITHOUT_DEFINITIONS and brings_class(args, kwargs) and changes_given(function):
                    turn = self._take_turn(context)
                    function, is_async, args, kwargs = self._load_in_turn(turn, run, values)
            else:
                function, is_async, args, kwargs = self._load_in_turn(turn, run, values)
            if known is None:
                context.started_at = perf_counter()  # loading a function may import its library: not what a call takes
            if elsewhere:
                call = Call(function, args, kwargs, values if is_computed else None)
                function = self._in_executor(context, elsewhere, call, is_async=is_async)
                args, kwargs, is_async, is_computed = (), {}, False, False
                del call
            if is_computed:
                args, kwargs = GivenArguments(*args).compute(values)
            value = self._call_async(context, function, args, kwargs) if is_async else function(*args, **kwargs)
            if is_computed and kind_of(value) is GeneratorType:
                value = list(value)  # a generator cannot travel, and only one dependent would get its elements
            if run.extra and "actor" in run.extra and self._host_actor is not None:
                value = self._host_actor(context, value)
            if run.wanted:
                pickled = pickle_value(value, self._inline_limit)
            else:
                pickled = measure_value(value, SMALL_VALUE_BYTES if run.shared else 0)
            if self._largest or pickled.nbytes >= self._reserve_from:
                self._learn(run.function, pickled.nbytes)
        except _Absent as absent:
            return InputGone(run, absent.key)
        except Reschedule:
            return Rescheduled(run, perf_counter() - context.started_at)
        except BaseException as error:  # whatever a task raises is its result, and the slot goes on
            duration_s = perf_counter() - context.started_at
            mention_loading(error, _LOADERS)
            return Failed(run, *describe_exception(error), duration_s)
        finally:
            slot = context.slot
            if slot is None:
                self._seceded.ended(context)
            else:
                self._slots[slot] = None
            if run.extra and "output" in run.extra:
                forwarded_output.end(context)
            if turn is not None:
                turn.end()
            elif turns.busy:
                turns.wake()
        duration_s = perf_counter() - context.started_at
        type_name = sendable(pickled.type_name)
        return Finished(run, value, pickled.nbytes, type_name, pickled.inline, duration_s, pickled.copied_bytes)

    def _with_definitions(self) -> list[TaskContext]:
        """The tasks in the slots that do not wait for memory, and may use classes and functions by value."""
        return [
            context
            for context in self._slots
            if context is not None and context.has_memory and self._may_use_definitions(context.run)
        ]

    def _may_use_definitions(self, run: Run) -> bool:
        if run.dependencies or form_of(run.call) not in WITHOUT_DEFINITIONS:
            return True
        if run.function in self._functions:
            return False
        blob = self._blobs.get(run.function)
        return blob is None or brings_classes(blob)

    def _wait_for_turn(self, context: TaskContext) -> Turn | None:
        """Wait until this task may begin. The turn, if it takes one."""
        run = context.run
        if form_of(run.call) == CHANGES or (run.function in self._blobs and self._blobs[run.function][0] == CHANGES):
            return self._take_turn(context)
        if turns.busy and self._may_use_definitions(run):
            context.on_cancel(turns.wake)
            context.started_at = inf
            turns.wait(context)
            context.started_at = perf_counter()
        return None

    def _take_turn(self, context: TaskContext) -> Turn:
        context.on_cancel(turns.wake)
        context.started_at = inf
        turns.take(context)
        context.started_at = perf_counter()
        turn = context.turn = Turn(context)
        return turn

    def _load_in_turn(
        self, turn: Turn, run: Run, values: Mapping[Key, Any]
    ) -> tuple[Callable[..., Any], bool, tuple[Any, ...], dict[str, Any]]:
        def load() -> tuple[Callable[..., Any], bool, tuple[Any, ...], dict[str, Any]]:
            return *(self._functions.get(run.function) or self._load(run.function)), *load_call(
                run.call, self._blobs, values
            )

        turn.restore = load
        with noting_renewed(turn.brought):
            return load()

    def _expected(self, function: Digest) -> int:
        return self._large.get(function, 0) if function in self._known else self._largest

    def _learn(self, function: Digest, nbytes: int) -> None:
        """Note the size of a result. The expectation decays slowly when a function's results become smaller."""
        if self._reservations is not None:
            expected = max(nbytes, int(DECAY * self._large.pop(function, 0)))
            if expected >= self._reserve_from:
                self._large[function] = expected
            self._largest = max(list(self._large.values()), default=0)

    def _begin(self, context: TaskContext) -> str:
        """What the options of a task ask for before it begins. Returns the name of its executor, if it has one."""
        extra = context.run.extra
        if "output" in extra:
            forwarded_output.begin(context)
        if extra.get("announce"):
            go: SimpleQueue[None] = SimpleQueue()
            self._post(Begun(context.run, go))
            go.get()
        elif "time_limit" in extra:
            self._post(Begun(context.run, None))
        name: str = extra.get("executor", "")
        if name:
            self._worker.executors.find(name)  # before anything is unpickled
        return name

    def _in_executor(self, context: TaskContext, name: str, call: Call, *, is_async: bool) -> Callable[[], Any]:
        """A function that makes the call in an executor of users."""
        if is_async:
            raise UsageError(
                f"`async def` tasks run under Trio, not in executor {name!r}: leave out the executor, or submit a "
                "plain `def` function"
            )
        return partial(call_in_executor, name, self._worker.executors.find(name), context, call, self.threads)

    def _load(self, digest: Digest) -> tuple[Callable[..., Any], bool]:
        function, shared = load_alone(load_function, digest, self._blobs[digest], self._blobs)
        method = getattr(type(function), "__call__", None)  # noqa: B004 (the method itself is examined)
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)
        self._known.add(digest)
        if shared:
            self._functions[digest] = function, is_async
        return function, is_async

    def _inputs(self, run: Run, carried: Mapping[Key, Any]) -> dict[Key, Any]:
        inputs: dict[Key, Any] = {}
        for key, source in run.dependencies:
            if key in carried:
                inputs[key] = carried[key]
                continue
            if type(source) is bytes:
                inputs[key] = load_frames((source,))
                continue
            try:
                inputs[key] = self._values[key]
            except KeyError:
                if key in self._values:
                    raise  # from the user's code, while the value was unpickled
                raise _Absent(key) from None
        return inputs

    def _call_async(
        self, context: TaskContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        reply: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._post(AsyncCall(context, lambda: function(*args, **kwargs), reply))
        return reply.get()()

    def _post(self, outcome: _Posted) -> None:
        self._posted.append(outcome)
        if self._closed:
            self._turn_away(outcome)
        elif not self._woken and not (self._is_resting and self._can_wait(outcome)):
            self._wake_loop()

    def _wake_loop(self) -> None:
        if self._trio_token is not None:
            self._woken = True
            with suppress(trio.RunFinishedError):
                self._trio_token.run_sync_soon(self._deliver, idempotent=True)

    def _turn_away(self, outcome: _Posted) -> None:
        """Outcomes are not taken any more, so a slot must not wait for an answer."""
        if isinstance(outcome, Begun) and outcome.go is not None:
            outcome.go.put(None)
        elif isinstance(outcome, AsyncCall):
            outcome.reply.put(raiser(TaskCancelled("the worker is leaving")))


_LOADERS = tuple(
    function.__code__
    for function in (load_alone, load_call, Executor._load, Executor._load_in_turn)  # pyright: ignore[reportPrivateUsage]
)
"""What a slot calls to unpickle the function and the arguments of a task."""
