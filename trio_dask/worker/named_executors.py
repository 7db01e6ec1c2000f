"""Executors of users, in which tasks run that name one of them (`dask.annotate(executor="gpu")`).

The slot of such a task submits the call, and waits for it. Where an executor runs it in a thread of this process, it
runs with the task's context, so that `get_worker()` and all else work as in a slot. An executor with processes pickles
it, and so turns it into one that unpickles there what our pickler has made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import CancelledError
from contextvars import Context, copy_context
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trio_dask.errors import TaskCancelled, UsageError
from trio_dask.ids import Key
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.pickled_nodes import GivenArguments
from trio_dask.protocol.pickling import describe_exception, dump_value, load_exception, load_value

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from trio_dask.worker.task_context import TaskContext

DEFAULT: Final = "default"
"""Stands for the slots themselves."""


class NamedExecutors(MutableMapping[str, "Executor"]):
    """The executors of one worker, by name. For any thread.

    Which code makes an executor shuts it down as well: the worker does not. "default" is no item of this, as it stands
    for the worker's own threads, which are no such object.
    """

    def __init__(self) -> None:
        self._executors: dict[str, Executor] = {}

    def __getitem__(self, name: str) -> Executor:
        return self._executors[name]

    def __setitem__(self, name: str, executor: Executor) -> None:
        if type(name) is not str or not name:
            raise UsageError(f'the name of an executor is a text such as "gpu", not {name!r:.60}')
        if name == DEFAULT:
            raise UsageError(f"{DEFAULT!r} stands for the worker's own threads; give the executor another name")
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(f"{name!r} has to be a concurrent.futures.Executor, and is {executor!r:.60}")
        self._executors[name] = executor

    def __delitem__(self, name: str) -> None:
        del self._executors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._executors))

    def __len__(self) -> int:
        return len(self._executors)

    def __repr__(self) -> str:
        return f"<executors {', '.join(self.names)}>"

    @property
    def names(self) -> list[str]:
        """All names that a task may give."""
        return sorted([DEFAULT, *self._executors])

    def find(self, name: str) -> Executor:
        """The executor of this name. Raises `UsageError`."""
        executor = self._executors.get(name)
        if executor is None:
            raise UsageError(f"Invalid executor {name!r}; expected one of: {self.names}")
        return executor


class Call(NamedTuple):
    """What a task calls. `results` are those of its dependencies if the arguments are computed from them, else None."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: Mapping[Key, Any] | None


def call_in_executor(name: str, executor: Executor, context: TaskContext, call: Call, threads: set[int]) -> Any:
    """Make a call in an executor, in the slot of its task, and return what it returns. `threads` are those with tasks.

    Raises:
      TaskCancelled: the task was cancelled before the call began.
      RuntimeError: the executor was shut down, or has broken.
      BaseException: what the function raises.
    """
    future = executor.submit(_CallHere(context, call, threads))
    context.on_cancel(future.cancel)
    try:
        result = future.result()
    except CancelledError:
        if not future.cancelled():
            raise  # by the function
        if context.cancelled:
            raise TaskCancelled(f"task {context.key!r} was cancelled before executor {name!r} began it") from None
        raise RuntimeError(f"executor {name!r} was shut down before it began task {context.key!r}") from None
    finally:
        context.on_cancel(_ignore)  # it would keep the future, and so the result
    return result.give() if type(result) is _Answer else result


def _ignore() -> None:
    pass


class _CallHere:
    """A call, for any thread of this process."""

    def __init__(self, context: TaskContext, call: Call, threads: set[int]) -> None:
        self._variables = copy_context()
        self._context = context
        self._call = call
        self._threads = threads

    def __call__(self) -> Any:
        return self._variables.run(run_here, self._context, self._threads, *self._call)

    def __reduce__(self) -> tuple[Any, ...]:
        return _CallThere, ([bytes(frame) for frame in dump_value(tuple(self._call))],)


def run_here(
    context: TaskContext,
    threads: set[int],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    results: Mapping[Key, Any] | None,
) -> Any:
    """Run the function of a task in this thread, which counts among `threads` meanwhile."""
    threads.add(threading.get_ident())
    try:
        if results is None:
            return function(*args, **kwargs)
        return _listed(_computed(function, args, kwargs, results))
    finally:
        threads.discard(threading.get_ident())


class _CallThere:
    """A pickled call, in another process: no task is running there."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._frames = frames

    def __call__(self) -> _Answer:
        try:
            head, *buffers = self._frames
            return Context().run(_run_there, Call(*load_value((head, *map(bytearray, buffers)))))
        except BaseException as error:  # whatever the function raises is its result
            description, text = describe_exception(error)
            return _Answer(False, text, () if description is None else (description,))


def _run_there(call: Call) -> _Answer:
    function, args, kwargs, results = call
    value = function(*args, **kwargs) if results is None else _listed(_computed(function, args, kwargs, results))
    return _Answer(True, "", tuple([bytes(frame) for frame in dump_value(value)]))


class _Answer(NamedTuple):
    """What a function in another process has returned, or raised, pickled."""

    ok: bool
    text: str
    frames: tuple[bytes, ...]

    def give(self) -> Any:
        """Return or raise it."""
        if self.ok:
            head, *buffers = self.frames
            return load_value((head, *map(bytearray, buffers)))
        raise load_exception(self.frames[0] if self.frames else None, self.text)


def _computed(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Mapping[Key, Any]
) -> Any:
    args, kwargs = GivenArguments(*args).compute(results)
    return function(*args, **kwargs)


def _listed(value: Any) -> Any:
    """The elements of a generator as a list: it cannot travel, and only one dependent would get them."""
    return list(value) if kind_of(value) is GeneratorType else value
