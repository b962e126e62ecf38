from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.call_sites import CallSites
from tests.support.worker import hurry
from tests.support.world import World


@pytest.fixture
def world(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    hurry(monkeypatch)
    world = World(redis_url)
    yield world
    world.close()


@pytest.fixture
def sites(world: World, monkeypatch: pytest.MonkeyPatch) -> CallSites:
    return CallSites(monkeypatch, world.connection)
