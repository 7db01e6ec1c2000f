"""Both forms of a call have the signature and the docstring of its definition; `tests/typing` is about their types."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from dask._task_spec import TaskRef

import trio_dask
from tests.client.cluster import MiniCluster, open_client
from trio_dask import (
    AsyncClient,
    AsyncEvent,
    AsyncFuture,
    AsyncLock,
    AsyncMultiLock,
    AsyncQueue,
    AsyncSemaphore,
    AsyncVariable,
    Client,
    Event,
    Future,
    LocalCluster,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    open_local_cluster,
    wait,
)
from trio_dask.client.call_forms import CallForms, Done, Waiting, awaitable, blocking
from trio_dask.client.coordination.requests import Primitive
from trio_dask.client.rpc_client import AsyncRpc, Rpc
from trio_dask.deploy.cluster_sizing import plan
from trio_dask.deploy.local_cluster import AsyncLocalCluster
from trio_dask.protocol import messages as m

METHODS = (FunctionType, property, staticmethod, classmethod)
ROOT = Path(__file__).resolve().parents[2]

PAIRS = [
    (Client, AsyncClient),
    (Future, AsyncFuture),
    (Rpc, AsyncRpc),
    (LocalCluster, AsyncLocalCluster),
    (Event, AsyncEvent),
    (Lock, AsyncLock),
    (MultiLock, AsyncMultiLock),
    (Queue, AsyncQueue),
    (Semaphore, AsyncSemaphore),
    (Variable, AsyncVariable),
]

MAY_DIFFER = {
    "Client.close": "the blocking one ends threads, for which it has a timeout, and a cluster of its own",
    "Client.datasets": "a mapping answers at once, which nothing can in Trio",
    "LocalCluster.get_client": "it gives the client of the same kind; the one for Trio has to be entered",
}


def shared(blocking_class: type, async_class: type) -> list[str]:
    """The public methods and properties that both have of ours: futures have some of dask, once it is imported."""
    return [
        name
        for name in dir(blocking_class)
        if not name.startswith("_")
        and name in dir(async_class)
        and not hasattr(TaskRef, name)
        and isinstance(
            inspect.getattr_static(blocking_class, name), FunctionType | property | staticmethod | classmethod
        )
    ]


def told(member: Any) -> tuple[str | None, inspect.Signature | None]:
    """The docstring and the signature of a function, method or property."""
    if isinstance(member, property):
        member = member.fget
    return inspect.getdoc(member), inspect.signature(member) if callable(member) else None


NAMES = [
    (pair, name)
    for pair in PAIRS
    for name in shared(*pair)
    if f"{pair[0].__name__}.{name}" not in MAY_DIFFER and name != "substitute"  # futures have it of dask's `TaskRef`
]


@pytest.mark.parametrize(("pair", "name"), NAMES, ids=lambda value: value if isinstance(value, str) else None)
def test_both_forms_say_the_same_of_themselves(pair: tuple[type, type], name: str) -> None:
    first, second = (getattr(one, name) for one in pair)
    doc, signature = told(first)
    other_doc, other_signature = told(second)
    assert doc
    assert doc == other_doc
    if signature is not None and other_signature is not None:
        parameters, others = (list(one.parameters.values()) for one in (signature, other_signature))
        if pair == (Client, AsyncClient) and name == "wait":
            others.insert(0, parameters[0])
        assert parameters == others
        assert signature.return_annotation in (
            other_signature.return_annotation,
            str(other_signature.return_annotation).removeprefix("Async"),
        )


@pytest.mark.parametrize(("pair", "name"), NAMES, ids=lambda value: value if isinstance(value, str) else None)
def test_a_form_is_named_after_its_class_and_waits_as_its_class_does(pair: tuple[type, type], name: str) -> None:
    for one, is_async in zip(pair, (False, True), strict=True):
        form = inspect.getattr_static(one, name)
        if hasattr(form, "make_form"):
            assert (form.__qualname__, form.__module__) == (f"{one.__qualname__}.{name}", one.__module__)
            # `get(sync=False)` gives futures, and nothing to await; those of coordination block in plain tasks.
            is_both = (pair, name) == (PAIRS[0], "get") or issubclass(one, Primitive)
            assert inspect.iscoroutinefunction(form) is (is_async and not is_both)
            assert next(iter(inspect.signature(form).parameters)) == "self"


def test_what_may_differ_does() -> None:
    for name in MAY_DIFFER:
        owner, method = name.split(".")
        first, second = next(pair for pair in PAIRS if pair[0].__name__ == owner)
        assert told(getattr(first, method)) != told(getattr(second, method)), f"{name} does not differ any more"


def test_what_is_no_method_of_both_is_described_alike() -> None:
    assert inspect.getdoc(trio_dask.wait) == inspect.getdoc(AsyncClient.wait)
    # Not their annotations: whoever has evaluated those of one, as pdoc does, finds them as objects from then on.
    waits, more, ours, theirs, plans = (
        [(one.name, one.kind, one.default) for one in inspect.signature(form).parameters.values()]
        for form in (trio_dask.wait, AsyncClient.wait, LocalCluster, open_local_cluster, plan)
    )
    assert waits == more
    assert ours[:-1] == theirs == plans
    assert ours[-1][:2] == ("foreign", inspect.Parameter.VAR_KEYWORD), "what distributed has besides is taken"
    assert inspect.getdoc(LocalCluster.__init__) == inspect.getdoc(open_local_cluster) == inspect.getdoc(plan)


def test_no_docstring_stands_twice() -> None:
    texts: dict[str, str] = {}
    for path in sorted((ROOT / "trio_dask").glob("client/*.py")):
        for text in re.findall(r'^ {4,8}"""(.{60,}?)"""', path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            assert texts.setdefault(text, path.name) == path.name, text


def test_a_call_does_what_its_definition_says_in_either_form() -> None:
    def _twice(owner: object, number: int = 2) -> Waiting[int]:
        """Twice the number."""
        return Done(2 * number)

    class Blocks(CallForms):
        twice = blocking(_twice)

    assert Blocks().twice() == 4
    assert Blocks().twice(number=4) == 8
    assert awaitable(_twice).__doc__ == "Twice the number."
    assert str(inspect.signature(Blocks.twice)) == "(self, number: 'int' = 2) -> 'int'"


async def test_a_call_that_blocks_refuses_in_an_event_loop_by_its_name() -> None:  # noqa: ASYNC124 - in a loop
    client = Client.__new__(Client)
    for call, name in ((lambda: client.who_has(), "Client.who_has"), (lambda: client.gather([]), "Client.gather")):
        with pytest.raises(RuntimeError, match=rf"^{name}\(\) blocks"):
            call()


ASK: dict[str, Callable[[Client], object]] = {  # written out: a bound method would keep its future
    "result": lambda client: client.submit(abs, -1, key="a").result(),
    "exception": lambda client: client.submit(abs, -1, key="a").exception(),
    "wait": lambda client: wait(client.submit(abs, -1, key="a")).not_done or None,
    "gather": lambda client: client.gather(client.submit(abs, -1, key="a")),
}


@pytest.mark.parametrize("ask", ASK)
def test_a_future_that_nobody_else_has_is_kept_while_it_is_waited_for(monkeypatch: Any, ask: str) -> None:
    cluster = MiniCluster(hold=True)
    with open_client(cluster) as client:
        really_block = client.engine.block

        def block(signal: Any, timeout_s: float | None) -> bool:
            monkeypatch.undo()
            client.nthreads()  # behind whatever the client has said before
            assert cluster.of_type(m.Release) == []
            cluster.from_thread(cluster.finish, "a")
            return bool(really_block(signal, timeout_s))

        monkeypatch.setattr(client.engine, "block", block)
        assert ASK[ask](client) == (1 if ask in ("result", "gather") else None)
