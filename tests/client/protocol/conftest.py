from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.queue import Queue


@pytest.fixture
def queue(any_redis_url: str) -> Iterator[Queue]:
    """Each kind of server, emptied."""
    queue = Queue(any_redis_url)
    yield queue
    queue.raw.close()
