"""When a result counts as being on disk, without a server: a few lines answer what is asked."""

from __future__ import annotations

import time
from typing import Any

import pytest

from thinkstream_client.core.durability import is_durable
from thinkstream_client.core.effects import Effect, Pipeline, Sleep
from thinkstream_client.errors import (
    CommandRefused,
    ConfigError,
    JobNotFound,
    ServiceUnavailable,
    ThinkstreamError,
)
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason
from thinkstream_client.protocol.server_check import ServerInfo
from thinkstream_client.protocol.wire import RawEntry, Terminal
from thinkstream_client.records import JobRef

REF = JobRef("default", "job")
END = Terminal(finish=Finish(reason=FinishReason.STOP, num_tokens=3))
VALKEY = ServerInfo(name="Valkey", version="9.1.0", append_only=True)
REDIS = ServerInfo(name="Redis", version="7.0.15", append_only=True)


class Server:
    """Answers what is asked; ``asked`` names the commands and ``slept_ms`` the pauses."""

    def __init__(self, policy: str | ThinkstreamError, entries: list[RawEntry]) -> None:
        self.policy, self.entries = policy, entries
        self.waited_ms: list[int] = []
        self.before: list[list[Any]] = []
        self.confirmed: list[Any] = [None, True]
        self.asked: list[object] = []
        self.slept_ms: list[int] = []

    def run(self, server: ServerInfo, *, timeout_s: float | None = None, patience_s: float = 0.0) -> bool:
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        operation = is_durable(Keys(), REF, 3, server, patience_s, end_s)
        reply: Any = None
        try:
            while True:
                effect = operation.send(reply)
                reply = self._answer(effect)
                if isinstance(reply, ThinkstreamError):
                    effect = operation.throw(reply)
                    reply = self._answer(effect)
        except StopIteration as end:
            return bool(end.value)

    def _answer(self, effect: Effect) -> Any:
        match effect:
            case Sleep(ms):
                self.slept_ms.append(ms)
                return None
            case Pipeline(calls):
                self.asked += [call.args[0] for call in calls]
                self.waited_ms.append(int(calls[-1].args[-1]))
                return self.before.pop(0) if self.before else self.confirmed
            case _:
                call: Any = effect
                self.asked.append(call.args[0])
                if call.args[0] != "CONFIG":
                    return {REF: self.entries} if self.entries else {}
                if isinstance(self.policy, ThinkstreamError):
                    return self.policy
                return call.parse([b"appendfsync", self.policy.encode()])


def test_always_takes_the_server_s_word() -> None:
    server = Server("always", [END])
    assert server.run(VALKEY)
    assert server.asked == ["CONFIG", "FCALL", "WAITAOF", "XREAD"]
    assert server.slept_ms == []


SILENT = [ConfigError("NOPERM this user has no permissions"), CommandRefused("ERR no such command")]


@pytest.mark.parametrize("policy", ["everysec", *SILENT])
def test_else_the_end_must_be_older_than_two_seconds(policy: str | ThinkstreamError) -> None:
    server = Server(policy, [END])
    assert server.run(VALKEY)
    assert server.asked == ["CONFIG", "FCALL", "WAITAOF", "XREAD"]
    (slept_ms,) = server.slept_ms
    assert 2_000 < slept_ms <= 2_500


@pytest.mark.parametrize(("policy", "num_sleeps"), [("always", 0), ("everysec", 1)])
def test_a_server_without_waitaof(policy: str, num_sleeps: int) -> None:
    server = Server(policy, [END])
    assert server.run(REDIS)
    assert server.asked == ["CONFIG", "XREAD"]
    assert len(server.slept_ms) == num_sleeps


@pytest.mark.parametrize("policy", ["always", "everysec"])
def test_an_end_that_is_gone_is_not_durable(policy: str) -> None:
    assert not Server(policy, []).run(VALKEY)


@pytest.mark.parametrize("policy", SILENT)
def test_nothing_is_confirmed_where_nothing_tells_when_it_is_synced(policy: ThinkstreamError) -> None:
    with pytest.raises(ConfigError, match=r"Redis 7\.0\.15 does not tell .* CONFIG GET"):
        Server(policy, [END]).run(REDIS)


@pytest.mark.parametrize("policy", ["everysec", "always", *SILENT])
def test_a_server_that_syncs_nothing_is_given_up(policy: str | ThinkstreamError) -> None:
    server = Server(policy, [END])
    server.confirmed = [None, False]  # what it says under `appendfsync no`
    with pytest.raises(ServiceUnavailable, match=r"synced nothing .* \(appendfsync no\)"):
        server.run(VALKEY)


def test_a_disk_is_waited_for() -> None:
    server = Server("always", [END])
    server.before = [[None, False]]
    assert server.run(VALKEY, patience_s=5.0)
    assert server.asked.count("WAITAOF") == 2


def test_a_job_that_is_gone_is_not_durable() -> None:
    server = Server("always", [])
    for server.confirmed in ([JobNotFound(REF.job_id), True], [JobNotFound(REF.job_id), False]):
        assert not server.run(VALKEY)
    server.confirmed = [None, ConfigError("appendonly is disabled")]
    with pytest.raises(ConfigError, match="appendonly"):
        server.run(VALKEY)


@pytest.mark.parametrize("server_info", [VALKEY, REDIS])
def test_a_given_time_ends_the_wait(server_info: ServerInfo) -> None:
    server = Server("everysec", [END])
    with pytest.raises(TimeoutError, match="not confirmed"):
        server.run(server_info, timeout_s=0.3)
    assert sum(server.slept_ms) <= 300 and all(0 < ms <= 300 for ms in server.waited_ms)
    with pytest.raises(TimeoutError):
        server.run(VALKEY, timeout_s=0.0)


def test_a_server_that_never_syncs_confirms_nothing() -> None:
    with pytest.raises(ConfigError, match="appendfsync no"):
        Server("no", [END]).run(VALKEY)
