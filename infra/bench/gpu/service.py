"""The whole way, through Redis and Ray: followed streams of the released shape with random weights.

    python -m infra.bench.gpu.service --streams 256 --tokens 256 --kill

Time per output token is what a reader of all streams sees, from when each stream has its first token to the
last one of all. With ``--kill`` the replica is killed under full load once more, and the time is taken until
streams go on.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.own_processes import REPLICA, find_own

from thinkstream_client import AsyncClient, Request, SamplingParams
from thinkstream_client.aio_job import AsyncJob
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.embedded import EmbeddedServer
from thinkstream_scheduler.launch import ServiceOptions, start_service
from thinkstream_workers.config import ReplicaConfig

from .shape import RELEASED_SHAPE

_ON_THEIR_WAY_S = 1.0  # tokens that were on their way when the replica died arrive within a step of it


def main() -> None:
    """Start the service, measure, stop it."""
    args = _arguments()
    streams = [int(number) for number in args.streams.split(",")]
    began_s = time.perf_counter()
    with _service(args.layers, args.device, slots=max(streams)) as url:
        asyncio.run(measure(url, 1, args.prompt, 2))
        print(json.dumps({"first_token_s": time.perf_counter() - began_s}), flush=True)
        for number in streams:
            asyncio.run(measure(url, number, args.prompt, args.tokens))  # meets what the next one measures
            row = asyncio.run(measure(url, number, args.prompt, args.tokens))
            print(json.dumps(row), flush=True)
        if args.kill:
            row = asyncio.run(measure(url, max(streams), args.prompt, args.tokens, kill_replica))
            print(json.dumps(row), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", default="1,256", help="streams at one time, by commas")
    parser.add_argument("--prompt", type=int, default=128, help="tokens in")
    parser.add_argument("--tokens", type=int, default=257, help="tokens out")
    parser.add_argument("--layers", type=int, default=RELEASED_SHAPE["num_hidden_layers"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kill", action="store_true", help="kill the replica under full load")
    args = parser.parse_args()
    if args.tokens < 2:
        parser.error("--tokens: from one token to the next it takes two")
    return args


@contextmanager
def _service(num_layers: int, device: str, *, slots: int) -> Generator[str]:
    """A replica of the released shape and a server of its own, whose URL it gives."""
    with tempfile.TemporaryDirectory(prefix="thinkstream-") as name:
        folder = Path(name)
        shape = {**RELEASED_SHAPE, "num_hidden_layers": num_layers}
        (folder / "config.json").write_text(json.dumps({"thinker_config": {"text_config": shape}}))
        with EmbeddedServer(folder / "redis") as server:
            redis = RedisSettings(url=server.url)
            model = f"random:{folder}/config.json"
            replica = ReplicaConfig(redis=redis, model=model, device=device, slots=slots, max_context=4_096)
            service = start_service(ServiceOptions(redis=redis, replica=replica, show_logs=True))
            try:
                yield server.url
            finally:
                service.stop()


async def measure(
    url: str, num_streams: int, num_prompt: int, num_tokens: int, disturb: Callable[[], None] | None = None
) -> dict[str, float]:
    """Follow jobs of random prompts, all submitted at once.

    Args:
        url: The server.
        num_streams: Jobs.
        num_prompt: Tokens in of each.
        num_tokens: Tokens out of each.
        disturb: Called when half of all tokens are there; the time until streams go on is returned too.
    """
    sampling = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True)
    arrivals_s: list[list[float]] = [[] for _ in range(num_streams)]
    requests = [
        Request(token_ids=tuple(secrets.randbelow(150_000) for _ in range(num_prompt)), sampling=sampling)
        for _ in range(num_streams)
    ]
    disturbed_s = 0.0

    async def disturb_halfway() -> None:
        nonlocal disturbed_s
        while sum(map(len, arrivals_s)) < num_streams * num_tokens // 2:
            await asyncio.sleep(0.02)
        disturbed_s = time.perf_counter()
        assert disturb is not None
        disturb()

    async with AsyncClient(url) as client:
        began_s = time.perf_counter()
        jobs = await client.submit_many(requests)
        followers = [_follow(job, arrivals_s[number]) for number, job in enumerate(jobs)]
        await asyncio.gather(*followers, *([disturb_halfway()] if disturb else []))
    if any(len(times_s) != num_tokens for times_s in arrivals_s):
        raise RuntimeError("tokens are missing")
    first_s = sorted(times_s[0] for times_s in arrivals_s)
    tpot_s = (max(times_s[-1] for times_s in arrivals_s) - first_s[-1]) / (num_tokens - 1)
    row = {
        "streams": num_streams,
        "first_token_ms": (first_s[num_streams // 2] - began_s) * 1e3,
        "tpot_ms": tpot_s * 1e3,
        "tokens_per_s": num_streams / tpot_s,
    }
    if disturb:
        gaps_s = [max(b - a for a, b in itertools.pairwise(times_s)) for times_s in arrivals_s]
        resumed_s = first_resumed_s(arrivals_s, disturbed_s)
        row |= {"first_resumed_s": resumed_s - disturbed_s, "median_gap_s": statistics.median(gaps_s)}
    return row


def first_resumed_s(arrivals_s: Sequence[Sequence[float]], disturbed_s: float) -> float:
    """When the first stream went on.

    Args:
        arrivals_s: When each token of each stream came.
        disturbed_s: When the replica was killed.

    Raises:
        RuntimeError: No stream did: all had their last token by then.
    """
    later_s = [at_s for times_s in arrivals_s for at_s in times_s if at_s > disturbed_s + _ON_THEIR_WAY_S]
    if not later_s:
        raise RuntimeError(
            "all streams had ended when the replica was killed, or their last tokens were on their way: "
            "give them more --tokens"
        )
    return min(later_s)


async def _follow(job: AsyncJob, arrivals_s: list[float]) -> None:
    async for chunk in job.stream():
        arrivals_s.extend([time.perf_counter()] * len(chunk.token_ids))


def kill_replica() -> None:
    """Kill -9 the replicas of the service that this process started.

    Raises:
        RuntimeError: There are none.
    """
    replicas = find_own(REPLICA)
    if not replicas:
        raise RuntimeError("there is no replica to kill")
    for pid in replicas:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
