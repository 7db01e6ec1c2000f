"""A client writes what all programs know into a file, also where some do not answer."""

import gzip
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from trio_dask import AsyncClient, Client, UnavailableError, UsageError, open_local_cluster
from trio_dask.client import cluster_dump


def increment(number: int) -> int:
    return number + 1


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=2, threads_per_worker=1, processes=False) as client:
        yield client


def read(path: Path) -> dict[str, Any]:
    with gzip.open(path) as file:
        found: dict[str, Any] = msgpack.unpack(file)
    return found


def test_a_dump_has_the_tables_of_the_scheduler_and_of_each_worker(client: Client, tmp_path: Path) -> None:
    futures = client.map(increment, range(3))
    client.gather(futures)
    client.dump_cluster_state(tmp_path / "dump")
    state = read(tmp_path / "dump.msgpack.gz")
    assert {future.key for future in futures} == set(state["scheduler"]["tasks"])
    holders = {key: row["holders"] for key, row in state["scheduler"]["tasks"].items()}
    for key, addresses in holders.items():
        assert all(state["workers"][address]["data"][key]["nbytes"] > 0 for address in addresses)
    assert set(state["workers"]) == set(state["scheduler"]["workers"]) == set(state["versions"]["workers"])
    assert list(state["scheduler"]["clients"]) == [client.id]
    assert state["scheduler"]["story"]


def test_a_dump_for_people_is_yaml_without_what_was_excluded(client: Client, tmp_path: Path) -> None:
    future = client.submit(increment, 1, key="story")
    future.result()
    client.dump_cluster_state(str(tmp_path / "dump.yaml"), format="yaml", exclude=["story", "log", "metrics"])
    yaml: Any = importlib.import_module("yaml")
    state = yaml.safe_load((tmp_path / "dump.yaml").read_text(encoding="utf-8"))
    assert not {"story", "log"} & set(state["scheduler"])
    assert all(not {"log", "metrics"} & set(worker) for worker in state["workers"].values())
    assert state["scheduler"]["tasks"]["story"]["state"] == "memory"  # the name of a task is no name of a field


async def _tables_of_one(log_lines: int, dask_worker: Any) -> dict[str, Any]:
    if str(dask_worker.name) == "0":
        await trio.sleep_forever()
    if str(dask_worker.name) == "1":
        raise ZeroDivisionError("as asked")
    return {"versions": {}, "log_lines": log_lines}


def test_a_worker_that_does_not_answer_is_named_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_dump, "ANSWER_S", 1.0)
    monkeypatch.setattr(cluster_dump, "_tables", _tables_of_one)
    with Client(n_workers=3, threads_per_worker=1, processes=False) as client:
        client.dump_cluster_state(tmp_path / "dump")
    state = read(tmp_path / "dump.msgpack.gz")
    by_name = {worker["name"]: state["workers"][address] for address, worker in state["scheduler"]["workers"].items()}
    assert by_name["0"] == {"error": "it did not answer within 1 s"}
    assert by_name["1"] == {"error": "as asked"}
    assert "log_lines" in by_name["2"]


def test_a_dump_that_cannot_be_written_leaves_what_was_there(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "dump.msgpack.gz"
    path.write_text("before")

    def fail(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UnavailableError, match=r"cannot write .*dump\.msgpack\.gz: No space left on device"):
        cluster_dump.write(str(path), {}, fail, {})
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"
    with pytest.raises(UnavailableError, match="No such file or directory"):
        client.dump_cluster_state(tmp_path / "nowhere" / "dump")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "json"}, "format is 'msgpack' or 'yaml', not 'json'"),
        ({"write_from_scheduler": True}, "leave out write_from_scheduler=True"),
        ({"exclude": "story"}, r"exclude is a list of names, such as \['story'\]"),
        ({"anon": True}, "anon is for URLs"),
    ],
)
def test_what_makes_no_sense_is_refused(client: Client, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        client.dump_cluster_state("dump", **options)


def test_a_url_is_written_by_fsspec(client: Client) -> None:
    fsspec: Any = importlib.import_module("fsspec")
    client.dump_cluster_state("memory://folder/dump")
    with fsspec.open("memory://folder/dump.msgpack.gz") as file:
        assert "scheduler" in msgpack.unpackb(gzip.decompress(file.read()))


async def test_the_form_for_trio_writes_the_same(tmp_path: Path) -> None:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        await client.dump_cluster_state(tmp_path / "dump")
    assert set(read(tmp_path / "dump.msgpack.gz")) == {"scheduler", "workers", "versions"}
