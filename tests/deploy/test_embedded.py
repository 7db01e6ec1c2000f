"""`Scheduler`, `Worker` and `Nanny` inside a Trio program, each for as long as its block lasts."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
import trio.testing

from tests.untyped_dask import whole as dask
from trio_dask import (
    AsyncClient,
    ClusterError,
    KeptCrashing,
    LocalCluster,
    Nanny,
    NoScheduler,
    RefusedError,
    Scheduler,
    SchedulerPlugin,
    Security,
    UsageError,
    Worker,
    WorkerPlugin,
    get_worker,
    open_local_cluster,
)
from trio_dask.processes.recent_lines import RecentLines


@pytest.fixture
def lines() -> Iterator[logging.Logger]:
    """A logger whose lines this program keeps."""
    logger, kept = logging.getLogger("trio_dask"), RecentLines()
    logger.addHandler(kept)
    yield logger
    logger.removeHandler(kept)


HERE: dict[str, Any] = {"host": "127.0.0.1"}


async def test_a_cluster_inside_one_trio_loop() -> None:
    async with (
        Scheduler(port=0, **HERE) as scheduler,
        Worker(scheduler.address, nthreads=2, name="w", resources={"GPU": 1}, **HERE) as worker,
        AsyncClient(scheduler.address) as client,
    ):
        assert await client.submit(sum, client.map(abs, range(10))) == 45
        assert await client.submit(os.getpid, resources={"GPU": 1}) == os.getpid()
        assert await client.submit(lambda: get_worker().name) == worker.name == "w"
        assert await client.nthreads() == {worker.address: 2}
        assert scheduler.workers == [worker.address]
        assert (scheduler.status, worker.status) == ("running", "running")
        assert worker.scheduler_address == scheduler.address
        (future,) = await client.scatter([5])
        assert worker.data[future.key] == 5
        assert scheduler.address in repr(scheduler)
        assert "w, at tcp://" in repr(worker)
        assert scheduler.address in scheduler._repr_html_()
    assert (scheduler.status, worker.status, scheduler.workers) == ("closed", "closed", [])


def thread() -> str:
    return threading.current_thread().name


class Gpu(WorkerPlugin):
    """Each worker has an executor for it."""

    def setup(self, worker: Any) -> None:
        self.executor = worker.executors["gpu"] = ThreadPoolExecutor(1, thread_name_prefix="gpu")

    def teardown(self, worker: Any) -> None:
        del worker.executors["gpu"]
        self.executor.shutdown()


async def test_a_worker_has_executors_of_its_program_and_those_of_plugins() -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as mine:
        async with (
            Scheduler(**HERE) as scheduler,
            Worker(scheduler.address, nthreads=1, executor={"mine": mine}, **HERE) as worker,
            AsyncClient(scheduler.address) as client,
        ):
            assert dict(worker.executors) == {"mine": mine}
            await client.register_plugin(Gpu(), name="gpu")
            with dask.annotate(executor="mine"):
                assert await client.submit(thread) == "mine_0"
            with dask.annotate(executor="gpu"):
                assert await client.submit(thread, pure=False) == "gpu_0"
                await client.unregister_worker_plugin("gpu")
                with pytest.raises(ValueError, match=r"Invalid executor 'gpu'; expected one of: \['default', 'mine'\]"):
                    await client.submit(thread, pure=False)
        assert mine.submit(abs, -1).result() == 1
    for wrong, error in ((mine, TypeError), ({"default": mine}, UsageError), ({"mine": 1}, TypeError)):
        with pytest.raises(error):
            Worker("tcp://h:1", executor=wrong)  # type: ignore[arg-type]


async def test_scheduler_and_port_can_be_given_apart() -> None:
    async with Scheduler(**HERE) as scheduler:
        host, _, port = scheduler.address.removeprefix("tcp://").rpartition(":")
        async with Worker(host, int(port), **HERE) as worker:
            assert worker.scheduler_address == scheduler.address


async def test_a_block_begins_again_with_another_object_only() -> None:
    async with Scheduler(**HERE) as scheduler:
        with pytest.raises(RuntimeError, match="this Scheduler has been started before; make another one"):
            async with scheduler:
                pass
        assert scheduler.status == "running"


async def test_close_ends_it_and_finished_waits_for_that() -> None:
    async with (
        Scheduler(**HERE) as scheduler,
        Worker(scheduler.address, **HERE) as worker,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(worker.finished)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks
        await worker.close()
        await worker.close()
        assert worker.status == "closed"
        with pytest.raises(ClusterError, match="this worker is closed"):
            _ = worker.data
        while scheduler.workers:  # noqa: ASYNC110 - nothing says when
            await trio.sleep(0.001)
    with pytest.raises(ClusterError, match="this scheduler is closed"):
        scheduler.identity()


async def test_a_client_ends_the_cluster_and_the_block_goes_on() -> None:
    async with Scheduler(**HERE) as scheduler, Worker(scheduler.address, **HERE) as worker:
        async with AsyncClient(scheduler.address) as client:
            await client.shutdown()
        await worker.finished()
        await scheduler.finished()
        assert (scheduler.status, worker.status) == ("closed", "closed")
        assert scheduler.failure is worker.failure is None


# ---------------------------------------------------------------------------------------------------------- failures


async def test_a_port_that_is_taken_is_the_error_of_the_block() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        scheduler = Scheduler(port=port, **HERE)
        with pytest.raises(OSError, match=rf"cannot listen at tcp://127\.0\.0\.1:{port}: .*in use"):
            async with scheduler:
                pytest.fail("it cannot have begun")
    assert scheduler.status == "failed"


async def test_a_worker_with_another_key_is_refused(tmp_path: Path) -> None:
    keys = [tmp_path / name for name in ("one.key", "other.key")]
    for number, key in enumerate(keys):
        key.write_text(f"{number}" * 64 + "\n")
        key.chmod(0o600)
    async with Scheduler(cluster_key=keys[0], **HERE) as scheduler:
        with pytest.raises(RefusedError, match="key"):
            async with Worker(scheduler.address, cluster_key=str(keys[1]), death_timeout="5s", **HERE):
                pytest.fail("it cannot have begun")
        async with Worker(scheduler.address, **HERE) as worker:
            assert scheduler.workers == [worker.address]


async def test_a_lost_scheduler_ends_the_block_of_a_worker_after_its_death_timeout() -> None:
    async with Scheduler(**HERE) as scheduler:
        worker = Worker(scheduler.address, death_timeout="0.3s", **HERE)

        async def lose_it() -> None:
            async with worker:
                await scheduler.close()
                await trio.sleep_forever()

        with pytest.raises(NoScheduler, match=r"no scheduler for 0\.3 s"):
            await lose_it()
        assert worker.status == "failed"
        assert isinstance(worker.failure, NoScheduler)


async def test_without_a_scheduler_a_block_does_not_begin() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with pytest.raises(NoScheduler):
        async with Worker("127.0.0.1", port, death_timeout=0.2):
            pytest.fail("it cannot have begun")


async def test_what_the_body_raises_leaves_all_blocks_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Scheduler(**HERE) as scheduler, Worker(scheduler.address, **HERE):
            raise KeyError("mine")


@pytest.mark.parametrize("begun", [False, True])
async def test_cancellation_ends_all_of_it_soon(begun: bool) -> None:
    started = trio.current_time()
    with trio.CancelScope() as scope:
        async with Scheduler(**HERE) as scheduler:
            if not begun:
                scope.cancel()
            async with Worker(scheduler.address, **HERE), AsyncClient(scheduler.address):
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert scheduler.status == "closed"
    assert trio.current_time() - started < 3


@pytest.mark.parametrize("kind", [Scheduler, Worker, Nanny])
def test_blocking_code_is_told_what_to_write(kind: Any) -> None:
    made = kind() if kind is Scheduler else kind("tcp://127.0.0.1:1")
    with pytest.raises(
        UsageError, match=rf"write `async with {kind.__name__}\(\.\.\.\)` in a Trio program; LocalCluster"
    ):
        made.__enter__()
    with pytest.raises(UsageError, match=rf"write `async with {kind.__name__}"):
        made.__await__()
    with pytest.raises(RuntimeError, match=rf"{kind.__name__} needs Trio; .*or use LocalCluster"):
        made.__aenter__().send(None)


# ------------------------------------------------------------------------------------------------------- credentials


async def test_without_proofs_a_worker_and_a_client_of_this_program_need_no_key() -> None:
    async with (
        Scheduler(auth=False, **HERE) as scheduler,
        Worker(scheduler.address, **HERE),
        AsyncClient(scheduler.address) as client,
    ):
        assert await client.submit(abs, -1) == 1


@pytest.mark.parametrize("given", [False, True])
async def test_certificates_protect_every_connection(given: bool) -> None:
    security = Security.temporary(tls_verify="role")
    async with Scheduler(security=security, **HERE) as scheduler:
        assert scheduler.address.startswith("tls://")
        where: dict[str, Any] = {"security": security} if given else {}
        async with (
            Worker(scheduler.address, **where, **HERE) as worker,
            AsyncClient(scheduler.address, **where) as client,
        ):
            assert worker.address.startswith("tls://")
            assert await client.submit(abs, -1) == 1
        with pytest.raises(UsageError, match="security=True makes certificates that no other cluster knows"):
            Worker(scheduler.address, security=True)


# --------------------------------------------------------------------------------------------------------- arguments


async def test_plugins_and_modules_get_the_handle(tmp_path: Path) -> None:
    module = tmp_path / "embedded_module.py"
    module.write_text("def dask_setup(it): it.state['seen'] = type(it).__name__\n")

    class Plugin(SchedulerPlugin):
        def start(self, scheduler: Any) -> None:
            scheduler.state["started"] = True

    async with Scheduler(preload=str(module), plugins=[Plugin()], **HERE) as scheduler:
        while "started" not in scheduler.handle.state:  # noqa: ASYNC110 - nothing says when
            await trio.sleep(0.001)
        assert scheduler.handle.state["seen"] == "SchedulerHandle"
        async with Worker(scheduler.address, preload=[str(module)], **HERE) as worker:
            assert worker.state["seen"] == "WorkerHandle"


async def test_a_scheduler_listens_with_several_protocols() -> None:
    security = Security.temporary()
    async with Scheduler(protocol=["tls", "wss"], port=[0], security=security, **HERE) as scheduler:
        first, second = scheduler.addresses
        assert scheduler.address == first
        assert [address.partition(":")[0] for address in scheduler.addresses] == ["tls", "wss"]
        async with Worker(second, **HERE) as worker, AsyncClient(first) as one, AsyncClient(second) as other:
            assert worker.scheduler_address == second
            assert [await client.submit(abs, -1) for client in (one, other)] == [1, 1]


async def test_options_of_the_commands_are_arguments(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    async with (
        Scheduler(scheduler_file=str(file), idle_timeout="1h", worker_ttl=20, dashboard=False, **HERE) as scheduler,
        Worker(scheduler_file=file, memory_limit="1GiB", local_directory=tmp_path, lifetime=60, **HERE) as worker,
    ):
        assert worker.scheduler_address == scheduler.address
        assert worker.memory_limit == 2**30
        assert worker.handle.local_directory.startswith(str(tmp_path))
    assert not file.exists()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Scheduler, {"idle_timeout": "soon"}, "idle_timeout=: 'soon' is not a length of time"),
        (Scheduler, {"port": 70000}, "port=: "),
        (Scheduler, {"port": [1, 70000]}, "port=: '70000' is not a port"),
        (Scheduler, {"port": [1, 2]}, r"1,2 are more ports than protocols \(tcp\); give a protocol for each port"),
        (Scheduler, {"protocol": ["tcp", "udp"]}, "protocol=: 'udp' is no protocol"),
        (Scheduler, {"host": "127.0.0.1", "interface": "lo"}, "host= and interface=: give only one of them"),
        (Scheduler, {"tls_cert": "file"}, "tls_cert=: give security=, a Security"),
        (Worker, {"nthreads": 0}, "nthreads=: '0' is not a number of threads"),
        (Worker, {"name": ""}, "name=: '' is not a name"),
        (Worker, {"memory_limit": "much"}, "memory_limit=: 'much' is not"),
        (Worker, {"resources": {"GPU": -1}}, "resources: 'GPU' is -1"),
        (Worker, {"scheduler_file": "file"}, "give the address of a scheduler or a scheduler file, not both"),
        (Nanny, {"max_restarts": -1}, "max_restarts=: '-1' is not"),
        (Nanny, {"env": {"": "x"}}, "env=: '=x' is not NAME=VALUE"),
    ],
)
def test_a_wrong_argument_is_named(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(*([] if kind is Scheduler else ["tcp://127.0.0.1:1"]), **arguments)


def test_an_unknown_argument_is_named() -> None:
    make: Any = Scheduler
    with pytest.raises(TypeError, match=r"Scheduler\(\) got an unexpected argument 'no_such'"):
        make(no_such=1)
    with pytest.raises(TypeError, match=r"Worker\(\) has no nanny, and so no 'max_restarts'; Nanny\(\) has"):
        Worker("tcp://h:1", max_restarts=1)
    with pytest.raises(UsageError, match="no scheduler given: give its address, or scheduler_file="):
        Worker()
    with pytest.raises(
        UsageError, match="inproc://here is inside this program, and the worker of a nanny is a process"
    ):
        Nanny("inproc://here")


# --------------------------------------------------------------------------------------------------------- nannies


async def test_the_worker_of_a_nanny_is_a_process_that_it_starts_again_and_that_ends_with_the_block() -> None:
    async with (
        Scheduler(**HERE) as scheduler,
        Nanny(scheduler.address, nthreads=1, name="n", env={"MINE": "yes"}, **HERE) as nanny,
        AsyncClient(scheduler.address) as client,
    ):
        first = nanny.pid
        assert await client.submit(os.getpid) == first != os.getpid()
        assert await client.submit(os.getenv, "MINE") == "yes"
        assert (nanny.status, nanny.name, scheduler.workers) == ("running", "n", [nanny.worker_address])
        assert nanny.worker_address in repr(nanny)
        os.kill(first, signal.SIGKILL)
        while nanny.pid in (0, first) or not nanny.worker_address:  # noqa: ASYNC110 - nothing says when
            await trio.sleep(0.01)
        last = nanny.pid
        assert await client.submit(os.getpid, pure=False) == last
    assert (nanny.status, nanny.worker_address) == ("closed", "")
    assert not psutil.pid_exists(last)


async def test_nannies_tell_their_last_lines_to_clients(lines: logging.Logger) -> None:
    async with (
        Scheduler(**HERE) as scheduler,
        Nanny(scheduler.address, nthreads=1, name="n", **HERE) as nanny,
        Worker(scheduler.address, name="w", **HERE),
        AsyncClient(scheduler.address) as client,
    ):
        lines.warning("of the nanny")
        lines.warning("of its worker, which keeps it itself", extra={"origin": "n"})
        logs = await client.get_worker_logs(n=1, nanny=True)
        assert [(where, *one) for where, ((level, text),) in logs.items() for one in [(level, text[-12:])]] == [
            (nanny.worker_address, "WARNING", "of the nanny")
        ]
        assert await client.get_worker_logs(workers=["w"], nanny=True) == {}
        with pytest.raises(UsageError, match="there is no worker 'x'"):
            await client.get_worker_logs(workers=["x"], nanny=True)


async def test_a_worker_that_keeps_crashing_ends_the_block_of_its_nanny() -> None:
    async with Scheduler(**HERE) as scheduler:
        nanny = Nanny(scheduler.address, nthreads=1, max_restarts=0, **HERE)

        async def crash() -> None:
            async with nanny:
                os.kill(nanny.pid, signal.SIGKILL)
                await trio.sleep_forever()

        with pytest.raises(KeptCrashing, match="SIGKILL"):
            await crash()
        assert nanny.status == "failed"


# ---------------------------------------------------------------------------------------- members of local clusters


async def test_the_members_of_a_cluster_inside_the_program_are_these_objects() -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster:
        assert isinstance(cluster.scheduler, Scheduler)
        assert all(isinstance(worker, Worker) for worker in cluster.workers.values())
        assert sorted(cluster.scheduler.workers) == sorted(worker.address for worker in cluster.workers.values())
        async with cluster.get_client() as client:
            (future,) = await client.scatter([5])
            assert [dict(worker.data) for worker in cluster.workers.values() if worker.data] == [{future.key: 5}]
        scheduler = cluster.scheduler
    assert scheduler.status == "closed"


def test_blocking_code_reads_them_from_its_own_thread() -> None:
    with LocalCluster(1, 1, processes=False) as cluster:
        assert isinstance(cluster.scheduler, Scheduler)
        assert cluster.scheduler.workers == [cluster.workers["0"].address]
        assert cluster.scheduler.identity()["address"] == cluster.scheduler_address
