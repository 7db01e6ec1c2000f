"""Carries messages between two processes. It knows what a message is, and nothing of what it means."""

# Each registers its kind of transport.
from trio_dask.comm import (
    inproc,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    tcp,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    tls_scheme,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    tls_websocket_scheme,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    websocket_scheme,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)
from trio_dask.comm.addresses import (
    Address,
    addresses_of_interface,
    choose_advertised_host,
    parse_address,
    parse_scheduler_address,
)
from trio_dask.comm.connect import connect_limit_s, open_connection
from trio_dask.comm.connection import Connection
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.joining import SOON_S, scheduler_endpoint, scheduler_in_words
from trio_dask.comm.listen import serve
from trio_dask.comm.transport import ConnectionLost, PeerSilent
from trio_dask.protocol.link import LinkLimits

__all__ = [
    "SOON_S",
    "Address",
    "Connection",
    "ConnectionLost",
    "DataChannel",
    "Endpoint",
    "LinkLimits",
    "PeerSilent",
    "addresses_of_interface",
    "choose_advertised_host",
    "connect_limit_s",
    "open_connection",
    "parse_address",
    "parse_scheduler_address",
    "scheduler_endpoint",
    "scheduler_in_words",
    "serve",
]
