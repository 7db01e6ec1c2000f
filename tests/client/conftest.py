"""Clients of a mini cluster, for the tests of this folder."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.client.cluster import MiniCluster, open_async_client, open_client
from trio_dask import AsyncClient, Client


@pytest.fixture
def cluster() -> MiniCluster:
    return MiniCluster()


@pytest.fixture
def client(cluster: MiniCluster) -> Iterator[Client]:
    with open_client(cluster) as client:
        yield client


@pytest.fixture
async def async_client(cluster: MiniCluster) -> AsyncIterator[AsyncClient]:
    async with open_async_client(cluster) as client:
        yield client
