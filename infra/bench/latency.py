"""From the Publisher's hands to the client's: latency of live streams, and tokens per second with readers.

    python -m infra.bench.latency

A replica whose Thinker costs nothing publishes in one process, a client follows all streams in another. The
text of each token is the time at which the Publisher took it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from thinkstream_client import AsyncClient, Request, SamplingParams
from thinkstream_client.aio_job import AsyncJob
from thinkstream_scheduler.embedded import EmbeddedServer

from .free_replica import free_replica

TOKENS_PER_STREAM = 300
STEP_S = 0.1
"""Ten tokens per second and stream: what a large model gives a reader of a full batch."""
NUM_WARM_UP = 10


async def _follow(job: AsyncJob, latencies_ms: list[float]) -> int:
    num_tokens = 0
    async for chunk in job.stream():
        now_ns = time.monotonic_ns()
        stamps = [int(stamp) for stamp in chunk.text.split()]
        if num_tokens >= NUM_WARM_UP:
            latencies_ms.extend((now_ns - stamp) / 1e6 for stamp in stamps)
        num_tokens += len(chunk.token_ids)
    return num_tokens


async def follow_all(url: str, num_streams: int, num_tokens: int) -> tuple[list[float], float]:
    """Follow so many jobs.

    Returns:
        Latency of every token in milliseconds, sorted, and tokens per second over all streams.
    """
    latencies_ms: list[float] = []
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    async with AsyncClient(url) as client:
        jobs = await client.submit_many([Request(prompt="x", sampling=sampling)] * num_streams)
        started_s = time.perf_counter()
        counts = await asyncio.gather(*(_follow(job, latencies_ms) for job in jobs))
        took_s = time.perf_counter() - started_s
    return sorted(latencies_ms), sum(counts) / took_s


def measure_latency(url: str, num_streams: int) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds at ten tokens per second and stream."""
    with free_replica(url, step_s=STEP_S, stamped=True):
        latencies_ms, _ = asyncio.run(follow_all(url, num_streams, TOKENS_PER_STREAM))
    p99 = latencies_ms[int(len(latencies_ms) * 0.99)]
    return {"p50_ms": statistics.median(latencies_ms), "p99_ms": p99}


def measure_throughput(url: str, num_streams: int) -> float:
    """Return tokens per second that reach the client while decoding costs nothing."""
    with free_replica(url, stamped=True):
        _, tokens_per_s = asyncio.run(follow_all(url, num_streams, TOKENS_PER_STREAM))
    return tokens_per_s


def main() -> None:
    """Print a table."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    print("| streams | publish to client p50 ms | p99 ms | tokens/s with readers |\n|---|---|---|---|")
    for num_streams in (64, 256):
        with (
            tempfile.TemporaryDirectory(prefix="thinkstream-") as folder,
            EmbeddedServer(Path(folder)) as server,
        ):
            row = measure_latency(server.url, num_streams)
            rate = measure_throughput(server.url, num_streams)
        print(f"| {num_streams} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {rate:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
