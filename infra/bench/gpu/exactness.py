"""How often a text depends on what it was batched with, at full size on a GPU.

    python -m infra.bench.gpu.exactness --jobs 32 --tokens 64 --extras

The same jobs, seeds included, run all together, four at a time, alone, and alone once more from the middle,
as after a failover: their first half is then a prefill and not decoded. Texts are compared with those of
the first way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from thinkstream_model.device_ops import ops_for
from thinkstream_model.ops import Ops
from thinkstream_model.thinker import Thinker, random_weights
from thinkstream_model.torch_ops import TorchOps
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.sampling import ResolvedSampling

from .engine_bench import Ask, EngineBench
from .shape import released_config


def main() -> None:
    """Print how many texts differ, one line of JSON per set of operations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--jobs", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--extras", action="store_true", help="filters, biases and penalties in three of four"
    )
    parser.add_argument("--paths", default="kernels,plain torch", help="by commas")
    args = parser.parse_args()
    config = released_config(args.layers)
    weights = random_weights(config, device="cuda", dtype=torch.bfloat16)
    device = weights.embedding_VD.device
    paths: dict[str, tuple[Ops, int]] = {
        "kernels": (ops_for(config, device), args.tokens),
        # Plain torch takes a tenth of a second per step.
        "plain torch": (TorchOps(config, device, exact=False), args.tokens // 8),
    }
    for name in args.paths.split(","):
        ops, num_tokens = paths[name]
        engine_config = EngineConfig(
            slots=args.jobs,
            step_tokens=2_048,
            max_context=1_024,
            num_blocks=4_096,
        )
        with EngineBench(Thinker(weights, ops), engine_config) as bench:
            samplings = [_sampling(number, num_tokens, args.extras) for number in range(args.jobs)]
            print(json.dumps({"path": name, **_differing(bench, samplings, num_tokens)}), flush=True)


def _sampling(number: int, num_tokens: int, has_extras: bool) -> ResolvedSampling:
    plain = ResolvedSampling(max_tokens=num_tokens, seed=number)
    kinds = (
        plain,
        replace(plain, top_k=50, top_p=0.9),
        replace(plain, logit_bias={number: 2.0}, logprobs=2),
        replace(plain, frequency_penalty=0.5, repetition_penalty=1.2),
    )
    return kinds[number % 4] if has_extras else plain


def _differing(bench: EngineBench, samplings: Sequence[ResolvedSampling], num_tokens: int) -> dict[str, int]:
    num_jobs = len(samplings)
    prompts = [bench.random_prompt(20 + 7 * number) for number in range(num_jobs)]
    jobs = [Ask(ids, (), sampling) for ids, sampling in zip(prompts, samplings, strict=True)]
    together = bench.decode(jobs).texts
    fours = [text for n in range(0, num_jobs, 4) for text in bench.decode(jobs[n : n + 4]).texts]
    alone = [bench.decode([job]).texts[0] for job in jobs]
    half = num_tokens // 2
    resumed = [
        text[:half] + bench.decode([Ask(ids, tuple(text[:half]), sampling)]).texts[0]
        for text, (ids, _, sampling) in zip(together, jobs, strict=True)
    ]
    ways = {"fours": fours, "alone": alone, "resumed": resumed}
    counts = {
        f"differ_{way}": sum(a != b for a, b in zip(texts, together, strict=True))
        for way, texts in ways.items()
    }
    return {"jobs": num_jobs, "tokens": num_tokens, **counts}


if __name__ == "__main__":
    main()
