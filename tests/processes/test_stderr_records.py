"""What a child writes to its stderr: records are told from what tasks print, and dumps from both."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.processes.stderr_records import DumpFilter, RecordFormatter, read_record, readable

DUMP = b"""Fatal Python error: Segmentation fault

Thread 0x00007f083e44f6c0 [log lines] (most recent call first):
  File "lines.py", line 55 in _work

Current thread 0x00007f37325d66c0 (most recent call first):
  File "__init__.py", line 519 in string_at
  <no Python frame>

Extension modules: msgpack._cmsgpack (total: 1)
"""


def line_of(text: str, *arguments: object, **more: Any) -> tuple[logging.LogRecord, bytes]:
    record = logging.getLogger("trio_dask.worker").makeRecord(
        "trio_dask.worker", logging.WARNING, "f", 1, text, arguments, more.get("exc_info")
    )
    return record, RecordFormatter().format(record).encode()


@given(st.text())
def test_a_record_arrives_as_it_was(text: str) -> None:
    sent, line = line_of("%s", text[:1000])
    assert b"\n" not in line
    found = read_record(line)
    assert found is not None
    assert (found.getMessage(), found.levelname, found.created, found.name) == (
        text[:1000],
        "WARNING",
        sent.created,
        "trio_dask.worker",
    )


def test_a_traceback_comes_along() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        _, line = line_of("failed", exc_info=sys.exc_info())
    found = read_record(line)
    assert found is not None
    assert str(found.exc_text).endswith("ValueError: no")
    assert readable(line).startswith("failed\nTraceback")


@pytest.mark.parametrize("created", ["1e300", "-1e300", "NaN", "Infinity", "-1.0", "1e15"])
def test_what_has_no_time_of_this_age_is_no_record(created: str) -> None:
    line = b'\x1e{"created": %s, "level": 20, "logger": "x", "message": "x"}'
    assert read_record(line % created.encode()) is None
    found = read_record(line % str(2.0**40 - 1).encode())
    assert found is not None
    logging.Formatter("%(asctime)s").format(found)


@pytest.mark.parametrize(
    "line", [b"printed", b"", b"\x1e", b"\x1e{", b"\x1e[]", b'\x1e{"message": "x"}', b"\x1e" + b"[" * 100_000]
)
def test_whatever_else_stands_there_is_no_record(line: bytes) -> None:
    assert read_record(line) is None
    assert readable(line) == line.decode()


def pass_through(data: bytes, size: int) -> tuple[bytes, list[Sequence[str]]]:
    passed: list[bytes] = []
    dumps: list[Sequence[str]] = []
    sieve = DumpFilter(passed.append, dumps.append)
    for start in range(0, len(data), size):
        sieve.feed(data[start : start + size])
    sieve.end()
    return b"".join(passed), dumps


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
def test_a_dump_is_taken_out_however_it_arrives(size: int) -> None:
    whole = [line.decode() for line in DUMP.splitlines()]
    assert pass_through(b"before\n" + DUMP, size) == (b"before\n", [whole])
    # A task's own child can crash as well, and then the worker goes on.
    assert pass_through(b"before\n" + DUMP + b"after\n" + DUMP, size) == (b"before\nafter\n", [whole, whole])


@given(
    st.lists(st.sampled_from([b"Fatal", b"Fatal Python error", b"x Fatal Python error:", b"  ", b"\n", b"\r", b"y"]))
)
def test_nothing_else_is_held_back(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert pass_through(data, 3) == (data, [])


def test_what_is_no_dump_passes_before_its_line_ends() -> None:
    passed: list[bytes] = []
    sieve = DumpFilter(passed.append, lambda lines: None)
    sieve.feed(b"50 %")
    assert passed == [b"50 %"]


def test_a_line_that_never_ends_is_not_held_back_for_ever() -> None:
    passed: list[bytes] = []
    dumps: list[Sequence[str]] = []
    sieve = DumpFilter(passed.append, dumps.append)
    sieve.feed(b"Fatal Python error: not really\n")
    for _ in range(200):
        sieve.feed(b"\r" + b"#" * 999)
    assert dumps == [["Fatal Python error: not really"]]
    assert sum(map(len, passed)) == 200_000


def test_a_dump_that_never_ends_is_no_dump() -> None:
    passed: list[bytes] = []
    dumps: list[Sequence[str]] = []
    sieve = DumpFilter(passed.append, dumps.append)
    sieve.feed(b"Fatal Python error: not really\n")
    indented = (b"  " + b"x" * 997 + b"\n") * 100
    for _ in range(30):
        sieve.feed(indented)
    ((_, *held),) = dumps
    assert 0 < len(held) * 1000 <= 2**21 + 1000
    assert sum(map(len, passed)) == 3_000_000 - len(held) * 1000


def test_the_longest_dump_of_faulthandler_is_taken_out() -> None:
    frames = b'  File "' + b"d" * 70 + b'.py", line 55 in function_with_a_name\n'
    dump = b"Fatal Python error: Aborted\n" + (b"Thread 0x00007f083e44f6c0 [x]:\n" + frames * 100) * 100
    passed, (lines,) = pass_through(dump, 2**16)
    assert passed == b""
    assert len(lines) == 1 + 101 * 100
