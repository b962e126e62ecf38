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


def test_whoever_brings_another_model_is_told_both_names_and_what_to_do(queue: Queue) -> None:
    queue.run(functions.meta_claim(KEYS))
    queue.run(functions.meta_claim(KEYS, model_digest="m1", tokenizer_digest="t", model="demo"))
    with pytest.raises(ConfigError, match=r"namespace ts serves demo, not /models/big: .* --namespace NAME"):
        queue.run(functions.meta_claim(KEYS, model_digest="m2", tokenizer_digest="t", model="/models/big"))
    with pytest.raises(ConfigError, match=r"serves demo as it was before its files changed: .* --namespace"):
        queue.run(functions.meta_claim(KEYS, model_digest="m1", tokenizer_digest="t2", model="demo"))
    # The same files under another path are the same model.
    queue.run(functions.meta_claim(KEYS, model_digest="m1", tokenizer_digest="t", model="/a/copy"))
    with pytest.raises(ConfigError, match="serves demo, not x"):
        queue.run(functions.meta_claim(KEYS, model_digest="m3", tokenizer_digest="t", model="x"))
