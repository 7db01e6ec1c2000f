"""Classes that are renewed while other tasks use them, and what several threads load at once."""

import abc
import enum
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trio_dask.protocol import pickled_names, rebuilt_classes
from trio_dask.protocol.pickled_enums import fill_enum, make_enum, reduce_enum

ROUNDS = 3000


class Colour(enum.Enum):
    RED = (1,)
    BLUE = (2,)
    ROUGE = RED


class Circle:
    pass


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def set_attributes(cls: Any, state: Any) -> None:
    for name, value in state[0].items():
        if name == "_abc_impl":
            for registered in value:
                cls.register(registered)
        else:
            setattr(cls, name, value)


def together(*jobs: Callable[[], object]) -> None:
    """Run the first job `ROUNDS` times in each of two threads; the other jobs repeat until these are done."""
    errors, over = [], threading.Event()

    def run(job: Callable[[], object], rounds: int) -> None:
        try:
            while not over.is_set() and (rounds := rounds - 1) >= 0:
                job()
        except Exception as error:
            errors.append(error)

    loaders = [threading.Thread(target=run, args=(jobs[0], ROUNDS)) for _ in range(2)]
    readers = [threading.Thread(target=run, args=(job, sys.maxsize)) for job in jobs[1:]]
    for thread in (*loaders, *readers):
        thread.start()
    for thread in loaders:
        thread.join()
    over.set()
    for thread in readers:
        thread.join()
    assert errors == []


def test_members_of_an_enumeration_are_there_while_it_is_renewed() -> None:
    arguments, state = reduce_enum(Colour, {}, set_attributes)
    cls = rebuilt_classes.make_class("enumeration of the thread test", b"content", make_enum, arguments)
    rebuilt_classes.keep_class(cls, (fill_enum, state))

    def read() -> None:
        assert cls((1,)) is cls.RED is cls.ROUGE
        assert cls.BLUE.value == (2,)

    def change() -> None:
        cls.RED.note = 1

    together(lambda: rebuilt_classes.renew_class(cls, (fill_enum, state)), read, change)


def test_a_class_is_whole_while_it_is_renewed() -> None:
    cls = rebuilt_classes.make_class("class of the thread test", b"content", lambda: abc.ABCMeta("Shape", (), {}), ())
    state: Any = (set_attributes, ({"sides": 4, "_abc_impl": [Circle]}, {}))
    rebuilt_classes.keep_class(cls, state)

    def read() -> None:
        assert cls.sides == 4
        assert isinstance(Circle(), cls)

    def change() -> None:
        cls.added = 1

    together(lambda: rebuilt_classes.renew_class(cls, state), read, change)


def test_a_named_object_is_whole_while_it_is_renewed() -> None:
    class Sentinel:
        pass

    def make() -> Any:
        return pickled_names.make_named(b"of the thread test", Sentinel, ())

    state = (pickled_names.set_attributes, {"seen": 0})
    thing = make()

    def load() -> None:
        pickled_names.renew_named(make(), state)

    def change() -> None:
        thing.note = 1

    load()
    together(load, lambda: thing.seen, change)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement came with Python 3.12")
def test_a_type_alias_has_its_value_for_whoever_loads_it() -> None:
    def load() -> None:
        alias = pickled_names.make_named(
            b"alias of the thread test", pickled_names.make_lazy_alias, ("Alias", "__main__")
        )
        pickled_names.keep_named(alias, (pickled_names.fill_alias, int))
        assert alias.__value__ is int

    together(load, load)
