"""Runs the benchmarks of the queue and prints their tables: ``make bench``.

Each figure stands beside a limit that was taken in the same run; none is a test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.embedded import EmbeddedServer
from thinkstream_scheduler.launch import ServiceOptions, start_service
from thinkstream_workers.config import ReplicaConfig

from .first_token import measure_first_token
from .queue_step import measure_step


def main() -> None:
    """Run everything, a server of its own for each part."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="thinkstream-") as folder:
        bench_step(Path(folder) / "step")
        bench_first_token(Path(folder) / "first")


def bench_step(folder: Path) -> None:
    """Tokens per second through `step` and through a bare function."""
    with EmbeddedServer(folder) as server:
        print("| streams | step tok/s | bare XLEN + XADD tok/s | ratio |\n|---|---|---|---|")
        for num_streams in (64, 256):
            row = measure_step(server.url, num_streams, num_rounds=9, steps_per_round=100)
            rates = f"{row['step_tokens_per_s']:,.0f} | {row['bare_tokens_per_s']:,.0f}"
            print(f"| {num_streams} | {rates} | {row['ratio']:.2f} |", flush=True)


def bench_first_token(folder: Path) -> None:
    """Time added to the first token by everything round the model."""
    with EmbeddedServer(folder) as server:
        redis = RedisSettings(url=server.url)
        replica = ReplicaConfig(redis=redis, num_threads=1)
        service = start_service(ServiceOptions(redis=redis, replica=replica, show_logs=False))
        try:
            measure_first_token(server.url, num_jobs=20)  # warm up
            row = measure_first_token(server.url, num_jobs=200)
        finally:
            service.stop()
    print("\n| jobs | added p50 ms | added p99 ms | prefill p50 ms |\n|---|---|---|---|")
    times = f"{row['added_p50_ms']:.1f} | {row['added_p99_ms']:.1f} | {row['prefill_p50_ms']:.0f}"
    print(f"| {row['jobs']} | {times} |")


if __name__ == "__main__":
    main()
