from __future__ import annotations

import pytest

from thinkstream_client.errors import ConfigError
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.config import SchedulerConfig

REDIS = RedisSettings(url="redis://localhost")


@pytest.mark.parametrize(
    ("field", "value"), [("num_replicas", -1), ("wake_ms", 5_000), ("sweep_ms", 0), ("max_claim", True)]
)
def test_a_value_outside_its_range_is_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: got {value!r}, allowed: an integer in \["):
        SchedulerConfig(redis=REDIS, **{field: value})


def test_the_waits_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match="restart_min_ms: got 2000"):
        SchedulerConfig(redis=REDIS, restart_min_ms=2_000, restart_max_ms=1_000)


def test_every_scheduler_holds_replicas_of_the_same_names() -> None:
    config = SchedulerConfig(redis=REDIS, num_replicas=2)
    assert config.replica_names == ("replica-0", "replica-1")
