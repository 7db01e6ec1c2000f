"""Objects that travel under a name: none is kept for ever."""

import pytest

from tests.protocol.kit import in_main
from trio_dask.protocol import pickled_names
from trio_dask.protocol.pickling import pickle_call


@pytest.mark.parametrize("slots", ["()", "('__weakref__',)"])
def test_named_objects_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch, slots: str) -> None:
    monkeypatch.setattr(pickled_names, "MOST_HELD", 10)
    names = in_main(f"class S:\n    __slots__ = {slots}\n    def __reduce__(self): return 'gone'")
    before = len(pickled_names._by_id)
    for _ in range(50):
        pickle_call((names["S"](),), {})
    assert len(pickled_names._by_id) <= before + 10
    assert len(pickled_names._by_name) == len(pickled_names._by_id)


def test_plain_objects_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(20):  # such as other tests leave
        pickled_names.reduce_sentinel(object())
    monkeypatch.setattr(pickled_names, "MOST_HELD", 10)
    names = {pickled_names.reduce_sentinel(object())[1] for _ in range(50)}
    assert len(names) == 50
    assert len(pickled_names._sentinels._things) <= 10
