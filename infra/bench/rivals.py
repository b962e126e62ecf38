"""Jobs per second, submit to result in hand, against other queues doing an empty task on the same server.

``make bench-rivals`` installs them, each in an environment of its own: they do not agree on a redis-py.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from thinkstream_client import Client
from thinkstream_scheduler.embedded import EmbeddedServer

from .free_replica import free_replica

RIVALS = ("arq", "taskiq", "celery")
HOMES = Path(".venv-rivals")
NUM_JOBS, NUM_WARM_UP, NUM_ROUNDS = 1000, 200, 3


def measure_ours(url: str, num_jobs: int) -> float:
    """Return seconds from the first submission to the last result."""
    with free_replica(url, ends_at_once=True), Client(url) as client:
        _run_ours(client, NUM_WARM_UP)
        started_s = time.perf_counter()
        _run_ours(client, num_jobs)
        return time.perf_counter() - started_s


def measure_rival(name: str, url: str, num_jobs: int) -> float:
    """Return the same of another queue."""
    python = HOMES / name / "bin" / "python"
    command = [str(python), "-m", "infra.bench.rival_tasks", name, url, str(num_jobs), str(NUM_WARM_UP)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print a table, each queue in turns on one server."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="thinkstream-") as folder, EmbeddedServer(Path(folder)) as server:
        for _ in range(NUM_ROUNDS):
            for name in ("thinkstream", *RIVALS):
                with redis.Redis.from_url(server.url) as connection:
                    connection.flushall()
                if name == "thinkstream":
                    took_s = measure_ours(server.url, NUM_JOBS)
                else:
                    took_s = measure_rival(name, server.url, NUM_JOBS)
                seconds.setdefault(name, []).append(took_s)
    rates = {name: NUM_JOBS / statistics.median(found) for name, found in seconds.items()}
    print("| queue | jobs/s | thinkstream is faster by |\n|---|---|---|")
    for name, rate in rates.items():
        ratio = "" if name == "thinkstream" else f"{rates['thinkstream'] / rate:.1f} x"
        print(f"| {name} | {rate:,.0f} | {ratio} |")


def _run_ours(client: Client, num_jobs: int) -> None:
    for result in client.batch(["hello"] * num_jobs).results():
        assert result.error is None, result.error


if __name__ == "__main__":
    main()
