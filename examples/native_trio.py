"""A Trio program: tasks that are cancelled where they run, and blocks after which nothing goes on."""

import trio

from trio_dask import open_local_cluster


def word_lengths(text: str) -> list[int]:
    return [len(word) for word in text.split()]


async def wait_long() -> None:
    await trio.sleep(1000)


async def main() -> None:
    async with open_local_cluster(2, 1) as cluster, cluster.get_client() as client:
        texts = ["cores decide", "services act", "the protocol only translates"]
        async for future in client.as_completed(client.map(word_lengths, texts)):
            print(await future)

        # An `async def` task runs under Trio on its worker. The scope ends the waiting here, `cancel` the code there.
        future = client.submit(wait_long)
        with trio.move_on_after(0.2):
            await future
        client.cancel(future)
        print("cancelled:", future.cancelled())


trio.run(main)
