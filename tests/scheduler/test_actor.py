"""The handle of the scheduler's actor, with a stand-in for Ray whose actor never answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler import actor
from thinkstream_scheduler.config import SchedulerConfig
from thinkstream_scheduler.resources import ReplicaResources
from thinkstream_workers.config import ReplicaConfig

REDIS = RedisSettings("redis://127.0.0.1:1")
SETTINGS = actor.SchedulerSettings(
    SchedulerConfig(redis=REDIS), ReplicaConfig(redis=REDIS), ReplicaResources()
)


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_actor(name: str, *, namespace: str) -> Any:
        del name, namespace
        return SimpleNamespace(settings=SimpleNamespace(remote=object))

    def get(call: object, *, timeout: float) -> Any:
        raise GetTimeoutError

    def wait(calls: list[object], *, timeout: float) -> tuple[list[object], list[object]]:
        return [], calls

    monkeypatch.setattr(actor, "_ray", SimpleNamespace(get_actor=get_actor, get=get, wait=wait))


def test_one_that_does_not_answer_in_time_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "_CONTROL_TIMEOUT_S", 0.05)
    assert not actor.SchedulerHandle.lives(SETTINGS)


def test_the_wait_for_an_answer_can_be_ended() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        actor.SchedulerHandle.lives(SETTINGS, interrupt)
