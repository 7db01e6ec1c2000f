"""Clients come, are away for a while, come back, and go.

A client and the scheduler each number what they send to the other, count what they have handled, and keep what was sent
until the other says, now and then, that it has handled it (`Received`). When the link is lost without a goodbye, the
client is *away*: what it wants stays, and what it is to be told is kept. It comes back with the number of messages that
it has handled, and learns how many of its own were. Both streams go on exactly there. So nothing is lost and nothing
comes twice, wherever the link was cut, and neither side has to find out what the other has missed: to everything else
an interruption is nothing but a delay.

A client keeps its peer id while it is away; so answers to it need no special care.
"""

from __future__ import annotations

from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import Blob, KeyReady, Message, Received, Submit, SubmitGraph
from trio_dask.scheduler.core import nanny_calls, plugins
from trio_dask.scheduler.core.blobs import unreference
from trio_dask.scheduler.core.coordination.handlers import client_left
from trio_dask.scheduler.core.events import ClientRemoved
from trio_dask.scheduler.core.reconnect import ARRIVAL_S
from trio_dask.scheduler.core.state import Client, ClientAway, ClosePeer, State
from trio_dask.scheduler.core.task_transitions import release_unneeded, unwant
from trio_dask.scheduler.core.topic_handlers import events_were_read

CONFIRM_WEIGHT: Final = 16
"""After this many messages a client is told that they were handled. A big one counts for several: it keeps them."""
MAX_UNCONFIRMED: Final = 2**20
"""A client with more unconfirmed messages than this cannot come back after a loss: too much would be kept."""


def remove_client(state: State, client: Client) -> None:
    """A client has left: what only it wanted is released."""
    del state.clients[client.peer]
    state.away_clients.pop(client.peer, None)
    state.outboxes.pop(client.peer, None)
    if state.incarnations.get(client.incarnation) is client:
        del state.incarnations[client.incarnation]
    tasks = [*client.wants, *client.holds]
    for peer in (client.peer, client.holder):
        for task in tasks:
            unwant(state, task, peer)
    release_unneeded(state, tasks)
    for blob in client.blobs:
        blob.uploads.pop(client, None)
        unreference(state, blob)
    client.blobs.clear()
    state.pending.client_left(client.peer)
    client_left(state, client)
    plugins.client_left(state, client)
    nanny_calls.client_left(state, client)
    state.topics.client_left(client.peer)
    if state.run_record is not None:
        state.run_record.clients.pop(client.peer, None)
        if not state.run_record.clients:
            state.run_record = None
    if state.events is not None:
        state.events.note(ClientRemoved(state.now, client.name))


def remove_with_workers(state: State) -> None:
    """Workers were removed: the sessions of the clients that their tasks used are over, and hold nothing more."""
    removed = dict.fromkeys(state.removed)
    state.removed.clear()
    for client in [client for client in state.clients.values() if client.worker in removed]:
        if client.away is None:
            state.requests.append(ClosePeer(client.peer, "its worker has left or is lost"))
        remove_client(state, client)


# ------------------------------------------------------------------------------------------------- away and back


def connection_lost(state: State, client: Client) -> None:
    """The connection to a client ended without a goodbye. It is away, if it may come back; else this is its end."""
    if client.away is not None:
        return
    if not client.grace_s:
        remove_client(state, client)
        return
    client.away = ClientAway(state.now + client.grace_s)
    state.away_clients[client.peer] = client
    for batch in client.unconfirmed:
        batch[:] = map(_lean, batch)


def can_resume(client: Client, received: int) -> bool:
    """Whether a client that has handled this many messages can go on where it was."""
    return bool(client.grace_s) and client.confirmed <= received <= client.sent


def offer_return(state: State, client: Client, hello: Hello) -> None:
    """A client called again and hears that it can go on: nothing more is taken from the connection that it had."""
    connection_lost(state, client)
    away = client.away
    assert away is not None
    away.until = state.now + max(client.grace_s, ARRIVAL_S)
    away.offered_to = hello


def resume_client(state: State, client: Client, received: int) -> bool:
    """A client that is away has begun a session. What it has not handled is sent again, before anything new."""
    if not can_resume(client, received):
        return False
    del state.away_clients[client.peer]
    client.away = None
    unconfirmed = [message for batch in client.unconfirmed for message in batch]
    handled, kept = unconfirmed[: received - client.confirmed], unconfirmed[received - client.confirmed :]
    client.unconfirmed.clear()
    events_were_read(state, client, handled)
    client.confirmed = client.sent = received
    if kept:
        state.outboxes[client.peer] = kept + state.outboxes.get(client.peer, [])
    return True


def end_expired(state: State) -> None:
    """Remove each client whose time to come back is over."""
    for client in list(state.away_clients.values()):
        if client.away is not None and client.away.until <= state.now:
            remove_client(state, client)


# ------------------------------------------------------------------------------------------------- both streams


def note_received(state: State, client: Client, message: Message) -> None:
    """Count a message of a client, and confirm it now and then."""
    client.received += 1
    owed = client.owed + 1
    if isinstance(message, Blob):
        owed += len(message.data) >> 16
    elif isinstance(message, Submit | SubmitGraph):
        owed += len(message.keys) >> 9
    if owed >= CONFIRM_WEIGHT:
        owed = 0
        state.send(client.peer, Received(client.received))
    client.owed = owed


def keep_sent(state: State, outboxes: dict[PeerId, list[Message]]) -> None:
    """Keep what is sent to clients that may lose it, and hold back what is for clients that are away."""
    for peer in list(outboxes):
        client = state.clients.get(peer)
        if client is None or not client.grace_s:
            continue
        batch = outboxes[peer] if client.away is None else list(map(_lean, outboxes.pop(peer)))
        client.unconfirmed.append(batch)
        client.sent += len(batch)
        if client.sent - client.confirmed > MAX_UNCONFIRMED:
            client.grace_s = 0.0
            client.unconfirmed.clear()
            client.unread_bytes = 0
            if client.away is not None:
                client.away.until = state.now


def confirm(state: State, client: Client, message: Received) -> None:
    """A client says how many messages it has handled.

    Raises `ProtocolError` if it was not sent that many.
    """
    if not client.grace_s:
        return
    if message.number > client.sent:
        raise ProtocolError(f"a client has handled {message.number} messages of {client.sent}")
    unconfirmed = client.unconfirmed
    while unconfirmed and client.confirmed + len(unconfirmed[0]) <= message.number:
        batch = unconfirmed.popleft()
        client.confirmed += len(batch)
        events_were_read(state, client, batch)


def _lean(message: Message) -> Message:
    """The same message without a value: the client can ask for that when it is back."""
    if isinstance(message, KeyReady) and message.value is not None:
        return message._replace(value=None)
    return message
