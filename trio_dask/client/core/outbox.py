"""Messages to the scheduler, in the order of the user's calls; similar ones are merged.

A burst of `submit` calls of one function becomes one `Submit`, a burst of dying futures one `Release`. Each call ends
in one step on one list: a `KeyboardInterrupt` between two byte codes leaves no half of a task behind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

from trio_dask.ids import Digest, Key
from trio_dask.protocol.messages import Blob, ForgetBlobs, Message, Release, Submit, SubmitGraph, Want

LOADED_BYTES = 1 << 14
"""What each blob takes of the budget besides its content: a worker also keeps what it loaded from the blob."""

NO_EXTRA: Final[Mapping[str, Any]] = {}
MAX_ROWS: Final = 2048
MAX_KEYS: Final = 2**16
MAX_CALL_BYTES: Final = 512 * 1024
BLOB_PIECE_BYTES: Final = 1024 * 1024


Content: TypeAlias = tuple[Digest, bytes | memoryview]
"""A blob, after its name."""


class Row(NamedTuple):
    """One task of a `Submit`."""

    key: Key
    call: bytes
    dependencies: tuple[Key, ...] = ()
    blobs: tuple[Digest, ...] = ()
    token: bytes = b""


class GraphPart(NamedTuple):
    """A part of a graph, with the content of its blobs.

    `outputs` are the keys of which the client may want the results, each with its number in the part.
    """

    message: SubmitGraph
    """Without what the client wants."""
    outputs: Sequence[tuple[int, Key]]
    contents: Sequence[Content]


class _Submits:
    """A `Submit` that still grows."""

    __slots__ = ("extra", "function", "rows")

    def __init__(self, function: Digest, extra: Mapping[str, Any]) -> None:
        self.function = function
        self.extra = extra
        self.rows: list[Row] = []

    def messages(self) -> list[Submit]:
        """As few as possible, none of them unduly large."""
        if len(self.rows) <= MAX_ROWS:
            return self._messages(self.rows)
        starts = range(0, len(self.rows), MAX_ROWS)
        return [message for start in starts for message in self._messages(self.rows[start : start + MAX_ROWS])]

    def _messages(self, rows: list[Row]) -> list[Submit]:
        keys, calls, dependencies, blobs, tokens = zip(*rows, strict=True)
        if len(rows) > 1 and sum(map(len, calls)) > MAX_CALL_BYTES:
            half = len(rows) // 2
            return [*self._messages(rows[:half]), *self._messages(rows[half:])]
        return [
            Submit(
                self.function,
                keys,
                calls,
                dependencies if any(dependencies) else (),
                blobs if any(blobs) else (),
                tokens if any(tokens) else (),
                self.extra,
            )
        ]


class _Keys:
    """A `Release` or `Want` that still grows."""

    __slots__ = ("keys", "kind")

    def __init__(self, kind: type[Release | Want]) -> None:
        self.kind = kind
        self.keys: list[Key] = []

    def message(self) -> Release | Want:
        return self.kind(tuple(self.keys))


class Outbox:
    """Takes messages one by one, gives them out merged, each blob before the first message that refers to it."""

    def __init__(self, blob_budget_bytes: int) -> None:
        self.items: list[Message | _Submits | _Keys] = []
        """What the next `drain` takes."""
        self._last: _Submits | _Keys | None = None
        self._blob_budget = blob_budget_bytes
        self._shipped: OrderedDict[Digest, int] = OrderedDict()
        self._shipped_bytes = 0

    def put(self, message: Message) -> None:
        """Append one message that merges with no other."""
        self.items.append(message)
        self._last = None

    def put_keys(self, make: Callable[[tuple[Key, ...]], Message], keys: Sequence[Key]) -> None:
        """Append messages that name these keys; several if there are too many for one."""
        for start in range(0, len(keys), MAX_KEYS):
            self.put(make(tuple(keys[start : start + MAX_KEYS])))

    def put_first(self, messages: Sequence[Message]) -> None:
        """Put these before everything else."""
        self.items[:0] = messages

    def ship(self, digest: Digest, data: bytes | memoryview) -> None:
        """Make sure that the scheduler has this blob before it reads what is put next."""
        if digest in self._shipped:
            self._shipped.move_to_end(digest)
            return
        total = len(data)
        if total > BLOB_PIECE_BYTES:
            data = memoryview(data)  # its pieces are no copies
        pieces = range(0, max(total, 1), BLOB_PIECE_BYTES)
        self.items.extend(
            [Blob(digest, total, cast("bytes", data[start : start + BLOB_PIECE_BYTES])) for start in pieces]
        )
        self._last = None
        self._shipped[digest] = taken = total + LOADED_BYTES
        self._shipped_bytes += taken

    def submit(self, function: Digest, extra: Mapping[str, Any], rows: list[Row]) -> None:
        """Append tasks to the `Submit` before them, if that has the same function and options."""
        last = self._last
        if type(last) is not _Submits or last.function != function or (last.extra is not extra and last.extra != extra):
            last = _Submits(function, extra)
            self.items.append(last)
            self._last = last
        last.rows.extend(rows)

    def release(self, key: Key) -> None:
        """Append one key to the `Release` before it."""
        self._append_key(Release, key)

    def want(self, key: Key) -> None:
        """Append one key to the `Want` before it."""
        self._append_key(Want, key)

    def _append_key(self, kind: type[Release | Want], key: Key) -> None:
        last = self._last
        if type(last) is not _Keys or last.kind is not kind or len(last.keys) >= MAX_ROWS:
            last = _Keys(kind)
            self.items.append(last)
            self._last = last
        last.keys.append(key)

    def drain(self) -> Sequence[Message]:
        """Everything so far, to be sent in this order; the outbox is empty afterwards."""
        if not self.items:
            return ()
        items, self.items, self._last = self.items, [], None
        messages: list[Message] = []
        for item in items:
            if isinstance(item, _Submits):
                messages.extend(item.messages())
            elif isinstance(item, _Keys):
                messages.append(item.message())
            else:
                messages.append(item)
        if self._shipped_bytes > self._blob_budget and len(self._shipped) > 1:
            messages.append(self._forget_blobs())
        return messages

    def _forget_blobs(self) -> ForgetBlobs:
        """Blobs beyond the budget, least recently used first: they can be shipped again.

        Only between batches, never between a blob and the message that needs it.
        """
        forgotten: list[Digest] = []
        while self._shipped_bytes > self._blob_budget and len(self._shipped) > 1:
            digest, size = self._shipped.popitem(last=False)
            self._shipped_bytes -= size
            forgotten.append(digest)
        return ForgetBlobs(tuple(forgotten))
