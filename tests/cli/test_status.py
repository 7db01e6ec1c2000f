"""What `trio-dask status` prints."""

from __future__ import annotations

from typing import Any

from trio_dask.cli.status import rendered

GIB = 2**30


def worker(name: str, **more: Any) -> dict[str, Any]:
    return {
        "title": name,
        "address": "tcp://10.0.0.6:40483",
        "host": "node",
        "pid": 7,
        "status": "running",
        "nthreads": 4,
        "memory_limit": 16 * GIB,
        "processing": 5,
        "in_memory": 12,
        "metrics": {"memory_bytes": GIB, "cpu_percent": 399.6},
        **more,
    }


OVERVIEW = {
    "address": "tcp://10.0.0.5:8786",
    "package": "0.1.0",
    "pid": 42,
    "host": "boss",
    "clients": ["alice"],
    "workers": [
        worker("tcp://10.0.0.6:40483"),
        worker("alice", status="away", memory_limit=0, metrics={}),
        worker("n" * 200, status="paused"),
    ],
    "tasks": {"waiting": 1200, "queued": 0, "no-worker": 1, "processing": 9, "memory": 3, "erred": 1, "released": 0},
    "oldest": {"key": "load-" + "0" * 100 + "\n", "worker": "alice", "seconds": 754.2},
}

TEXT = """\
Scheduler  tcp://10.0.0.5:8786, trio_dask 0.1.0, pid 42 on boss
Workers    3, with 12 threads
Clients    1
Tasks      1,200 waiting, 1 without a suitable worker, 9 processing, 3 in
           memory, 1 erred
Oldest     load-000000000000000000000000... has been running for 13 min on alice

WORKER                     STATUS   THREADS  TASKS    CPU                 MEMORY
alice                      away           4      5    0 %                    0 B
nnnnnnnnnnnnnnnnnnnnnn...  paused         4      5  400 %  1.00 GiB of 16.00 GiB
tcp://10.0.0.6:40483       running        4      5  400 %  1.00 GiB of 16.00 GiB"""


def test_the_text_for_a_terminal_of_80_columns() -> None:
    assert rendered(OVERVIEW, 80) == TEXT


def test_no_line_is_wider_than_the_terminal() -> None:
    for width in (80, 100, 200):
        assert max(map(len, rendered(OVERVIEW, width).splitlines())) <= width


def test_one_thread_is_one() -> None:
    text = rendered({**OVERVIEW, "workers": [worker("alice", nthreads=1)]}, 80)
    assert text.splitlines()[1] == "Workers    1, with 1 thread"


def test_an_empty_cluster() -> None:
    text = rendered({**OVERVIEW, "workers": [], "clients": [], "tasks": {}, "oldest": None}, 80)
    assert text.splitlines()[1:] == ["Workers    0, with 0 threads", "Clients    0", "Tasks      none"]
