"""Clients come and go."""

from __future__ import annotations

from trio_dask.identity import Incarnation, PeerId
from trio_dask.scheduler.core.contents import unreference
from trio_dask.scheduler.core.lifecycle import sweep, unwant
from trio_dask.scheduler.core.tables import Client, State

__all__ = ["add_client", "remove_client"]


def add_client(state: State, peer: PeerId, incarnation: Incarnation, name: str) -> None:
    """Register a client."""
    client = Client(peer, incarnation, name)
    state.clients[peer] = client
    state.incarnations[incarnation] = client


def remove_client(state: State, client: Client) -> None:
    """A client has left: what only it wanted is released."""
    del state.clients[client.peer]
    state.outboxes.pop(client.peer, None)
    state.incarnations.pop(client.incarnation, None)
    wants = list(client.wants)
    for task in wants:
        unwant(state, task, client.peer)
    sweep(state, wants)
    for content in client.contents:
        content.uploads.pop(client, None)
        unreference(state, content)
    client.contents.clear()
    state.waits = [wait for wait in state.waits if wait[0] != client.peer]
    state.restarts = [restart for restart in state.restarts if restart[0] != client.peer]
