"""What it costs to open a connection over TCP loopback, with and without the proof of the cluster's key.

Both ends are in this process, so the figure holds the work of both. A task costs the same either way: after the hello
nothing of the proof is left.
"""

from __future__ import annotations

import importlib
import time
from functools import partial
from typing import Any

from .model import OURS, Case, Context, Kind, Metric, Unsupported, absolute

ROUNDS = 20


def connection(context: Context) -> dict[str, float]:
    """The fastest of some connections of each kind, which take turns."""
    if context.rival.name != OURS:
        raise Unsupported("it is about our hello")
    # Imported here: a run that leaves this case out, or measures only rivals, needs no trio_dask.
    trio: Any = importlib.import_module("trio")
    without, proved = trio.run(_measure)
    return {"without": without, "added": max(0.0, proved - without)}


async def _measure() -> list[float]:
    comm: Any = importlib.import_module("trio_dask.comm")
    hello: Any = importlib.import_module("trio_dask.protocol.hello").Hello
    credentials: Any = importlib.import_module("trio_dask.security.credentials").Credentials
    key: Any = importlib.import_module("trio_dask.security.cluster_key").ClusterKey.draw()
    trio: Any = importlib.import_module("trio")

    async def leave(connection: Any) -> None:
        async for _ in connection.batches():
            pass

    async with trio.open_nursery() as nursery:
        endpoints: list[Any] = []
        for each in (credentials(None), credentials(key)):
            listening = comm.Endpoint(comm.parse_address("tcp://127.0.0.1:0"), credentials=each)

            serving = partial(comm.serve, listening, leave, identity=hello(role="scheduler"))
            [address] = await nursery.start(serving)
            endpoints.append(listening._replace(address=address))
        fastest = [float("inf"), float("inf")]
        for _ in range(ROUNDS):
            for number, endpoint in enumerate(endpoints):
                started = time.perf_counter()
                async with comm.open_connection(endpoint, hello(role="client")) as connection:
                    fastest[number] = min(fastest[number], time.perf_counter() - started)
                    await connection.aclose()
        nursery.cancel_scope.cancel()
    return fastest


CASES = (
    Case(
        "connection",
        "a connection, and the proof of the key",
        connection,
        (
            Metric("without", "connection without a proof", Kind.TIME),
            Metric("added", "what the proof adds", Kind.TIME, (absolute(1e-3, "at most 1 ms"),)),
        ),
        cluster=False,
        only_ours=True,
    ),
)
