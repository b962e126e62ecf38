from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from tests.support.paper_graphs import PaperCapture
from torch import Tensor

from thinkstream_client.records import JobRef
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.sampler import NOT_A_TOKEN, SamplingInputs
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_workers.batch import Batch, SampledTokens
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.buckets import Bucket
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.packing import send
from thinkstream_workers.runner import InFlight, ModelRunner, fill_pending
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence
from thinkstream_workers.step_arrays import StepLengths, input_arrays, sampling_arrays, sampling_hints
from thinkstream_workers.step_tensors import sampling_inputs, step_inputs

VOCAB, NUM_IDS, BLOCK = 32, 30, 4
GREEDY = ResolvedSampling(temperature=0.0)


@pytest.fixture(scope="module")
def thinker() -> Thinker:
    config = ThinkerConfig(
        vocab_size=VOCAB, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        decoder_sparse_step=1, norm_topk_prob=True, rope_theta=10_000.0, rms_norm_eps=1e-6,
        max_position_embeddings=128,
    )  # fmt: skip
    return random_thinker(config, seed=1)


@pytest.fixture
def blocks() -> BlockManager:
    return BlockManager(32, BLOCK)


@pytest.fixture
def runner(thinker: Thinker) -> ModelRunner:
    return runner_of(thinker)


def runner_of(thinker: Thinker, capture: PaperCapture | None = None) -> ModelRunner:
    kv = KVCache.allocate(thinker.config, num_blocks=32, block_size=BLOCK, dtype=torch.float32, device="cpu")
    return ModelRunner(thinker, kv, num_valid_ids=NUM_IDS, max_num_seqs=64, max_context=128, capture=capture)


def sequence_of(
    blocks: BlockManager,
    prompt: list[int],
    *,
    published: tuple[int, ...] = (),
    sampling: ResolvedSampling = GREEDY,
) -> Sequence:
    key = JobKey(JobRef("tenant", f"job-{prompt}"), 1)
    order = Submit(key=key, prompt_ids=tuple(prompt), published_ids=published, sampling=sampling)
    sequence = Sequence.of(order, 1, 128)
    assert blocks.allocate(sequence, sequence.num_tokens + 8)
    return sequence


def listed(tensors: object, names: list[str]) -> Mapping[str, object]:
    return {name: getattr(tensors, name).tolist() for name in names}


def inputs_of(batch: Batch) -> StepInputs:
    tensors = send(input_arrays(batch, BLOCK), torch.device("cpu"))
    return step_inputs(tensors, StepLengths(batch.query_lens, batch.context_lens))


def sampling_of(batch: Batch) -> SamplingInputs:
    arrays = sampling_arrays(batch)
    return sampling_inputs(send(arrays, torch.device("cpu")), sampling_hints(batch, arrays))


def test_lays_out_decodes_and_chunks_side_by_side(blocks: BlockManager) -> None:
    decode = sequence_of(blocks, [1, 2, 3, 4, 5])
    decode.num_computed_tokens = 4
    middle = sequence_of(blocks, list(range(10, 20)))
    middle.num_computed_tokens = 3
    last = sequence_of(blocks, [20, 21])
    decode.block_table[1], middle.block_table[0], middle.block_table[1] = 9, 20, 7
    batch = Batch.of([decode, middle, last], [1, 3, 2])
    inputs = inputs_of(batch)
    d, m, s = list(decode.block_table), list(middle.block_table), list(last.block_table)
    assert listed(
        inputs, [name for name in StepInputs.__slots__ if name[-1].isupper() or name[-1] == "1"]
    ) == {
        "input_ids_T": [5, 13, 14, 15, 20, 21],
        "positions_T": [4, 3, 4, 5, 0, 1],
        "slot_mapping_T": [9 * 4, 20 * 4 + 3, 7 * 4, 7 * 4 + 1, s[0] * 4, s[0] * 4 + 1],
        "cu_seqlens_q_B1": [0, 1, 4, 6],
        "context_lens_B": [5, 6, 2],
        "block_tables_BM": [d[:2], m[:2], [s[0], 0]],  # without the blocks for tokens to come
        "output_rows_S": [0, 5],
    }
    assert inputs.query_lens == (1, 3, 2)
    assert inputs.context_lens == (5, 6, 2)
    assert not inputs.has_padding
    assert (batch.sampled, batch.places) == ((decode, last), (5, 2))
    dtypes = {name: getattr(inputs, name).dtype for name in ("input_ids_T", "slot_mapping_T")}
    assert set(dtypes.values()) == {torch.int64}
    for name in ("cu_seqlens_q_B1", "context_lens_B", "block_tables_BM"):
        assert getattr(inputs, name).dtype == torch.int32


