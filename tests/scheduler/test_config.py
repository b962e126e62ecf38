from __future__ import annotations

from typing import Any

import pytest

from thinkstream_client.errors import ConfigError
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.config import SchedulerConfig, ray_namespace

REDIS = RedisSettings(url="redis://localhost")


@pytest.mark.parametrize(
    ("field", "value"), [("num_replicas", -1), ("wake_ms", 5_000), ("sweep_ms", 0), ("max_claim", True)]
)
def test_a_value_outside_its_range_is_named(field: str, value: int) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(ConfigError, match=rf"{field}: got {value!r}, allowed: an integer in \["):
        SchedulerConfig(redis=REDIS, **settings)


def test_the_waits_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match="restart_min_ms: got 2000"):
        SchedulerConfig(redis=REDIS, restart_min_ms=2_000, restart_max_ms=1_000)


def test_every_scheduler_holds_replicas_of_the_same_names() -> None:
    config = SchedulerConfig(redis=REDIS, num_replicas=2)
    assert config.replica_names == ("replica-0", "replica-1")


def test_services_on_one_namespace_have_names_of_their_own() -> None:
    config = SchedulerConfig(redis=REDIS, service_id="f00d")
    assert config.replica_names == ("replica-0-f00d",)
    names = {ray_namespace(REDIS), ray_namespace(REDIS, "f00d"), ray_namespace(REDIS, "beef")}
    assert len(names) == 3
    other_server = RedisSettings(url="redis://elsewhere")
    assert ray_namespace(other_server, "f00d") not in names
