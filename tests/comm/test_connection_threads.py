"""Other threads send as well, over TCP: frames stay whole, nothing is lost, and nobody is left waiting."""

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests.comm.kit import background, collect, connections, pair_of, question, tcp_pair
from trio_dask.comm.connection import Connection
from trio_dask.protocol.messages import Blob, Goodbye, Query


def in_thread(function: Callable[..., Any], *args: object) -> Awaitable[Any]:
    return trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


@pytest.mark.parametrize(("kind", "may_send"), [("tcp", True), ("memory", False), ("websocket", False)])
async def test_only_what_has_no_state_of_its_own_lets_any_thread_send(
    kind: str, may_send: bool, nursery: trio.Nursery
) -> None:
    client, scheduler = connections(await pair_of(kind, nursery))
    async with client, scheduler:
        assert client.thread_safe_send == may_send


async def test_messages_of_many_threads_arrive_whole_and_each_threads_in_order() -> None:
    client, scheduler = connections(tcp_pair())
    threads, each = 4, 300
    # Now and then one that no socket takes at once, so that the writer has to go on with what a thread has begun.
    large = Blob(b"", 0, bytes(3_000_000))

    def send(number: int) -> None:
        for step in range(each):
            client.send_many_nowait([question(number * each + step)])
            if step % 100 == 50:
                client.send_nowait(large)
            client.flush_nowait()

    async def send_all() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(threads):
                nursery.start_soon(in_thread, send, number)
            for step in range(each):  # the loop sends meanwhile
                client.send_nowait(question(threads * each + step), flush=True)
                await trio.lowlevel.checkpoint()
        await client.aclose("all said")

    async with client, background(send_all), scheduler:
        received = await collect(scheduler)
    assert scheduler.goodbye == Goodbye("all said")
    numbers = [message.request for message in received if isinstance(message, Query)]
    assert sorted(numbers) == list(range((threads + 1) * each))
    for number in range(threads + 1):
        own = [found for found in numbers if found // each == number]
        assert own == sorted(own)
    assert sum(message == large for message in received) == 3 * threads


async def test_what_a_thread_begins_and_the_socket_does_not_take_is_sent_by_the_writer() -> None:
    client, scheduler = connections(tcp_pair())
    large = Blob(b"", 0, bytes(30_000_000))

    async def send() -> None:
        await in_thread(lambda: client.send_nowait(large, flush=True))
        await client.aclose()

    async with client, background(send), scheduler:
        assert await collect(scheduler) == [large]


async def test_a_thread_that_sends_to_nobody_disturbs_nothing() -> None:
    near, far = tcp_pair()
    client, _ = connections((near, far))
    async with client:
        far.abort()
        with trio.fail_after(20):
            for _ in range(100):
                await in_thread(lambda: client.send_nowait(question(1), flush=True))
            await client.wait_backlog()
        with pytest.raises(ConnectionError):
            await anext(client.batches())


async def test_threads_that_send_while_it_is_closed_write_to_nobody_else() -> None:
    """The number of a closed socket goes to the next one that is opened: nothing may be written to that."""
    stop = threading.Event()
    for _ in range(30):
        stop.clear()
        client, scheduler = connections(tcp_pair())

        def send(client: Connection = client) -> None:
            while not stop.is_set():
                client.send_nowait(question(1), flush=True)

        async with trio.open_nursery() as nursery:
            async with client, scheduler:
                nursery.start_soon(in_thread, send)
                await trio.lowlevel.checkpoint()
                client.abort()
                near, far = tcp_pair()
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
                assert not near.has_input()
                assert not far.has_input()
                with suppress(ConnectionError):
                    await collect(scheduler)
            stop.set()
        near.abort()
        far.abort()
