"""Jobs that join others one by one: how long they wait, and how much longer the others.

    python -m infra.bench.gpu.arrivals --running 1,8,32,128 --prompt 128

Some jobs decode; whenever they have had a few steps by themselves, one more comes with a prompt and leaves
with its first token. The figures: milliseconds to that token, and between two tokens of the others, in
steps that a prompt shares and in steps that none does. One line of JSON for each number of running jobs.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from thinkstream_model.thinker import random_thinker
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.orders import JobKey
from thinkstream_workers.sampling import ResolvedSampling

from .engine_bench import Ask, EngineBench
from .shape import released_config

_NUM_JOINING = 40
_NUM_UNCOUNTED = 8
"""The first of those that join: their buckets are met for the first and second time."""
_NUM_STEPS_ALONE = 8
_NUM_STEPS_EACH = 16
"""Steps for which the running jobs must last per job that joins."""


def main() -> None:
    """Measure for each number of running jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--running", default="1,8,32,128", help="jobs that decode, by commas")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a job that joins")
    parser.add_argument("--layers", type=int, default=48)
    args = parser.parse_args()
    thinker = random_thinker(released_config(args.layers), device="cuda", dtype=torch.bfloat16)
    with EngineBench(thinker, EngineConfig(slots=256, max_context=8_192)) as bench:
        for num_running in map(int, args.running.split(",")):
            print(json.dumps(measure(bench, num_running, args.prompt)), flush=True)


def measure(bench: EngineBench, num_running: int, num_prompt: int) -> dict[str, float]:
    """Have jobs join ``num_running`` others; times are medians and 90th percentiles."""
    first_s: list[float] = []
    gaps_s: dict[bool, list[float]] = {True: [], False: []}
    long = ResolvedSampling(max_tokens=_NUM_JOINING * _NUM_STEPS_EACH)
    running = set(bench.submit([Ask(bench.random_prompt(64), (), long) for _ in range(num_running)]))
    joining: JobKey | None = None
    num_ended = num_steps = num_joined = 0
    asked_s = before_s = 0.0
    while num_ended < num_running + num_joined:
        output = bench.next_output()
        now_s = time.perf_counter()
        keys = {token.key for token in output.tokens}
        is_shared = joining in keys
        if is_shared:
            first_s.append(now_s - asked_s)
            joining, num_steps = None, 0
        if keys & running and before_s and num_joined > _NUM_UNCOUNTED:
            gaps_s[is_shared].append(now_s - before_s)
        before_s = now_s
        num_steps += 1
        num_ended += len(output.ends)
        if joining is None and num_joined < _NUM_JOINING and num_steps > _NUM_STEPS_ALONE:
            asked_s = time.perf_counter()
            ask = Ask(bench.random_prompt(num_prompt), (), ResolvedSampling(max_tokens=1))
            (joining,) = bench.submit([ask])
            num_joined += 1
    return {
        "running": num_running,
        "prompt": num_prompt,
        **_milliseconds("first_token", first_s[_NUM_UNCOUNTED:]),
        **_milliseconds("gap_shared", gaps_s[True]),
        **_milliseconds("gap_alone", gaps_s[False]),
    }


def _milliseconds(name: str, seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"{name}_p{share}_ms": round(1e3 * ordered[len(ordered) * share // 100], 2) for share in (50, 90)}


if __name__ == "__main__":
    main()
