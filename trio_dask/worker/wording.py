"""What the user's code says, in a form that can be sent."""

from __future__ import annotations

from trio_dask.protocol.pickling import describe_exception

__all__ = ["describe_failure", "sendable"]


def sendable(text: str) -> str:
    """The text; what UTF-8 has no bytes for (halves of surrogate pairs) is escaped."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def describe_failure(error: BaseException) -> tuple[bytes | None, str]:
    """The exception for whoever rebuilds it, if it can be pickled, and as text. Never raises."""
    description, text = describe_exception(error)
    return description, sendable(text)
