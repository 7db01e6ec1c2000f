"""What programs say to each other, as the pieces in which they said it: the material of the fuzzing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import UnionType
from typing import Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import trio_dask
from tests.openings import prover
from trio_dask.comm import inproc
from trio_dask.comm.transport import Bytes
from trio_dask.ids import Incarnation
from trio_dask.protocol.codec import DATA_PLANE, FROM_CALLER, TO_CALLER, Allowed
from trio_dask.protocol.data_link import frame_of
from trio_dask.protocol.frames import PING_FRAME
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.link import DEFAULT_LIMITS, Link
from trio_dask.protocol.messages import Message
from trio_dask.protocol.opening import CallerOpening, ListenerOpening
from trio_dask.security.cluster_key import ClusterKey

KEY = ClusterKey(bytes(range(32)), "alice@host-a:~/.config/trio_dask/cluster.key")
SCHEDULER = Hello(role="scheduler", incarnation=Incarnation("s"))
CALLER_NONCE, LISTENER_NONCE = 1, 2
HELLO_PIECES = 2
"""So many of the pieces in each direction belong to the hello."""

_LONGEST = 8000


class Session(NamedTuple):
    """What one connection has carried: from its caller, and to it."""

    role: str
    said: list[bytes]
    heard: list[bytes]


def sessions() -> list[Session]:
    """The sessions of a small cluster in this process, and one of each role that has a message of each kind."""
    with _listening_in() as recorded:
        _work()
    return [*recorded, *map(_made, FROM_CALLER), _made("data")]


def _work() -> None:
    """Something of everything: results, errors, scattered values, questions, cancelled tasks."""
    with (
        trio_dask.LocalCluster(n_workers=2, processes=False, threads_per_worker=1) as cluster,
        trio_dask.Client(cluster) as client,
    ):
        numbers = client.map(abs, range(10))
        total = client.submit(sum, numbers)
        bad = client.submit(int, "x")
        joined = client.submit(bytes.join, b"", client.scatter([bytes(3000), bytearray(1000)]))
        client.gather([total, joined])
        bad.exception()
        client.who_has(numbers[0])
        bad.cancel()


@contextmanager
def _listening_in() -> Iterator[list[Session]]:
    """Hear what all connections inside this process carry; they are sessions at the end."""
    pieces: dict[object, list[bytes]] = {}
    pairs: list[tuple[object, object]] = []
    put, memory_pair = inproc._Pipe.put, inproc.memory_pair

    def hear(pipe: inproc._Pipe, data: Bytes) -> int:
        count = put(pipe, data)
        if count:
            pieces.setdefault(pipe, []).append(bytes(memoryview(data)[: min(count, _LONGEST)]))
        return count

    def connect(near: str, far: str) -> tuple[inproc.MemoryTransport, inproc.MemoryTransport]:
        mine, theirs = memory_pair(near, far)
        pairs.append((mine._outgoing, mine._incoming))
        return mine, theirs

    found: list[Session] = []
    inproc._Pipe.put, inproc.memory_pair = hear, connect  # type: ignore[method-assign,assignment]
    try:
        yield found
    finally:
        inproc._Pipe.put, inproc.memory_pair = put, memory_pair  # type: ignore[method-assign]
    for pair in pairs:
        said, heard = (pieces.get(pipe, []) for pipe in pair)
        if min(len(said), len(heard)) >= HELLO_PIECES:  # else it was given up at once
            role = next(role for role in (*FROM_CALLER, "data") if f'"role":"{role}"'.encode() in said[0])
            found.append(Session(role, said, heard))


def _made(role: Any) -> Session:
    """The hello with a proof, and a message of each kind in each direction."""
    hello = Hello(role=role, incarnation=Incarnation("c"), name="n", details={"nthreads": 2})
    caller = CallerOpening(hello, prover(KEY, CALLER_NONCE))
    listener = ListenerOpening(
        SCHEDULER, prover(KEY, LISTENER_NONCE), (role,), lambda _: Welcome(SCHEDULER.incarnation, {"seat": 1}), 0.0
    )
    said, heard = [], []
    for _ in range(HELLO_PIECES):
        said.append(caller.take_to_send())
        listener.receive(said[-1])
        heard.append(listener.take_to_send())
        caller.receive(heard[-1])
    if role == "data":
        both = [PING_FRAME, *(frame_of(_sample(kind)) + bytes(range(10)) for kind in DATA_PLANE.kinds.values())]
        return Session(role, said + both, heard + both)
    return Session(role, said + _frames(FROM_CALLER[role]), heard + _frames(TO_CALLER[role]))


def _frames(allowed: Allowed) -> list[bytes]:
    link = Link("peer", allowed, DEFAULT_LIMITS, 0.0, lambda _kind, _payload: [])
    frames = [PING_FRAME]
    for kind in reversed([*allowed.kinds.values()]):  # the goodbye comes first, and nothing counts after that
        link.send([_sample(kind)], 0.0)
        frames.append(link.next_frame(0.0))
    return frames


def _sample(kind: type[Any]) -> Message:
    hints = get_type_hints(kind)
    return cast("Message", kind(*(_value(hints[name]) for name in kind._fields)))


def _value(annotation: Any) -> Any:
    """A value of this type, as the annotations of messages name it."""
    annotation = getattr(annotation, "__supertype__", annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        return _value(arguments[0])
    if origin is tuple:
        return tuple(_value(argument) for argument in arguments if argument is not ...)
    if origin is Mapping:
        return {"a": 1, "b": [None, 0.5]}
    return {Any: (1, "x", {"y": b"z"}), bool: True, bytes: b"bytes", float: 0.5, int: 3, str: "text"}[annotation]
