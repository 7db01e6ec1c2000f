"""Checks of texts that users give: a message can carry only Unicode."""

from __future__ import annotations

from trio_dask.errors import UsageError
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH


def checked_text(what: str, text: str) -> str:
    """Return this text.

    Raises `UsageError` for one that no message can carry: it is not Unicode, or too long.
    """
    if len(text) > MAX_KEY_LENGTH:
        raise UsageError(f"{what} has {len(text)} characters; at most {MAX_KEY_LENGTH} are allowed")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{what} {text!a} cannot be sent: {error.reason}") from None
    return text
