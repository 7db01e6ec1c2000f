"""Which peers may join, and with which session: a new one, or the one that a worker or client had before.

A peer says hello (`greet` answers), and then begins its session (`begin_session`). Between the two anything may
happen: the peer gives that connection up and calls again, its grace ends, its first connection turns out to be alive,
another takes its name. Of several hellos of one peer the last one counts. An invalid hello raises `ProtocolError`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from trio_dask.ids import PeerId
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.scheduler.core import clients, plugins, reconnect
from trio_dask.scheduler.core.events import ClientAdded
from trio_dask.scheduler.core.registration import (
    client_grace_s,
    client_session,
    client_worker,
    nanny_process,
    worker_info,
    worker_session,
)
from trio_dask.scheduler.core.state import Client, ClosePeer, Offer, State, Worker
from trio_dask.scheduler.core.worker_membership import add_worker, refusal
from trio_dask.scheduler.core.worker_states import Away


class Admit(NamedTuple):
    """The peer has a new session."""

    peer: PeerId


class Resume(NamedTuple):
    """The peer goes on with the session that it had; a client as the same peer, a worker as a new one."""

    peer: PeerId


class CallAgain(NamedTuple):
    """What the peer was told at its hello is no longer true: it has to say hello again."""

    reason: str


class Refuse(NamedTuple):
    """The peer cannot join."""

    reason: str


Outcome: TypeAlias = Admit | Resume | CallAgain | Refuse


def greet(state: State, hello: Hello) -> Welcome | Refusal:
    """The answer to a hello. A session that the peer still seems to have ends here."""
    details: dict[str, object] = {}
    if hello.role == "client":
        details = _greet_client(state, hello)
    elif hello.role == "worker":
        info = worker_info(hello)
        worker = reconnect.find_resumable(state, worker_session(hello, state.incarnation), info)
        if worker is not None:
            reconnect.offer_return(state, worker, hello)
            _note_offer(state, Offer(hello, worker, state.now + reconnect.ARRIVAL_S))
            details = {"returned": True}
        elif (refused := refusal(state, info)) is not None:
            return Refusal(refused, "name")
    elif hello.role == "nanny" and plugins.has_plugins_for_nannies(state):
        details = {"plugins": True}
    return Welcome(incarnation=state.incarnation, details=details)


def begin_session(state: State, hello: Hello) -> Outcome:
    """A peer whose hello was answered with a welcome begins its session."""
    offer = state.offers.pop(id(hello), None)
    match hello.role:
        case "client":
            return _begin_client(state, hello, offer)
        case "worker":
            return _begin_worker(state, hello, offer)
        case _:
            peer = _new_peer(state)
            reconnect.add_nanny(state, peer, nanny_process(hello))
            plugins.nanny_joined(state, peer, hello)
            return Admit(peer)


def _greet_client(state: State, hello: Hello) -> dict[str, object]:
    is_own, received = client_session(hello, state.incarnation)
    client = state.incarnations.get(hello.incarnation) if hello.incarnation else None
    if client is not None and is_own and clients.can_resume(client, received):
        _close_link(state, client)
        clients.offer_return(state, client, hello)
        _note_offer(state, Offer(hello, client, state.now + reconnect.ARRIVAL_S))
        return {"returned": True, "received": client.received}
    if client is not None:  # it begins anew, so what it had under its name is over
        _close_link(state, client)
        clients.remove_client(state, client)
    return {"returned": False, "received": 0}


def _close_link(state: State, client: Client) -> None:
    if client.away is None:
        state.requests.append(ClosePeer(client.peer, "its client has begun another session"))


def _begin_client(state: State, hello: Hello, offer: Offer | None) -> Outcome:
    known = state.incarnations.get(hello.incarnation) if hello.incarnation else None
    if offer is not None:
        client = offer.subject
        assert isinstance(client, Client)
        if client is known and client.away is not None and client.away.offered_to is hello:
            _, received = client_session(hello, state.incarnation)
            if clients.resume_client(state, client, received):
                return Resume(client.peer)
    elif known is None:
        peer = _new_peer(state)
        worker = _worker_of(state, client_worker(hello))
        client = Client(peer, hello.incarnation, hello.name, client_grace_s(hello), worker)
        state.clients[peer] = state.incarnations[hello.incarnation] = client
        if state.events is not None:
            state.events.note(ClientAdded(state.now, client.name))
        return Admit(peer)
    return CallAgain("its client must connect again")


def _worker_of(state: State, incarnation: str) -> Worker | None:
    workers = (*state.workers.values(), *state.away) if incarnation else ()
    return next((worker for worker in workers if worker.info.incarnation == incarnation), None)


def _begin_worker(state: State, hello: Hello, offer: Offer | None) -> Outcome:
    info = worker_info(hello)
    if offer is None:
        peer = _new_peer(state)
        refused = add_worker(state, peer, info)
        if refused is not None:
            return Refuse(refused)
        plugins.worker_joined(state, state.workers[peer], hello)
        return Admit(peer)
    worker = offer.subject
    assert not isinstance(worker, Client)
    if isinstance(worker.phase, Away) and worker.phase.offered_to is hello:
        peer = _new_peer(state)
        reconnect.resume_worker(state, worker, peer, info)
        plugins.worker_joined(state, worker, hello)
        return Resume(peer)
    return CallAgain("it came back too late to continue its session")


def _note_offer(state: State, offer: Offer) -> None:
    offers = state.offers
    while offers and offers[first := next(iter(offers))].expires_at <= state.now:
        del offers[first]  # its peer never began the session
    offers[id(offer.hello)] = offer


def _new_peer(state: State) -> PeerId:
    state.last_peer += 1
    return PeerId(state.last_peer)
