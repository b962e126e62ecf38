"""The settings of a replica."""

from __future__ import annotations

from typing import Any

import pytest

from thinkstream_client.errors import ConfigError, InvalidRequest
from thinkstream_client.settings import RedisSettings
from thinkstream_workers.config import ReplicaConfig

REDIS = RedisSettings("redis://:secret@127.0.0.1:6379/0", "house")


def test_a_slot_is_a_sequence_and_steps_fit_the_device() -> None:
    config = ReplicaConfig(redis=REDIS, slots=8)
    assert config.namespace == "house"
    assert (config.engine.slots, config.engine.step_tokens) == (8, 512)
    assert ReplicaConfig(redis=REDIS, device="cuda").engine.step_tokens == 8_192
    assert ReplicaConfig(redis=REDIS, slots=600).engine.step_tokens == 600
    assert ReplicaConfig(redis=REDIS, step_tokens=64).engine.step_tokens == 64


def test_only_what_was_not_given_is_measured_and_only_on_a_cpu() -> None:
    assert ReplicaConfig(redis=REDIS).is_step_measured
    assert not ReplicaConfig(redis=REDIS, step_tokens=64).is_step_measured
    assert not ReplicaConfig(redis=REDIS, device="cuda").is_step_measured


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 0},
        {"slots": 10**30},
        {"lease_ms": 10},
        {"lease_ms": 86_400_001},
        {"max_context": 1},
        {"max_context": 10**30},
        {"slots": 32, "step_tokens": 31},
        {"step_tokens": 0},
        {"step_tokens": 10**30},
        {"kv_memory_bytes": 0},
        {"kv_memory_bytes": 10**30},
        {"num_threads": 0},
        {"num_threads": 10**30},
    ],
)
def test_values_outside_their_range_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{list(settings)[-1]}: got {list(settings.values())[-1]}"):
        ReplicaConfig(redis=REDIS, **settings)


@pytest.mark.parametrize("device", ["cuda:1", "cpu:0", "mps", "gpu", ""])
def test_a_device_is_one_that_an_actor_can_be_given(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: got '{device}', allowed: cpu or cuda"):
        ReplicaConfig(redis=REDIS, device=device)
    assert ReplicaConfig(redis=REDIS, device="cuda").is_on_gpu
    assert not ReplicaConfig(redis=REDIS, device="cpu").is_on_gpu


def test_the_name_may_be_part_of_a_key() -> None:
    with pytest.raises(InvalidRequest, match="name"):
        ReplicaConfig(redis=REDIS, name="a b")


def test_the_password_does_not_show() -> None:
    assert "secret" not in repr(ReplicaConfig(redis=REDIS))
