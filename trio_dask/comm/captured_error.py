"""An exception that bypasses a nursery."""

from __future__ import annotations

from types import TracebackType


class CapturedError:
    """Keeps what a `with` block raises, to raise it outside a nursery, which would wrap it in a group."""

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
