"""A block in which something runs beside its body: a cluster, or a scheduler, a worker or a nanny alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar, Literal, NoReturn, Protocol, Self, TypeVar

import trio

from trio_dask.client.wait_signals import require_trio
from trio_dask.deploy.program_runner import flattened
from trio_dask.errors import ClusterError, TrioDaskError, UsageError
from trio_dask.html_cards import card


class Hosted(Protocol):
    """What runs as long as its block."""

    @property
    def failure(self) -> Exception | None:
        """Why it has ended by itself, if it has failed."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled, or until it ends by itself. Raises its `failure`, if there is one."""
        ...


H = TypeVar("H", bound=Hosted)


@asynccontextmanager
async def opened(hosted: H) -> AsyncGenerator[H]:
    """Have it run for as long as the block lasts; if it fails, the block is cancelled, and raises the failure."""
    with _one_error(hosted):
        async with trio.open_nursery() as nursery:
            await nursery.start(hosted.serve)
            yield hosted
            nursery.cancel_scope.cancel()


@contextmanager
def _one_error(hosted: Hosted) -> Generator[None]:
    """Raise what the block raised without the group of our nursery, or the failure if there is one."""
    try:
        yield
    except BaseExceptionGroup as group:  # raised again, whole if it has several errors
        only = group.exceptions[0] if len(group.exceptions) == 1 else None
        if hosted.failure is not None:
            raise hosted.failure from (None if only is hosted.failure else group)
        if only is None:
            raise
        raise only from only.__cause__


def leading_error(error: BaseException) -> Exception | None:
    """The error that says most of the cause, without groups; None for a cancellation, or what ends a whole program."""
    found = list(flattened(error))
    if any(not isinstance(leaf, Exception | trio.Cancelled) for leaf in found):
        return None
    errors = [leaf for leaf in found if isinstance(leaf, Exception)]
    # Ours say more than those that follow from them.
    return next((leaf for leaf in errors if isinstance(leaf, TrioDaskError | OSError)), errors[0] if errors else None)


Phase = Literal["created", "starting", "running", "closed", "failed"]


class _Readiness(trio.TaskStatus[Any]):
    """Tells that something is ready, to whom that concerns."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def started(self, value: Any = None) -> None:
        self._tell()


class Embedded:
    """What `Scheduler`, `Worker` and `Nanny` have in common."""

    _BLOCKING: ClassVar = "LocalCluster"
    failure: Exception | None = None
    """Why it has ended by itself, if it has failed."""

    def _prepare(self) -> None:
        self._phase: Phase = "created"
        self._was_ready = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._block: AbstractAsyncContextManager[Self] | None = None

    async def _run(self, task_status: trio.TaskStatus[Any]) -> None:
        """Run the service."""
        raise NotImplementedError

    def _facts(self) -> dict[str, str]:
        """For people."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        """created, starting, running, closed, or failed, and more where a subclass says so."""
        return self._phase

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until `close`, or until it ends by itself; `task_status.started` says that it is ready. Only once.

        Raises its `failure`.
        """
        self._refuse_again()
        self._phase = "starting"

        def ready() -> None:
            self._phase, self._was_ready = "running", True
            task_status.started()

        try:
            with self._scope:
                await self._run(_Readiness(ready))
        except (Exception, BaseExceptionGroup) as error:  # a nursery wraps what is raised in it
            self.failure = leading_error(error)
            if self.failure is None:
                raise
            raise self.failure from self.failure.__cause__
        finally:
            self._phase = "closed" if self.failure is None else "failed"
            self._ended.set()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The same beside the body of a block. Raises `ClusterError`, too, if it ends before it is ready."""
        await self.run(task_status=task_status)
        if not self._was_ready:
            raise ClusterError(f"this {type(self).__name__} ended before it was ready")

    async def close(self) -> None:
        """End it in good order, and wait until it has ended, as leaving the block does. Idempotent."""
        self._scope.cancel()
        if self._phase != "created":
            await self.finished()

    aclose = close

    async def finished(self) -> None:
        """Wait until it has ended: it was closed, or told to leave. If it fails, its block raises why."""
        await self._ended.wait()

    async def __aenter__(self) -> Self:
        require_trio(type(self).__name__, self._BLOCKING)
        self._refuse_again()
        self._block = opened(self)
        return await self._block.__aenter__()

    def __aexit__(self, *error: Any) -> Coroutine[Any, Any, bool | None]:
        assert self._block is not None, "entered before"
        return self._block.__aexit__(*error)

    def __enter__(self) -> NoReturn:
        raise self._is_for_trio()

    def __exit__(self, *error: object) -> None:
        """Never called, as nothing enters it."""

    def __await__(self) -> NoReturn:
        raise self._is_for_trio()

    def _refuse_again(self) -> None:
        if self._phase != "created":
            raise RuntimeError(f"this {type(self).__name__} has been started before; make another one")

    def _is_for_trio(self) -> UsageError:
        name = type(self).__name__
        return UsageError(f"write `async with {name}(...)` in a Trio program; {self._BLOCKING} is for blocking code")

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items() if value)
        return f"<{type(self).__name__} {self.status}{', ' * bool(facts)}{facts}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return card(type(self).__name__, {"status": self.status, **self._facts()})
