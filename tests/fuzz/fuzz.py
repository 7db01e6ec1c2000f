"""Fuzzing of hello, proof and frames: `python -m tests.fuzz.fuzz --inputs 100000`.

An input is a session that was recorded or made, with changes, cut into other pieces. Whatever it is, a reader accepts
or refuses it, soon and with little memory, and raises nothing but `ProtocolError`; and a listener serves the next good
client. A failure shows the input, as a line for the shell.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import trio

from tests.fuzz import readers
from tests.fuzz.mutations import cut, mutate
from tests.fuzz.sessions import HELLO_PIECES, KEY, SCHEDULER, Session, sessions
from trio_dask.comm import Address, Connection, DataChannel, Endpoint, LinkLimits, open_connection, serve
from trio_dask.comm.transport import TRANSPORTS, ConnectionLost
from trio_dask.errors import ProtocolError
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import Query, Reply
from trio_dask.security.credentials import Credentials

LIMIT_S = 1.0
"""Processor time for one input."""

LIMIT_BYTES = 8 * 2**20
"""Memory for one input, besides what is in proportion to it."""

LIMIT_PER_BYTE = 200
"""A byte of msgpack or JSON can be an object."""

LIVE_SHARE = 0.1
"""This share of the inputs goes to a listener that runs."""

_STRANGERS_PER_CLIENT = 20


class Failure(AssertionError):
    """An input that does harm; the message has the input."""


class Use(NamedTuple):
    """One way to use sessions."""

    read: readers.Read
    from_caller: bool
    is_hello: bool
    roles: Sequence[str] = ("client", "worker", "nanny", "control", "data")


_CONTROL = ("client", "worker", "nanny", "control")

USES = (
    Use(readers.listen, from_caller=True, is_hello=True),
    Use(readers.listen_again, from_caller=True, is_hello=True),
    Use(readers.listen_openly, from_caller=True, is_hello=True),
    Use(readers.call, from_caller=False, is_hello=True),
    Use(readers.call_again, from_caller=False, is_hello=True),
    Use(readers.hear_caller, from_caller=True, is_hello=False, roles=_CONTROL),
    Use(readers.hear_listener, from_caller=False, is_hello=False, roles=_CONTROL),
    Use(readers.read_values, from_caller=True, is_hello=False, roles=("data",)),
    Use(readers.read_values, from_caller=False, is_hello=False, roles=("data",)),
)


class Fuzzer:
    """Makes inputs of sessions; a seed gives the same ones for the same sessions."""

    def __init__(self, seed: int, material: Sequence[Session]) -> None:
        self._rng = random.Random(seed)
        self._material = material
        self._all = [piece for session in material for piece in (*session.said, *session.heard)]

    def run(self, inputs: int) -> None:
        """Raises `Failure` for the first input that does harm."""
        live = int(inputs * LIVE_SHARE)
        self.run_readers(inputs - live)
        self.run_listeners(live)

    def run_readers(self, inputs: int, uses: Sequence[Use] = USES) -> None:
        """Only what needs no connection."""
        for number in range(inputs):
            use = uses[number % len(uses)]
            role, pieces = self._input(use)
            check(use.read, role, pieces)

    def run_listeners(self, inputs: int) -> None:
        """Only listeners that run: one that asks for a proof, and one that does not."""
        trio.run(self._run_live, inputs)

    def _input(self, use: Use) -> tuple[str, list[bytes]]:
        session = self._rng.choice([session for session in self._material if session.role in use.roles])
        pieces = session.said if use.from_caller else session.heard
        start = self._rng.randrange(4) and (0 if use.is_hello else HELLO_PIECES)
        pieces = pieces[start : HELLO_PIECES + 2] if use.is_hello else pieces[start:]
        return session.role, cut(self._rng, mutate(self._rng, pieces, self._all))

    async def _run_live(self, inputs: int) -> None:
        for auth in (Credentials(KEY), Credentials(None)):
            endpoint = Endpoint(Address("tcp", "127.0.0.1", 0), LinkLimits(cleanup_s=0.2), auth)
            async with trio.open_nursery() as nursery:
                listen = partial(serve, endpoint, _echo, identity=SCHEDULER, data_handler=_take, max_bytes=2**20)
                [address] = await nursery.start(listen)
                for _ in range(0, inputs // 2, _STRANGERS_PER_CLIENT):
                    await self._visit(endpoint._replace(address=address))
                nursery.cancel_scope.cancel()

    async def _visit(self, endpoint: Endpoint) -> None:
        """Some strangers, all at once, and then a good client."""
        said = []
        async with trio.open_nursery() as strangers:
            for _ in range(_STRANGERS_PER_CLIENT):
                session = self._rng.choice(self._material)
                said.append(cut(self._rng, mutate(self._rng, session.said, self._all)))
                strangers.start_soon(_say, endpoint, said[-1])
        try:
            with trio.fail_after(10):
                async with open_connection(endpoint, Hello(role="client")) as connection:
                    connection.send_nowait(Query(7, "who_has", ()), flush=True)
                    if await anext(connection.batches()) != [Reply(7, "who_has")]:
                        raise Failure(f"a good client got a wrong answer after {said!r}")
                    await connection.aclose()
        except Exception as error:  # whatever keeps a good client out
            raise Failure(f"a good client is not served after {said!r}") from error


def check(read: readers.Read, role: str, pieces: Sequence[bytes]) -> None:
    """Raises `Failure` if a reader does anything but accept or refuse this, or takes too much time or memory."""
    size = sum(map(len, pieces))
    what = f"python -c 'from tests.fuzz import readers; readers.{read.__name__}({role!r}, {[*pieces]!r})'"
    tracemalloc.reset_peak()
    before, started = tracemalloc.get_traced_memory()[0], time.process_time()
    try:
        read(role, pieces)
    except ProtocolError as error:
        if not str(error).isprintable():
            raise Failure(f"a reason that is no line, by {what}") from error
    except Exception as error:  # any other one is what is looked for
        raise Failure(f"{error!r} by {what}") from error
    if (taken_s := time.process_time() - started) > LIMIT_S:
        raise Failure(f"{taken_s:.1f} s by {what}")
    if (taken := tracemalloc.get_traced_memory()[1] - before) > LIMIT_BYTES + LIMIT_PER_BYTE * size:
        raise Failure(f"{taken} bytes by {what}")


async def _echo(connection: Connection) -> None:
    async for batch in connection.batches():
        for message in batch:
            if isinstance(message, Query):
                connection.send_nowait(Reply(message.request, message.what), flush=True)


async def _take(channel: DataChannel) -> None:
    while True:
        try:
            await channel.receive()
        except trio.EndOfChannel:
            return


async def _say(endpoint: Endpoint, pieces: Sequence[bytes]) -> None:
    async with trio.open_nursery() as nursery:
        transport = await TRANSPORTS[endpoint.address.scheme].connect(endpoint, nursery)
        try:
            for piece in pieces:
                await transport.send_all(piece)
            with trio.move_on_after(0.05):
                while await transport.receive_some():
                    pass
        except ConnectionLost:
            pass
        finally:  # also when a bug has ended the listener
            transport.abort()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as many inputs as asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    started = time.monotonic()
    tracemalloc.start()
    try:
        Fuzzer(seed, sessions()).run(given.inputs)
    except Failure as failure:
        print(f"seed {seed}: {failure}", file=sys.stderr)
        return 1
    finally:
        tracemalloc.stop()
    print(f"seed {seed}: {given.inputs} inputs in {time.monotonic() - started:.0f} s did no harm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
