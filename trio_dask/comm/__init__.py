"""Carry messages between two processes. Knows what a message is, and nothing of what it means."""

from trio_dask.comm.addresses import (
    Address,
    addresses_of_interface,
    choose_advertised_host,
    parse_address,
    parse_scheduler_address,
)
from trio_dask.comm.connect import limit_of_call, open_connection, open_data_channel
from trio_dask.comm.connection import Connection, LinkSettings
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.listen import serve
from trio_dask.comm.transport import ConnectionLost, PeerSilent

__all__ = [
    "Address",
    "Connection",
    "ConnectionLost",
    "DataChannel",
    "LinkSettings",
    "PeerSilent",
    "addresses_of_interface",
    "choose_advertised_host",
    "limit_of_call",
    "open_connection",
    "open_data_channel",
    "parse_address",
    "parse_scheduler_address",
    "serve",
]
