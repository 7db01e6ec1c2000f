"""`rpc` with a scheduler and workers inside this program."""

import threading
from typing import Any, Never

import pytest
import trio
import trio.testing

from trio_dask import NoScheduler, RefusedError, UsageError, open_local_cluster, rpc
from trio_dask.comm import Address, Endpoint, parse_address, serve
from trio_dask.comm.connect import open_connection
from trio_dask.comm.connection import Connection
from trio_dask.comm.rpc_server import serve_control
from trio_dask.config import SchedulerSettings, WorkerSettings
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler.service import run_scheduler
from trio_dask.worker.service import run_worker


async def test_a_scheduler_tells_what_it_is_and_how() -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster, rpc(cluster) as scheduler:
        identity = await scheduler.identity()
        assert (identity["type"], identity["address"]) == ("scheduler", cluster.scheduler_address)
        assert sorted(identity["workers"]) == sorted(str(worker.address) for worker in cluster.workers.values())
        assert await scheduler.status() == {"status": "running", "workers": 2, "clients": 0, "tasks": 0}


async def test_a_scheduler_gives_an_overview_of_its_cluster() -> None:
    async with (
        open_local_cluster(2, 1, processes=False) as cluster,
        cluster.get_client(name="alice") as client,
        rpc(cluster) as scheduler,
    ):
        results = client.map(abs, range(3))
        await client.gather(results)
        running = client.submit(trio.sleep_forever, key="the oldest", workers=["0"])
        others = [client.submit(max, running, 1), client.submit(divmod, 7, 2, resources={"GPU": 1})]
        while (found := await scheduler.overview())["oldest"] is None:  # noqa: ASYNC110 - nothing says when
            await trio.sleep(0.01)
        assert found["type"] == "scheduler"
        counts = found["tasks"]
        assert (counts["memory"], counts["no-worker"], counts["erred"], sum(counts.values())) == (3, 1, 0, 6)
        assert (list(found["clients"]), found["oldest"]["key"], found["oldest"]["worker"]) == (
            ["alice"],
            "the oldest",
            "0",
        )
        assert {worker["name"]: worker["nthreads"] for worker in found["workers"]} == {"0": 1, "1": 1}
        del others


async def test_a_worker_without_a_nanny_begins_afresh_and_keeps_nothing() -> None:
    async with open_local_cluster(1, 1, processes=False) as cluster, cluster.get_client() as client:
        (member,) = cluster.workers.values()
        future = client.submit(pow, 2, 3)
        assert await future == 8
        del future
        async with rpc(member.address) as worker:
            before = await worker.identity()
            assert (before["type"], before["scheduler"]) == ("worker", cluster.scheduler_address)
            await worker.restart()
            while (after := await worker.identity())["incarnation"] in ("", before["incarnation"]):  # noqa: ASYNC110 - nothing says when
                await trio.sleep(0.001)
            assert (after["address"], after["pid"]) == (before["address"], before["pid"])
            assert (await worker.status())["keys"] == 0
        assert await client.submit(pow, 2, 4) == 16


async def test_a_scheduler_has_all_workers_begin_afresh() -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster, rpc(cluster) as scheduler:
        addresses = (await scheduler.identity())["workers"]
        before = [await incarnation(address) for address in addresses]
        await scheduler.restart()
        for address, old in zip(addresses, before, strict=True):
            while await incarnation(address) in ("", old):  # noqa: ASYNC110 - nothing says when
                await trio.sleep(0.001)


async def incarnation(address: str) -> str:
    async with rpc(address) as worker:
        return str((await worker.identity())["incarnation"])


async def test_terminate_ends_a_worker_and_a_scheduler() -> None:
    async with trio.open_nursery() as nursery:
        scheduler = str(await nursery.start(run_scheduler, SchedulerSettings(address="inproc://to-be-ended")))
        one, _ = [str(await nursery.start(run_worker, WorkerSettings(scheduler=scheduler))) for _ in range(2)]
        async with rpc(one) as worker, rpc(scheduler) as boss:
            await worker.terminate()
            while (await boss.status())["workers"] == 2:  # noqa: ASYNC110 - nothing says when
                await trio.sleep(0.001)
            await boss.terminate()
    # The nursery has ended: so have the scheduler, and the other worker with it.


