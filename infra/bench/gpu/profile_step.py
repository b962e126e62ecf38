"""One decode step without its host: how long a graph of it takes, and which kernels take it.

    python -m infra.bench.gpu.profile_step --batches 1,8,64,256 --context 256
    THINKSTREAM_DEPENDENT_LAUNCH=0 python -m infra.bench.gpu.profile_step --batches 1 --kernels

With dependent launches a kernel's time holds its wait for the one before, so kernels are listed without.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
from collections.abc import Callable
from typing import Any, cast

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from thinkstream_model.generation import GenerationDefaults
from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.sampler import SamplingInputs
from thinkstream_model.thinker import Thinker
from thinkstream_workers.step_graphs import CudaCapture, Graph

from .ceilings import read_bandwidth, timed_ms
from .hits import counting_thinker
from .prompts import whole_prompts
from .samplings import SAMPLINGS
from .shape import step_bytes

_BLOCK_SIZE = 16
_NUM_REPLAYS = 20


def main() -> None:
    """Print each batch's time and the kernels that make it."""
    args = _arguments()
    batches = [int(batch) for batch in args.batches.split(",")]
    bytes_per_s = read_bandwidth()
    thinker, counting = counting_thinker(args.layers)
    if args.prefill:
        for batch in batches:
            _list_kernels(_prefill(thinker, batch, args.prefill))
        return
    kv = KVCache.allocate(
        thinker.config,
        num_blocks=max(batches) * -(-args.context // _BLOCK_SIZE),
        block_size=_BLOCK_SIZE,
        dtype=thinker.dtype,
        device=thinker.device,
    )
    for batch in batches:
        step = _step(thinker, kv, batch, args.context, SAMPLINGS[args.sampling])
        graph, graph_bytes = _captured(step)
        step_ms = _median_ms(graph)
        counting.count(batch)
        step()  # behind the replays, with the ids that they came to
        num_keys, hits = batch * args.context, counting.mean_hits
        counting.count(0)
        num_bytes = step_bytes(thinker.config, num_hit_experts=hits, num_keys=num_keys)
        row = {
            "batch": batch,
            "step_ms": round(step_ms, 3),
            "share": round(num_bytes / bytes_per_s * 1e3 / step_ms, 3),
            "graph_MB": round(graph_bytes / 1e6, 1),
        }
        print(json.dumps(row), flush=True)
        if args.kernels:
            _list_kernels(graph.replay)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", default="1,2,4,8,16,32,64,128,256", help="rows, by commas")
    parser.add_argument("--context", type=int, default=256, help="keys of each row")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--sampling", choices=sorted(SAMPLINGS), default="plain", help="see samplings.py")
    parser.add_argument("--prefill", type=int, default=0, help="profile prompts of so many tokens instead")
    parser.add_argument("--kernels", action="store_true", help="list what the step is made of")
    return parser.parse_args()


def _step(
    thinker: Thinker, kv: KVCache, batch: int, context: int, chosen: GenerationDefaults
) -> Callable[[], None]:
    """A step in which every row has seen its context, and the ids of one step are those of the next."""
    inputs, sampling = _inputs(thinker, kv, batch, context), _sampling(thinker, batch, context, chosen)

    @torch.inference_mode()
    def step() -> None:
        logits_BV = thinker.forward(inputs, kv)
        sampled = thinker.sample(logits_BV, sampling, num_valid_ids=thinker.config.vocab_size)
        inputs.input_ids_T.copy_(sampled.token_ids_B)

    return step


def _captured(step: Callable[[], None]) -> tuple[Graph, int]:
    """A step's graph, and what it takes beside another that shares its memory."""
    step()
    capture = CudaCapture()
    graph = capture(step)
    graph.replay()
    free_bytes = _free_bytes()
    other = capture(step)
    other.replay()
    return graph, free_bytes - _free_bytes()


def _free_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def _inputs(thinker: Thinker, kv: KVCache, batch: int, context: int) -> StepInputs:
    device = thinker.device
    num_blocks = -(-context // _BLOCK_SIZE)
    tables_BM = torch.randperm(kv.num_blocks, device=device)[: batch * num_blocks].view(batch, num_blocks)
    last = context - 1
    zeros_B = torch.zeros(batch, dtype=torch.int64, device=device)
    return StepInputs(
        input_ids_T=torch.randint(0, thinker.config.vocab_size, (batch,), device=device),
        positions_T=zeros_B + last,
        slot_mapping_T=tables_BM[:, last // _BLOCK_SIZE] * _BLOCK_SIZE + last % _BLOCK_SIZE,
        cu_seqlens_q_B1=torch.arange(batch + 1, dtype=torch.int32, device=device),
        context_lens_B=torch.full((batch,), context, dtype=torch.int32, device=device),
        block_tables_BM=tables_BM.int(),
        output_rows_S=torch.arange(batch, device=device),
        query_lens=(1,) * batch,
        context_lens=(context,) * batch,
    )


def _sampling(thinker: Thinker, batch: int, context: int, chosen: GenerationDefaults) -> SamplingInputs:
    ones_B = torch.ones(batch, device=thinker.device)
    return SamplingInputs(
        temperature_B=ones_B * chosen.temperature,
        top_p_B=ones_B * chosen.top_p,
        top_k_B=ones_B.long() * chosen.top_k,
        min_p_B=ones_B * chosen.min_p,
        seed_B=torch.arange(batch, device=thinker.device),
        index_B=ones_B.long() * context,
        unfiltered=chosen.top_k == 0 and chosen.top_p == 1.0 and chosen.min_p == 0.0,
    )


def _median_ms(graph: Graph) -> float:
    times_ms = [timed_ms(graph.replay) for _ in range(_NUM_REPLAYS)]
    return statistics.median(times_ms[3:])


def _prefill(thinker: Thinker, num_prompts: int, num_tokens: int) -> Callable[[], None]:
    """A step of whole prompts, which has run once."""
    shape = (num_prompts, num_tokens)
    ids_BT = torch.randint(0, thinker.config.vocab_size, shape, device=thinker.device)
    inputs, kv = whole_prompts(thinker, ids_BT)

    def step() -> None:
        thinker.forward(inputs, kv)

    step()
    return step


def _list_kernels(step: Callable[[], None]) -> None:
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    times_us: dict[str, list[float]] = collections.defaultdict(list)
    for event in cast("list[Any]", profiled.events()):
        if event.device_type == DeviceType.CUDA:
            times_us[event.name[:60]].append(event.device_time)
    for name, times in sorted(times_us.items(), key=lambda item: -sum(item[1]))[:16]:
        print(f"  {sum(times) / 1e3:8.3f} ms  {len(times):4d} x {statistics.median(times):8.2f} us  {name}")


if __name__ == "__main__":
    main()
