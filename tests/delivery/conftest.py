from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.worker import hurry
from tests.support.world import World


@pytest.fixture
def world(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    hurry(monkeypatch)
    world = World(redis_url)
    yield world
    world.close()
