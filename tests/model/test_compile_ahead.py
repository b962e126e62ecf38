"""Kernels are compiled for a GPU that is not there, which nothing can be launched on."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.support.paper_graphs import PaperCapture

from thinkstream_client.records import JobRef
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.dry_steps import compile_steps
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.ops import Ops
from thinkstream_model.parameters import ThinkerWeights
from thinkstream_model.thinker import Thinker
from thinkstream_model.torch_ops import TorchOps
from thinkstream_workers.batch import Batch
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.buckets import most_tokens, sequence_counts
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.runner import ModelRunner
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence

triton: Any = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
    pytest.skip("needs Triton's compiler and no GPU", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from thinkstream_model.kernels import attention_decode  # noqa: E402
from thinkstream_model.kernels.ahead import compile_ahead  # noqa: E402
from thinkstream_model.triton_ops import TritonOps  # noqa: E402

_PLAIN = ResolvedSampling(max_tokens=4)
_FILTERED = replace(_PLAIN, temperature=0.6, top_k=20, top_p=0.95)
_WITH_EXTRAS = replace(_FILTERED, presence_penalty=0.5, logit_bias={0: 0.5})
_NUM_IDS, _BLOCK_SIZE = 200, 16
_SLOTS, _STEP_TOKENS, _MAX_CONTEXT = 40, 200, 2_048


class _Launcher:
    """What starts a kernel; it remembers which thread made it, and how often it was called."""

    made: ClassVar[list[_Launcher]] = []

    def __init__(self, source: Any, metadata: Any) -> None:
        self.maker, self.num_launches = threading.get_ident(), 0
        self.made.append(self)

    def __call__(self, *args: Any) -> None:
        self.num_launches += 1


class _Absent:
    """A driver of a GPU that can be compiled for and loaded to, and does not exist."""

    def __init__(self) -> None:
        self.launcher_cls = _Launcher
        self.utils = self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[object, ...]:
        return object(), object(), 32, 0, 1024

    def set_current_device(self, device: int) -> None:
        assert device == 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def even_config(tiny_config: ThinkerConfig) -> ThinkerConfig:
    """Widths of whole 16, as released models have: elsewhere a kernel may depend on the number of rows."""
    return replace(
        tiny_config,
        vocab_size=208,
        hidden_size=64,
        head_dim=32,
        intermediate_size=96,
        moe_intermediate_size=48,
        max_position_embeddings=2_048,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source: tl.tensor, target: tl.tensor, NUMBER: tl.constexpr) -> None:
    places = tl.arange(0, NUMBER)
    tl.store(target + places, tl.load(source + places))


@triton.jit  # type: ignore[untyped-decorator]
def _wrong(target: tl.tensor) -> None:
    tl.static_assert(False)


@pytest.fixture(autouse=True)
def absent_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(triton.runtime.driver, "_active", _Absent())
    monkeypatch.setattr(_Launcher, "made", [])
    for kernel in (_copy, *_kernels()):
        kernel.device_caches.clear()  # else of an earlier test


def _kernels() -> list[Any]:
    """Ours, as far as they are imported."""
    modules = [
        module for name, module in sys.modules.items() if name.startswith("thinkstream_model.kernels.")
    ]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, triton.JITFunction)
    ]


def _launch(number: int) -> None:
    _copy[(1,)](torch.zeros(64), torch.zeros(64), NUMBER=number)


def _num_launches() -> int:
    return sum(launcher.num_launches for launcher in _Launcher.made)


def test_compiles_each_kernel_once_and_launches_none(tmp_path: Path) -> None:
    def run() -> None:
        for number in (16, 32, 16, 32):
            _launch(number)

    assert compile_ahead(run) == 2
    assert len(list(tmp_path.glob("kernels/*/_copy.cubin"))) == 2
    assert compile_ahead(run) == 0
    assert _num_launches() == 0
    _launch(16)  # in earnest again
    assert _num_launches() == 1


def test_leaves_nothing_but_the_launch_for_the_first_launch() -> None:
    compile_ahead(lambda: _launch(16))
    assert [launcher.maker != threading.get_ident() for launcher in _Launcher.made] == [True]
    _launch(16)
    assert len(_Launcher.made) == 1
    assert _num_launches() == 1


def test_leaves_the_launches_of_other_threads_alone() -> None:
    def run() -> None:
        other = threading.Thread(target=_launch, args=(16,))
        other.start()
        other.join()

    compile_ahead(run)
    assert _num_launches() == 1


def test_a_kernel_that_cannot_be_compiled_says_so_when_it_is_launched() -> None:
    def run() -> None:
        _wrong[(1,)](torch.zeros(1))

    compile_ahead(run)
    with pytest.raises(triton.CompilationError):
        run()


def test_a_kernel_that_the_device_has_no_room_for_says_so_when_it_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(driver: _Absent, *args: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(_Absent, "load_binary", refuse)
    compile_ahead(lambda: _launch(16))
    with pytest.raises(RuntimeError, match="no room"):
        _launch(16)


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    def run() -> None:
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        compile_ahead(run)
    _launch(16)
    assert _num_launches() == 1
    assert compile_ahead(lambda: _launch(64)) == 1


def test_leaves_no_kernel_of_a_step_to_be_compiled(even_config: ThinkerConfig) -> None:
    weights = ThinkerWeights.empty(even_config, "cpu", torch.bfloat16)
    ops = TritonOps(even_config, torch.device("cpu"))
    assert _compile(weights, ops) > 0
    assert compile_ahead(lambda: _serve(Thinker(weights, ops))) == 0
    assert _compile(weights, ops, slots=39, step_tokens=100, max_context=300) == 0


@pytest.mark.parametrize("slots", [32, 256])
def test_no_number_of_sequences_has_a_kernel_that_is_not_ready(
    even_config: ThinkerConfig, slots: int
) -> None:
    """A bucket's padding counts too: beside a prompt there may be more rows than slots."""
    weights = ThinkerWeights.empty(even_config, "cpu", torch.bfloat16)
    ops = TritonOps(even_config, torch.device("cpu"))
    _compile(weights, ops, slots=slots)
    runner = _runner(Thinker(weights, ops), slots)
    edges = {min(edge, slots) for count in sequence_counts(slots) for edge in (count - 1, count, count + 1)}

    def serve() -> None:
        for num_decodes, sampling in product(edges, (_PLAIN, _FILTERED)):
            for prompt in ((), (7,)):
                query_lens = (1,) * (num_decodes - len(prompt)) + prompt
                if query_lens:
                    runner.launch(_batch(query_lens, query_lens, sampling))

    assert compile_ahead(serve) == 0


