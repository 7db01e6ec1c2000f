"""How connections end: a goodbye is quiet, anything else is a loss, and nothing hangs."""

from functools import partial
from typing import Never

import pytest
import trio
import trio.testing

from tests.comm.kit import MakePair, background, collect, connections, frame, question, read_to_end
from trio_dask.comm.connection import Connection
from trio_dask.comm.inproc import memory_pair
from trio_dask.comm.transport import ConnectionLost
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.messages import Blob, Goodbye, KeyPending, Reply


async def test_goodbye_is_a_quiet_end_for_both(make_pair: MakePair) -> None:
    client, scheduler = connections(await make_pair())
    received = {}

    async def serve() -> None:
        async with scheduler:
            received["scheduler"] = await collect(scheduler)

    async def leave() -> None:
        async with client:
            client.send_nowait(question(1))
            await client.aclose("done")
            await client.aclose("again")
            assert await collect(client) == []

    async with background(serve, leave):
        pass
    assert received["scheduler"] == [question(1)]
    assert scheduler.goodbye == Goodbye("done")
    assert client.goodbye is None


async def test_what_the_peer_still_says_is_heard_while_this_side_leaves(make_pair: MakePair) -> None:
    client, scheduler = connections(await make_pair())

    async def serve() -> None:
        async with scheduler:
            assert await collect(scheduler) == []
            scheduler.send_nowait(Reply(1, "bye"), flush=True)

    heard = []

    async def listen() -> None:
        heard.extend(await collect(client))

    async with client, background(listen, serve):
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
    assert heard == [Reply(1, "bye")]


async def test_both_may_leave_at_once(make_pair: MakePair) -> None:
    async def leave(connection: Connection) -> None:
        async with connection:
            await connection.aclose("me first")

    both = connections(await make_pair(), LinkLimits(cleanup_s=60))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for connection in both:
                nursery.start_soon(leave, connection)


async def test_who_closes_what_is_being_closed_cuts_nothing_short(make_pair: MakePair) -> None:
    client, scheduler = connections(await make_pair())
    much = [Blob(b"", number, bytes(1_000_000)) for number in range(5)]
    received = []

    async def listen() -> None:
        received.extend(await collect(scheduler))

    async with client, scheduler:
        client.send_many_nowait(much)
        async with background(partial(client.aclose, "first"), partial(client.aclose, "second")) as nursery:
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(listen)
    assert received == much
    assert scheduler.goodbye in (Goodbye("first"), Goodbye("second"))


async def test_nothing_counts_after_a_goodbye() -> None:
    near, far = memory_pair()
    _, scheduler = connections((near, far))
    async with scheduler:
        await near.send_all(frame(question(1), Goodbye("done"), question(2)) + frame(question(3)))
        assert await collect(scheduler) == [question(1)]
        assert await collect(scheduler) == []
    assert scheduler.goodbye == Goodbye("done")


async def test_leaving_takes_no_longer_than_its_limit(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_pair(capacity=100)
    client, _ = connections((near, far), LinkLimits(cleanup_s=3))
    async with client:
        client.send_nowait(Blob(b"", 1, bytes(1000)), flush=True)
        started = trio.current_time()
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.aclose()
        assert trio.current_time() - started == 3
    with pytest.raises(ConnectionLost):
        await read_to_end(far)


@pytest.mark.parametrize("way", ["body returns", "body raises", "body is cancelled", "abort"])
async def test_any_other_end_is_a_loss_for_the_peer(make_pair: MakePair, way: str) -> None:
    client, scheduler = connections(await make_pair())

    async def leave() -> None:
        with trio.CancelScope() as scope:
            async with client:
                if way == "body raises":
                    raise KeyError(way)
                if way == "body is cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
                if way == "abort":
                    client.abort("enough")
                    with pytest.raises(ConnectionLost, match="enough"):
                        await collect(client)

    async with scheduler:
        if way == "body raises":
            with pytest.raises(KeyError):
                await leave()
        else:
            await leave()
        with pytest.raises(ConnectionLost):
            await collect(scheduler)
    assert scheduler.goodbye is None


@pytest.mark.parametrize("rest", [b"", frame(question(2))[:5]], ids=["between frames", "inside a frame"])
async def test_the_end_of_the_stream_without_a_goodbye_is_a_loss(make_pair: MakePair, rest: bytes) -> None:
    near, far = await make_pair()
    _, scheduler = connections((near, far))
    await near.send_all(frame(question(1)) + rest)
    await near.aclose()
    async with scheduler:
        batches = scheduler.batches()
        assert await anext(batches) == [question(1)]
        with pytest.raises(ConnectionLost, match="closed the connection unexpectedly"):
            await anext(batches)


async def test_a_peer_that_breaks_off_once_this_side_has_left_is_no_loss(make_pair: MakePair) -> None:
    near, far = await make_pair()
    client, _ = connections((near, far))

    async def break_off() -> None:
        assert await far.receive_some() == frame(Goodbye("done"))
        far.abort()

    async def read() -> None:
        assert await collect(client) == []

    async with client, background(read, break_off):
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose("done")


async def test_a_reader_that_is_busy_while_this_side_leaves_finds_the_end(make_pair: MakePair) -> None:
    near, far = await make_pair()
    client, _ = connections((near, far))
    leaving = trio.Event()

    async def read() -> None:
        async for batch in client.batches():
            assert batch == [KeyPending("k")]
            leaving.set()
            await far.receive_some()
            await trio.testing.wait_all_tasks_blocked()

    async def leave() -> None:
        await leaving.wait()
        await client.aclose("done")

    async with client:
        await far.send_all(frame(KeyPending("k")))
        async with background(leave, read):
            await leaving.wait()
            await trio.testing.wait_all_tasks_blocked()
            await far.aclose()


async def test_a_goodbye_that_came_before_the_loss_is_heard(make_pair: MakePair) -> None:
    """Sending to a peer that has left fails first; what it said is still to be read."""
    near, far = await make_pair()
    _, scheduler = connections((near, far))
    async with scheduler:
        await near.send_all(frame(Goodbye("in a hurry")))
        await near.aclose()
        for _ in range(5):
            scheduler.send_nowait(KeyPending("k"), flush=True)
        assert await collect(scheduler) == []
        assert scheduler.goodbye == Goodbye("in a hurry")


async def test_exceptions_of_the_body_come_out_as_they_are() -> None:
    for error in (KeyError("x"), ExceptionGroup("several", [KeyError("x")]), KeyboardInterrupt()):
        client, _ = connections()
        with pytest.raises(type(error)) as caught:
            async with client:
                raise error
        assert caught.value is error


async def test_exceptions_of_the_body_survive_a_cancellation_around_it() -> None:
    client, _ = connections()

    async def be_cancelled_and_raise() -> Never:
        async with client:
            scope.cancel()
            raise KeyError

    with trio.CancelScope() as scope, pytest.raises(KeyError):
        await be_cancelled_and_raise()


async def test_messages_to_a_peer_that_is_gone_are_dropped() -> None:
    client, scheduler = connections()
    async with client:
        scheduler.abort()
        for _ in range(3):
            client.send_nowait(question(1), flush=True)
        assert client.backlog_bytes == 0
        await client.wait_backlog()
        await client.aclose()
