"""Jobs that join others one by one: how long they wait, and how much longer the others.

    python -m infra.bench.gpu.arrivals --running 1,8,32,128 --prompt 128
    python -m infra.bench.gpu.arrivals --running 32 --prompt 16,2000

Some jobs decode; whenever they have had a few steps by themselves, one more comes, at any moment of a step,
with a prompt, and leaves with its first token. The figures: milliseconds to that token, and between two
tokens of the others, in steps that a prompt shares and in steps that none does. One line of JSON for each
number of running jobs.

Lengths of prompts and moments of a step are drawn from one seed for each line, so that two runs ask for the
same; the prompts' tokens are others each time.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Sequence

import torch

from thinkstream_model.thinker import random_thinker
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.sampling import ResolvedSampling

from .engine_bench import Ask, EngineBench
from .shape import released_config

_SEED = 0
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
    parser.add_argument(
        "--prompt", default="128", help="tokens of a job that joins, or the least and the most"
    )
    parser.add_argument("--layers", type=int, default=48)
    args = parser.parse_args()
    least, *most = map(int, args.prompt.split(","))
    thinker = random_thinker(released_config(args.layers), device="cuda", dtype=torch.bfloat16)
    with EngineBench(thinker, EngineConfig(slots=256, max_context=8_192)) as bench:
        for num_running in map(int, args.running.split(",")):
            chance = random.Random(_SEED)
            prompts = [chance.randint(least, *most or [least]) for _ in range(_NUM_JOINING)]
            times = measure(bench, num_running, prompts, chance)
            print(json.dumps({"prompt": args.prompt} | times), flush=True)


def measure(
    bench: EngineBench, num_running: int, prompts: Sequence[int], chance: random.Random
) -> dict[str, float]:
    """Have jobs join others; times are medians and 90th percentiles.

    Args:
        bench: Has them answered.
        num_running: How many decode all the while.
        prompts: Tokens of each that joins, the last one first.
        chance: Draws the moments of a step at which they come.
    """
    first_s: list[float] = []
    gaps_s: dict[bool, list[float]] = {True: [], False: []}
    one, long = (ResolvedSampling(max_tokens=number) for number in (1, len(prompts) * _NUM_STEPS_EACH))
    coming = [Ask(bench.random_prompt(num_tokens), (), one) for num_tokens in prompts]
    running = set(bench.submit([Ask(bench.random_prompt(64), (), long) for _ in range(num_running)]))
    is_joining = False
    num_ended = num_steps = 0
    asked_s = before_s = 0.0
    while num_ended < num_running + len(prompts):
        output = bench.next_output()
        now_s = time.perf_counter()
        keys = {token.key for token in output.tokens}
        if not keys:  # it tells of a start
            continue
        is_shared = not keys <= running
        if is_shared:
            first_s.append(now_s - asked_s)
            is_joining, num_steps = False, 0
        if keys & running and before_s and len(first_s) > _NUM_UNCOUNTED:
            gaps_s[is_shared].append(now_s - before_s)
        if coming and not is_joining and num_steps > _NUM_STEPS_ALONE:
            wait_s = chance.uniform(0.0, now_s - before_s)
            threading.Timer(wait_s, bench.submit, [[coming.pop()]]).start()
            is_joining, asked_s = True, now_s + wait_s
        before_s = now_s
        num_steps += 1
        num_ended += len(output.ends)
    return {
        "running": num_running,
        **_milliseconds("first_token", first_s[_NUM_UNCOUNTED:]),
        **_milliseconds("gap_shared", gaps_s[True]),
        **_milliseconds("gap_alone", gaps_s[False]),
    }


def _milliseconds(name: str, seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"{name}_p{share}_ms": round(1e3 * ordered[len(ordered) * share // 100], 2) for share in (50, 90)}


if __name__ == "__main__":
    main()
