"""Measures the engine on a GPU with random weights in the released shape.

    python -m infra.bench.gpu                       # batch 1 to 256
    python -m infra.bench.gpu --sampling default    # as most jobs are sampled
    python -m infra.bench.gpu --batches 1 --prefill --offline

Time per output token is (time of 257 tokens - time of 1) / 256, everything included: scheduling, sampling
and bringing the ids to the host. The floor is the time in which the card, by its own measured bandwidth,
reads what the step must read.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from thinkstream_model.config import ThinkerConfig
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.sampling import ResolvedSampling

from .ceilings import read_bandwidth
from .engine_bench import Ask, Decoded, EngineBench
from .hits import CountingExchange, counting_thinker
from .samplings import SAMPLINGS
from .shape import step_bytes

_NUM_PROMPT = 128
_NUM_TOKENS = 256


def main() -> None:
    """Measure what the arguments ask for; one line of JSON per figure."""
    args = _arguments()
    bytes_per_s, sampling = read_bandwidth(), _resolved(args.sampling, args.logprobs)
    _show(card=torch.cuda.get_device_name(), read_TB_per_s=bytes_per_s / 1e12)
    began_s = time.perf_counter()
    thinker, counting = counting_thinker(args.layers)
    config = EngineConfig(slots=256, step_tokens=args.step_tokens, max_context=8_192)
    with EngineBench(thinker, config) as bench:
        bench.run(1, 16, 4)
        _show(
            start_s=time.perf_counter() - began_s,
            kv_tokens=bench.engine.load.num_blocks * config.block_size,
            allocated_GB=torch.cuda.memory_allocated() / 1e9,
        )
        for num_jobs in (int(batch) for batch in args.batches.split(",") if batch):
            row = _decode_row(bench, num_jobs, sampling)
            if args.logprobs is None:  # else the graphs in which experts are counted are there already
                hits = _hit_experts(bench, counting, num_jobs, sampling)
                row |= _floor(thinker.config, num_jobs, hits, row["tpot_ms"], bytes_per_s)
            _show(**row)
        if args.prefill:
            bench.run(2, 4_096, 1)
            decoded = bench.run(16, 4_096, 1)
            _show(prefill_tokens_per_s=16 * 4_096 / decoded.all_s)
        if args.offline:
            decoded = bench.run(512, 512, 256)
            _show(offline_output_tokens_per_s=decoded.num_tokens / decoded.all_s)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", default="1,2,4,8,16,32,64,128,256", help="jobs at one time, by commas")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument(
        "--logprobs", type=int, help="log-probabilities of so many alternatives, by every job"
    )
    parser.add_argument("--sampling", choices=sorted(SAMPLINGS), default="plain", help="see samplings.py")
    parser.add_argument("--step-tokens", type=int, default=8_192)
    parser.add_argument("--prefill", action="store_true", help="16 prompts of 4,096 tokens")
    parser.add_argument("--offline", action="store_true", help="512 jobs, 512 tokens in, 256 out")
    return parser.parse_args()


def _show(**figures: str | float) -> None:
    rounded = {
        name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()
    }
    print(json.dumps(rounded), flush=True)


def _resolved(sampling: str, logprobs: int | None) -> ResolvedSampling:
    chosen = SAMPLINGS[sampling]
    return ResolvedSampling(
        temperature=chosen.temperature, top_p=chosen.top_p, top_k=chosen.top_k, logprobs=logprobs
    )


def _decode_row(bench: EngineBench, num_jobs: int, sampling: ResolvedSampling) -> dict[str, float]:
    def run(num_tokens: int) -> Decoded:
        return bench.run(num_jobs, _NUM_PROMPT, num_tokens, sampling)

    run(4)  # compiles and captures what this size needs
    first = min((run(1) for _ in range(5)), key=lambda decoded: decoded.all_s)
    runs = [run(_NUM_TOKENS + 1) for _ in range(2)]
    tpot_s = (min(decoded.all_s for decoded in runs) - first.all_s) / _NUM_TOKENS
    return {
        "batch": num_jobs,
        "ttft_ms": first.first_s * 1e3,
        "tpot_ms": tpot_s * 1e3,
        "tokens_per_s": num_jobs / tpot_s,
    }


def _floor(
    config: ThinkerConfig, num_jobs: int, num_hit_experts: float, tpot_ms: float, bytes_per_s: float
) -> dict[str, float]:
    """In which time the card reads what a decode step must, and what share of the step's that is."""
    num_keys = num_jobs * (_NUM_PROMPT + _NUM_TOKENS // 2)
    num_bytes = step_bytes(config, num_hit_experts=num_hit_experts, num_keys=num_keys)
    floor_ms = num_bytes / bytes_per_s * 1e3
    return {"hit_experts": num_hit_experts, "floor_ms": floor_ms, "share_of_floor": floor_ms / tpot_ms}


def _hit_experts(
    bench: EngineBench, counting: CountingExchange, num_jobs: int, sampling: ResolvedSampling
) -> float:
    """Distinct experts per layer in decode steps; log-probabilities give them graphs of their own."""
    sampling = replace(sampling, max_tokens=12, logprobs=0)
    jobs = [Ask(bench.random_prompt(_NUM_PROMPT), (), sampling) for _ in range(num_jobs)]
    counting.count(num_jobs)
    bench.decode(jobs)
    hits = counting.mean_hits
    counting.count(0)
    return hits


if __name__ == "__main__":
    main()
