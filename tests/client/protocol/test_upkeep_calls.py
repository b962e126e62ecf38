"""What a namespace is for, on both servers."""

from __future__ import annotations

import pytest
from tests.support.queue import KEYS, Queue

from thinkstream_client.errors import ConfigError
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.settings import RedisSettings


def test_meta_is_set_once(queue: Queue) -> None:
    assert queue.run(functions.meta_get(KEYS)) is None
    assert queue.run(functions.meta_claim(KEYS)).model_digest == ""
    assert queue.run(functions.meta_claim(KEYS, model_digest="m1")).model_digest == "m1"
    assert queue.run(functions.meta_claim(KEYS)).model_digest == "m1"
    with pytest.raises(ConfigError, match="model digest m1, this is m2"):
        queue.run(functions.meta_claim(KEYS, model_digest="m2"))
    with pytest.raises(ConfigError, match="partitions 1, this is 16"):
        queue.run(functions.meta_claim(Keys(num_partitions=16)))


def test_whoever_computes_otherwise_is_told_both_ways_and_what_to_do(queue: Queue) -> None:
    queue.run(functions.meta_claim(KEYS, arithmetic="float32 on cpu by plain torch"))
    queue.run(functions.meta_claim(KEYS, arithmetic="float32 on cpu by plain torch"))
    queue.run(functions.meta_claim(KEYS))
    told = r"arithmetic float32 on cpu .*, this is bfloat16 on cuda .*: .* --namespace NAME"
    with pytest.raises(ConfigError, match=told):
        queue.run(functions.meta_claim(KEYS, arithmetic="bfloat16 on cuda by our kernels"))


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


def test_the_context_is_whoever_s_claims_it_first(queue: Queue) -> None:
    assert queue.run(functions.context_get(KEYS)) is None
    assert queue.run(functions.context_claim(KEYS, 256)) == 256
    assert queue.run(functions.context_claim(KEYS, 512)) == 256
    assert queue.run(functions.context_get(KEYS)) == 256


CALLS: list[Call[object]] = [
    functions.meta_get(KEYS),
    functions.meta_claim(KEYS, model_digest="m2", tokenizer_digest="t", model="x"),
    functions.context_get(KEYS),
    functions.context_claim(KEYS, 1024),
]


@pytest.mark.parametrize("call", CALLS, ids=["get", "claim", "context_get", "context"])
def test_a_namespace_whose_meta_is_no_hash_is_nobodys(queue: Queue, call: Call[object]) -> None:
    """What it was set up for cannot be told: neither is it served as it is, nor taken by whoever comes."""
    queue.raw.set(KEYS.meta, "text")
    with pytest.raises(ConfigError, match=r"namespace ts: its key ts:meta is not the hash .* --namespace"):
        queue.run(call)
    assert queue.raw.get(KEYS.meta) == b"text"


def test_nobody_works_with_such_a_namespace(any_redis_url: str, queue: Queue) -> None:
    queue.raw.set(KEYS.meta, "text")
    settings = RedisSettings(any_redis_url)
    connection = Connection(settings)
    with pytest.raises(ConfigError, match="ts:meta"):
        settled(connection, settings)
    connection.close()


@pytest.mark.parametrize("value", [b"x", b"\xff", b"9" * 5000, b"0", b"-1", b"1.5"])
def test_a_meta_whose_numbers_are_none(any_redis_url: str, queue: Queue, value: bytes) -> None:
    fields = {"protocol": "1", "partitions": value, "max_context": value}
    queue.raw.hset(KEYS.meta, mapping=fields)
    with pytest.raises(ConfigError, match="max_context"):
        queue.run(functions.context_claim(KEYS, 1024))
    with pytest.raises(ConfigError, match="max_context"):
        queue.run(functions.context_get(KEYS))
    settings = RedisSettings(any_redis_url)
    connection = Connection(settings)
    with pytest.raises(ConfigError, match="partitions"):
        settled(connection, settings)
    connection.close()