def test_lays_out_the_sampling(blocks: BlockManager) -> None:
    plain = sequence_of(
        blocks, [1, 2], published=(3,),
        sampling=ResolvedSampling(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=(1 << 64) - 2),
    )  # fmt: skip
    penalized = sequence_of(
        blocks, [4, 5, 6], published=(7, 7),
        sampling=ResolvedSampling(
            temperature=0.0, repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=-0.5,
            logit_bias={3: 1.5, 4: -2.0}, logprobs=3,
        ),
    )  # fmt: skip
    sampling = sampling_of(Batch.of([plain, penalized], [3, 5]))
    names = ["temperature_B", "top_k_B", "seed_B", "index_B"]
    assert listed(sampling, names) == {
        "temperature_B": [0.5, 0.0],
        "top_k_B": [7, 0],
        "seed_B": [-2, 0],
        "index_B": [2, 3],
    }
    assert sampling.top_p_B.tolist() == pytest.approx([0.9, 1.0])
    assert sampling.min_p_B.tolist() == pytest.approx([0.1, 0.0])
    assert (sampling.greedy, sampling.unfiltered, sampling.max_top_k) == (False, False, 0)
    assert sampling.num_logprobs == 4
    assert sampling.extras is not None
    assert listed(sampling.extras, list(type(sampling.extras).__slots__)) == {
        "repetition_B": [1.0, 1.5],
        "presence_B": [0.0, 0.25],
        "frequency_B": [0.0, -0.5],
        "prompt_ids_BL": [[-1, -1, -1], [4, 5, 6]],
        "output_ids_BL": [[-1, -1], [7, 7]],
        "bias_ids_BK": [[-1, -1], [3, 4]],
        "bias_values_BK": [[0.0, 0.0], [1.5, -2.0]],
    }


@pytest.mark.parametrize(
    ("samplings", "flags"),
    [
        ([GREEDY, GREEDY], (True, True, 0)),
        ([GREEDY, ResolvedSampling()], (False, True, 0)),
        ([ResolvedSampling(top_k=3), ResolvedSampling(top_k=5)], (False, False, 5)),
        ([ResolvedSampling(top_k=3), ResolvedSampling(top_p=0.5)], (False, False, 0)),
        ([ResolvedSampling(min_p=0.5)], (False, False, 0)),
    ],
)
def test_tells_the_sampler_what_it_may_skip(
    blocks: BlockManager, samplings: list[ResolvedSampling], flags: tuple[bool, bool, int]
) -> None:
    sequences = [sequence_of(blocks, [n], sampling=sampling) for n, sampling in enumerate(samplings)]
    sampling = sampling_of(Batch.of(sequences, [1] * len(sequences)))
    assert sampling.extras is None
    assert sampling.num_logprobs == 0
    assert (sampling.greedy, sampling.unfiltered, sampling.max_top_k) == flags


def tokens_of(runner: ModelRunner, batch: Batch) -> list[int]:
    return runner.collect(runner.launch(batch)).token_ids