def test_padding_beyond_the_longest_step_has_no_kernel_that_is_not_ready(even_config: ThinkerConfig) -> None:
    weights = ThinkerWeights.empty(even_config, "cpu", torch.bfloat16)
    ops = TritonOps(even_config, torch.device("cpu"))
    _compile(weights, ops, slots=256, step_tokens=1_024)
    runner = _runner(Thinker(weights, ops), slots=256)
    query_lens = (1,) * 160 + (864,)  # 256 and 1,024
    assert compile_ahead(lambda: runner.launch(_batch(query_lens, query_lens, _PLAIN))) == 0


@pytest.mark.parametrize(
    "fewer",
    [{"slots": 16}, {"step_tokens": 64}, {"max_context": 256}],
    ids=["rows", "tokens", "context"],
)
def test_steps_beyond_the_limits_have_kernels_of_their_own(
    even_config: ThinkerConfig, fewer: dict[str, int]
) -> None:
    """So the test above does test something."""
    weights = ThinkerWeights.empty(even_config, "cpu", torch.bfloat16)
    ops = TritonOps(even_config, torch.device("cpu"))
    _compile(weights, ops, **fewer)
    assert compile_ahead(lambda: _serve(Thinker(weights, ops))) > 0


def test_many_rows_of_the_longest_context_are_met_too(
    even_config: ThinkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their programs are too many, so that each takes several splits in turn."""
    config = replace(even_config, max_position_embeddings=8_192)
    heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
    monkeypatch.setattr(attention_decode, "_MAX_PROGRAMS", 40 * kv_heads * 20)
    ops = TritonOps(config, torch.device("cpu"))
    _compile(ThinkerWeights.empty(config, "cpu", torch.bfloat16), ops, max_context=8_192)
    q_BHC = torch.zeros(40, heads, width, dtype=torch.bfloat16)
    cache_NSHC = torch.zeros(1, 16, kv_heads, width, dtype=torch.bfloat16)
    tables_BM, lengths_B = torch.zeros(40, 512, dtype=torch.int32), torch.zeros(40, dtype=torch.int32)
    arrivals_X = torch.zeros(40 * kv_heads, dtype=torch.int32)

    def attend() -> None:
        pages = (cache_NSHC, cache_NSHC, tables_BM, lengths_B)
        attention_decode.decode_attention(q_BHC, *pages, max_context=8_192, arrivals_X=arrivals_X)

    assert compile_ahead(attend) == 0


def _compile(
    weights: ThinkerWeights,
    ops: Ops,
    *,
    slots: int = _SLOTS,
    step_tokens: int = _STEP_TOKENS,
    max_context: int = _MAX_CONTEXT,
) -> int:
    """Compiles what a replica of these limits does."""
    return compile_steps(
        weights,
        ops,
        num_valid_ids=_NUM_IDS,
        block_size=_BLOCK_SIZE,
        sequence_counts=sequence_counts(slots),
        max_tokens=most_tokens(slots, step_tokens),
        max_context=max_context,
    )


def _runner(thinker: Thinker, slots: int = _SLOTS) -> ModelRunner:
    kv = KVCache.allocate(
        thinker.config, num_blocks=8_192, block_size=_BLOCK_SIZE, dtype=thinker.dtype, device="cpu"
    )
    return ModelRunner(
        thinker,
        kv,
        num_valid_ids=_NUM_IDS,
        max_num_seqs=slots,
        max_context=_MAX_CONTEXT,
        capture=PaperCapture(),
    )


def _serve(thinker: Thinker) -> None:
    """Launches steps of all kinds within the limits, as a replica does."""
    runner, longest = _runner(thinker), _MAX_CONTEXT
    decodes = [
        ((1,) * num_rows, (context,) * num_rows)
        for num_rows in (1, 2, 3, 8, 9, 17, 33, _SLOTS)
        for context in (1, 257, longest)
    ]
    prompts = [((num_tokens,), (num_tokens,)) for num_tokens in range(2, _STEP_TOKENS + 1)]
    mixed = [((1, 1, 7, 70), (300, 2, 7, 100)), ((1, 120), (longest, 120)), ((3, 2), (300, 2))]
    for sampling in (_PLAIN, _FILTERED, _WITH_EXTRAS):
        for query_lens, context_lens in (*decodes, *prompts[:: len(prompts) // 5], *mixed):
            runner.launch(_batch(query_lens, context_lens, sampling))
    for query_lens, context_lens in prompts:
        runner.launch(_batch(query_lens, context_lens, _PLAIN))


def _batch(query_lens: tuple[int, ...], context_lens: tuple[int, ...], sampling: ResolvedSampling) -> Batch:
    blocks = BlockManager(8_192, _BLOCK_SIZE)
    sequences: list[Sequence] = []
    for number, (query_len, context_len) in enumerate(zip(query_lens, context_lens, strict=True)):
        order = Submit(
            key=JobKey(JobRef("t", "j"), number),
            prompt_ids=(number % _NUM_IDS,) * context_len,
            sampling=sampling,
        )
        sequence = Sequence.of(order, number, _MAX_CONTEXT + 1)
        assert blocks.allocate(sequence, context_len)
        sequence.num_computed_tokens = context_len - query_len
        sequences.append(sequence)
    return Batch.of(sequences, query_lens)


def test_plain_torch_has_nothing_to_compile(tiny_config: ThinkerConfig) -> None:
    weights = ThinkerWeights.empty(tiny_config, "cpu", torch.float32)
    assert _compile(weights, TorchOps(tiny_config, torch.device("cpu"))) == 0
