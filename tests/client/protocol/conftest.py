from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.partition import Partition
from tests.support.queue import Queue


@pytest.fixture
def queue(any_redis_url: str) -> Iterator[Queue]:
    """Each kind of server, emptied."""
    queue = Queue(any_redis_url)
    yield queue
    queue.raw.close()


@pytest.fixture
def partition(any_redis_url: str) -> Iterator[Partition]:
    """The same, for sessions that call the functions directly."""
    partition = Partition(any_redis_url)
    yield partition
    partition.close()
