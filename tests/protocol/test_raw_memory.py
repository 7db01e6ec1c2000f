"""Copies of large buffers: each one its own, by maps where there can be maps."""

import mmap
import os

import numpy as np
import pytest

from trio_dask.protocol import raw_memory


@pytest.mark.parametrize("nbytes", [0, 100, raw_memory.MAPPED_BYTES, raw_memory.MAPPED_BYTES + 5])
def test_copies_of_a_buffer_are_each_ones_own(nbytes: int) -> None:
    buffer = raw_memory.shared_memory(nbytes)
    buffer[:] = bytes(nbytes)
    one, other = raw_memory.own_copy(buffer), raw_memory.own_copy(buffer)
    if nbytes:
        one[0] = 1
        one[-1] = 2
    assert bytes(buffer) == bytes(nbytes) == bytes(other)


def test_maps_are_closed_with_the_last_use() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    buffer = raw_memory.shared_memory(raw_memory.MAPPED_BYTES)
    array = np.frombuffer(raw_memory.own_copy(buffer), dtype=np.uint8)
    del buffer
    assert array[-1] == 0
    del array
    assert descriptors() == before


def test_a_copy_is_made_where_no_map_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = raw_memory.shared_memory(raw_memory.MAPPED_BYTES)
    monkeypatch.setattr(raw_memory, "MOST_MAPS", 2)
    monkeypatch.setattr(raw_memory, "_NO_DESCRIPTOR", {})
    copies = [raw_memory.own_copy(buffer) for _ in range(4)]
    assert [type(copy) for copy in copies] == [memoryview, memoryview, bytearray, bytearray]
    assert raw_memory.has_private_maps()
    copies.clear()
    assert not raw_memory.has_private_maps()
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(OSError(24, "too many")))
    assert type(raw_memory.own_copy(buffer)) is bytearray
