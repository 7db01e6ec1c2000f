"""Fixtures of this folder."""

from collections.abc import Iterator

import pytest

from tests.worker.kit import Gate, gates


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Iterator[Gate]:
    name = request.node.name
    gates[name] = Gate(name)
    yield gates[name]
    gates.pop(name).open.set()
