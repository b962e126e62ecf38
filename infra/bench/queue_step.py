"""Tokens per second through `step`, against a bare function that only checks a length and appends.

Both run in the same server, in turns, with the same client code and the same bytes per token; the ratio
is the figure to look at, since both share two cores with their server.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable

from redis import Redis

from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

BARE_LIBRARY = """#!lua name=bench1
local function append(keys, argv)
  local codes = {}
  for i, key in ipairs(keys) do
    codes[i] = -1
    if redis.call('XLEN', key) == tonumber(argv[2 * i - 1]) then
      redis.call('XADD', key, argv[2 * i - 1] + 1 .. '-0', 't', argv[2 * i])
      codes[i] = 1
    end
  end
  return codes
end
redis.register_function('bench1_append', append)
"""


def measure_step(url: str, num_streams: int, *, num_rounds: int, steps_per_round: int) -> dict[str, float]:
    """Time rounds of `step` and of the bare function in turns.

    Returns:
        Median tokens per second of each, and the median of the paired ratios.
    """
    redis: Redis = Redis.from_url(url, protocol=2)
    redis.function_load(BARE_LIBRARY, replace=True)
    ours = _prepare_ours(url, num_streams)
    bare = _prepare_bare(redis, num_streams)
    ours_rates, bare_rates = list[float](), list[float]()
    for _ in range(num_rounds):
        for advance, rates in ((ours, ours_rates), (bare, bare_rates)):
            started_s = time.perf_counter()
            for _ in range(steps_per_round):
                advance()
            rates.append(num_streams * steps_per_round / (time.perf_counter() - started_s))
    return {
        "streams": num_streams,
        "step_tokens_per_s": statistics.median(ours_rates),
        "bare_tokens_per_s": statistics.median(bare_rates),
        "ratio": statistics.median(a / b for a, b in zip(ours_rates, bare_rates, strict=True)),
    }


def _prepare_ours(url: str, num_streams: int) -> Callable[[], None]:
    """Submit and claim the jobs; each call of the result publishes one token for every one of them."""
    keys, connection = Keys(), Connection(RedisSettings(url))
    session, nonce = SessionId("bench." + secrets.token_hex(4)), secrets.token_hex(8)
    connection.run(
        functions.hello(
            keys, 0, session, nonce, replica="bench", slots=num_streams, lease_ms=600_000, info={}
        )
    )
    for number in range(num_streams):
        ref = JobRef("bench", f"{session}-{number}")
        connection.run(functions.submit(keys, ref, Request(prompt="x")))
    claimed = connection.run(functions.claim(keys, 0, session, num_streams))
    lengths = {job.ref: 1 for job in claimed}
    entry = wire.encode_entry((1234,), 0x12345678, " word", None)

    def advance() -> None:
        rows = [functions.StepRow(ref, length, entry, 1, 1) for ref, length in lengths.items()]
        replies = connection.run(functions.step(keys, 0, session, nonce, rows))
        assert all(reply is functions.StepReply.OK for reply in replies)
        for ref in lengths:
            lengths[ref] += 1

    return advance


def _prepare_bare(redis: Redis, num_streams: int) -> Callable[[], None]:
    names = [f"bench:{{0}}:{secrets.token_hex(8)}" for _ in range(num_streams)]
    entry = wire.encode_entry((1234,), 0x12345678, " word", None)
    length = 0

    def advance() -> None:
        nonlocal length
        arguments = [argument for _ in names for argument in (length, entry)]
        redis.fcall("bench1_append", num_streams, *names, *arguments)
        length += 1

    return advance
