"""Control: a program or a script asks a scheduler, worker or nanny for something; `trio_dask.rpc` is the other side."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from trio_dask.comm.connection import Connection
from trio_dask.comm.transport import Transport
from trio_dask.errors import TrioDaskError
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.messages import Control, Reply

Command = Callable[[Mapping[str, Any]], Any]
"""Carries out a request with these arguments, and gives the answer, or an awaitable of it.

A `TrioDaskError` that it raises is the refusal.
"""


async def serve_control(connection: Connection, commands: Mapping[str, Command]) -> None:
    """Carry out one command after another until the peer leaves.

    An answer is `{"result": ...}`, or `{"refused": sentence}`.

    Raises:
      ConnectionLost: the peer is gone without a goodbye.
      ProtocolError: it sent what it may not.
    """
    async for batch in connection.batches():
        for message in batch:
            # The connection lets only messages pass that have a handler.
            connection.send_nowait(await HANDLERS[type(message)](message, commands), flush=True)


async def _control(message: Control, commands: Mapping[str, Command]) -> Reply:
    return Reply(message.request, await _carry_out(message.command, message.arguments, commands))


HANDLERS: Mapping[type[Any], Callable[[Any, Mapping[str, Command]], Awaitable[Reply]]] = {Control: _control}


async def _carry_out(name: str, arguments: Mapping[str, Any], commands: Mapping[str, Command]) -> Mapping[str, Any]:
    command = commands.get(name)
    if command is None:
        known = ", ".join(sorted(commands))
        return {"refused": f"there is no command {name[:60]!r} here; there are {known}"}
    try:
        result = command(arguments)
        return {"result": await result if inspect.isawaitable(result) else result}
    except TrioDaskError as error:
        return {"refused": str(error)}


def admit_control(here: Hello) -> Callable[[Hello, Transport], Welcome | Refusal]:
    """For `serve`, where a listener has a handler for control only, and perhaps one for data."""

    def admit(hello: Hello, transport: Transport) -> Welcome | Refusal:
        if hello.role in ("control", "data"):
            return Welcome(incarnation=here.incarnation)
        remedy = f"give the {hello.role} a scheduler's address"
        return Refusal(f"this is a {here.role}, not a scheduler; {remedy}", "role", remedy)

    return admit
