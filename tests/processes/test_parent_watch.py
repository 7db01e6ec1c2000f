"""What a child makes of its stdin: orders, and its end. Over pipes, without a child."""

import json
import os
import threading
from collections.abc import Iterator

import pytest

from trio_dask.processes.parent_watch import StdinWatch


class Parent:
    """The other ends of the pipes, and what the child was asked for."""

    def __init__(self, already_read: bytes = b"") -> None:
        self.asked: list[tuple[str, int | None]] = []
        self.changed = threading.Condition()
        self.was_ended = threading.Event()
        stdin, self.stdin = os.pipe()
        life, self.life = os.pipe()
        self.thread = StdinWatch(stdin, life, already_read, self.was_ended.set).start(self._ask, grace_s=0.01)
        self._ours = [stdin, life]

    def _ask(self, reason: str, number: int | None) -> None:
        with self.changed:
            self.asked.append((reason, number))
            self.changed.notify()

    def order(self, **content: object) -> None:
        os.write(self.stdin, json.dumps(content).encode() + b"\n")

    def wait_asked(self, count: int) -> list[tuple[str, int | None]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, 10)
        return self.asked

    def end(self, name: str) -> None:
        os.close(getattr(self, name))
        setattr(self, name, None)

    def close(self) -> None:
        for name in ("stdin", "life"):
            if getattr(self, name) is not None:
                self.end(name)
        self.thread.join(10)
        for fd in self._ours:
            os.close(fd)


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    yield parent
    parent.close()


def test_orders_are_passed_on_one_by_one_and_end_nothing(parent: Parent) -> None:
    parent.order(signal=15, reason="scaled down")
    assert parent.wait_asked(1) == [("scaled down", 15)]
    os.write(parent.stdin, b'{"signal": 2, "rea')
    os.write(parent.stdin, b'son": "Ctrl-C"}\n')
    assert parent.wait_asked(2)[1] == ("Ctrl-C", 2)
    assert not parent.was_ended.is_set()


def test_the_order_to_end_counts_while_another_process_holds_stdin_open(parent: Parent) -> None:
    parent.order(reason="the parent process stops")
    assert parent.wait_asked(1) == [("the parent process stops", None)]
    assert parent.was_ended.wait(10)


def test_a_parent_that_died_gives_no_reason(parent: Parent) -> None:
    parent.end("stdin")
    assert parent.wait_asked(1) == [("the parent process ended", None)]


def test_the_death_of_the_parent_counts_while_another_process_holds_stdin_open(parent: Parent) -> None:
    parent.end("life")
    assert parent.wait_asked(1) == [("the parent process ended", None)]
    assert parent.was_ended.wait(10)


def test_orders_that_were_read_with_the_settings_are_not_lost() -> None:
    parent = Parent(already_read=b'{"signal": 15, "reason": "at once"}\n{"signal"')
    try:
        os.write(parent.stdin, b': 2, "reason": "and again"}\n')
        assert parent.wait_asked(2) == [("at once", 15), ("and again", 2)]
    finally:
        parent.close()
