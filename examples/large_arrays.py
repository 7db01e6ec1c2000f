"""Large data: it goes from the client to a worker and between workers directly, without a copy in the scheduler."""

import numpy as np

from trio_dask import Client


def spread(block: np.ndarray) -> float:
    return float(block.max() - block.min())


with Client(n_workers=2, threads_per_worker=1) as client:
    blocks = client.scatter([np.arange(1_000_000, dtype=float) + offset for offset in range(4)])
    print("spreads:", client.gather(client.map(spread, blocks)))

    summed = client.submit(np.add, blocks[0], blocks[3])
    print("first and last:", summed.result()[[0, -1]].tolist())
