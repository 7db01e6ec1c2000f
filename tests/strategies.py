"""Hypothesis strategies for whatever can travel, made from the annotations of the messages.

A message that these give is one that a well-behaved peer could send: it survives the codec unchanged.
"""

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Hello

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ATOMS = st.none() | st.booleans() | NUMBERS | FLOATS | TEXT | st.binary(max_size=20)

PLAIN = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(TEXT | st.integers(-9, 9), inner, max_size=3)
    ),
    max_leaves=8,
)
"""What may stand where a message admits `Any`."""

_BASES: Mapping[Any, st.SearchStrategy[Any]] = {
    Any: PLAIN,
    bool: st.booleans(),
    bytes: st.binary(max_size=40),
    float: FLOATS,
    int: NUMBERS,
    str: TEXT,
}


def from_annotation(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of the type that the annotation of a message's field names."""
    annotation = getattr(annotation, "__supertype__", annotation)
    if annotation in _BASES:
        return _BASES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        return st.one_of([st.none() if one is NoneType else from_annotation(one) for one in arguments])
    if origin is tuple and arguments[-1] is ...:
        return st.lists(from_annotation(arguments[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(from_annotation, arguments))
    if origin is Mapping:
        return st.dictionaries(TEXT, PLAIN, max_size=3)
    raise TypeError(f"no strategy for {annotation}")


def message_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Messages of one type."""
    hints = get_type_hints(kind)
    return st.tuples(*[from_annotation(hints[name]) for name in kind._fields]).map(lambda fields: kind(*fields))


def messages_of(union: UnionType) -> st.SearchStrategy[Any]:
    """Messages of one direction, such as `messages.FromWorker`."""
    return st.one_of([message_of(kind) for kind in get_args(union)])


FROM_CLIENT = messages_of(m.FromClient)
TO_CLIENT = messages_of(m.ToClient)
FROM_WORKER = messages_of(m.FromWorker)
TO_WORKER = messages_of(m.ToWorker)
ON_DATA_PLANE = messages_of(m.OnDataPlane)

PRINTABLE = TEXT.filter(str.isprintable)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
HELLOS = st.builds(
    Hello,
    role=st.sampled_from(["client", "worker", "data", "nanny", "control"]),
    incarnation=PRINTABLE,
    name=PRINTABLE,
    details=st.dictionaries(TEXT, JSON, max_size=3),
    protocol=st.integers(0, 9),
    package=PRINTABLE,
    python=st.sampled_from(["3.11", "3.12", "3.14"]),
    memory=PRINTABLE,
)
