"""Code that clients send to workers: both forms, against a cluster inside this program."""

import os
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from trio_dask import (
    AsyncClient,
    Client,
    InstallPlugin,
    Scheduler,
    SchedulerPlugin,
    UploadDirectory,
    UsageError,
    Worker,
    WorkerPlugin,
    get_worker,
    open_local_cluster,
)
from trio_dask.client.operations import call_workers


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=2, processes=False) as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=2, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def modules_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.startswith("uploaded"):
            del sys.modules[name]


class Slow(WorkerPlugin):
    """Its setup takes until it is told to go on."""

    go_on: ClassVar[trio.Event]

    async def setup(self, worker: Any) -> None:
        await self.go_on.wait()
        worker.state["slow"] = True


def state_of(dask_worker: Any) -> dict[str, Any]:
    return dict(dask_worker.state)


async def test_a_function_runs_on_a_new_worker_once_its_plugins_are_set_up() -> None:
    Slow.go_on = trio.Event()
    here: dict[str, Any] = {"host": "127.0.0.1"}
    found: list[Any] = []
    async with Scheduler(**here) as scheduler, AsyncClient(scheduler.address) as client:
        await client.register_plugin(Slow())
        async with Worker(scheduler.address, **here) as worker:

            async def run() -> None:
                found.append(await client.run(state_of, workers=[worker.address]))

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    (info,) = (await client.scheduler_info())["workers"].values()
                    assert info["pid"] == os.getpid()
                    assert await call_workers(client.engine, abs, (-1,), None) == {worker.address: 1}  # it only looks
                    assert found == []
                    Slow.go_on.set()
                assert await client.run(state_of) == {worker.address: {"slow": True}}
            assert found == [{worker.address: {"slow": True}}]


class Steps(WorkerPlugin):
    name = "steps"

    def setup(self, worker: Any) -> None:
        self.steps: list[tuple[str, str]] = []
        worker.state["setup"] = True

    def transition(self, key: str, start: str, finish: str) -> None:
        self.steps.append((key, finish))

    def teardown(self, worker: Any) -> None:
        worker.state["steps"] = self.steps


class Broken(WorkerPlugin):
    def __init__(self, at: str) -> None:
        self.at = at

    def setup(self, worker: Any) -> None:
        if self.at == "setup":
            raise LookupError("no licence")

    def teardown(self, worker: Any) -> None:
        if self.at == "teardown":
            raise LookupError("still in use")


class UnderTrio(WorkerPlugin):
    name = "under trio"

    async def setup(self, worker: Any) -> None:
        await trio.lowlevel.checkpoint()
        worker.state["under trio"] = True


def state(name: str) -> Any:
    return get_worker().state.get(name)


def fail() -> None:
    raise ValueError("no")


def test_a_plugin_is_set_up_on_workers_that_are_there_and_that_come(client: Client) -> None:
    assert [*client.register_plugin(Steps()).values()] == [{"status": "OK"}]
    client.cluster.scale(2)
    client.wait_for_workers(2)
    told = client.run(lambda dask_worker: (dask_worker.state["setup"], [*dask_worker.plugins]))
    assert [*(told or {}).values()] == [(True, ["steps"])] * 2


def test_a_plugin_hears_of_each_step_of_each_task(client: Client) -> None:
    client.register_plugin(Steps())
    good, bad = client.submit(abs, -1, key="good"), client.submit(fail, key="bad")
    assert good.result() == 1
    assert isinstance(bad.exception(), ValueError)
    client.unregister_worker_plugin("steps")
    steps = client.submit(state, "steps").result()
    assert [finish for key, finish in steps if key == "good"] == ["waiting", "ready", "executing", "memory"]
    assert [finish for key, finish in steps if key == "bad"][2:] == ["executing", "error", "released", "forgotten"]


def test_what_setup_raises_is_raised_and_registers_nothing(client: Client) -> None:
    with pytest.raises(LookupError, match="no licence"):
        client.register_plugin(Broken("setup"), name="broken")
    with pytest.raises(ValueError, match="no worker has a plugin 'broken'"):
        client.unregister_worker_plugin("broken")
    client.register_plugin(Broken("teardown"), name="broken")
    with pytest.raises(LookupError, match="still in use"):
        client.unregister_worker_plugin("broken")
    assert client.submit(abs, -1).result() == 1


