"""What both clients share: calls that return at once, and the definitions of calls that wait for results."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, TypeVar, cast

from trio_dask.client.call_forms import CallForms, Done, ForCall, ForKeys, Timeout, Waiting
from trio_dask.client.client_description import ClientDescription
from trio_dask.client.collection_operations import CollectionOperations
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.core.outbox import NO_EXTRA, Content, Row
from trio_dask.client.dask_graphs import Constant, Plan, Reference, flat_keys, key_to_str, plan, shaped_like
from trio_dask.client.engine import Engine
from trio_dask.client.forked_clients import bind_to_process
from trio_dask.client.futures import BaseFuture, states_of
from trio_dask.client.garbage_collection import without_garbage_collection
from trio_dask.client.graph_sender import Lead, lead_of_call
from trio_dask.client.nested_futures import (
    futures_given,
    futures_in,
    leaves_out_failures,
    materialize,
    own_states,
    values_of,
    with_values,
)
from trio_dask.client.option_conflicts import unambiguous
from trio_dask.client.plain_graph_parts import PlainGraphParts
from trio_dask.client.scatter import ScatterItem, put_all, reshaped, scatter_items
from trio_dask.client.spans import span_here
from trio_dask.client.task_options import (
    Options,
    Workers,
    annotated,
    annotations_here,
    drop_ignored_options,
    extra_from,
    known_options,
    pop_forward,
    whole_number,
)
from trio_dask.client.wait_signals import ValueReader
from trio_dask.errors import DataLost, UsageError
from trio_dask.ids import Key
from trio_dask.parsing import checked_text
from trio_dask.protocol.pickling import PickledFunction, call_token, pickle_call, pickle_function
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH
from trio_dask.unsupported_names import CLIENT, unsupported_error

_logger = logging.getLogger("trio_dask.client")
F = TypeVar("F", bound=BaseFuture)

FIRST_CHUNK = 256
LARGEST_CHUNK = 4096
LARGE_KWARGS_BYTES = 1024
MOST_SHOWN = 5
IGNORED = frozenset(
    (
        *("connection_limit", "deserializers", "direct_to_workers", "extensions", "heartbeat_interval", "loop"),
        "serializers",
    )
)
"""Arguments of distributed's `Client` that mean nothing here."""
NOT_CALLABLE = "the first argument must be callable, not {}"


