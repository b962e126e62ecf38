"""Whether the end of a result is on the server's disk, so that no crash takes it back.

``WAITAOF`` and the server's setting ``appendfsync`` tell it together. Under ``always`` what the first says
is so. Under ``everysec`` Valkey 9 was seen to confirm writes that no sync had reached, so time must pass too.
Under ``no`` it confirms nothing, by which a server is known that does not tell this user its setting.
"""

from __future__ import annotations

import time
from typing import Any

from thinkstream_client.errors import ConfigError, JobNotFound, ServiceUnavailable, ThinkstreamError
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.server_check import ServerInfo
from thinkstream_client.protocol.wire import Terminal
from thinkstream_client.records import JobRef

from .effects import Operation, Sleep, ask, ask_many

_WAITAOF_MS = 2_000
_SYNCED_MS = 2_500  # with `everysec` a sync is two seconds late at most


def is_durable(
    keys: Keys,
    ref: JobRef,
    num_tokens: int,
    server: ServerInfo,
    patience_s: float,
    end_s: float | None,
) -> Operation[bool]:
    """Returns once the end of a result, which has been read just now, is on disk; False if it is gone.

    Args:
        keys: Names of the keys.
        ref: The job.
        num_tokens: Tokens of the whole result.
        server: The server, which keeps an append-only file.
        patience_s: How long a connection that was lost is tried again, and a disk waited for.
        end_s: When to stop waiting, on the monotonic clock; None is never.

    Raises:
        ConfigError: The server never syncs, or nothing tells when it does.
        ServiceUnavailable: Nobody answered, or nothing was synced, for ``patience_s``.
        TimeoutError: It was not on disk by ``end_s``.
    """
    read_at_s = time.monotonic()
    policy = yield from _fsync_policy(keys, ref, _shorter_s(patience_s, end_s))
    if policy == "no":
        raise ConfigError(
            f"this {server.name} leaves syncs to the system (appendfsync no): nothing can be confirmed"
        )
    if server.has_waitaof:
        yield from _wait_for_sync(keys, ref, server, patience_s, end_s)
    elif policy is None:
        raise ConfigError(
            f"{server.name} {server.version} does not tell this user when it syncs: it must be 7.2 or later, "
            "or let the user ask by CONFIG GET"
        )
    if policy != "always":
        yield from _pause_until(read_at_s + _SYNCED_MS / 1000, ref, end_s)
    # It is read again because Redis may have gone back before it was on disk.
    sealed = functions.read_results(keys, {ref: num_tokens}, block_ms=None, count=None)
    entries = (yield from ask(sealed, _shorter_s(patience_s, end_s))).get(ref, [])
    return any(isinstance(entry, Terminal) for entry in entries)


def _wait_for_sync(
    keys: Keys, ref: JobRef, server: ServerInfo, patience_s: float, end_s: float | None
) -> Operation[None]:
    """Returns when the server says that the end is on disk: the field that is written now lies behind it."""
    began_s = time.monotonic()
    while True:
        calls: tuple[Call[Any], ...] = (
            functions.confirm(keys, ref),
            functions.durable(keys.job(ref), timeout_ms=_waitaof_ms(ref, end_s)),
        )
        found, on_disk = yield from ask_many(calls, _shorter_s(patience_s, end_s))
        for reply in (found, on_disk):
            if isinstance(reply, ThinkstreamError) and not isinstance(reply, JobNotFound):
                raise reply
        if on_disk is True or isinstance(found, JobNotFound):
            return
        if time.monotonic() - began_s >= patience_s:
            raise ServiceUnavailable(
                f"this {server.name} has synced nothing for {patience_s:g} s: its disk does not follow, "
                "or it never syncs (appendfsync no)"
            )


def _pause_until(when_s: float, ref: JobRef, end_s: float | None) -> Operation[None]:
    """Lets time pass.

    Raises:
        TimeoutError: ``end_s`` came first.
    """
    last_s = when_s if end_s is None else min(when_s, end_s)
    yield Sleep(max(0, round((last_s - time.monotonic()) * 1000)))
    if last_s < when_s:
        raise _late(ref)


def _waitaof_ms(ref: JobRef, end_s: float | None) -> int:
    """How long to ask once, at least 1: 0 would be for ever.

    Raises:
        TimeoutError: ``end_s`` has come.
    """
    left_s = _shorter_s(_WAITAOF_MS / 1000, end_s)
    if left_s == 0:
        raise _late(ref)
    return max(1, round(left_s * 1000))


def _shorter_s(seconds: float, end_s: float | None) -> float:
    """A time, or what is left until ``end_s`` where that is less."""
    return seconds if end_s is None else max(0.0, min(seconds, end_s - time.monotonic()))


def _late(ref: JobRef) -> TimeoutError:
    return TimeoutError(f"job {ref.job_id}: its end was not confirmed in the given time")


def _fsync_policy(keys: Keys, ref: JobRef, patience_s: float) -> Operation[str | None]:
    """When the server of a job syncs: ``always``, ``everysec`` or ``no``; None where it does not say.

    Its user may not ask, or it has no such command.
    """
    call = Call(("CONFIG", "GET", "appendfsync"), _policy, keys.job(ref))
    try:
        return (yield from ask(call, patience_s))
    except ServiceUnavailable:
        raise
    except ThinkstreamError:
        return None


def _policy(reply: Any) -> str | None:
    return reply[1].decode() if len(reply) == 2 else None
