"""What a namespace is for, on both servers."""

from __future__ import annotations

import pytest
from tests.support.queue import KEYS, Queue

from thinkstream_client.errors import (
    ConfigError,
)
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions


def test_meta_is_set_once(queue: Queue) -> None:
    assert queue.run(functions.meta_get(KEYS)) is None
    assert queue.run(functions.meta_claim(KEYS)).model_digest == ""
    assert queue.run(functions.meta_claim(KEYS, model_digest="m1")).model_digest == "m1"
    assert queue.run(functions.meta_claim(KEYS)).model_digest == "m1"
    with pytest.raises(ConfigError, match="model digest m1, this is m2"):
        queue.run(functions.meta_claim(KEYS, model_digest="m2"))
    with pytest.raises(ConfigError, match="partitions 1, this is 16"):
        queue.run(functions.meta_claim(Keys(num_partitions=16)))
