"""Blobs: functions and large arguments, each kept once for as long as a task or a client refers to it."""

from __future__ import annotations

from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Digest
from trio_dask.protocol.messages import Blob, ForgetBlobs
from trio_dask.scheduler.core.state import Client, State, StoredBlob, Worker

MAX_BLOB_BYTES: Final = 16 << 30
"""The largest blob that is accepted; each piece names the total."""


def receive(state: State, client: Client, message: Blob) -> None:
    """Take one piece of a blob from a client.

    Raises `ProtocolError` for pieces that contradict each other.
    """
    blob = state.blobs.get(message.digest)
    if blob is None:
        if not 0 <= message.total <= MAX_BLOB_BYTES:
            raise ProtocolError(f"a blob of {message.total} bytes")
        blob = state.blobs[message.digest] = StoredBlob(message.digest, message.total)
    if blob.total != message.total:
        raise ProtocolError("two pieces of one blob name different totals")
    if client not in blob.uploads:
        if blob in client.blobs:
            return
        client.blobs[blob] = None
        blob.references += 1
        blob.uploads[client] = 0
    blob.uploads[client] += len(message.data)
    offset = blob.uploads[client]
    if offset > blob.total:
        raise ProtocolError("a blob is longer than its announced total")
    if offset > blob.received:
        blob.pieces.append(message.data)
        blob.received = offset
    if offset == blob.total:
        del blob.uploads[client]


def complete_blob(state: State, digest: Digest) -> StoredBlob:
    """The complete blob of that digest.

    Raises `ProtocolError` if it has not arrived completely.
    """
    blob = state.blobs.get(digest)
    if blob is None or blob.received != blob.total:
        raise ProtocolError("a message refers to a blob that was not sent before it")
    return blob


def ship(state: State, blob: StoredBlob, worker: Worker) -> None:
    """Send a blob to a worker that does not have it."""
    blob.shipped[worker] = None
    for piece in blob.pieces or (b"",):
        state.send(worker.peer, Blob(blob.digest, blob.total, piece))


def unreference(state: State, blob: StoredBlob) -> None:
    """Count one reference less; a blob without references is dropped, here and at the workers."""
    blob.references -= 1
    if blob.references:
        return
    state.blobs.pop(blob.digest, None)
    for worker in blob.shipped:
        state.send(worker.peer, ForgetBlobs((blob.digest,)))
    blob.shipped.clear()


def forget_blobs(state: State, client: Client, message: ForgetBlobs) -> None:
    """A client will not refer to these blobs again without sending them anew."""
    for digest in message.digests:
        blob = state.blobs.get(digest)
        if blob is not None and blob in client.blobs:
            del client.blobs[blob]
            blob.uploads.pop(client, None)
            unreference(state, blob)
