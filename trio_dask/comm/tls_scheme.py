"""Registers `tls://`. Its code, `tls.py`, is loaded at the first use."""

from __future__ import annotations

from trio_dask.comm.transport import Connect, Listen, register_late

SCHEME = "tls"


def _load() -> tuple[Connect, Listen]:
    from trio_dask.comm.tls import bind_tls, connect_tls

    return connect_tls, bind_tls


register_late(SCHEME, _load, is_encrypted=True)
