"""``result(confirm=True)`` on real servers: what it takes, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from tests.client.conftest import Worker

from thinkstream_client import Client, ConfigError, Job, ServiceUnavailable, ThinkstreamError

QUIET = ("on", ">pw", "~*", "&*", "+@all", "-config")


@pytest.fixture
def server(any_redis_url: str) -> Iterator[Any]:
    """A server with an append-only file, and a user that may not ask for its settings."""
    raw: Any
    with redis.Redis.from_url(any_redis_url) as raw:
        raw.config_set("appendonly", "yes")
        raw.execute_command("ACL", "SETUSER", "quiet", *QUIET)
        yield raw
        raw.config_set("appendonly", "no")
        raw.config_set("appendfsync", "everysec")
        raw.execute_command("ACL", "DELUSER", "quiet")


@pytest.fixture
def job(server: Any, any_redis_url: str, make_worker: type[Worker]) -> Iterator[Job]:
    """A job that has ended, of a user that may ask for nothing."""
    worker = make_worker(any_redis_url).start()
    with Client(any_redis_url.replace("//", "//quiet:pw@"), patience_s=2.5) as client:
        job = client.submit("Hello")
        assert job.text(timeout_s=20)
        yield job
    worker.close()


def test_a_given_time_holds(server: Any, job: Job, any_redis_url: str) -> None:
    with Client(any_redis_url) as client:
        began_s = time.monotonic()
        with pytest.raises(TimeoutError, match="not confirmed"):
            client.job(job.id).result(confirm=True, timeout_s=0.3)
        assert 0.2 < time.monotonic() - began_s < 1.5


@pytest.mark.parametrize("any_redis_url", ["valkey"], indirect=True)
@pytest.mark.parametrize("policy", ["always", "everysec"])
def test_a_server_that_syncs_need_not_say_so(server: Any, job: Job, policy: str) -> None:
    server.config_set("appendfsync", policy)
    began_s = time.monotonic()
    assert job.result(confirm=True, timeout_s=20).token_ids
    assert time.monotonic() - began_s > 2.0


def test_a_server_that_never_syncs_is_found_out(server: Any, job: Job, any_redis_url: str) -> None:
    server.config_set("appendfsync", "no")
    with Client(any_redis_url) as client, pytest.raises(ConfigError, match="appendfsync no"):
        client.job(job.id).result(confirm=True, timeout_s=20)
    has_waitaof = server.execute_command("COMMAND LIST", "FILTERBY", "PATTERN", "waitaof")
    kind: type[ThinkstreamError] = ServiceUnavailable if has_waitaof else ConfigError
    with pytest.raises(kind, match=r"appendfsync no|does not tell this user"):
        job.result(confirm=True)
