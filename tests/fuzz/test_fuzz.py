"""Whatever a peer sends is accepted or refused: soon, with little memory, and without harm to others."""

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies
from tests.fuzz import readers
from tests.fuzz.fuzz import Failure, Fuzzer, Use, check
from tests.fuzz.sessions import Session, sessions
from trio_dask.comm import listen
from trio_dask.protocol import codec, data_link, hello
from trio_dask.protocol.data_link import DataLink
from trio_dask.protocol.frames import Kind, encode_frame
from trio_dask.protocol.messages import Message
from trio_dask.security.proof import Transcript


@pytest.fixture(scope="module")
def material() -> list[Session]:
    return sessions()


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_recorded_sessions_are_of_all_roles_and_begin_with_the_hello(material: list[Session]) -> None:
    assert {session.role for session in material} == {"client", "worker", "nanny", "control", "data"}
    assert len(material) >= 8
    for session in material:
        assert all(piece.startswith(b"trio_dask\n") for piece in (*session.said[:2], *session.heard[:2]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("traced")
def test_changed_sessions_do_no_harm(material: list[Session], seed: int) -> None:
    Fuzzer(seed, material).run(500)


def test_changed_sessions_do_no_harm_without_assertions() -> None:
    command = [sys.executable, "-O", "-m", "tests.fuzz.fuzz", "--inputs", "500", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "500 inputs" in done.stdout


EDITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=5)), max_size=4)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, new in edits:
        data = data[:place] + new + data[place + length :]
    return data


@pytest.mark.parametrize(
    ("read", "role", "messages"),
    [
        (readers.hear_caller, "client", strategies.FROM_CLIENT),
        (readers.hear_caller, "worker", strategies.FROM_WORKER),
        (readers.hear_listener, "client", strategies.TO_CLIENT),
        (readers.hear_listener, "worker", strategies.TO_WORKER),
        (readers.read_values, "data", strategies.ON_DATA_PLANE),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
@given(data=st.data())
def test_changed_messages_do_no_harm(
    read: readers.Read, role: str, messages: st.SearchStrategy[Message], data: st.DataObject
) -> None:
    batches = data.draw(st.lists(st.lists(messages, min_size=1, max_size=1 + (role != "data")), max_size=3))
    stream = b"".join(
        encode_frame(Kind.RECORDS, edited(codec.encode(batch), data.draw(EDITS))) for batch in batches
    ) + data.draw(st.binary(max_size=20))
    check(read, role, [edited(stream, data.draw(EDITS))])


# ------------------------------------------------------------------------------------- that it would find what it seeks


def _any_proof(*_: object) -> bool:
    return True


def _hasty(start: bytes) -> str:
    return f"it says {start.decode()}"


def _blind(*_: object) -> None:
    raise KeyError("which tag")


def _trusting(link: DataLink, message: Message) -> tuple[int, ...]:
    return data_link._sizes(message)


def _deaf(*_: object) -> None:
    raise RuntimeError("a bug in what greets strangers")


HELLO = Use(readers.listen, from_caller=True, is_hello=True)
CONTROL = Use(readers.hear_caller, from_caller=True, is_hello=False, roles=("client",))
DATA = Use(readers.read_values, from_caller=False, is_hello=False, roles=("data",))

BUGS: list[tuple[object, str, object, Use]] = [
    (Transcript, "proves", _any_proof, HELLO),
    (hello, "_what_speaks", _hasty, HELLO),
    (codec, "_complain", _blind, CONTROL),
    (DataLink, "_checked_sizes", _trusting, DATA),
]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("where", "name", "bug", "kind"), BUGS, ids=[name for _, name, _, _ in BUGS])
def test_bugs_of_readers_are_found(
    where: object, name: str, bug: object, kind: Use, material: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, bug)
    with pytest.raises(Failure):
        Fuzzer(0, material).run_readers(20_000, [kind])  # what was recorded differs from run to run


def test_bugs_of_listeners_are_found(material: list[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen._Handshake, "_greet", _deaf)
    found = None
    try:
        Fuzzer(0, material).run_listeners(100)
    except* RuntimeError as group:
        found = group
    except* Failure:  # besides that, the client is not served
        pass
    assert found
