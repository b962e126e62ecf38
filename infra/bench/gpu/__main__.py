"""Measures the engine on a GPU with random weights in the released shape.

    python -m infra.bench.gpu                       # batch 1 to 256
    python -m infra.bench.gpu --sampling default    # as most jobs are sampled
    python -m infra.bench.gpu --batches 1 --prefill --offline

Time per output token is (time of 257 tokens - time of 1) / 256, everything included: scheduling, sampling
and bringing the ids to the host. The floor is the time in which the card, by its own
measured bandwidth, reads what the step must read.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from thinkstream_model.device_ops import ops_for
from thinkstream_model.thinker import Thinker, random_weights
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.sampling import ResolvedSampling

from .ceilings import read_bandwidth
from .engine_bench import Ask, Decoded, EngineBench
from .hits import CountingExchange
from .samplings import SAMPLINGS
from .shape import released_config, step_bytes

_NUM_PROMPT = 128
_NUM_TOKENS = 256


def main() -> None:
    """Measure what the arguments ask for; one line of JSON per figure."""
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
    args = parser.parse_args()

    bytes_per_s, sampling = read_bandwidth(), _resolved(args.sampling, args.logprobs)
    print(json.dumps({"card": torch.cuda.get_device_name(), "read_TB_per_s": bytes_per_s / 1e12}), flush=True)
    began_s = time.perf_counter()
    weights = random_weights(released_config(args.layers), device="cuda", dtype=torch.bfloat16)
    device = weights.embedding_VD.device
    ops = ops_for(weights.config, device)
    counting = CountingExchange(ops, weights.config.num_experts)
    thinker = Thinker(weights, ops, counting)
    config = EngineConfig(
        slots=256,
        step_tokens=args.step_tokens,
        max_context=8_192,
    )
    with EngineBench(thinker, config) as bench:
        bench.run(1, 16, 4)
        load = bench.engine.load
        print(
            json.dumps(
                {
                    "start_s": time.perf_counter() - began_s,
                    "kv_tokens": load.num_blocks * config.block_size,
                    "weights_GB": torch.cuda.memory_allocated() / 1e9,
                }
            ),
            flush=True,
        )
        for num_jobs in (int(batch) for batch in args.batches.split(",") if batch):
            row = _decode_row(bench, num_jobs, sampling)
            if args.logprobs is None:  # else the graphs in which experts are counted are there already
                hits = _hit_experts(bench, counting, num_jobs, sampling)
                num_keys = num_jobs * (_NUM_PROMPT + _NUM_TOKENS // 2)
                num_bytes = step_bytes(thinker.config, num_hit_experts=hits, num_keys=num_keys)
                floor_ms = num_bytes / bytes_per_s * 1e3
                row |= {
                    "hit_experts": hits,
                    "floor_ms": floor_ms,
                    "share_of_floor": floor_ms / row["tpot_ms"],
                }
            print(json.dumps({name: round(value, 3) for name, value in row.items()}), flush=True)
        if args.prefill:
            bench.run(2, 4_096, 1)
            decoded = bench.run(16, 4_096, 1)
            print(json.dumps({"prefill_tokens_per_s": 16 * 4_096 / decoded.all_s}), flush=True)
        if args.offline:
            decoded = bench.run(512, 512, 256)
            rate = decoded.num_tokens / decoded.all_s
            print(json.dumps({"offline_output_tokens_per_s": rate}), flush=True)


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