def test_what_is_no_plugin_of_a_worker_or_nanny_is_refused(client: Client) -> None:
    for wrong, error, text in [
        (Steps, TypeError, "an instance"),
        (object(), TypeError, "inherit from"),
        (SchedulerPlugin(), ValueError, "--preload"),
    ]:
        with pytest.raises(error, match=text):
            client.register_plugin(wrong)
    with pytest.raises(ValueError, match="--preload"):
        client.unregister_scheduler_plugin("x")
    future = client.submit(abs, -1)
    calls: list[Callable[[str], object]] = [partial(client.register_plugin, Steps()), client.unregister_worker_plugin]
    for call in calls:
        for name in ("half a pair: \udcff", "x" * 5000):
            with pytest.raises(ValueError, match="the name of a plugin"):
                call(name)
    assert future.result() == 1


def test_a_callback_runs_on_each_worker(client: Client) -> None:
    def mark(dask_worker: Any) -> None:
        dask_worker.state["marked"] = True

    client.register_worker_callbacks(mark)
    assert client.submit(state, "marked").result() is True
    with pytest.raises(ZeroDivisionError):
        client.register_worker_callbacks(lambda: 1 // 0)


@pytest.mark.parametrize("setup", [dict, print])
def test_a_builtin_may_be_called_when_workers_begin(client: Client, setup: Callable[..., object]) -> None:
    client.register_worker_callbacks(setup)  # `dict` does not tell its parameters


async def test_plugins_under_trio(async_client: AsyncClient) -> None:
    await async_client.register_plugin(UnderTrio())
    assert await async_client.submit(state, "under trio") is True
    await async_client.unregister_worker_plugin("under trio")


def call_uploaded() -> Any:
    import uploaded_module  # type: ignore[import-not-found]

    return uploaded_module.f()


def test_an_uploaded_module_is_imported_and_imported_again(client: Client, tmp_path: Path) -> None:
    for number in (1, 22):
        path = tmp_path / "uploaded_module.py"
        path.write_text(f"def f():\n    return {number}\n")
        client.upload_file(path)
        assert client.submit(call_uploaded, pure=False).result() == number
    path.write_text("this is no Python")
    with pytest.raises(SyntaxError):
        client.upload_file(path)
    client.upload_file(path, load=False)


@pytest.mark.parametrize("name", ["uploaded.zip", "uploaded-1.0-py3.11.egg", "uploaded.pyz"])
def test_an_uploaded_archive_is_imported_and_imported_again(client: Client, tmp_path: Path, name: str) -> None:
    for number in (1, 22):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("EGG-INFO/PKG-INFO", "Metadata-Version: 1.0\nName: uploaded\n")
            archive.writestr("uploaded_module/__init__.py", "from uploaded_module.inner import f\n")
            archive.writestr("uploaded_module/inner.py", f"def f():\n    return {number}\n")
        client.upload_file(tmp_path / name)
        assert client.submit(call_uploaded, pure=False).result() == number


def test_an_uploaded_directory_can_be_imported_from(client: Client, tmp_path: Path) -> None:
    top = tmp_path / "uploaded_directory"
    (top / "docs").mkdir(parents=True)
    (top / "docs" / "left_out.txt").write_text("")
    (top / "uploaded_module.py").write_text("def f():\n    return 3\n")
    client.register_plugin(UploadDirectory(top, update_path=True))
    assert client.submit(call_uploaded, pure=False).result() == 3
    there = Path(client.submit(lambda: get_worker().local_directory).result()) / top.name
    assert [path.name for path in there.iterdir() if path.suffix] == ["uploaded_module.py"]
    with pytest.raises(ValueError, match="mode"):
        UploadDirectory(top, mode="scheduler")
    with pytest.raises(UsageError, match="is none"):
        UploadDirectory(top / "uploaded_module.py")


INSTALLED: list[int] = []


def install() -> None:
    INSTALLED.append(1)


def test_an_install_plugin_calls_its_function(client: Client) -> None:
    INSTALLED.clear()
    client.register_plugin(InstallPlugin(install))
    assert INSTALLED == [1]
