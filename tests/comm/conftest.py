"""Fixtures of this folder."""

import pytest
import trio

from tests.comm.kit import KINDS, MakePair, Pair, pair_of


@pytest.fixture(params=KINDS)
def make_pair(request: pytest.FixtureRequest, nursery: trio.Nursery) -> MakePair:
    """Makes two connected transports, of each kind in turn."""

    async def make() -> Pair:
        return await pair_of(request.param, nursery)

    return make
