import resource
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.batch_system import Amount
from trio_dask.deploy import cluster_sizing
from trio_dask.deploy.cluster_sizing import Layout, allow_files, check_scale, divide, plan, workers_for
from trio_dask.errors import UsageError


def make(*, cpus: int = 8, machine_bytes: int = 8000, **options: Any) -> Layout:
    machine = mock.Mock(
        **{
            "cpus.return_value": Amount(cpus, "machine"),
            "memory.return_value": Amount(machine_bytes, "machine"),
        }
    )
    with mock.patch.multiple(cluster_sizing, host_limits=machine, raise_file_limit=lambda wanted: wanted):
        return plan(**options)


@given(cpus=st.integers(1, 512))
def test_by_default_every_processor_is_used_once(cpus: int) -> None:
    layout = make(cpus=cpus)
    assert layout.n_workers * layout.threads_per_worker == cpus


@pytest.mark.parametrize(
    ("options", "workers", "threads"),
    [
        ({"cpus": 2}, 2, 1),
        ({"cpus": 4}, 4, 1),
        ({"cpus": 8}, 4, 2),
        ({"cpus": 64}, 8, 8),
        ({"n_workers": 3}, 3, 2),
        ({"n_workers": 100}, 100, 1),
        ({"n_workers": 0}, 0, 8),
        ({"threads_per_worker": 4}, 2, 4),
        ({"threads_per_worker": 100}, 1, 100),
        ({"processes": False}, 1, 8),
        ({"processes": False, "n_workers": 2}, 2, 4),
    ],
)
def test_what_is_not_said_follows_from_what_is(options: dict[str, int], workers: int, threads: int) -> None:
    layout = make(**options)
    assert (layout.n_workers, layout.threads_per_worker) == (workers, threads)


@pytest.mark.parametrize(
    ("limit", "each"), [("auto", 2000), (None, None), (0, None), ("0", None), (0.5, 4000), (500, 500), ("1kB", 1000)]
)
def test_memory_is_shared_out(limit: float | str | None, each: int | None) -> None:
    assert make(n_workers=4, memory_limit=limit).memory_limit_bytes == each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_workers": -1}, "n_workers is -1; give a whole number from 0"),
        ({"n_workers": 2.5}, "n_workers is 2.5"),
        ({"n_workers": True}, "n_workers is True"),
        ({"threads_per_worker": 0}, "threads_per_worker is 0"),
        ({"scheduler_port": 70000}, "scheduler_port is 70000"),
        ({"memory_limit": "nonsense"}, "memory_limit: 'nonsense' is not a memory limit"),
        ({"memory_limit": -1}, "memory_limit: '-1' is not a memory limit"),
        ({"memory_limit": 10, "machine_bytes": 2**30}, "memory_limit: '10' is 10 B, .* did you mean 10 GB"),
        ({"resources": "GPU"}, "resources is 'GPU'; give a dict"),
        ({"resources": {"GPU": -1}}, "resources: 'GPU' is -1"),
        ({"resources": {"GPU": float("nan")}}, "resources: 'GPU' is nan"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**options)


def test_scaling_takes_numbers_of_workers() -> None:
    check_scale(0)
    with pytest.raises(UsageError, match="n is -1"):
        check_scale(-1)


@pytest.mark.parametrize(
    ("n", "memory", "cores", "expected"),
    [
        (3, None, None, 3),
        (0, None, None, 0),
        (0, None, 4, 2),
        (0, None, 5, 3),
        (0, "1.5 kB", None, 3),
        (0, 500, None, 1),
        (1, "1.5 kB", 4, 3),
        (7, "1.5 kB", 4, 7),
    ],
)
def test_a_cluster_can_be_scaled_to_workers_threads_and_memory(
    n: int, memory: int | str | None, cores: int | None, expected: int
) -> None:
    layout = make(threads_per_worker=2, memory_limit=500)
    assert workers_for(layout, n, memory, cores) == expected


