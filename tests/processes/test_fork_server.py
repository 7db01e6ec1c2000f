"""Both ends of a fork server's channel, over a socketpair, without processes."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from trio_dask.processes import fork_server
from trio_dask.processes.clone_parent import can_fork_sibling
from trio_dask.processes.fork_requests import Request, answer, pack
from trio_dask.processes.fork_server import ForkChannel
from trio_dask.processes.fork_server_main import wait_for_fork
from trio_dask.processes.spawn import Start

pytestmark = pytest.mark.skipif(not can_fork_sibling(), reason="no fork server here")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The launcher's end and the server's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def start() -> Iterator[Start]:
    """A request whose descriptors are all open."""
    fds = [os.open(os.devnull, os.O_RDWR) for _ in range(4)]
    yield Start(
        name="child",
        stdin=fds[0],
        stderr=fds[1],
        report_fd=fds[2],
        kill_fd=fds[3],
        inherit=(),
        environment={"GIVEN": "1"},
        guarded=True,
    )
    for fd in fds:
        os.close(fd)


def never() -> NoReturn:
    raise AssertionError("nobody asked for a process")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def send(channel: socket.socket, start: Start) -> None:
    with ExitStack() as stack:
        socket.send_fds(channel, [b"f"], pack(start, stack))


# --------------------------------------------------------------------------------------------- the server's end


@contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


def test_a_server_forks_for_each_request_until_its_launcher_is_gone(
    ends: tuple[socket.socket, socket.socket], start: Start
) -> None:
    ours, theirs = ends
    forks = iter((101, 102))
    with no_descriptor_leaks():
        send(ours, start)
        send(ours, start)
        ours.shutdown(socket.SHUT_WR)
        assert wait_for_fork(theirs, [], lambda: next(forks)) is None
    assert list(forks) == []
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):  # the new processes answer, not the server
        ours.recv(1)


def test_a_forked_process_answers_for_itself_and_has_the_request(
    ends: tuple[socket.socket, socket.socket], start: Start
) -> None:
    ours, theirs = ends
    send(ours, start)
    request = wait_for_fork(theirs, [], lambda: 0)
    assert request is not None
    assert json.loads(ours.recv(4096)) == {"pid": os.getpid(), "error": ""}
    contents = os.pread(request._descriptors[0], 10**7, 0)
    assert json.loads(contents)["environment"]["GIVEN"] == "1"
    request.close()


def test_a_server_that_cannot_fork_says_so_and_goes_on(ends: tuple[socket.socket, socket.socket], start: Start) -> None:
    ours, theirs = ends
    outcomes = [OSError(11, "Resource temporarily unavailable"), None]

    def fork() -> int:
        error = outcomes.pop(0)
        if error is not None:
            raise error
        return 7

    with no_descriptor_leaks():
        send(ours, start)
        send(ours, start)
        ours.shutdown(socket.SHUT_WR)
        assert wait_for_fork(theirs, [], fork) is None
    assert json.loads(ours.recv(4096)) == {"pid": 0, "error": "Resource temporarily unavailable"}
    assert outcomes == []


@pytest.mark.parametrize("which", [0, 1], ids=["stdin", "parent"])
def test_a_server_ends_with_its_stdin_or_its_parent(ends: tuple[socket.socket, socket.socket], which: int) -> None:
    pipes = [os.pipe(), os.pipe()]
    found = []
    thread = threading.Thread(target=lambda: found.append(wait_for_fork(ends[1], [pipes[0][0], pipes[1][0]], never)))
    thread.start()
    os.close(pipes[which][1])
    thread.join(10)
    assert found == [None]
    for fd in (pipes[0][0], pipes[1][0], pipes[1 - which][1]):
        os.close(fd)


def test_a_server_ends_when_nobody_takes_its_answer(ends: tuple[socket.socket, socket.socket], start: Start) -> None:
    ours, theirs = ends
    send(ours, start)
    ours.close()
    assert wait_for_fork(theirs, [], lambda: 0) is None


# -------------------------------------------------------------------------------------------- the launcher's end


class Server:
    """What a test has a server do."""

    def __init__(self, ends: tuple[socket.socket, socket.socket]) -> None:
        self.killed = 0
        self._end = ends[1]
        self._end.setblocking(False)
        self.channel = ForkChannel(trio.socket.from_stdlib_socket(ends[0]), self.kill)
        self.dies = True

    def kill(self) -> None:
        self.killed += 1
        if self.dies:
            self.close()

    def close(self) -> None:
        self._end.close()

    def answer(self, **content: Any) -> None:
        answer(self._end, **content)

    async def take(self) -> Request:
        await trio.lowlevel.wait_readable(self._end)
        return self.take_nowait()

    def take_nowait(self) -> Request:
        request = Request.receive(self._end)
        assert request is not None
        return request

    async def answer_each(self, *answers: dict[str, Any]) -> None:
        for content in answers:
            (await self.take()).close()
            self.answer(**content)


async def test_the_launcher_is_told_the_new_process_or_the_error(
    ends: tuple[socket.socket, socket.socket], start: Start
) -> None:
    server = Server(ends)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: server.answer_each({"pid": 7}, {"error": "no memory"}, {"pid": 8}))
        assert [await server.channel.fork(start) for _ in range(3)] == [7, None, 8]
    assert server.killed == 0


async def test_requests_are_made_one_after_the_other(ends: tuple[socket.socket, socket.socket], start: Start) -> None:
    server = Server(ends)
    found = []

    async def ask() -> None:
        found.append(await server.channel.fork(start))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await server.answer_each({"pid": 7}, {"pid": 8})
    assert found == [7, 8]


async def test_a_server_that_is_gone_is_not_asked_again(
    ends: tuple[socket.socket, socket.socket], start: Start
) -> None:
    server = Server(ends)
    server.close()
    assert await server.channel.fork(start) is None
    assert await server.channel.fork(start) is None
    assert server.killed == 0


async def test_a_server_that_does_not_answer_is_killed(
    ends: tuple[socket.socket, socket.socket], start: Start, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(ends)
    assert await server.channel.fork(start) is None
    assert trio.current_time() == pytest.approx(fork_server.ANSWER_S)
    assert await server.channel.fork(start) is None
    assert server.killed == 1


async def test_a_server_that_cannot_even_be_killed_is_an_error_in_time(
    ends: tuple[socket.socket, socket.socket], start: Start, autojump_clock: trio.testing.MockClock
) -> None:
    server = Server(ends)
    server.dies = False
    with pytest.raises(OSError, match="cannot be ended"):
        await server.channel.fork(start)
    assert trio.current_time() == pytest.approx(fork_server.ANSWER_S + fork_server.DEATH_S)


async def test_a_request_that_is_cancelled_still_takes_its_answer(
    ends: tuple[socket.socket, socket.socket], start: Start
) -> None:
    """Else there would be a process that nobody knows."""
    server = Server(ends)
    found = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            found.append(await server.channel.fork(start))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        server.take_nowait().close()
        server.answer(pid=7)
    assert found == [7]
