"""The memory of all workers is sampled while a block runs."""

import importlib
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import trio

from tests.waiting import until
from trio_dask import AsyncClient, Client, MemorySampler, UnavailableError, UsageError, diagnostics, open_local_cluster
from trio_dask.client import memory_sampler
from trio_dask.client.memory_sampler import MEASURES

LIMIT_S = 20


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=2, threads_per_worker=1, processes=False) as client:
        yield client


def test_a_block_has_the_samples_of_its_time(client: Client) -> None:
    sampler = MemorySampler()
    future = client.submit(bytes, 1_000_000)
    future.result()
    began = time.time()
    with sampler.sample("run", client=client, measure="managed", interval="1ms") as sampling:
        until(lambda: len(sampling.taken) > 3)
    ended = time.time()
    times = [when for when, _ in sampler.samples["run"]]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= ended
    assert sampler.samples["run"][-1][1] > 1_000_000
    count = len(sampler.samples["run"])
    with sampler.sample(client=client, interval=100):
        pass
    (label,) = set(sampler.samples) - {"run"}
    assert label.startswith("sample-")
    assert len(sampler.samples[label]) == 1
    assert sampler.samples[label][0][1] > 10 * 2**20
    assert len(sampler.samples["run"]) == count


async def test_the_form_for_trio_samples_while_the_block_waits() -> None:
    sampler = MemorySampler()
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
        sampler.sample("run", client=client, interval=0.001) as sampling,
    ):
        with trio.fail_after(LIMIT_S):
            while len(sampling.taken) < 3:
                await client.submit(int, pure=False)
    assert len(sampler.samples["run"]) >= 3


async def _figures_of_one(dask_worker: Any) -> Any:
    calls = dask_worker.state["calls"] = dask_worker.state.get("calls", 0) + 1
    if calls > 1 and str(dask_worker.name) == "0":
        await trio.sleep_forever()
    return {"memory": 100 * calls, "managed": 0, "spilled": 0}


def test_what_a_worker_last_said_counts_when_it_does_not_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_sampler, "_figures", _figures_of_one)
    monkeypatch.setattr(memory_sampler, "ANSWER_S", 0.5)
    sampler = MemorySampler()
    with sampler.sample("run", client=client, interval=0.001) as sampling:
        until(lambda: len(sampling.taken) > 1)
    assert [nbytes for _, nbytes in sampler.samples["run"][:2]] == [200, 300]


def test_measures_add_up() -> None:
    figures = {"memory": 1000, "managed": 500, "spilled": 200}
    assert {name: measure(figures) for name, measure in MEASURES.items()} == {
        "process": 1000,
        "managed": 300,
        "spilled": 200,
        "unmanaged": 700,
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measure": "optimistic"}, "measure is one of process, managed, spilled, unmanaged"),
        ({"interval": 0}, "interval is a length of time"),
        ({"interval": float("nan")}, "interval is a length of time"),
    ],
)
def test_what_makes_no_sense_is_refused(client: Client, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MemorySampler().sample("run", client=client, **options)


def test_a_frame_of_pandas_has_a_column_for_each_run_and_values_between_its_samples() -> None:
    pd: Any = importlib.import_module("pandas")
    sampler = MemorySampler()
    sampler.samples = {"a": [(10.0, 1), (12.0, 3), (12.0, 4)], "b": [(111.0, 5), (112.0, 6), (113.0, 7)]}
    frame = sampler.to_pandas(align=True)
    assert list(frame.index) == [pd.Timedelta(seconds=number) for number in (0, 1, 2)]
    assert frame["a"].tolist() == [1, 1, 3]
    assert frame["b"].tolist() == [5, 6, 7]
    plain = sampler.to_pandas()
    assert plain["a"].dropna().tolist() == [1, 3]
    assert plain.index[0] == pd.Timestamp(10, unit="s")


class FakeBackend(ModuleType):
    """Draws for pandas: it keeps what it was given."""

    def __init__(self) -> None:
        super().__init__("fake_backend")
        self.drawn: list[tuple[Any, str, dict[str, Any]]] = []

    def plot(self, data: Any, kind: str, **options: Any) -> str:
        self.drawn.append((data, kind, options))
        return "axes"


def test_a_plot_is_a_line_for_each_run_in_gibibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    monkeypatch.setitem(sys.modules, "fake_backend", backend)
    sampler = MemorySampler()
    sampler.samples = {"a": [(10.0, 2**30), (12.0, 3 * 2**30)], "b": [(111.0, 2**29), (113.0, 2**30)]}
    assert sampler.plot(align=True, backend="fake_backend", title="memory", ylabel="GiB") == "axes"
    ((frame, kind, options),) = backend.drawn
    assert kind == "line"
    assert frame.to_dict("list") == {"a": [1, 3], "b": [0.5, 1]}
    assert frame.index.dtype.kind == "m"
    assert (options["xlabel"], options["ylabel"], options["title"]) == ("time", "GiB", "memory")


def test_a_plot_without_samples_or_libraries_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = MemorySampler()
    with pytest.raises(UsageError, match="no samples to plot"):
        sampler.plot()
    sampler.samples = {"a": [(10.0, 1)]}
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UnavailableError, match="this needs matplotlib; run: python -m pip install matplotlib"):
        sampler.plot()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnavailableError, match="this needs pandas; run: python -m pip install pandas"):
        sampler.to_pandas()


def test_users_of_distributed_find_the_names_where_they_look_for_them() -> None:
    plugin = importlib.import_module("trio_dask.diagnostics.plugin")
    progressbar = importlib.import_module("trio_dask.diagnostics.progressbar")
    sampler = importlib.import_module("trio_dask.diagnostics.memory_sampler")
    assert diagnostics.MemorySampler is sampler.MemorySampler is MemorySampler
    assert all(getattr(plugin, name) is getattr(diagnostics, name) for name in plugin.__all__)
    assert progressbar.progress is diagnostics.progress
