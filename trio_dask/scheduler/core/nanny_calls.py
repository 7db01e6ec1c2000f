"""Functions that clients have called in nannies: opaque, passed on, and answered even if the nanny is lost."""

from __future__ import annotations

from trio_dask.ids import PeerId
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core.state import Client, NannyCall, State


def call(state: State, client: Client, message: m.CallNanny) -> None:
    """A client calls a function in the nanny of a worker."""
    worker = state.addresses.get(message.worker)
    if worker is None:
        _refuse(state, client.peer, message.request, f"there is no worker at {message.worker} any more")
        return
    nanny = state.nanny_of.get(worker.info.process)
    if nanny is None:
        text = f"the nanny of {message.worker} has no connection with the scheduler, or there is none"
        _refuse(state, client.peer, message.request, text)
        return
    state.last_nanny_call += 1
    number = state.last_nanny_call
    state.nanny_calls[number] = NannyCall(client.peer, message.request, nanny, message.worker)
    state.send(nanny, m.NannyCall(number, message.data))


def answer(state: State, nanny: PeerId, message: m.NannyAnswer) -> None:
    """A nanny answers. Its client may have left."""
    made = state.nanny_calls.get(message.number)
    if made is not None and made.nanny == nanny:
        del state.nanny_calls[message.number]
        payload = {"ok": message.ok, "text": message.text, "data": message.data}
        state.send(made.client, m.Reply(made.request, payload))


def nanny_left(state: State, nanny: PeerId) -> None:
    """Its session has ended: it answers for nothing any more."""
    for number, made in list(state.nanny_calls.items()):
        if made.nanny == nanny:
            del state.nanny_calls[number]
            _refuse(state, made.client, made.request, f"the nanny of {made.worker} was lost while the function ran")


def client_left(state: State, client: Client) -> None:
    """Nobody waits for its answers."""
    for number, made in list(state.nanny_calls.items()):
        if made.client == client.peer:
            del state.nanny_calls[number]


def _refuse(state: State, client: PeerId, request: int, text: str) -> None:
    state.send(client, m.Reply(request, {"refused": text}))