def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(runner: ModelRunner, blocks: BlockManager) -> None:
    prompt = [(5 * n) % NUM_IDS for n in range(11)]
    sampling = ResolvedSampling(temperature=0.0, logprobs=NUM_IDS - 1)
    expected = runner.collect(runner.launch(Batch.of([sequence_of(blocks, prompt, sampling=sampling)], [11])))
    chunked = sequence_of(blocks, prompt, sampling=sampling)
    for query_len in (4, 5):
        assert tokens_of(runner, Batch.of([chunked], [query_len])) == []
        chunked.num_computed_tokens += query_len
    assert runner.collect(runner.launch(Batch.of([chunked], [2]))) == expected


class CountingThinker(Thinker):
    """Its logits count upwards, so that the last id is the most likely."""

    def forward(self, inputs: StepInputs, kv: KVCache) -> Tensor:
        return torch.arange(VOCAB, dtype=torch.float32).repeat(len(inputs.output_rows_S), 1)


def test_each_row_gets_as_many_alternatives_as_it_asked_for(thinker: Thinker, blocks: BlockManager) -> None:
    sequences = [
        sequence_of(blocks, [n], sampling=ResolvedSampling(temperature=0.0, logprobs=num_top))
        for n, num_top in enumerate([2, None, 0])
    ]
    runner = runner_of(CountingThinker(thinker.weights))
    token_ids, logprobs = runner.collect(runner.launch(Batch.of(sequences, [1, 1, 1])))
    expected = torch.arange(NUM_IDS, dtype=torch.float32).log_softmax(0)
    assert token_ids == [NUM_IDS - 1] * 3
    assert logprobs is not None
    first, none, own = logprobs
    assert first is not None
    assert first.logprob == pytest.approx(float(expected[-1]))
    assert [token_id for token_id, _ in first.top] == [NUM_IDS - 1, NUM_IDS - 2]
    assert [value for _, value in first.top] == pytest.approx([float(expected[-1]), float(expected[-2])])
    assert none is None
    assert own is not None
    assert own.top == ()


def test_a_step_takes_the_ids_that_the_step_before_left_on_the_device(
    runner: ModelRunner, blocks: BlockManager
) -> None:
    first, second, newcomer = (sequence_of(blocks, prompt) for prompt in ([1, 2, 3], [4, 5], [6, 7]))
    before = runner.launch(Batch.of([first, second], [3, 2]))
    ids = runner.collect(before).token_ids
    for row, sequence in ((0, first), (1, second)):
        sequence.num_computed_tokens = len(sequence.token_ids)
        sequence.token_ids.append(~row)
    batch = Batch.of([second, first, newcomer], [1, 1, 2])
    ahead = runner.launch(batch, before)
    second.token_ids[-1], first.token_ids[-1] = ids[1], ids[0]
    assert runner.collect(ahead).token_ids == tokens_of(runner, batch)


class CapturableThinker(Thinker):
    """Its logits follow from a step's tensors alone, not from what the host knows of it."""

    def forward(self, inputs: StepInputs, kv: KVCache) -> Tensor:
        kinds_T = (inputs.input_ids_T * 31 + inputs.positions_T * 7) % 23
        return 3.0 * torch.outer(kinds_T[inputs.output_rows_S] + 1.0, torch.arange(VOCAB)).sin()


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        ResolvedSampling(top_k=5, seed=7),
        ResolvedSampling(logit_bias={3: 2.0}, logprobs=2, seed=7),
        ResolvedSampling(frequency_penalty=0.7, repetition_penalty=1.3, seed=7),
    ],
    ids=["greedy", "filtered", "bias and logprobs", "penalties"],
)
@pytest.mark.parametrize("is_ahead", [False, True])
def test_replayed_steps_bring_what_launched_ones_bring(
    thinker: Thinker, sampling: ResolvedSampling, is_ahead: bool
) -> None:
    capture = PaperCapture()
    thinker = CapturableThinker(thinker.weights)
    texts = [
        decoded(runner_of(thinker, graphs), [GREEDY, sampling, GREEDY], is_ahead=is_ahead)
        for graphs in (None, capture)
    ]
    assert texts[0] == texts[1]
    assert (len(capture.graphs), capture.num_replays) == (1, 5)


