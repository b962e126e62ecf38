from __future__ import annotations

from typing import Any

import pytest

from thinkstream_client.errors import ConfigError
from thinkstream_workers.engine_config import EngineConfig


def test_the_defaults_are_valid() -> None:
    assert EngineConfig().step_tokens >= EngineConfig().slots


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slots": 0}, r"slots: got 0, allowed: an integer in \[1, 4096\]"),
        ({"slots": True}, r"slots: got True, allowed: an integer in \[1, 4096\]"),
        ({"slots": 8, "step_tokens": 7}, r"step_tokens: got 7, allowed: an integer in \[8, "),
        ({"block_size": 0}, "block_size: got 0"),
        ({"num_blocks": 0}, "num_blocks: got 0"),
        ({"kv_memory_bytes": 1.5}, r"kv_memory_bytes: got 1\.5"),
        ({"max_context": 1}, r"max_context: got 1, allowed: an integer in \[2, "),
        ({"slots": 4_097, "step_tokens": 8_192}, "slots: got 4097"),
        ({"step_tokens": 10**30}, "step_tokens: got 10{30}, "),
        ({"block_size": 10**30}, "block_size: got 10{30}, "),
        ({"num_blocks": 10**30}, "num_blocks: got 10{30}, "),
        ({"kv_memory_bytes": 10**30}, "kv_memory_bytes: got 10{30}, "),
        ({"max_context": 10**30}, "max_context: got 10{30}, "),
        ({"num_blocks": 8, "kv_memory_bytes": 1}, "kv_memory_bytes: got 1 beside num_blocks 8"),
    ],
)
def test_names_field_value_and_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**fields)
