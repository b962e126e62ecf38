"""The other queues' empty task, their workers and their clients; runs in their environments, not in ours.

    python -m infra.bench.rival_tasks arq|taskiq|celery URL NUM_JOBS NUM_WARM_UP

Prints seconds from the first submission to the last result in hand. Each library runs one worker process
with the concurrency that its documentation recommends for short tasks, and its own result store.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

URL = os.environ.get("RIVAL_URL", "redis://127.0.0.1:6379/0")
CONCURRENCY, AT_A_TIME, POLL_S = 256, 64, 0.005
_RIVAL = os.environ.get("RIVAL", "")

if _RIVAL == "celery":
    from celery import Celery

    app = Celery("rival", broker=URL, backend=URL)
    app.conf.update(
        worker_prefetch_multiplier=64, task_acks_late=True, broker_connection_retry_on_startup=True
    )

    @app.task(name="empty")
    def empty_celery() -> None:
        """Do nothing."""


if _RIVAL == "taskiq":
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

    broker = RedisStreamBroker(URL).with_result_backend(RedisAsyncResultBackend(URL))

    @broker.task(task_name="empty")
    async def empty_taskiq() -> None:
        """Do nothing."""


if _RIVAL == "arq":
    from arq.connections import RedisSettings

    async def empty_arq(context: dict[str, Any]) -> None:
        """Do nothing."""

    class WorkerSettings:
        """What ``arq`` starts."""

        functions = (empty_arq,)
        redis_settings = RedisSettings.from_dsn(URL)
        max_jobs = CONCURRENCY
        poll_delay = 0.01


async def time_arq(counts: list[int]) -> float:
    """Submit and wait for every result, so many jobs at a time; returns the seconds of the last time."""
    from arq import create_pool

    pool = await create_pool(WorkerSettings.redis_settings)
    took_s = 0.0
    for count in counts:
        started_s = time.perf_counter()
        jobs = await _in_turns([lambda: pool.enqueue_job("empty_arq")] * count)
        await _in_turns([lambda job=job: job.result(poll_delay=POLL_S) for job in jobs])
        took_s = time.perf_counter() - started_s
    await pool.aclose()
    return took_s


async def time_taskiq(counts: list[int]) -> float:
    """The same."""
    await broker.startup()
    took_s = 0.0
    for count in counts:
        started_s = time.perf_counter()
        tasks = await _in_turns([empty_taskiq.kiq] * count)
        await _in_turns([lambda task=task: task.wait_result(check_interval=POLL_S) for task in tasks])
        took_s = time.perf_counter() - started_s
    await broker.shutdown()
    return took_s


def time_celery(counts: list[int]) -> float:
    """The same."""
    took_s = 0.0
    for count in counts:
        started_s = time.perf_counter()
        results = [empty_celery.delay() for _ in range(count)]
        for result in results:
            result.get(timeout=120)
        took_s = time.perf_counter() - started_s
    return took_s


async def _in_turns(calls: list[Any]) -> list[Any]:
    """Run so many at a time that each library's connections suffice."""
    found: list[Any] = []
    for start in range(0, len(calls), AT_A_TIME):
        found += await asyncio.gather(*(call() for call in calls[start : start + AT_A_TIME]))
    return found


WORKERS = {
    "arq": ["arq", "infra.bench.rival_tasks.WorkerSettings"],
    "taskiq": [
        "taskiq",
        "worker",
        "infra.bench.rival_tasks:broker",
        "--workers",
        "1",
        "--max-async-tasks",
        "256",
    ],
    "celery": [
        "celery",
        "-A",
        "infra.bench.rival_tasks",
        "worker",
        "--pool",
        "threads",
        "--concurrency",
        "16",
    ],
}


def main() -> None:
    """Start a worker, warm it up, and print the time."""
    counts = [int(sys.argv[4]), int(sys.argv[3])]
    command = [sys.executable, "-m", *WORKERS[_RIVAL]]
    worker = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        if _RIVAL == "celery":
            print(time_celery(counts))
        else:
            print(asyncio.run({"arq": time_arq, "taskiq": time_taskiq}[_RIVAL](counts)))
    finally:
        os.killpg(worker.pid, signal.SIGKILL)  # with the processes that it has started
        worker.wait()


if __name__ == "__main__":
    if not _RIVAL:
        environment = {**os.environ, "RIVAL": sys.argv[1], "RIVAL_URL": sys.argv[2]}
        os.execve(
            sys.executable, [sys.executable, "-m", "infra.bench.rival_tasks", *sys.argv[1:]], environment
        )
    main()