def decoded(runner: ModelRunner, samplings: list[ResolvedSampling], *, is_ahead: bool) -> list[SampledTokens]:
    """Six decode steps behind a prefill, each launched before the one before it is read where that can be."""
    blocks = BlockManager(32, BLOCK)
    sequences = [sequence_of(blocks, [n, 5, n], sampling=sampling) for n, sampling in enumerate(samplings)]
    collected: list[SampledTokens] = []
    before: InFlight | None = None
    batch = Batch.of(sequences, [3] * len(sequences))
    for _ in range(7):
        launched = runner.launch(batch, before)
        if before is not None:
            collected.append(collect(runner, before))
        for row, sequence in enumerate(batch.sampled):
            sequence.num_computed_tokens = len(sequence.token_ids)
            sequence.token_ids.append(~row)
        before = launched
        if batch.needs_ids or not is_ahead:
            collected.append(collect(runner, before))
            before = None
        batch = Batch.of(sequences, [1] * len(sequences))
    return collected + ([] if before is None else [collect(runner, before)])


def collect(runner: ModelRunner, step: InFlight) -> SampledTokens:
    tokens = runner.collect(step)
    for sequence, place, token_id in zip(
        step.batch.sampled, step.batch.places, tokens.token_ids, strict=True
    ):
        sequence.token_ids[place] = token_id
    return tokens


def test_a_steps_kind_is_its_bucket(thinker: Thinker, blocks: BlockManager) -> None:
    decodes = [sequence_of(blocks, [number]) for number in range(3)]
    batch = Batch.of(decodes, [1, 1, 1])
    runner = runner_of(CapturableThinker(thinker.weights), PaperCapture())
    assert runner.launch(batch).kind == Bucket(3, 128, 0, 0, "unfiltered")
    assert runner_of(thinker).launch(batch).kind is None


def test_a_step_in_which_a_sequence_gets_no_token_has_no_graph(thinker: Thinker) -> None:
    capture = PaperCapture()
    runner = runner_of(thinker, capture)
    blocks = BlockManager(32, BLOCK)
    for _ in range(3):
        decode, prompt = sequence_of(blocks, [4]), sequence_of(blocks, [1, 2, 3])
        tokens_of(runner, Batch.of([decode, prompt], [1, 2]))
        tokens_of(runner, Batch.of([prompt], [2]))
    assert not capture.graphs


def test_a_row_without_a_token_reads_nothing_outside_the_embedding() -> None:
    input_ids_T = torch.tensor([~1, 8, ~0])
    fill_pending(input_ids_T, torch.tensor([5, NOT_A_TOKEN]))
    assert input_ids_T.tolist() == [0, 8, 5]


def test_refuses_a_placeholder_for_a_row_that_is_not_there(runner: ModelRunner, blocks: BlockManager) -> None:
    before = runner.launch(Batch.of([sequence_of(blocks, [1])], [1]))
    with pytest.raises(ValueError, match="outside the vocabulary of 32"):
        runner.launch(Batch.of([sequence_of(blocks, [2, ~1])], [2]), before)


@pytest.mark.parametrize("token_id", [-1, VOCAB])
def test_refuses_an_id_without_an_embedding(runner: ModelRunner, blocks: BlockManager, token_id: int) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary of 32"):
        runner.launch(Batch.of([sequence_of(blocks, [1, token_id])], [2]))


def test_only_a_failed_device_is_fatal(runner: ModelRunner) -> None:
    assert runner.is_fatal(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    assert runner.is_fatal(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert runner.is_fatal(RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    assert runner.is_fatal(RuntimeError("Triton Error [HIP]: unspecified launch failure"))
    assert not runner.is_fatal(torch.OutOfMemoryError("CUDA out of memory"))
    assert not runner.is_fatal(torch.AcceleratorError("CUDA error: out of memory"))
    assert not runner.is_fatal(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert not runner.is_fatal(RuntimeError("shape mismatch"))
    assert not runner.is_fatal(ValueError("CUDA error"))
