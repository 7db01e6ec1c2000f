"""What is mapped repeatedly counts once, and to tell that takes little of the time."""

import pytest

from trio_dask.protocol import raw_memory
from trio_dask.worker import process_memory
from trio_dask.worker.process_memory import RECOUNT_SHARE, ProcessMemory


def test_private_maps_of_one_buffer_count_once() -> None:
    nbytes = 4 * raw_memory.MAPPED_BYTES
    memory = ProcessMemory()
    buffer = raw_memory.shared_memory(nbytes)
    buffer[:] = bytes(nbytes)
    before = memory.used_bytes()
    copies = [raw_memory.own_copy(buffer) for _ in range(4)]
    assert sum(sum(copy[::4096]) for copy in copies) == 0
    assert memory.used_bytes() - before < nbytes
    memory.close()


def test_it_is_told_as_seldom_as_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = [100.0], []

    def look() -> int:
        looks.append(clock[0])
        clock[0] += 0.01
        return 0

    monkeypatch.setattr(process_memory, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(process_memory, "repeated_bytes", look)
    monkeypatch.setattr(process_memory, "has_private_maps", lambda: True)
    memory = ProcessMemory()
    end = clock[0] + 10
    while clock[0] < end:
        memory.used_bytes()
        clock[0] += 0.001
    assert len(looks) <= 10 / (RECOUNT_SHARE * 0.01) + 1
    memory.close()
