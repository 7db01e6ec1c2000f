"""What goes wrong on a worker is told here: the exception itself, where it came from, and what depended on it."""

import os

from trio_dask import Client, KilledWorker, TaskTimeout


def parse(text: str) -> float:
    return float(text)


def flaky(path: str) -> str:
    """Fails the first time."""
    if not os.path.exists(path):
        open(path, "w").close()
        raise OSError("not today")
    os.remove(path)
    return "worked the second time"


async def sleep_long() -> None:
    import trio

    await trio.sleep(1000)


with Client(n_workers=2, threads_per_worker=1) as client:
    total = client.submit(sum, client.map(parse, ["1.5", "2.5", "three"]))
    try:
        total.result()
    except ValueError as exc:
        print("ValueError:", exc)
        print("note:", exc.__notes__[0].split(" on worker")[0].split("-")[0])

    print(client.submit(flaky, f"flaky-{os.getpid()}", retries=1).result())

    try:
        client.submit(sleep_long, time_limit=0.2).result()
    except TaskTimeout:
        print("TaskTimeout after 0.2 s")

    try:
        client.submit(os._exit, 1).result()
    except KilledWorker as exc:
        print("KilledWorker:", len(exc.deaths), "workers died while running it")
