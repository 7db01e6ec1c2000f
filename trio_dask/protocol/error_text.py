"""What is added to exceptions of the user's code: where they come from, and what to do about them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from types import CodeType
from typing import Any, Final

UNDER_TRIO: Final = (
    "`async def` functions run under Trio here, not under asyncio: await Trio's counterpart (`trio.sleep`, a nursery "
    "for `asyncio.gather`, `trio.fail_after` for `asyncio.wait_for`), or submit a plain `def` function that calls "
    "`asyncio.run(...)`"
)

# What asyncio says without a running loop, and what Trio says of asyncio's objects.
_ASYNCIO_SAYS: Final = ("no running event loop", "There is no current event loop")
_TRIO_SAYS: Final = ("trio.run received unrecognized yield message",)
MAX_EXAMINED: Final = 50


def mention_loading(error: BaseException, loaders: Container[CodeType]) -> None:
    """Add a note to an exception that came from one of these, which the frame that has caught it called."""
    caught = error.__traceback__
    called = None if caught is None else caught.tb_next
    if called is not None and called.tb_frame.f_code in loaders:
        error.add_note("raised while the function or an argument of the task was unpickled")


def mention_trio(error: BaseException) -> None:
    """Add a note to an exception of an `async def` function that took Trio for asyncio."""
    if any(map(_took_trio_for_asyncio, _related(error))):
        error.add_note(UNDER_TRIO)


def _related(error: BaseException) -> Iterator[BaseException]:
    """The exception, its causes and contexts, and the members of groups."""
    found = [error]
    for one in found:  # it grows meanwhile
        yield one
        group: tuple[BaseException, ...] = getattr(one, "exceptions", ()) if type(one) in _GROUPS else ()
        more = [one.__cause__, one.__context__, *group]
        found += [other for other in more if other is not None and not any(other is known for known in found)]
        del found[MAX_EXAMINED:]


_GROUPS: Final[tuple[Any, ...]] = (ExceptionGroup, BaseExceptionGroup)


def _took_trio_for_asyncio(error: BaseException) -> bool:
    kind = type(error)
    if kind is not RuntimeError and kind is not TypeError:  # others may have a slow or broken __str__
        return False
    return str(error).startswith(_ASYNCIO_SAYS if kind is RuntimeError else _TRIO_SAYS)
