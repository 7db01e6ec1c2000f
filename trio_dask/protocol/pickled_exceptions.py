"""Exceptions of tasks: described on the worker, raised again at the client.

An exception is a small graph: causes, contexts, members of groups, exceptions in attributes. Its description is a list
of nodes, each pickled by itself, so one bad exception spoils no other. A node keeps the exception's type if its pickle
loads again, which the worker tries; otherwise a `RemoteError` with its text replaces it. Nothing that a task can raise
makes `describe_exception` raise, and its effort and its result are bounded.
"""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any, NamedTuple, cast

from trio_dask.errors import RemoteError, TaskExited
from trio_dask.ids import Key
from trio_dask.protocol.pickled_values import ByReferencePickler, SharingPickler
from trio_dask.protocol.picklers import PICKLE_PROTOCOL, PICKLING_FAILURES, Chunks, type_name
from trio_dask.protocol.tracebacks import Frame, collect_frames, format_frames, has_source, rebuild_traceback

MAX_EXCEPTIONS = 50
MESSAGE_CHARACTERS = 10_000
PICKLE_BYTES = 1 << 18
TOTAL_PICKLE_BYTES = 1 << 20
TEXT_CHARACTERS = 200_000

_TRACEBACK = "Traceback (most recent call last):"
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"

# Raised again at the client, these would end the program, or something else that the task did not mean.
_EXITS = (SystemExit, KeyboardInterrupt, GeneratorExit)
_CANCELLATIONS = frozenset({"asyncio.exceptions.CancelledError", "trio.Cancelled"})


class _Node(NamedTuple):
    """One exception. `pickled` is None for a text twin; `cause`, `context` and `members` are positions of nodes."""

    pickled: bytes | None
    type_name: str
    message: str
    notes: tuple[str, ...]
    frames: tuple[Frame, ...]
    cause: int | None
    context: int | None
    suppress_context: bool
    members: tuple[int, ...]


_bare_name: Callable[[type[Any]], str] = type.__dict__["__name__"].__get__  # a metaclass may define another


def _cut(text: str) -> str:
    more = len(text) - MESSAGE_CHARACTERS
    return text if more <= 0 else f"{text[:MESSAGE_CHARACTERS]}... ({more} more characters)"


def _attempt(action: Callable[[], Any], otherwise: Any) -> Any:
    """The result of `action`, which runs the user's code on a broken object and may raise anything."""
    try:
        return action()
    except BaseException:  # the user's code may raise anything; `otherwise` replaces the result
        return otherwise


def _message(exc: BaseException) -> str:
    try:
        return _cut(str(exc))
    except BaseException as error:  # a user's __str__ may raise whatever it likes
        return f"<no message: its __str__ raised {type(error).__name__}>"


# ------------------------------------------------------------------------------------------------- one exception


class _Hooks:
    number_of: Callable[[BaseException], int | None]
    exception: BaseException

    def persistent_id(self, obj: Any, /) -> Any:
        if obj is self.exception or not issubclass(type(obj), BaseException):
            return None
        if (number := self.number_of(obj)) is None:
            raise pickle.PicklingError("too many exceptions")
        return number


class _ByReferencePickler(_Hooks, ByReferencePickler):
    pass


class _SharingPickler(_Hooks, SharingPickler):
    pass


class _ShortFile(Chunks):
    """Ends the pickling of an exception that is too large."""

    __slots__ = ()

    def write(self, data: bytes, /) -> None:
        if sum(map(len, self)) + len(data) > PICKLE_BYTES:
            raise pickle.PicklingError("too large")
        self.append(data)


class _Unpickler(pickle.Unpickler):
    exception_at: Callable[[int], BaseException]

    def persistent_load(self, pid: Any, /) -> BaseException:
        return self.exception_at(pid)


def _load(pickled: bytes, exception_at: Callable[[int], BaseException]) -> BaseException:
    unpickler = _Unpickler(BytesIO(pickled))
    unpickler.exception_at = exception_at
    loaded = unpickler.load()
    if not isinstance(loaded, BaseException) or isinstance(loaded, _EXITS):
        raise pickle.UnpicklingError("not an exception that may be raised")
    return loaded


