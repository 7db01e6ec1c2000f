"""Blobs: functions and large arguments, each kept once for as long as a task or a client refers to it."""

from __future__ import annotations

from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Digest
from trio_dask.protocol.messages import Blob, ForgetBlobs
from trio_dask.scheduler.core.state import Client, Content, State, Worker

__all__ = ["content_of", "forget_contents", "receive", "ship", "unreference"]

MAX_BLOB_BYTES: Final = 16 << 30
"""A blob announces its size before it comes; a larger one is not believed."""


def receive(state: State, client: Client, message: Blob) -> None:
    """Take one piece of a blob from a client.

    Raises `ProtocolError` for pieces that do not add up.
    """
    content = state.contents.get(message.digest)
    if content is None:
        if not 0 <= message.total <= MAX_BLOB_BYTES:
            raise ProtocolError(f"a blob of {message.total} bytes")
        content = state.contents[message.digest] = Content(message.digest, message.total)
    if content.total != message.total:
        raise ProtocolError("two pieces of one blob name different totals")
    if client not in content.uploads:
        if content in client.contents:
            return
        client.contents[content] = None
        content.references += 1
        content.uploads[client] = 0
    content.uploads[client] += len(message.data)
    offset = content.uploads[client]
    if offset > content.total:
        raise ProtocolError("a blob is longer than it said")
    if offset > content.received:
        content.pieces.append(message.data)
        content.received = offset
    if offset == content.total:
        del content.uploads[client]


def content_of(state: State, digest: Digest) -> Content:
    """The complete blob of that digest.

    Raises `ProtocolError` if it has not come, or not wholly.
    """
    content = state.contents.get(digest)
    if content is None or content.received != content.total:
        raise ProtocolError("a message refers to a blob that did not come before it")
    return content


def ship(state: State, content: Content, worker: Worker) -> None:
    """Send a blob to a worker that has not had it."""
    content.shipped[worker] = None
    for piece in content.pieces or (b"",):
        state.send(worker.peer, Blob(content.digest, content.total, piece))


def unreference(state: State, content: Content) -> None:
    """One task or client less refers to it; the last one takes it away, here and at the workers."""
    content.references -= 1
    if content.references:
        return
    state.contents.pop(content.digest, None)
    for worker in content.shipped:
        state.send(worker.peer, ForgetBlobs((content.digest,)))
    content.shipped.clear()


def forget_contents(state: State, client: Client, digests: tuple[Digest, ...]) -> None:
    """A client will not refer to these blobs again without sending them anew."""
    for digest in digests:
        content = state.contents.get(digest)
        if content is not None and content in client.contents:
            del client.contents[content]
            content.uploads.pop(client, None)
            unreference(state, content)
