"""Fetching from workers that are silent or gone."""

import threading
from typing import Never

import pytest
import trio

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.outbox import Row
from trio_dask.client.fetch_results import fetch
from trio_dask.client.worker_channels import WorkerChannels
from trio_dask.comm.transport import ConnectionLost, PeerSilent
from trio_dask.protocol import messages as m

HOLDER = "tcp://worker:1"


@pytest.mark.parametrize(
    ("failure", "said"),
    [(PeerSilent("no word for 30 s"), m.Want(("k",))), (ConnectionLost("refused"), m.FetchFailed("k", HOLDER))],
)
async def test_who_is_silent_has_not_lost_what_he_was_asked_for(
    failure: ConnectionLost | PeerSilent, said: m.FetchFailed | m.Want
) -> None:
    async def open_channel(address: str) -> Never:
        await trio.lowlevel.checkpoint()
        raise failure

    core = ClientCore()
    (state,) = core.submit((b"f" * 16, b"function"), [Row("k", b"call")], ())
    core.handle(m.KeyReady("k", 1, "int", None, (HOLDER,)))
    core.read(state, lambda *_: None)
    core.drain()
    (request,) = core.next_fetches()
    await fetch(request, WorkerChannels(open_channel), core, threading.Lock())
    assert core.drain() == [said]
