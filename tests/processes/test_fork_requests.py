"""What stands in a request for a process, and how descriptors come to the numbers that they are to have."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from trio_dask.processes.clone_parent import can_fork_sibling
from trio_dask.processes.fork_requests import pack
from trio_dask.processes.spawn import Start

pytestmark = pytest.mark.skipif(not can_fork_sibling(), reason="no fork server here")

ARRANGE = """
import json, os, sys
from trio_dask.processes.fork_requests import arrange
given, numbers = json.loads(sys.argv[1])
for number in {*given, 40}:
    fd = os.memfd_create(f"file {number}")
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
arrange(given, numbers)
there = {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2}
found = {n: os.readlink(f"/proc/self/fd/{n}").split()[1] for n in there if os.path.lexists(f"/proc/self/fd/{n}")}
inheritable = all(map(os.get_inheritable, found))
print(json.dumps([sorted(found.items()), inheritable]))
"""


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ((20, 21), (20, 21)),
        ((20, 21), (21, 20)),
        ((20, 21, 22), (21, 22, 20)),
        ((20, 21, 22), (22, 40, 23)),
        ((20, 21, 22, 23), (3, 4, 5, 20)),
        ((), ()),
    ],
)
def test_descriptors_get_their_numbers_wherever_they_were(given: tuple[int, ...], numbers: tuple[int, ...]) -> None:
    """In a process of its own: every other descriptor is closed."""
    command = [sys.executable, "-c", ARRANGE, json.dumps([given, numbers])]
    found, inheritable = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert found == sorted([number, str(fd)] for fd, number in zip(given, numbers, strict=True))
    assert inheritable


def test_a_request_has_all_that_a_process_is_told_by_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "y\udcff")
    start = Start(
        name="child",
        stdin=50,
        stderr=51,
        report_fd=52,
        kill_fd=53,
        inherit=(54,),
        environment={"THEIRS": "1"},
        guarded=True,
    )
    before = os.listdir("/proc/self/fd")
    with ExitStack() as stack:
        contents, folder, *given = pack(start, stack)
        told = json.loads(os.pread(contents, 10**7, 0))
        assert os.readlink(f"/proc/self/fd/{folder}") == os.getcwd()
    assert dict(zip(told["numbers"], given, strict=True)) == {0: 50, 1: 1, 2: 51, 52: 52, 53: 53, 54: 54}
    assert told["environment"] == {**os.environ, "THEIRS": "1"}
    assert os.listdir("/proc/self/fd") == before
