"""Whether the end of a result is on the server's disk, so that no crash takes it back.

What ``WAITAOF`` says is not enough: of Valkey 9 with ``appendfsync everysec`` it was seen to confirm writes
that no sync had reached. So its word is taken with ``appendfsync always`` alone; else time tells.
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
    keys: Keys, ref: JobRef, num_tokens: int, server: ServerInfo, patience_s: float
) -> Operation[bool]:
    """Returns whether the end of a result, which has been read just now, is there and on disk.

    Args:
        keys: Names of the keys.
        ref: The job.
        num_tokens: Tokens of the whole result.
        server: The server, which keeps an append-only file.
        patience_s: How long a connection that was lost is tried again.

    Raises:
        ConfigError: The server never syncs.
        ServiceUnavailable: Nobody answered for ``patience_s``.
    """
    read_at_s = time.monotonic()
    policy = yield from _fsync_policy(keys, ref, patience_s)
    if policy == "no":
        raise ConfigError(
            f"this {server.name} leaves syncs to the system (appendfsync no): nothing can be confirmed"
        )
    if server.has_waitaof and not (yield from _is_confirmed(keys, ref, patience_s)):
        return False
    if policy != "always":
        passed_ms = round((time.monotonic() - read_at_s) * 1000)
        yield Sleep(max(0, _SYNCED_MS - passed_ms))
    # It is read again because Redis may have gone back before it was on disk.
    sealed = functions.read_results(keys, {ref: num_tokens}, block_ms=None, count=None)
    entries = (yield from ask(sealed, patience_s)).get(ref, [])
    return any(isinstance(entry, Terminal) for entry in entries)


def _is_confirmed(keys: Keys, ref: JobRef, patience_s: float) -> Operation[bool]:
    """Whether the server says that the end is on disk: the field that is written now lies behind it."""
    calls: tuple[Call[Any], ...] = (
        functions.confirm(keys, ref),
        functions.durable(keys.job(ref), timeout_ms=_WAITAOF_MS),
    )
    found, on_disk = yield from ask_many(calls, patience_s)
    for reply in (found, on_disk):
        if isinstance(reply, ThinkstreamError) and not isinstance(reply, JobNotFound):
            raise reply
    return on_disk is True


def _fsync_policy(keys: Keys, ref: JobRef, patience_s: float) -> Operation[str]:
    """When the server of a job syncs: ``always``, ``everysec`` or ``no``.

    Many servers do not say: their users may not ask, or they have no such command. Then it is ``everysec``,
    which nearly all of them are.
    """
    call = Call(("CONFIG", "GET", "appendfsync"), _policy, keys.job(ref))
    try:
        return (yield from ask(call, patience_s))
    except ServiceUnavailable:
        raise
    except ThinkstreamError:
        return "everysec"


def _policy(reply: Any) -> str:
    return reply[1].decode() if len(reply) == 2 else "everysec"
