"""Time that queue, scheduler and publishing add to the first token, on a machine with nothing else to do.

A job's own prefill is taken off, as its replica measured it; what is left is the way there and back.
"""

from __future__ import annotations

import statistics
import time

from thinkstream_client import Client


def measure_first_token(url: str, *, num_jobs: int) -> dict[str, float]:
    """Submit jobs one after the other and wait for each one's end.

    Returns:
        Median and 99th percentile of the time from ``submit`` to the first token less the prefill, in
        milliseconds, and the median prefill.
    """
    added_ms, prefill_ms = list[float](), list[float]()
    with Client(url) as client:
        for number in range(num_jobs):
            started_s = time.perf_counter()
            stream = client.submit(prompt=f"Hello {number}", temperature=0, max_tokens=4).stream()
            next(stream)
            first_ms = (time.perf_counter() - started_s) * 1000
            for _ in stream:
                pass
            assert stream.finish is not None
            prefill_ms.append(stream.finish.timings.prefill_ms)
            added_ms.append(first_ms - stream.finish.timings.prefill_ms)
    added_ms.sort()
    return {
        "jobs": num_jobs,
        "added_p50_ms": statistics.median(added_ms),
        "added_p99_ms": added_ms[int(num_jobs * 0.99)],
        "prefill_p50_ms": statistics.median(prefill_ms),
    }