class BaseClient(CallForms, ClientDescription, CollectionOperations[F]):
    """Submits, and defines the calls of both clients that wait for results."""

    def __init__(self, engine: Engine, future_type: Callable[[Engine, KeyState], F], name: str | None) -> None:
        bind_to_process(engine)
        self.engine = engine
        """What drives this client."""
        self._future = future_type
        self.id: str = engine.incarnation
        self.name = name or f"client-{self.id[:8]}"

    if not TYPE_CHECKING:  # with it, a type checker would accept any name

        def __getattr__(self, name):
            raise unsupported_error(type(self).__name__, name, CLIENT)

    # ------------------------------------------------------------------------------------------------ submitting

    @unambiguous
    def submit(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        key: Hashable | None = None,
        pure: bool | None = True,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: SupportsFloat = 0,
        fifo_timeout: Any = None,
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        time_limit: Any = None,
        **kwargs: Any,
    ) -> F:
        """Run `func(*args, **kwargs)` in the cluster; returns at once with a future.

        Futures anywhere inside the arguments are replaced by their results. The same call has the same key and is
        computed once, unless it is not `pure`. An option for which the function has a parameter is refused:
        `functools.partial(func, time_limit=60)` binds the parameter.

        A call that is submitted again while a future of it is there is the same task, with the options of the first
        submission: those of later ones have no effect. `pure=False` or another `key` makes a task of its own.
        Where the call gives no option, that of a `dask.annotate` around it holds.

        Args:
          key: the name of the task, instead of one that is made from the call.
          workers: names, addresses or hosts of the workers that may run it.
          allow_other_workers: `workers` is only a preference.
          resources: what it needs of its worker, such as `{"GPU": 1}`.
          retries: how often it runs again if it raises.
          priority: any number, larger first.
          time_limit: seconds, or a text such as "5 min"; a task that runs longer fails with `TaskTimeout`.
          output: "forward" to have what it prints shown by the clients as well; another value is for `func`.
          actor: keep the object that `func`, often a class, makes, on its worker; the result is an `Actor` that calls
            it there. Each such call makes another object, unless it has the `key` of one.

        Raises:
          KeyConflict: `key` stands for another call already.
          UsageError: an option makes no sense, or may be meant for the function.
          SerializationError: the function or an argument cannot be pickled; the message says which.
          SchedulerLost: the scheduler is gone.
        """
        if actor or actors:
            actor, pure = True, False
        if not callable(func):
            raise TypeError(NOT_CALLABLE.format(type(func).__name__))
        function = pickle_function(func)
        output = pop_forward(kwargs) if kwargs else None
        here, around = span_here(), annotations_here()
        plain = workers is None and resources is None and time_limit is None and output is None
        if plain and not (around or retries or priority or allow_other_workers or actor):
            extra = NO_EXTRA if here is None else here.extra
        else:
            options: Options = {
                "workers": workers,
                "resources": resources,
                "retries": retries,
                "priority": priority,
                "allow_other_workers": allow_other_workers,
                "time_limit": time_limit,
                "actor": actor,
                "output": output,
            }
            extra = extra_from(annotated(options, around), here)
        call = pickle_call(args, kwargs)
        token = b""
        if key is not None:
            name = key_to_str(key)
            token = call_token(function.token, args, kwargs, call)
        elif pure or pure is None:
            name = f"{function.name}-{call_token(function.token, args, kwargs, call).hex()}"
        else:
            name = self._fresh_key(function.name)
        blobs = function.blobs + call.blobs
        row = Row(name, call.call, call.dependencies, tuple([digest for digest, _ in blobs]) if blobs else (), token)
        engine = self.engine
        return self._future(engine, engine.submit(function, (row,), blobs, extra)[0])

    @unambiguous
    def map(
        self,
        func: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        key: str | Iterable[Hashable] | None = None,
        pure: bool | None = True,
        batch_size: int | None = None,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: SupportsFloat = 0,
        fifo_timeout: Any = None,
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        time_limit: Any = None,
        **kwargs: Any,
    ) -> list[F]:
        """Run `func` on each element of an iterable, or on the elements of several in step, as `map` does.

        The function travels once. `key` is a prefix for the keys, or a list of them; `batch_size` says how many calls
        are sent at a time. All else is as in `submit`.
        """
        if actor or actors:
            actor, pure = True, False
        if not iterables:
            raise UsageError("map() needs something to map over")
        for iterable in iterables:
            if not _is_iterable(iterable):
                raise TypeError(
                    f"map() calls the function on each element of an iterable, and {iterable!r:.60} is none; "
                    "for one call use submit()"
                )
        if not callable(func):
            raise TypeError(NOT_CALLABLE.format(type(func).__name__))
        output = pop_forward(kwargs)
        func, kwargs = _with_large_kwargs(func, kwargs)
        function = pickle_function(func)
        options: Options = {
            "workers": workers,
            "resources": resources,
            "retries": retries,
            "priority": priority,
            "allow_other_workers": allow_other_workers,
            "time_limit": time_limit,
            "actor": actor,
            "output": output,
        }
        extra = extra_from(annotated(options, annotations_here()), span_here())
        keys: Iterator[Hashable] | None = None
        prefix = function.name
        if isinstance(key, str):
            prefix = checked_text("the key", key, MAX_KEY_LENGTH)
        elif key is not None:
            if not _is_iterable(key):
                raise UsageError(f"key is the beginning of all keys, a text, or a list of keys, not {key!r:.60}")
            keys = iter(key)
        arguments = zip(*iterables, strict=False)
        futures: list[F] = []
        engine, future = self.engine, self._future
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, 0, 2**31)
        size = batch_size or FIRST_CHUNK
        while batch := list(islice(arguments, size)):
            names: Iterable[Key | None] = repeat(None, len(batch))
            if keys is not None:
                names = [key_to_str(name) for name in islice(keys, len(batch))]
                if len(names) < len(batch):
                    raise UsageError("map() was given fewer keys than calls")
            calls = zip(names, batch, strict=True)
            rows, contents = self._rows(function, calls, kwargs, prefix, pure=pure is not False)
            futures += [future(engine, state) for state in engine.submit(function, rows, contents, extra)]
            size = batch_size or min(2 * size, LARGEST_CHUNK)
        return futures

    def _rows(
        self,
        function: PickledFunction,
        calls: Iterable[tuple[Key | None, tuple[Any, ...]]],
        kwargs: dict[str, Any],
        prefix: str = "",
        *,
        pure: bool = True,
    ) -> tuple[list[Row], list[Content]]:
        """Calls of one function, each after its key or None, as rows; and the blobs that they need."""
        rows: list[Row] = []
        contents: list[Content] = list(function.blobs)
        function_token = function.token
        function_blobs = tuple([digest for digest, _ in function.blobs])
        for key, args in calls:
            call = pickle_call(args, kwargs)
            blobs = function_blobs
            if call.blobs:
                contents += call.blobs
                blobs = (*blobs, *[digest for digest, _ in call.blobs])
            token = call_token(function_token, args, kwargs, call) if pure or key is not None else b""
            if key is None:
                key = f"{prefix}-{token.hex()}" if token else self._fresh_key(prefix)
                token = b""
            rows.append(Row(key, call.call, call.dependencies, blobs, token))
        return rows, contents

    def _fresh_key(self, name: str) -> Key:
        return f"{name}-{self.id}-{next(self.engine.serial):x}"

    # ------------------------------------------------------------------------------------------------ graphs

    @without_garbage_collection()
    def _submit_graph(
        self, graph: Mapping[Any, Any], outputs: Sequence[Hashable], options: Options, lead: Lead
    ) -> dict[Hashable, Any]:
        """Submit what the outputs need; for each output a future, or the value of one that is a constant.

        The client wants only the outputs; inner tasks are kept as long as these need them.
        """
        made: Plan = plan(graph, outputs)
        extra = extra_from(annotated(options, annotations_here()), span_here())
        engine = self.engine
        computed = dict.fromkeys(found.key for found in made.outputs.values() if isinstance(found, Reference))
        parts = PlainGraphParts(made.tasks, computed, extra)
        tokens = parts.tokens(engine.known(computed))
        states = engine.send_graph(tokens, parts, lead) if computed else []
        futures = {state.key: self._future(engine, state) for state in states}
        foreign = [key_to_str(key) for key, found in made.outputs.items() if found is None]
        for state in engine.adopt(foreign) if foreign else ():
            futures[state.key] = self._future(engine, state)
        return {
            key: found.value
            if isinstance(found, Constant)
            else futures[key_to_str(key) if found is None else found.key]
            for key, found in made.outputs.items()
        }

    def _refuse_unknown(self, graph: Mapping[Any, Any], found: Mapping[Hashable, Any]) -> None:
        """Raise for a key that exists nowhere: neither in the graph nor at the scheduler.

        Raises `KeyError`.
        """
        for key, future in found.items():
            if key not in graph and isinstance(future, BaseFuture) and future.status == "lost":
                known = ", ".join(repr(other) for other in islice(graph, MOST_SHOWN)) or "which is empty"
                more = ", ..." if len(graph) > MOST_SHOWN else ""
                raise KeyError(f"{key!r} is neither a key of the graph ({known}{more}) nor of a task at the scheduler")

    # ------------------------------------------------------------------------------------------------ results

    def _gather(
        self,
        futures: Any,
        errors: Literal["raise", "skip"] = "raise",
        direct: object = None,
        asynchronous: object = None,
    ) -> Waiting[Any]:
        """The results of futures, once they are there, in the same lists, tuples, sets and dicts.

        The first error is raised; with `errors="skip"` what failed is left out.
        """
        skip = leaves_out_failures(errors)
        futures = materialize(futures)
        engine = self.engine
        states = own_states(engine, list(futures_in(futures)))

        reader = ValueReader(len(states), stops_early=not skip)

        def finish(_: bool) -> Any:
            return with_values(futures, values_of(engine, reader, states, skip=skip))

        return ForKeys(engine, states, reader, finish, futures)

    def _get(self, dsk: Mapping[Any, Any], keys: Any, *, sync: bool = True, **options: Any) -> Waiting[Any]:
        """Compute keys of a plain graph (a dict of tasks), and return their values in the shape of `keys`.

        Without `sync` it does not wait, and futures stand in the place of values that have to be computed.

        Raises `KeyError` for a key that is neither in the graph nor at the scheduler.
        """
        if is_of_dask(dsk):
            from trio_dask.client.collections.collection_calls import futures_for

            outputs = flat_keys(keys)
            futures = futures_for(self.engine, self._future, dsk, outputs, known_options(options), annotations_here())
            found: dict[Hashable, Any] = dict(zip(outputs, futures, strict=True))
        else:
            lead = lead_of_call(waits=sync)
            found = self._submit_graph(dsk, flat_keys(keys), drop_ignored_options(options), lead)
        if not sync:
            return Done(shaped_like(keys, found))
        engine = self.engine
        states = own_states(engine, list(futures_in(found)))
        reader = ValueReader(len(states), stops_early=True)

        def finish(_: bool) -> Any:
            try:
                values = with_values(found, values_of(engine, reader, states, skip=False))
            except DataLost:
                if isinstance(dsk, Mapping):
                    self._refuse_unknown(dsk, found)
                raise
            return shaped_like(keys, values)

        return ForKeys(engine, states, reader, finish, found)

    def _scatter(
        self,
        data: Any,
        workers: Workers = None,
        broadcast: bool | int = False,
        direct: object = None,
        hash: bool = True,
        timeout: Timeout = None,
        asynchronous: object = None,
    ) -> Waiting[Any]:
        """Put values onto workers; futures in the shape of `data` (a list, tuple, set, dict, or a single value).

        Equal values have equal keys, unless `hash` is False. With `broadcast` every worker of `workers` (by default
        all) gets a copy, or, if it is a number, as many of them: the workers pass it on to each other. Scattered data
        cannot be computed again: with the last copy it is lost.
        """
        data = materialize(data)
        items = scatter_items(data, hashed=hash)
        futures = self._expected(items)
        engine, states = self.engine, [future.state for future in futures]

        async def put() -> Any:
            await put_all(engine, items, states, workers, broadcast)
            return reshaped(data, futures)

        return ForCall(engine, put, timeout=timeout, what="scatter()")

    # ------------------------------------------------------------------------------------------------ the rest

    def _sync(
        self,
        func: Callable[..., Awaitable[Any]],
        /,
        *args: Any,
        asynchronous: object = None,
        callback_timeout: Timeout = None,
        **kwargs: Any,
    ) -> Waiting[Any]:
        """Await `func(*args, **kwargs)` in the Trio loop of this client, and return what it returns.

        Raises `TimeoutError` when it takes longer than `callback_timeout`, and what `func` raises.
        """
        return ForCall(self.engine, partial(func, *args, **kwargs), timeout=callback_timeout, what="sync()")

    def _shutdown(self) -> Waiting[None]:
        """End the cluster, scheduler and workers, and close this client."""
        self.engine.shutdown()
        return _ForClose(self)

    def _expected(self, items: Sequence[ScatterItem]) -> list[F]:
        """Futures for values that this client is about to put onto workers."""
        states = self.engine.adopt([item.key for item in items], submitted=False)
        return [self._future(self.engine, state) for state in states]

    def cancel(
        self,
        futures: Any,
        asynchronous: object = None,
        force: bool = False,
        reason: str | None = None,
        msg: str | None = None,
    ) -> None:
        """Give up futures, and everything that depends on them. Their tasks stop unless other clients want them.

        With `force` they stop even then. The futures are cancelled at once.
        """
        self.engine.cancel(states_of(futures_given(futures, "cancel()")), force=force, text=msg or reason or "")

    def retry(self, futures: Any, asynchronous: object = None) -> None:
        """Run erred tasks again, beginning with the task that caused the failure."""
        self.engine.retry(states_of(futures_given(futures, "retry()")))

    def detach(self, futures: Any) -> None:
        """Have these tasks finish even if no client wants their results any more (`fire_and_forget`)."""
        self.engine.detach(states_of(futures_given(futures, "detach()")))

    def future(self, key: Hashable) -> F:
        """A future for the task of this key, which another client may have submitted."""
        return self._future(self.engine, self.engine.adopt([key_to_str(key)])[0])


@dataclass
class _ForClose:
    """Waits until a client is closed."""

    client: Any

    def block(self) -> None:
        self.client.close()

    async def wait(self) -> None:
        await self.client.close()


def is_of_dask(graph: Any) -> bool:
    """Whether this is an expression of dask, or a dict with tasks of its kind."""
    spec = sys.modules.get("dask._task_spec")
    if spec is None:
        return False
    if not isinstance(graph, Mapping):
        return hasattr(graph, "__dask_graph__")
    kinds = (spec.GraphNode, spec.TaskRef)
    values: Iterable[Any] = cast("Any", graph).values()
    return any(isinstance(value, kinds) for value in values)


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _with_large_kwargs(func: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Bind large keyword arguments to the function, so that they travel with it once, not with each call."""
    if kwargs:
        call = pickle_call((), kwargs)
        if (call.blobs or len(call.call) > LARGE_KWARGS_BYTES) and not call.dependencies:
            return partial(func, **kwargs), {}
    return func, kwargs
