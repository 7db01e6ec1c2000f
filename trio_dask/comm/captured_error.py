"""An exception that bypasses a nursery."""

from __future__ import annotations


class CapturedError:
    """Keeps what a `with` block raises, to raise it outside a nursery, which would wrap it in a group."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
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
