"""The backlog: rows come out in order, in frames of a bearable size."""

from hypothesis import given
from hypothesis import strategies as st

from trio_dask.comm.write_buffer import Backlog
from trio_dask.protocol.codec import FROM_CLIENT, decode, encode_rows
from trio_dask.protocol.frames import FrameDecoder
from trio_dask.protocol.messages import Blob


@given(st.lists(st.lists(st.sampled_from([0, 10, 1000, 100_000, 300_000]), max_size=20), max_size=4))
def test_frames_are_bounded_and_keep_the_order(flushes: list[list[int]]) -> None:
    backlog = Backlog()
    sent = [[Blob(b"", number, bytes(size)) for number, size in enumerate(sizes)] for sizes in flushes]
    received = []
    for blobs in sent:
        rows = encode_rows(blobs)
        before = backlog.size
        backlog.add(rows)
        assert backlog.size == before + sum(map(len, rows))
    while frame := backlog.take_frame():
        [(_, payload)] = FrameDecoder().feed(frame)
        arrived = decode(payload, FROM_CLIENT)
        # Only the last row may exceed the size of a frame.
        assert sum(len(row) for row in encode_rows(arrived[:-1])) < 2**18
        received += arrived
    assert received == [blob for blobs in sent for blob in blobs]
    assert backlog.size == 0
