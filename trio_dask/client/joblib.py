"""joblib's backend: `Parallel` runs its calls on the cluster, for scikit-learn and whatever else uses joblib.

    with Client(), joblib.parallel_config("trio_dask"):
        search.fit(x, y)

A batch of calls is one task. A large argument is scattered once, however many calls of a `Parallel` have it. In a task,
`Parallel` makes tasks in turn. Importing this imports joblib.
"""

from __future__ import annotations

import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import joblib.parallel
import trio

from trio_dask.client.call_forms import Timeout
from trio_dask.client.futures import Future
from trio_dask.hooks import client_here, hooks
from trio_dask.protocol.picklers import PICKLING_FAILURES
from trio_dask.protocol.pickling import dump_value

if TYPE_CHECKING:
    from trio_dask.client.client import Client

FIRST_WORKER_S: Final = 10.0
LARGE_BYTES: Final = 2**20
"""joblib has the same; `max_nbytes` of its `Parallel` changes it."""

_joblib: Any = joblib.parallel

Outcome = Callable[[], Any]
"""Returns what a batch of calls has returned, or raises what it has raised."""


class TrioDaskBackend(_joblib.AutoBatchingMixin, _joblib.ParallelBackendBase):  # type: ignore[misc] # has no types
    """What `parallel_config("trio_dask", ...)` makes.

    Several calls of `Parallel` may use it at a time: one may take what another yields.

    Args:
      scheduler_host: the address of a scheduler; without it the current client is used.
      scatter: values that all workers get in advance; arguments that are one of these objects do not travel again.
      client: the client to use.
      wait_for_workers_timeout: how long to wait for the first worker.
      **submit_kwargs: options of `Client.submit`, such as `resources` and `priority`; not for tasks of tasks.
    """

    MIN_IDEAL_BATCH_DURATION = 0.05  # some hundred times what a task costs
    MAX_IDEAL_BATCH_DURATION = 0.5
    default_n_jobs = -1
    supports_retrieve_callback = True

    def __init__(
        self,
        scheduler_host: str | None = None,
        scatter: Sequence[Any] | None = None,
        client: Client | None = None,
        loop: object = None,
        wait_for_workers_timeout: Timeout = FIRST_WORKER_S,
        nesting_level: int | None = None,
        **submit_kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level)  # pyright: ignore[reportUnknownMemberType]
        if scatter is not None and not isinstance(scatter, list | tuple):
            raise TypeError(f"scatter is a list or a tuple of values, not {type(scatter).__name__}")
        self._client = _find_client(scheduler_host) if scheduler_host else client
        self._first_worker_s = wait_for_workers_timeout
        self._options = submit_kwargs
        self._lock = threading.RLock()  # a generator that is collected ends its call, in the middle of anything
        self._calls = 0
        self._parallel_of: dict[Future, Any] = {}
        self._large = _LargeArguments()
        self._given: dict[int, tuple[Any, Future]] = {}
        if scatter:
            futures = self.client.scatter(list(scatter), broadcast=True, hash=False)
            self._given = {id(value): (value, future) for value, future in zip(scatter, futures, strict=True)}

    @property
    def client(self) -> Client:
        """The client that this uses; in a task, that of its worker.

        Raises:
          ValueError: there is none.
          RuntimeError: this runs in a Trio loop.
        """
        if self._client is None:
            if trio.lowlevel.in_trio_run():
                raise RuntimeError("joblib blocks: call it in a thread, with `trio.to_thread.run_sync`")
            self._client = _find_client(None)
        return self._client

    # ------------------------------------------------------------------------------------- what joblib asks

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at a time: as many as there are threads, unless `n_jobs` says how many.

        With 1 joblib calls the functions itself, here and not in the cluster: a cluster of one thread counts as two.

        Raises:
          ValueError: it is 0.
          TimeoutError: there is no worker.
        """
        if n_jobs is None:  # scikit-learn says so
            n_jobs = self.default_n_jobs
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs > 0:
            return n_jobs
        threads = sum(self.client.nthreads().values())
        if not threads:
            self.client.wait_for_workers(1, self._first_worker_s)
            threads = sum(self.client.nthreads().values())
        return max(threads + 1 + n_jobs, 2)

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, max_nbytes: int | None = LARGE_BYTES, **options: Any
    ) -> int:
        """Before the calls of a `Parallel`; returns how many run at a time."""
        self.parallel = parallel
        self._large.from_bytes = max_nbytes
        return self.effective_n_jobs(n_jobs)

    def get_nested_backend(self) -> tuple[TrioDaskBackend, int]:
        """What `Parallel` uses in a task, with its `n_jobs`. The task itself may hold the resources it waits for."""
        return TrioDaskBackend(nesting_level=(self.nesting_level or 0) + 1), -1

    def __reduce__(self) -> tuple[Callable[..., TrioDaskBackend], tuple[()]]:
        return partial(TrioDaskBackend, nesting_level=self.nesting_level), ()

    def start_call(self) -> None:
        """A call of a `Parallel` begins."""
        with self._lock:
            self._calls += 1

    def stop_call(self) -> None:
        """It has ended. With the last one, what was scattered is released."""
        with self._lock:
            self._calls -= 1
            if not self._calls:
                self._large.clear()

    def terminate(self) -> None:
        """A `Parallel` has ended: what is learned about the size of batches does not hold for the next one."""
        self.reset_batch_stats()

    def submit(self, func: Any, callback: Any) -> Future | None:
        """Have a batch of calls run; `callback` gets its outcome."""
        try:
            func.items = [self._with_futures(*item) for item in func.items]
            future = self.client.submit(joblib_batch, func, pure=False, **self._options)
        except Exception as error:  # of any kind: joblib waits for ever for a call that raises in one of our threads
            _report(callback, partial(_raise, error))
            return None
        self._parallel_of[future] = callback.parallel
        future.add_done_callback(partial(self._done, callback))
        return future

    def retrieve_result_callback(self, out: Outcome) -> Any:
        """The outcome of a batch."""
        return out()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the tasks of every `Parallel` that gives up."""
        running = list(self._parallel_of.items())
        self.client.cancel([future for future, parallel in running if parallel._aborting])

    def retrieval_context(self) -> AbstractContextManager[None]:
        """Around waiting for results: a task gives its slot back meanwhile."""
        return nullcontext() if hooks.tasks is None else hooks.tasks.outside_of_slots(self.client)

    # ------------------------------------------------------------------------------------- inside

    def _with_futures(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """A call with futures in the place of large arguments."""
        replaced = self._replaced
        return function, tuple(map(replaced, args)), {name: replaced(value) for name, value in kwargs.items()}

    def _replaced(self, value: Any) -> Any:
        found = self._given.get(id(value))
        return found[1] if found is not None else self._large.future(value, self._scatter)

    def _scatter(self, value: Any) -> Future:
        (future,) = self.client.scatter([value], hash=False)
        return future  # type: ignore[no-any-return] # the shape of what is scattered says what this is

    def _done(self, callback: Callable[[Outcome], object], future: Future) -> None:
        self._parallel_of.pop(future, None)
        _report(callback, partial(_outcome, future))


def make_backend(**params: Any) -> TrioDaskBackend:
    """What joblib calls. Raises `ValueError` if there is no client."""
    backend = TrioDaskBackend(**params)
    assert backend.client
    return backend


def _find_client(address: str | None) -> Client:
    found = client_here(address)
    if found.asynchronous:
        raise RuntimeError("joblib blocks, and the client here is an AsyncClient: open a `Client` in this thread")
    client: Client = found
    return client


class _LargeArguments:
    """Futures of arguments that were scattered, as long as these live and the call of `Parallel` lasts.

    Only objects that weak references can refer to count, as arrays and frames are. In others, such as lists, pickling
    finds large content and sends it once, too.
    """

    def __init__(self) -> None:
        self.from_bytes: int | None = LARGE_BYTES
        self._found: dict[int, tuple[weakref.ref[Any], Future | None]] = {}

    def future(self, value: Any, scatter: Callable[[Any], Future]) -> Any:
        """A future of this value if it is large, else the value."""
        if self.from_bytes is None or isinstance(value, FunctionType | type | Future):
            return value
        identity = id(value)
        found = self._found.get(identity)
        if found is None:
            try:
                reference = weakref.ref(value, lambda _: self._found.pop(identity, None))
            except TypeError:
                return value
            future = scatter(value) if _size(value) >= self.from_bytes else None
            found = self._found[identity] = reference, future
        return value if found[1] is None else found[1]

    def clear(self) -> None:
        """The call has ended."""
        self._found.clear()


def _size(value: Any) -> int:
    try:
        return sum(memoryview(frame).nbytes for frame in dump_value(value))
    except PICKLING_FAILURES:  # of the user's objects: `submit` says which
        return 0


def joblib_batch(calls: Any) -> list[Any]:
    """The task."""
    results: list[Any] = calls()
    return results


def _report(callback: Callable[[Outcome], object], outcome: Outcome) -> None:
    """Call this in a thread of its own: it takes the next calls from an iterator, which may wait for a `Parallel`."""
    threading.Thread(target=callback, args=(outcome,), name="trio_dask-joblib", daemon=True).start()


def _outcome(future: Future) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if error.__traceback__ is not None:  # joblib takes it away
        error.add_note("Traceback in the cluster:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    raise error


def _raise(error: Exception) -> Any:
    raise error
