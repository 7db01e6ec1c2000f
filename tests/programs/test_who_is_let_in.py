"""The matrix of who is let in, with real programs: {no key, wrong key, right key, replay, ...} at every door.

The strangers of this file do not do what our callers do: they go on after a listener whose proof they cannot check, and
say whatever may open the door. A door is a program and a role in which one comes to it. The scheduler listens over each
transport; its workers and nannies listen over TCP, or under TLS where the scheduler does.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from tests.programs.programs import Program, environment, program
from tests.security.pem import Files, write_files
from trio_dask import Client, Security
from trio_dask.comm import Address, ConnectionLost, Endpoint, parse_address
from trio_dask.comm.transport import TRANSPORTS, Transport
from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation
from trio_dask.protocol.hello import (
    Challenge,
    EnvelopeReader,
    Opening,
    Proved,
    Refusal,
    Role,
    Welcome,
    decode_answer,
    decode_challenge,
    encode_envelope,
)
from trio_dask.security.cluster_key import ClusterKey, read_key_file
from trio_dask.security.credentials import Credentials
from trio_dask.security.proof import Side, Transcript
from trio_dask.security.tls_contexts import Tls

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WRONG = ClusterKey(b"w" * 32)
ME = Incarnation("me")
DETAILS: Mapping[Role, Mapping[str, Any]] = {"worker": {"address": "tcp://127.0.0.1:9", "nthreads": 1}}
"""What a caller has to say of itself once it is believed."""

DOORS: tuple[tuple[str, Role], ...] = (
    ("scheduler", "client"),
    ("scheduler", "worker"),
    ("scheduler", "nanny"),
    ("scheduler", "control"),
    ("worker", "data"),
    ("worker", "control"),
    ("nanny", "control"),
)
REFUSED = "refused"
LET_IN = "let in"


class Door(NamedTuple):
    """Where to knock, as what, and with which certificates."""

    address: Address
    role: Role
    tls: Tls | None


class Said(NamedTuple):
    """What a caller has said, and what became of it."""

    opening: bytes
    proved: bytes
    outcome: str


Prove = Callable[[Transcript, Challenge], bytes]


def with_key(key: ClusterKey) -> Prove:
    return lambda transcript, _: transcript.proof(key, Side.CALLER)


def with_nothing(transcript: Transcript, challenge: Challenge) -> bytes:
    return b""


def with_its_own_proof(transcript: Transcript, challenge: Challenge) -> bytes:
    """What the listener has proved is handed back to it."""
    return challenge.proof


@contextmanager
def cluster(
    folder: Path, scheme: str, files: Files | None
) -> Iterator[tuple[dict[str, str], ClusterKey, tuple[Program, Program]]]:
    """A scheduler, and a worker with its nanny: their addresses, their key, and the two programs."""
    env = environment(XDG_CONFIG_HOME=str(folder))
    more = files.options() if files else []
    start = ("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--protocol", scheme, *more)
    with program(*start, env=env) as boss:
        address = boss.wait_for(r"Scheduler at:   (\S+)$")
        with program("-m", "trio_dask", "worker", "--nthreads", "1", address, *more, env=env) as hand:
            addresses = {
                "scheduler": address,
                "nanny": hand.wait_for(r"Start nanny at: (\S+)$"),
                "worker": hand.wait_for(r"Start worker at: (\S+)$"),
            }
            hand.wait_for("Registered to")
            yield addresses, read_key_file(folder / "trio_dask" / "cluster.key"), (boss, hand)


async def knock(door: Door, say: Callable[[Transport], Any]) -> Said:
    """Connect, say something, and see what becomes of it."""
    endpoint = Endpoint(door.address, credentials=Credentials(None, door.tls))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            transport = await TRANSPORTS[door.address.scheme].connect(endpoint, nursery)
            try:
                said: Said = await say(transport)
            finally:
                transport.abort()
    return said


async def hear(transport: Transport) -> bytes | None:
    """The body of the next envelope; None if the other end has hung up."""
    reader, body = EnvelopeReader(), None
    while body is None:
        try:
            data = await transport.receive_some()
        except ConnectionLost:
            data = b""
        if not data:
            return None
        body = reader.feed(data)
    return body


async def prove(door: Door, auth: str, proof: Prove) -> Said:
    """The whole hello, whoever listens, with this proof."""

    async def say(transport: Transport) -> Said:
        opening = Opening(door.role, ME, secrets.token_bytes(32), auth)
        first = encode_envelope(opening)
        await transport.send_all(first)
        body = await hear(transport)
        challenge = decode_challenge(body) if body else Refusal("")
        if isinstance(challenge, Refusal):
            return Said(first, b"", REFUSED)
        transcript = Transcript(
            protocol=opening.protocol,
            role=door.role,
            caller=ME,
            listener=challenge.incarnation,
            caller_nonce=opening.nonce,
            listener_nonce=challenge.nonce,
            channel_binding=transport.channel_binding,
        )
        second = encode_envelope(Proved("me", DETAILS.get(door.role, {}), "", proof(transcript, challenge)))
        await transport.send_all(second)
        return Said(first, second, outcome(await hear(transport)))

    return await knock(door, say)


async def replay(door: Door, recorded: Said) -> Said:
    """The same bytes once more, on another connection."""

    async def say(transport: Transport) -> Said:
        await transport.send_all(recorded.opening)
        await hear(transport)
        await transport.send_all(recorded.proved)
        return recorded._replace(outcome=outcome(await hear(transport)))

    return await knock(door, say)


def outcome(body: bytes | None) -> str:
    """What the last answer of a listener means."""
    try:
        answer = decode_answer(body) if body else None
    except ProtocolError:
        answer = None
    return LET_IN if isinstance(answer, Welcome) else REFUSED


async def matrix(addresses: Mapping[str, str], key: ClusterKey, tls: Tls | None) -> dict[tuple[str, Role, str], str]:
    """Program, role, and what a stranger has -> what became of it."""
    found: dict[tuple[str, Role, str], str] = {}
    for place, role in DOORS:
        door = Door(parse_address(addresses[place]), role, tls)
        genuine = await prove(door, "key", with_key(key))
        tried = {
            "right key": genuine,
            "no key": await prove(door, "none", with_nothing),
            "no proof": await prove(door, "key", with_nothing),
            "wrong key": await prove(door, "key", with_key(WRONG)),
            "reflection": await prove(door, "key", with_its_own_proof),
            "replay": await replay(door, genuine),
        }
        found.update({(place, role, what): said.outcome for what, said in tried.items()})
    return found


@pytest.mark.parametrize(
    ("scheme", "certified"),
    [("tcp", False), ("tls", False), ("tls", True), ("ws", False), ("wss", False), ("wss", True)],
    ids=["tcp", "tls", "tls with certificates", "ws", "wss", "wss with certificates"],
)
def test_whoever_has_the_key_is_let_in_at_every_door_and_nobody_else(
    scheme: str, certified: bool, tmp_path: Path
) -> None:
    files = write_files(tmp_path) if certified else None
    with cluster(tmp_path, scheme, files) as (addresses, key, programs):
        found = trio.run(matrix, addresses, key, files.tls() if files else None)
        assert {place: one for place, one in found.items() if (one == LET_IN) != (place[2] == "right key")} == {}
        assert len(found) == len(DOORS) * 6
        security = None
        if files:
            ca, certificate, own = map(str, files)
            security = Security(tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=own)
        path = tmp_path / "trio_dask" / "cluster.key"
        with Client(addresses["scheduler"], cluster_key=path, security=security) as client:
            assert client.submit(sum, (1, 2)).result(timeout=20) == 3
        for each in programs:
            each.wait_for(r"connection from \S+ (\(\S+\) )?refused: it gave no proof of this cluster's key")
            assert "Traceback" not in each.text
