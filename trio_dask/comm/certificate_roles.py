"""What the certificate of a peer must say of its role, where that is demanded (`tls_verify="role"`).

A role is an organizational unit of the certificate's subject: `scheduler`, `worker`, or `client`. A nanny has its
worker's certificate, and clients that tasks make have that of the worker they run in.
"""

from __future__ import annotations

from collections.abc import Mapping

from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.transport import Transport
from trio_dask.protocol.hello import Hello, Role

_OF_CALLER: Mapping[Role, frozenset[str]] = {
    "client": frozenset(("client", "worker")),
    "worker": frozenset(("worker",)),
    "nanny": frozenset(("worker",)),
    "data": frozenset(("client", "worker")),
    "control": frozenset(("client", "worker", "scheduler")),
}

_OF_LISTENER: Mapping[Role, frozenset[str]] = {
    "client": frozenset(("scheduler",)),
    "worker": frozenset(("scheduler",)),
    "nanny": frozenset(("scheduler",)),
    "data": frozenset(("worker",)),
    "control": frozenset(("scheduler", "worker")),
}


def refusal_of_caller(endpoint: Endpoint, transport: Transport, hello: Hello) -> str | None:
    """Why a caller may not have the role that its hello names, if its certificate does not allow that."""
    return _refusal(endpoint, transport, _OF_CALLER.get(hello.role, frozenset()), f"this caller, a {hello.role},")


def refusal_of_listener(endpoint: Endpoint, transport: Transport, hello: Hello) -> str | None:
    """Why this caller may not trust the listener, if its certificate does not allow that."""
    return _refusal(endpoint, transport, _OF_LISTENER.get(hello.role, frozenset()), str(endpoint))


def _refusal(endpoint: Endpoint, transport: Transport, allowed: frozenset[str], peer: str) -> str | None:
    tls = endpoint.credentials.tls
    if tls is None or tls.config is None or tls.verify != "role" or endpoint.address.is_in_process:
        return None
    if transport.peer_units & allowed:
        return None
    units = ", ".join(sorted(transport.peer_units)) or "no organizational unit"
    return f"the certificate of {peer} names {units}, not {' or '.join(sorted(allowed))}"