async def test_what_is_no_command_is_refused_and_the_session_goes_on() -> None:
    async with open_local_cluster(0, 1, processes=False) as cluster, rpc(cluster) as scheduler:
        with pytest.raises(
            RefusedError, match="no command 'explode' here; there are demand, identity, look_back, overview"
        ):
            await scheduler._ask("explode")
        assert (await scheduler.status())["status"] == "running"


@pytest.mark.parametrize("host", ["a" * 70 + ".x", ".x", "x\0y", "..", "no-such-host.invalid"])
async def test_a_way_back_to_what_is_no_host_is_said_to_be_closed(host: str) -> None:
    async with open_local_cluster(0, 1, processes=False) as cluster, rpc(cluster) as scheduler:
        assert (await scheduler._ask("look_back", host=host, port=80))["unreached"]
        assert (await scheduler.status())["status"] == "running"


async def test_a_worker_serves_control_and_data_and_nothing_else() -> None:
    async with open_local_cluster(1, 1, processes=False) as cluster:
        (member,) = cluster.workers.values()
        for role in ("client", "worker", "nanny"):
            with pytest.raises(
                RefusedError, match=f"this is a worker, not a scheduler; give the {role} a scheduler's address"
            ):
                async with open_connection(Endpoint(parse_address(str(member.address))), Hello(role=role)):
                    pass


async def answering(commands: dict[str, Any], *, task_status: trio.TaskStatus[list[Address]]) -> None:
    async def handle(connection: Connection) -> None:
        await serve_control(connection, commands)

    await serve(Endpoint(Address("inproc", "answering")), handle, identity=Hello(role="nanny"), task_status=task_status)


async def test_a_refusal_and_a_silence_of_the_other_side(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    def refuse(arguments: object) -> Never:
        raise UsageError("not today")

    async def sleep(arguments: object) -> None:
        await trio.sleep_forever()

    await nursery.start(answering, {"restart": refuse, "status": sleep})
    async with rpc("inproc://answering", timeout="5s") as asked:
        with pytest.raises(RefusedError, match="not today"):
            await asked.restart()
        with pytest.raises(TimeoutError, match="inproc://answering has not answered status within 5 s"):
            await asked.status()
    nursery.cancel_scope.cancel()


async def test_the_end_of_the_other_side_is_told() -> None:
    async with open_local_cluster(0, 1, processes=False) as cluster, rpc(cluster) as scheduler:
        await cluster.aclose()
        with pytest.raises(NoScheduler, match=r"is gone|closed the connection"):
            await scheduler.status()


def test_blocking_code_asks_over_tcp_from_any_thread() -> None:
    ready = threading.Event()
    found = {}

    async def serve_until_asked() -> None:
        async with trio.open_nursery() as nursery:
            found["address"] = str(await nursery.start(run_scheduler, SchedulerSettings(host="127.0.0.1", ports=(0,))))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve_until_asked,))
    thread.start()
    ready.wait(10)
    host, port = found["address"].removeprefix("tcp://").split(":")
    with rpc((host, int(port))) as scheduler:
        assert scheduler.identity()["address"] == found["address"]
        assert scheduler.status()["status"] == "running"
        scheduler.terminate()
    thread.join(10)
    assert not thread.is_alive()
    with rpc(found["address"]) as scheduler, pytest.raises(NoScheduler, match=r"nothing to ask at .*nothing listens"):
        scheduler.status()


def test_nonsense_is_refused_before_anything_is_dialled() -> None:
    with pytest.raises(UsageError, match="is not a host name"):
        rpc("some where")
    with pytest.raises(UsageError, match="rpc needs an address"):
        rpc(None)
    with pytest.raises(TypeError, match="a client connects to an address or a cluster, not to an object of type int"):
        rpc(7)


async def test_the_blocking_form_does_not_block_trio() -> None:
    await trio.lowlevel.checkpoint()
    with pytest.raises(UsageError, match="use `async with rpc"), rpc("h:1"):
        pass
