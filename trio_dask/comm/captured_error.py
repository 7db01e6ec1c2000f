"""An exception that passes a nursery by."""

from __future__ import annotations

from types import TracebackType

__all__ = ["Held"]


class Held:
    """Keeps what a `with` block raises, so that it can be raised where no nursery wraps it in a group."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._error = error
        return True

    def raise_it(self) -> None:
        """Raise what the block raised, if it did."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame: the two would keep each other, and the caller's variables
