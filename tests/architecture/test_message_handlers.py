"""Every message has a tag, a direction, and a handler for its own type in the room that receives it."""

import re
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import pytest

from tests.architecture import rules
from trio_dask.client.core.client import ClientCore
from trio_dask.comm import rpc_server
from trio_dask.nanny.service import Nanny
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core import message_handlers
from trio_dask.worker.core.worker import WorkerCore
from trio_dask.worker.data_server import DataServer

RECEIVERS: Mapping[str, tuple[Any, Mapping[type[Any], Any]]] = {
    "scheduler from client": (m.FromClient, message_handlers.FROM_CLIENT),
    "scheduler from worker": (m.FromWorker, message_handlers.FROM_WORKER),
    "scheduler from nanny": (m.FromNanny, message_handlers.FROM_NANNY),
    "client": (m.ToClient, ClientCore.HANDLERS),
    "worker": (m.ToWorker, WorkerCore.HANDLERS),
    "worker on the data plane": (m.DataRequest, DataServer.HANDLERS),
    "nanny": (m.ToNanny, Nanny.HANDLERS),
    "control": (m.FromControl, rpc_server.HANDLERS),
}

WITHOUT_TABLE: Mapping[Any, str] = {
    m.Goodbye: "the connection takes it in, whoever sends it",
    m.MemoryLending: "the data channel takes it in, as a part of receiving a value",
    m.DataAnswer: "the peer that asked compares the answer with its question, and waits for nothing else",
    m.ToControl: "the program that asked waits for this answer and nothing else",
}


def kinds(union: Any) -> set[type[Any]]:
    return set(get_args(union) or (union,))


def lacking(union: Any, handlers: Mapping[type[Any], Any]) -> list[str]:
    """What a table of handlers lacks, or has for nothing, or pairs with the wrong type."""
    takes = {kind: get_type_hints(handler).values() for kind, handler in handlers.items()}
    return [
        *(f"{kind.__name__} has no handler" for kind in kinds(union) - set(handlers)),
        *(f"{kind.__name__} never arrives" for kind in set(handlers) - kinds(union)),
        *(f"the handler of {kind.__name__} takes another type" for kind, hints in takes.items() if kind not in hints),
    ]


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_a_receiver_handles_every_message_that_it_can_get(receiver: str) -> None:
    assert lacking(*RECEIVERS[receiver]) == []


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_a_forgotten_handler_and_one_of_the_wrong_type_are_found(receiver: str) -> None:
    union, handlers = RECEIVERS[receiver]
    for kind in handlers:
        name = kind.__name__
        rest = {other: handler for other, handler in handlers.items() if other is not kind}
        assert lacking(union, rest) == [f"{name} has no handler"]

        def takes_another(message: int) -> None: ...

        assert lacking(union, {**handlers, kind: takes_another}) == [f"the handler of {name} takes another type"]
    assert lacking(union, {**handlers, int: lambda message: None})[0] == "int never arrives"


def test_every_direction_has_a_receiver() -> None:
    received = [union for union, _ in RECEIVERS.values()]
    assert [way for way in m.DIRECTIONS if way.messages not in [*received, *WITHOUT_TABLE]] == []


def test_every_message_has_a_tag_and_a_direction() -> None:
    directed = set().union(*(kinds(way.messages) for way in m.DIRECTIONS))
    assert directed == set(m.TAGS.values()) == kinds(m.Message)


def test_the_table_of_directions_in_the_documentation_is_true() -> None:
    page = (rules.ROOT.parent / "docs/design/wire-protocol.md").read_text()
    rows = re.findall(r"^\| ([^`|]+) \| ([^`|]+) \| `(\w+)` \| (?:`([\w/.]+)`)?.*? \|$", page, re.MULTILINE)
    assert [(sender, receiver, getattr(m, union)) for sender, receiver, union, _ in rows] == list(m.DIRECTIONS)
    for _, _, union, file in rows:
        for kind in kinds(getattr(m, union)) if file else ():
            assert re.search(rf"\b{kind.__name__}\b", (rules.ROOT / file).read_text()), f"{file} knows no {kind}"


def test_a_tag_cannot_be_given_twice() -> None:
    with pytest.raises(ValueError, match=r"^int and Submit have the same tag, 10$"):
        m.tagged(10)(int)