def load_without_init(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Make an exception without its own `__init__`: call only that of its built-in base."""
    exc = cls.__new__(cls, *args)
    for base in cls.__mro__:
        initialize: Any = vars(base).get("__init__")
        if type(initialize) is WrapperDescriptorType:
            initialize(exc, *args)
            break
    if state:
        exc.__setstate__(state)
    return exc


def _shorten(value: Any) -> Any:
    return _cut(value) if type(value) is str else value


class _Describer:
    """Walks the graph of one exception, breadth first."""

    def __init__(self, exc: BaseException, skip_frames: int) -> None:
        self.found = [exc]
        self.numbers = {id(exc): 0}
        self.skip_frames = skip_frames

    def describe(self) -> list[_Node]:
        return [self.node(number, exc) for number, exc in enumerate(self.found)]

    def number_of(self, exc: Any) -> int | None:
        """The position of an exception's node, which the first call adds; None if there are too many."""
        if not issubclass(type(exc), BaseException):
            return None
        number = self.numbers.get(id(exc))
        if number is None and len(self.found) < MAX_EXCEPTIONS:
            number = self.numbers[id(exc)] = len(self.found)
            self.found.append(exc)
        return number

    def node(self, number: int, exc: BaseException) -> _Node:
        message = _message(exc)
        is_group = issubclass(type(exc), BaseExceptionGroup)
        members: list[Any] = _attempt(lambda: list(cast("Any", exc).exceptions), []) if is_group else []
        numbers = map(self.number_of, members)
        return _Node(
            pickled=_attempt(lambda: self.pickled(exc, message), None),
            type_name=_attempt(lambda: type_name(type(exc)), _bare_name(type(exc))),
            message=message,
            notes=_attempt(lambda: tuple(_cut(str(note)) for note in exc.__notes__[:MAX_EXCEPTIONS]), ()),
            frames=_attempt(lambda: collect_frames(exc.__traceback__, 0 if number else self.skip_frames), ()),
            cause=_attempt(lambda: self.number_of(exc.__cause__), None),
            context=_attempt(lambda: self.number_of(exc.__context__), None),
            suppress_context=_attempt(lambda: bool(exc.__suppress_context__), False),
            members=tuple(number for number in numbers if number is not None),
        )

    def pickled(self, exc: BaseException, message: str) -> bytes | None:
        """The pickle that keeps most of the exception: its type first, then its message."""
        if issubclass(type(exc), _EXITS):
            return self.dump(exc, _task_exited(exc))
        if type_name(type(exc)) in _CANCELLATIONS:
            return None
        best = None
        for candidate in _candidates(exc):
            if (pickled := self.dump(exc, candidate)) is None:
                continue
            try:
                loaded = _load(pickled, self.found.__getitem__)
            except BaseException:  # a user's __init__ or __setstate__, which would raise at the client as well
                continue
            if _message(loaded) == message:
                return pickled
            best = best or pickled
        return best

    def dump(self, exc: BaseException, candidate: Any) -> bytes | None:
        for pickler_type in (_ByReferencePickler, _SharingPickler):
            file = _ShortFile()
            pickler = pickler_type(file, PICKLE_PROTOCOL)
            pickler.exception = exc
            pickler.number_of = self.number_of
            try:
                pickler.dump(candidate)
            except BaseException:  # a user's __reduce__; the second pickler, or the text twin, may do better
                continue
            return file.take()
        return None


def _task_exited(exc: BaseException) -> TaskExited:
    code: Any = exc.code if isinstance(exc, SystemExit) else None
    return TaskExited(type(exc).__name__, _shorten(code if type(code) in (type(None), int, str) else repr(code)))


class _WithoutInit:
    """Pickled in the place of an exception, it loads as that exception."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return load_without_init, self.arguments


def _candidates(exc: BaseException) -> Iterator[Any]:
    """What to pickle for an exception, best first."""
    kind: Any = type(exc)
    if type(kind.__reduce__) is not MethodDescriptorType or kind.__reduce_ex__ is not object.__reduce_ex__:
        yield exc  # its class defines its own reduction
        return
    cls, args, *states = cast("tuple[Any, ...]", exc.__reduce__())
    state: dict[str, Any] = states[0] if states else {}
    short_args, short_state = tuple(map(_shorten, args)), {name: _shorten(value) for name, value in state.items()}
    if all(map(operator.is_, (*args, *state.values()), (*short_args, *short_state.values()))):
        yield exc
    yield _WithoutInit(cls, short_args, short_state)


# ------------------------------------------------------------------------------------------------- in words


def _headline(node: _Node) -> str:
    return f"{node.type_name}: {node.message}" if node.message else node.type_name


def _own_lines(node: _Node) -> Iterator[str]:
    if node.frames:
        yield _TRACEBACK
        yield from format_frames(node.frames)
    yield _headline(node)
    yield from node.notes


def _lines(nodes: list[_Node], number: int, seen: set[int]) -> Iterator[str]:
    """As Python prints it: the earliest exception first."""
    seen.add(number)
    node = nodes[number]
    for earlier, sentence in ((node.cause, _CAUSE), (None if node.suppress_context else node.context, _CONTEXT)):
        if earlier is not None and earlier not in seen:
            yield from _lines(nodes, earlier, seen)
            yield from ("", sentence, "")
            break
    yield from _own_lines(node)
    for member in node.members:
        if member not in seen:
            yield f"  +- exception {node.members.index(member) + 1} of {len(node.members)}"
            yield from (f"  | {line}" for line in _lines(nodes, member, seen))


def _text(nodes: list[_Node]) -> str:
    text = "\n".join([_headline(nodes[0]), "", *_lines(nodes, 0, set())])
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}\n..."


def sendable(text: str) -> str:
    """The text, with escapes for what UTF-8 cannot encode (halves of surrogate pairs)."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def describe_exception(exc: BaseException, skip_frames: int = 0) -> tuple[bytes | None, str]:
    """What a task raised, as bytes for `rebuild_exception` and as text for people. Never raises.

    The text begins with the qualified type and the message. After an empty line the traceback follows, without its
    first `skip_frames` frames and without those of this package that called the user's code.
    """
    try:
        nodes = _Describer(exc, skip_frames).describe()
        text = sendable(_text(nodes))
        spent = 0
        for number, node in enumerate(nodes):
            spent += len(node.pickled or b"")
            if spent > TOTAL_PICKLE_BYTES:
                nodes[number] = node._replace(pickled=None)
        return pickle.dumps([tuple(node) for node in nodes], PICKLE_PROTOCOL), text
    except BaseException as error:  # the user's code raised it, and nothing that a task does may end the worker
        return None, sendable(f"{_bare_name(type(exc))}: <cannot be described: {type(error).__name__}>")


# ------------------------------------------------------------------------------------------------- raised again


class _Rebuilder:
    def __init__(self, nodes: list[_Node]) -> None:
        self.nodes = nodes
        self.made: dict[int, BaseException] = {}
        self.under_way: set[int] = set()

    def exception_at(self, number: int) -> BaseException:
        if number in self.made:
            return self.made[number]
        node = self.nodes[number]
        loaded = self.load(number, node)
        exc = _twin(node) if loaded is None else loaded  # not `or`: a user's exception may be falsy
        self.made[number] = exc
        exc.__traceback__ = _attempt(partial(rebuild_traceback, node.frames), None)
        return exc

    def load(self, number: int, node: _Node) -> BaseException | None:
        if node.pickled is None or number in self.under_way:
            return None
        self.under_way.add(number)
        try:
            return _load(node.pickled, self.exception_at)
        except PICKLING_FAILURES:  # its class is not here, or does not load here
            return None
        finally:
            self.under_way.discard(number)

    def rebuild(self) -> BaseException:
        for number, node in enumerate(self.nodes):
            exc = self.exception_at(number)
            exc.__cause__ = None if node.cause is None else self.exception_at(node.cause)
            exc.__context__ = None if node.context is None else self.exception_at(node.context)
            exc.__suppress_context__ = node.suppress_context
        return self.made[0]


def _twin(node: _Node) -> RemoteError:
    twin = RemoteError(node.type_name, node.message, "\n".join(_own_lines(node)))
    for note in node.notes:
        twin.add_note(note)
    return twin


def _from_text(text: str) -> RemoteError:
    head, separator, rest = text.partition(f"\n\n{_TRACEBACK}")
    name, _, message = head.rstrip().partition(": ")
    return RemoteError(name, message, (separator + rest).strip())


def rebuild_exception(error: bytes | None, text: str, *, key: Key, worker: str, attempt: int) -> BaseException:
    """The exception that `describe_exception` described, for raising it here.

    It has the type, the message and the traceback of the original, and a note that names task, worker and attempt. If
    its type is not available here, it is a `RemoteError`. If this machine lacks the source lines, a note has the
    traceback as text.
    """
    exc, complete = _rebuilt(error, text)
    notes = [f"in task {key!r} on worker {worker}, attempt {attempt}"]
    if not complete:
        notes.append(f"remote traceback, because its source is not available here:\n{text}")
    for note in notes:
        _attempt(partial(exc.add_note, note), None)
    return exc


def load_exception(error: bytes | None, text: str) -> BaseException:
    """The same without notes, as for what another process of this machine has described."""
    return _rebuilt(error, text)[0]


def _rebuilt(error: bytes | None, text: str) -> tuple[BaseException, bool]:
    """The exception, and whether this machine has all source lines of its traceback."""
    try:
        rows = [_Node(*fields) for fields in pickle.loads(error or b"")]
        nodes = [node._replace(frames=tuple(Frame(*frame) for frame in node.frames)) for node in rows]
        exc = _Rebuilder(nodes).rebuild()
        complete = all(has_source(node.frames) for node in nodes)
    except PICKLING_FAILURES:  # there is none, or it is not one of ours
        exc = _from_text(text)
        complete = False
    return exc, complete
