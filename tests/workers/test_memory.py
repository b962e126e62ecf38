"""A server without memory: decoding pauses, nothing is dropped, and all goes on when there is room again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import torch

from thinkstream_client.errors import QueueFull
from thinkstream_client.outcome import FinishReason, JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.wire import Marker
from thinkstream_workers.replica import Replica

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.workers.conftest import Service

SHAPE = {
    "vocab_size": 272,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
NUM_JOBS, NUM_TOKENS = 6, 400


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as server:
        yield server
        server.config_set("maxmemory", 0)


@pytest.fixture
def replica(service: Service, tmp_path: Path) -> Iterator[Replica]:
    torch.set_num_threads(1)
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    config = service.config(model=f"random:{tmp_path / 'config.json'}", lease_ms=1_000)
    replica = Replica(config, on_death=lambda error: None)
    replica.start()
    yield replica
    replica.stop()


def test_decoding_pauses_while_redis_is_full(
    service: Service, replica: Replica, server: Any, wait_until: Callable[..., None]
) -> None:
    settings: dict[str, Any] = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 1.0, "seed": 3}
    first = service.submit("first", **settings)
    refs = [service.submit(f"job-{number}", **settings) for number in range(NUM_JOBS)]
    cancelled = service.submit("cancelled", **settings)
    replica.assign(service.claim(replica.session))
    everyone = [first, *refs, cancelled]
    wait_until(lambda: all(len(service.result(ref).ids) >= 20 for ref in everyone))

    server.config_set("maxmemory", 1)
    with pytest.raises(QueueFull, match="memory") as refused:
        service.submit("refused")
    assert refused.value.retry_ms > 0
    threading.Event().wait(0.2)  # a step that was under way ends
    held = [service.result(ref).ids for ref in everyone]
    assert all(20 <= len(ids) < NUM_TOKENS for ids in held), "stopped too late to show anything"
    time.sleep(2.5)  # longer than two leases
    assert [service.result(ref).ids for ref in everyone] == held, "tokens came although there was no room"
    assert {service.info(ref).status for ref in refs} == {JobStatus.RUNNING}
    assert {service.info(ref).owner for ref in refs} == {replica.session}, "the lease was kept"
    assert service.connection.run(functions.cancel(service.keys, cancelled)) is JobStatus.CANCELLED

    server.config_set("maxmemory", 0)
    for ref in [first, *refs]:
        result = service.wait_finish(ref)
        assert result.finish is not None
        assert result.finish.reason is FinishReason.LENGTH
        assert sum(isinstance(entry, Marker) for entry in result.raw) == 1, "nobody else had to take it over"
        assert len(result.ids) == NUM_TOKENS
        assert result.ids == service.result(first).ids
    assert service.result(cancelled).ids == held[-1]
    wait_until(lambda: service.connection.run(functions.sessions(service.keys, 0))[0].owned == 0)