@pytest.mark.parametrize(
    ("n", "memory", "cores", "message"),
    [
        (-1, None, None, "n is -1"),
        (2.5, None, None, "n is 2.5"),
        (0, None, -4, "cores is -4"),
        (0, "much", None, "memory_limit: "),
        (0, "1 TB", None, r"n is \d+; give a whole number"),
    ],
)
def test_what_a_cluster_cannot_be_scaled_to_is_refused(
    n: float, memory: str | None, cores: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        workers_for(make(memory_limit=500), n, memory, cores)


def test_workers_without_a_memory_limit_cannot_be_counted_by_memory() -> None:
    with pytest.raises(UsageError, match="no memory limit"):
        workers_for(make(memory_limit=None), 0, "1 GB", None)


EIGHT = Amount(8, "affinity")
MEMORY = Amount(16 * 2**30, "cgroup")


@pytest.mark.parametrize(
    ("workers", "threads", "cpus", "expected"),
    [
        ("1", None, 8, (1, 8, 1.0)),
        ("1", 2, 8, (1, 2, 0.25)),
        ("4", None, 8, (4, 2, 0.25)),
        ("3", None, 8, (3, 2, 0.25)),  # 2 of 8 processors each; what is left over has no worker
        ("3", None, 2, (3, 1, 1 / 3)),  # never all processors to each
        ("16", 4, 8, (16, 4, 1 / 16)),
        ("-1", None, 8, (8, 1, 0.125)),
        ("-3", None, 8, (6, 1, 0.125)),
        ("auto", None, 4, (4, 1, 0.25)),
        ("auto", None, 64, (8, 8, 0.125)),
        ("AUTO", 2, 64, (32, 2, 1 / 32)),
    ],
)
def test_a_machine_is_divided_among_workers(
    workers: str, threads: int | None, cpus: int, expected: tuple[int, int, float]
) -> None:
    share = divide(workers, threads, "auto", cpus=Amount(cpus, "machine"), memory=MEMORY)
    number, each, part = expected
    assert (share.workers, share.threads) == (number, each)
    assert share.memory_limit_bytes == int(MEMORY.number * part)
    assert share.workers * share.memory_limit_bytes <= MEMORY.number


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 2**50))
def test_no_number_of_workers_takes_more_than_there_is(workers: int, cpus: int, memory: int) -> None:
    share = divide(str(workers), None, "auto", cpus=Amount(cpus, "machine"), memory=Amount(memory, "machine"))
    assert share.threads >= 1
    assert share.threads == 1 or share.workers * share.threads <= cpus
    assert share.memory_limit_bytes is not None
    assert share.memory_limit_bytes == 1 or share.workers * share.memory_limit_bytes <= memory


@pytest.mark.parametrize("workers", ["0", "-9", "", "1.5", "-", "--1", "1e9", "٣", "many", "9" * 30])
def test_what_is_no_number_of_workers_is_refused(workers: str) -> None:
    with pytest.raises(UsageError):
        divide(workers, None, "auto", cpus=EIGHT, memory=MEMORY)


@pytest.mark.parametrize(
    ("workers", "threads", "limit", "text"),
    [
        ("4", None, "auto", "4 workers: 2 threads each (affinity), memory limit 4.00 GiB each (cgroup)"),
        ("1", 1, "2GiB", "1 worker: 1 thread (as given), memory limit 2.00 GiB (as given)"),
        ("1", 1, "0", "1 worker: 1 thread (as given), no memory limit"),
        ("1", 8, "1TiB", "1 worker: 8 threads (as given), memory limit 16.00 GiB (cgroup)"),
        ("1", 8, "16GiB", "1 worker: 8 threads (as given), memory limit 16.00 GiB (as given)"),
        (
            "2",
            4,
            "0.25",
            "2 workers: 4 threads each (as given), memory limit 4.00 GiB each (0.25 of 16.00 GiB, cgroup)",
        ),
    ],
)
def test_a_line_says_what_each_worker_gets_and_why(workers: str, threads: int | None, limit: str, text: str) -> None:
    assert divide(workers, threads, limit, cpus=EIGHT, memory=MEMORY).text == text


@pytest.fixture
def file_limit(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Limits on open files that only this test sees, as (soft, hard)."""
    limits = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    return limits


def test_as_many_files_are_allowed_as_the_workers_need(file_limit: list[tuple[int, int]]) -> None:
    allow_files(make(), 100)
    soft, hard = file_limit[-1]
    assert 1200 < soft < hard == 4096


def test_workers_that_need_more_files_than_the_system_allows_are_refused_in_one_line(
    file_limit: list[tuple[int, int]],
) -> None:
    with pytest.raises(UsageError, match=r"^1000 workers need 12064 open files, .* allows this program 4096; raise"):
        allow_files(make(), 1000)
    allow_files(make(processes=False), 1000)


def test_a_small_cluster_does_with_few_files(file_limit: list[tuple[int, int]]) -> None:
    file_limit.append((256, 256))
    allow_files(make(), 4)
