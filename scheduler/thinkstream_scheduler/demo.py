"""`thinkstream demo`: the whole service in a temporary folder, dozens of jobs, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from thinkstream_client.aio import AsyncClient
from thinkstream_client.records import SamplingParams
from thinkstream_client.settings import RedisSettings
from thinkstream_workers.config import ReplicaConfig

from .demo_questions import FIRST, demo_questions
from .demo_view import DemoJob, answer, figures, live_view
from .embedded import EmbeddedServer
from .launch import ServiceOptions, start_service
from .stop_signals import StopSignals
from .up_arguments import replica_threads

_NUM_REPLICAS = 2
_NUM_SHOWN = 8
_POLL_S = 0.1


def run_demo() -> bool:
    """Starts everything, shows it at work, ends everything; the last also on Ctrl-C and after a failure.

    Returns:
        Whether the answers that are known are those that came.

    Raises:
        ConfigError, ServiceUnavailable: A part cannot be started.
        JobFailed: A job did not end well.
        KeyboardInterrupt: A signal came.
    """
    console = Console()
    began_s = time.monotonic()
    with StopSignals() as signals, contextlib.ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="thinkstream-demo-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        console.print("starting Valkey, Ray, a scheduler and two replicas of the demo model ...")
        server = EmbeddedServer(folder)
        cleanup.callback(server.stop)
        server.start(signals.check)
        redis = RedisSettings(url=server.url)
        options = ServiceOptions(
            redis=redis,
            replica=ReplicaConfig(
                redis=redis,
                model="demo",
                num_threads=replica_threads(_NUM_REPLICAS),
                machine_share=1.0 / _NUM_REPLICAS,
            ),
            num_replicas=_NUM_REPLICAS,
            show_logs=False,
        )
        service = start_service(options, signals.check)
        cleanup.callback(service.stop, drain_timeout_s=0.0)
        console.print(f"ready after {time.monotonic() - began_s:.1f} s\n")
        jobs = asyncio.run(_stream_all(redis, console, signals.check))
        console.print()
        console.print(figures(jobs, _NUM_REPLICAS))
        for job in jobs[: len(FIRST)]:
            console.print(answer(job))
        wrong = [job.question for job in jobs if not job.is_right]
        console.print("\ncleaning up ...")
    if wrong:
        console.print(f"{wrong[0].text} was not answered with {wrong[0].expected}.", markup=False)
        return False
    console.print("done. Start the service with `thinkstream up`.")
    return True


async def _stream_all(
    redis: RedisSettings, console: Console, checkpoint: Callable[[], None]
) -> list[DemoJob]:
    """Submits every question at once and follows all answers, each on a stream of its own."""
    jobs = [DemoJob(question) for question in demo_questions()]
    async with AsyncClient(settings=redis) as client:
        with Live(console=console, refresh_per_second=12, get_renderable=lambda: _view(jobs, console)):
            start_s = time.monotonic()
            pending = {asyncio.create_task(_stream(client, job, start_s)) for job in jobs}
            try:
                while pending:
                    checkpoint()
                    done, pending = await asyncio.wait(
                        pending, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
            finally:
                for task in pending:
                    task.cancel()
                await asyncio.gather(*pending, return_exceptions=True)
    return jobs


def _view(jobs: Sequence[DemoJob], console: Console) -> RenderableType:
    return live_view(jobs, _NUM_SHOWN, console)


async def _stream(client: AsyncClient, job: DemoJob, start_s: float) -> None:
    job.began_s = time.monotonic() - start_s
    # The questions that are checked by the reader get the likeliest answer, the others some variety.
    temperature = 0.0 if job.question in FIRST else None
    submitted = await client.submit(
        messages=[("user", job.question.text)],
        tenant=job.question.tenant,
        sampling=SamplingParams(temperature=temperature, max_tokens=200),
    )
    async for chunk in submitted.stream():
        if job.first_token_s is None:
            job.first_token_s = time.monotonic() - start_s
        job.text += chunk.text
        job.num_tokens = chunk.index
    job.ended_s = time.monotonic() - start_s
