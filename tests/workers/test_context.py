"""The context of a namespace: who sets it, when, and who keeps to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from thinkstream_client.errors import ConfigError, ServiceUnavailable
from thinkstream_client.protocol import functions
from thinkstream_client.records import Request, SamplingParams
from thinkstream_workers.warm_up import WarmUp

if TYPE_CHECKING:
    from tests.workers.conftest import Result, Service, Start


def only_result(service: Service, start: Start, num_prompt_ids: int, **settings: int) -> Result:
    """What a replica answers to a prompt that is ended by the context alone."""
    replica = start(**settings)
    request = Request(token_ids=(1,) * num_prompt_ids, sampling=SamplingParams(ignore_eos=True))
    ref = service.submit_request("job", request)
    replica.assign(service.claim(replica.session))
    return service.wait_finish(ref)


def test_all_replicas_of_a_namespace_serve_one_context(service: Service, start: Start) -> None:
    start("first", max_context=256)
    with pytest.raises(
        ConfigError, match=r"context of 256 tokens, this replica one of 128: .*--max-context 256"
    ):
        start("small", kv_memory_bytes=128 * 256)
    with pytest.raises(ConfigError, match="context of 256 tokens, this replica one of 512"):
        start("greedy", max_context=512)
    assert len(only_result(service, start, 250).ids) == 6


def test_the_shortest_context_is_served(service: Service, start: Start) -> None:
    assert len(only_result(service, start, 1, max_context=2).ids) == 1


def test_a_start_that_fails_leaves_the_context_open(
    service: Service, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(warm_up: WarmUp) -> None:
        raise ServiceUnavailable("the engine's first step failed")

    with monkeypatch.context() as patch:
        patch.setattr(WarmUp, "run", fail)
        with pytest.raises(ServiceUnavailable, match="first step failed"):
            start("failing", max_context=256)
    start("whole")
    with pytest.raises(ConfigError, match="context of 512 tokens"):
        start("half", max_context=256)


def set_context_meanwhile(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another replica sets a context of 256 while ours warms up."""
    warm_up = WarmUp.run

    def meanwhile(other: WarmUp) -> None:
        warm_up(other)
        service.connection.run(functions.context_claim(service.keys, 256))

    monkeypatch.setattr(WarmUp, "run", meanwhile)


def test_of_replicas_that_start_together_one_sets_the_context(
    service: Service, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_context_meanwhile(service, monkeypatch)
    assert len(only_result(service, start, 250).ids) == 6


def test_a_replica_that_finds_another_context_set_meanwhile_does_not_serve(
    service: Service, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_context_meanwhile(service, monkeypatch)
    with pytest.raises(ConfigError, match=r"context of 256 tokens, this replica one of 128: "):
        start("small", max_context=128)
    assert service.connection.run(functions.sessions(service.keys, 0)) == []
