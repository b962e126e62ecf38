from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.parameters import ThinkerWeights
from thinkstream_model.sampler import SamplingExtras, SamplingInputs
from thinkstream_model.thinker import Thinker
from thinkstream_workers.device_memory import reserve_bytes, sampler_bytes, step_bytes
from thinkstream_workers.engine_config import EngineConfig

RELEASED = ThinkerConfig(
    vocab_size=152_064, hidden_size=2_048, num_layers=48, num_heads=32, num_kv_heads=4, head_dim=128,
    intermediate_size=768, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    decoder_sparse_step=1, norm_topk_prob=True, rope_theta=1e6, rms_norm_eps=1e-6,
    max_position_embeddings=65_536,
)  # fmt: skip
TOKEN_BYTES = 2 * 48 * 4 * 128 * 2
FREE_BYTES = 23_200_000_000  # of 80 GB, once the weights are there
LIMITS = EngineConfig(slots=32, step_tokens=8_192, max_context=32_768)


def reserve(limits: EngineConfig, free_bytes: int = FREE_BYTES) -> int:
    return reserve_bytes(RELEASED, limits, free_bytes, 2)


@pytest.mark.parametrize(
    ("limits", "least"),
    [(LIMITS, 210_000), (replace(LIMITS, slots=256, max_context=8_192), 202_000)],
)
def test_an_80_gb_card_has_room_for_about_210_000_tokens(limits: EngineConfig, least: int) -> None:
    assert least <= (FREE_BYTES - reserve(limits)) // TOKEN_BYTES <= 225_000


def test_longer_contexts_and_larger_steps_take_more() -> None:
    assert (
        reserve(LIMITS)
        < reserve(replace(LIMITS, max_context=65_536))
        == reserve(replace(LIMITS, max_context=None))
    )
    assert reserve(LIMITS) < reserve(replace(LIMITS, step_tokens=16_384))
    # Partial results of attention, outside of the graphs' memory and twice within: float32 and two sums.
    partials = 32 * (16_384 // 256) * 32 * (128 + 2) * 4
    assert reserve(LIMITS) - reserve(replace(LIMITS, max_context=16_384)) == 3 * partials


def test_three_quarters_of_what_is_free_are_left_in_any_case() -> None:
    assert reserve(LIMITS, 1 << 30) == 1 << 28
    assert reserve(replace(LIMITS, slots=4_096)) == FREE_BYTES // 4


weak_storage: Any = StorageWeakRef


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what new tensors take, all at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[Any, int] = {}
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = _sizes((args, kwargs)), _sizes(result)
        self._sizes |= {storage: size for storage, size in made.items() if storage not in given}
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        self.num_bytes = max(self.num_bytes, sum(self._sizes.values()))
        return result


def _sizes(tree: Any) -> dict[Any, int]:
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {weak_storage(storage): storage.nbytes() for storage in storages}


@pytest.mark.parametrize(
    ("config", "num_tokens"),
    [
        (RELEASED, 8_192),
        (RELEASED, 256),
        (replace(RELEASED, num_experts_per_tok=1), 16),
        (replace(RELEASED, num_experts_per_tok=1), 1_024),
        (replace(RELEASED, decoder_sparse_step=3, intermediate_size=8_192), 1_024),
    ],
    ids=["experts", "parts", "more parts", "attention", "dense"],
)
def test_no_step_takes_more_than_is_kept_for_its_tokens(
    config: ThinkerConfig, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    triton_ops = pytest.importorskip("thinkstream_model.triton_ops")
    monkeypatch.setattr(triton.JITFunction, "run", _launch_nothing)
    config = replace(config, num_layers=2)
    weights = ThinkerWeights.empty(config, "meta", torch.bfloat16)
    thinker = Thinker(weights, triton_ops.TritonOps(config, torch.device("meta")))
    kv = KVCache.allocate(config, num_blocks=1, block_size=16, dtype=torch.bfloat16, device="meta")
    inputs = _prompt(num_tokens)
    with Peak() as peak:
        thinker.forward(inputs, kv)
    logits_bytes = config.vocab_size * 4
    assert peak.num_bytes <= step_bytes(config, num_tokens, 2) + logits_bytes


@pytest.mark.parametrize("has_extras", [False, True], ids=["filters", "extras"])
@pytest.mark.parametrize(("vocab_size", "num_rows"), [(152_064, 40), (200, 8)])
def test_no_sampling_takes_more_than_is_kept_for_its_rows(
    vocab_size: int, num_rows: int, has_extras: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    triton_ops = pytest.importorskip("thinkstream_model.triton_ops")
    monkeypatch.setattr(triton.JITFunction, "run", _launch_nothing)
    config = replace(RELEASED, vocab_size=vocab_size)
    ops = triton_ops.TritonOps(config, torch.device("meta"))
    logits_BV = _some(num_rows, vocab_size, dtype=torch.float32)
    inputs = _sampling(num_rows, has_extras=has_extras)
    with Peak() as peak:
        ops.sample(logits_BV, inputs, vocab_size)
    assert 0 < peak.num_bytes <= sampler_bytes(config, num_rows, has_extras=has_extras)


def test_what_the_sampler_takes_is_kept_where_it_is_more_than_a_step_takes() -> None:
    config = replace(RELEASED, hidden_size=64, moe_intermediate_size=64, num_experts_per_tok=1, head_dim=8)
    limits = replace(LIMITS, slots=256, step_tokens=256, max_context=256)
    twice = replace(config, vocab_size=2 * config.vocab_size)
    num_rows = 256 + 8  # decodes, and prompts beside them
    assert step_bytes(config, 256 + 2_048, 2) < sampler_bytes(config, num_rows, has_extras=False)
    more_bytes = 3 * num_rows * config.vocab_size * 4
    for has_extras in (False, True):
        more_bytes += sampler_bytes(twice, num_rows, has_extras=has_extras)
        more_bytes -= sampler_bytes(config, num_rows, has_extras=has_extras)
    reserved, reserved_twice = (reserve_bytes(one, limits, 1 << 40, 2) for one in (config, twice))
    assert reserved_twice - reserved == more_bytes


def _launch_nothing(kernel: object, *args: object, **options: object) -> None: ...


def _some(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _prompt(num_tokens: int) -> StepInputs:
    return StepInputs(
        input_ids_T=_some(num_tokens),
        positions_T=_some(num_tokens),
        slot_mapping_T=_some(num_tokens),
        cu_seqlens_q_B1=_some(2, dtype=torch.int32),
        context_lens_B=_some(1, dtype=torch.int32),
        block_tables_BM=_some(1, num_tokens // 16, dtype=torch.int32),
        output_rows_S=_some(1),
        query_lens=(num_tokens,),
        context_lens=(num_tokens,),
    )


def _sampling(num_rows: int, *, has_extras: bool) -> SamplingInputs:
    def floats() -> Tensor:
        return _some(num_rows, dtype=torch.float32)

    extras = SamplingExtras(
        repetition_B=floats(), presence_B=floats(), frequency_B=floats(),
        prompt_ids_BL=_some(num_rows, 64), output_ids_BL=_some(num_rows, 64),
        bias_ids_BK=_some(num_rows, 16), bias_values_BK=_some(num_rows, 16, dtype=torch.float32),
    )  # fmt: skip
    return SamplingInputs(
        temperature_B=floats(), top_p_B=floats(), top_k_B=_some(num_rows), min_p_B=floats(),
        seed_B=_some(num_rows), index_B=_some(num_rows), extras=extras if has_extras else None,
    )  # fmt: skip
