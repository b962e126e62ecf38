"""From a batch to tokens: a step's tensors, the Thinker, the sampler.

The only part of the engine that knows torch. It keeps nothing of a sequence between steps. A step is
launched without waiting for the device and collected when its tokens are wanted, so that the next one can
be on its way meanwhile.

T tokens of the step, S sequences that get a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.sampler import Sampled, SamplingExtras, SamplingInputs
from thinkstream_model.thinker import Thinker

from .batch import Batch, SampledTokens
from .device_errors import is_fatal
from .packing import pack, unpack
from .readback import listed, logprobs_of, to_host
from .step_arrays import Array, extras_arrays, input_arrays, sampling_arrays
from .step_graphs import MAX_PROMPT_TOKENS, Bucket, StepGraphs, bucket_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step on the device.

    Attributes:
        inputs: For the Thinker.
        is_pending: Whether placeholders are among the ids, which ``fill_pending`` is to replace.
        sampling: For the sampler; None where all are chunks in the middle of a prompt.
    """

    inputs: StepInputs
    is_pending: bool
    sampling: SamplingInputs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A step that the device has been told to do.

    Attributes:
        batch: The step.
        sampled: What it brings, on the device, for the step launched next and no later one; None where
            all are chunks in the middle of a prompt.
        on_host: The same on the host, to be read once it is there.
        is_there: Says so; None where the device is the host.
    """

    batch: Batch
    on_host: Sampled | None
    is_there: torch.cuda.Event | None


class ModelRunner:
    """Runs batches on one device.

    Args:
        thinker: The model.
        kv: Its cache, an attribute too; block ids of the sequences count its blocks.
        num_valid_ids: Vocabulary ids that the tokenizer knows, from 0; no other is ever sampled.
        max_num_seqs: Sequences of one step at most.
        prompt_graphs: See ``EngineConfig``.
    """

    def __init__(
        self,
        thinker: Thinker,
        kv: KVCache,
        *,
        num_valid_ids: int,
        max_num_seqs: int,
        prompt_graphs: bool = False,
    ) -> None:
        self._thinker = thinker
        self.kv = kv
        self._num_valid_ids = num_valid_ids
        self._max_prompt_tokens = MAX_PROMPT_TOKENS if prompt_graphs else 1
        self._newest_ids_S = torch.zeros(bucket_rows(max_num_seqs), dtype=torch.int64, device=thinker.device)
        self._graphs: StepGraphs | None = None
        if thinker.is_capturable:
            self._graphs = StepGraphs(self._step, device=thinker.device, block_size=kv.block_size)

    @torch.inference_mode()
    def launch(self, batch: Batch, before: InFlight | None = None) -> InFlight:
        """Tells the device to do a step, and waits for nothing.

        Args:
            batch: The step.
            before: The step launched last, where placeholders stand for its tokens.

        Raises:
            ValueError: A token id has no row in the embedding. On a GPU it would end the process.
        """
        if self._graphs is not None and _has_graph(batch, self._max_prompt_tokens):
            sampled: Sampled | None = self._replay(self._graphs, batch, before)
        else:
            step = self.prepare(batch, before)  # host -> device, one copy
            if step.is_pending:
                fill_pending(step.inputs.input_ids_T, self._newest_ids_S)
            logits_SV = self.forward(step)  # the only line that does arithmetic
            sampled = self.sample(logits_SV, step)
            if sampled is not None:
                self._newest_ids_S[: len(batch.sampled)].copy_(sampled.token_ids_B)
        on_host = None if sampled is None else to_host(sampled)  # device -> host, not waited for
        return InFlight(batch=batch, on_host=on_host, is_there=self._record())

    def collect(self, step: InFlight) -> SampledTokens:
        """Waits for a step and returns its tokens. What is raised here has befallen the device."""
        if step.is_there is not None:
            step.is_there.synchronize()
        if step.on_host is None:
            return SampledTokens([])
        token_ids = listed(step.on_host.token_ids_B)
        if step.on_host.logprob_B is None:
            return SampledTokens(token_ids)
        return SampledTokens(token_ids, logprobs_of(step.on_host, step.batch.sampled))

    def prepare(self, batch: Batch, before: InFlight | None = None) -> Step:
        """Lays out a batch and sends it to the device in one copy.

        Args:
            batch: The step.
            before: The step launched last, where placeholders may stand for its tokens.
        """
        inputs = input_arrays(batch, self.kv.block_size)
        lowest_id = self._check_ids(inputs["input_ids_T"], before)
        sampling = sampling_arrays(batch) if batch.sampled else {}
        has_extras = any(sequence.has_extras for sequence in batch.sampled)
        extras = extras_arrays(batch.sampled) if has_extras else {}
        sent = _send({**inputs, **sampling, **extras}, self._thinker.device)
        return Step(
            inputs=StepInputs(
                **{name: sent[name] for name in inputs},
                query_lens=batch.query_lens,
                context_lens=batch.context_lens,
            ),
            is_pending=lowest_id < 0,
            sampling=_sampling_inputs(batch, sampling, extras, sent) if sampling else None,
        )

    def forward(self, step: Step) -> Tensor:
        """Computes a step: float32 logits [S, V] of the sequences that get a token."""
        return self._thinker.forward(step.inputs, self.kv)

    def sample(self, logits_SV: Tensor, step: Step) -> Sampled | None:
        """Chooses the tokens, which stay on the device."""
        if step.sampling is None:
            return None
        return self._thinker.sample(logits_SV, step.sampling, num_valid_ids=self._num_valid_ids)

    def _replay(self, graphs: StepGraphs, batch: Batch, before: InFlight | None) -> Sampled:
        """Does a step as one launch, where its graph is there."""
        arrays = input_arrays(batch, self.kv.block_size)
        self._check_ids(arrays["input_ids_T"], before)
        sampling = sampling_arrays(batch)
        bucket = Bucket.of(
            sum(batch.query_lens),
            len(batch.sequences),
            max(batch.context_lens),
            is_filtered=_is_filtered(sampling),
        )
        if bucket.num_tokens == bucket.num_sequences:
            del arrays["cu_seqlens_q_B1"]  # each sequence has one token
        sampled_B = graphs.run(arrays | sampling, bucket)
        return Sampled(token_ids_B=sampled_B[: len(batch.sampled)])

    def _step(self, tensors: dict[str, Tensor], bucket: Bucket) -> Tensor:
        """A step from the newest ids to the next ones, in launches that never wait for the host."""
        fill_pending(tensors["input_ids_T"], self._newest_ids_S)
        num_sequences = bucket.num_sequences
        cu_seqlens_q_B1 = tensors.get("cu_seqlens_q_B1")
        if cu_seqlens_q_B1 is None:
            cu_seqlens_q_B1 = torch.arange(num_sequences + 1, dtype=torch.int32, device=self._thinker.device)
        inputs = StepInputs(
            input_ids_T=tensors["input_ids_T"],
            positions_T=tensors["positions_T"],
            slot_mapping_T=tensors["slot_mapping_T"],
            context_lens_B=tensors["context_lens_B"],
            block_tables_BM=tensors["block_tables_BM"],
            output_rows_S=tensors["output_rows_S"],
            cu_seqlens_q_B1=cu_seqlens_q_B1,
            query_lens=(bucket.num_tokens // num_sequences,) * num_sequences,
            context_lens=(bucket.max_context,) * num_sequences,
        )
        sampling = SamplingInputs(
            temperature_B=tensors["temperature_B"],
            top_p_B=tensors["top_p_B"],
            top_k_B=tensors["top_k_B"],
            min_p_B=tensors["min_p_B"],
            seed_B=tensors["seed_B"],
            index_B=tensors["index_B"],
            unfiltered=not bucket.is_filtered,
        )
        logits_BV = self._thinker.forward(inputs, self.kv)
        sampled = self._thinker.sample(logits_BV, sampling, num_valid_ids=self._num_valid_ids)
        self._newest_ids_S[:num_sequences].copy_(sampled.token_ids_B)
        return sampled.token_ids_B

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device itself has failed, so that no later step on it can be trusted."""
        return is_fatal(error)

    def _check_ids(self, input_ids_T: Array, before: InFlight | None) -> int:
        """Returns the lowest id: negative where it stands for a row of the step before."""
        num_ids = self._thinker.config.vocab_size
        num_rows = 0 if before is None else len(before.batch.sampled)
        lowest_id = int(input_ids_T.min())
        if lowest_id < -num_rows or input_ids_T.max() >= num_ids:
            raise ValueError(f"a token id outside the vocabulary of {num_ids}")
        return lowest_id

    def _record(self) -> torch.cuda.Event | None:
        if self._thinker.device.type != "cuda":
            return None
        is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        is_there.record()
        return is_there


def fill_pending(input_ids_T: Tensor, sampled_ids_S: Tensor) -> None:
    """Replaces the placeholders among a step's ids by what the step before sampled, on the device.

    For a row that has no token it takes id 0: that sequence ends once the host knows, and until then
    nothing must be read outside the embedding.

    Args:
        input_ids_T: int64, ids and placeholders ``~row``; changed in place.
        sampled_ids_S: int64, rows of the step before.
    """
    rows_T = input_ids_T.bitwise_not().clamp_(min=0)
    sampled_ids_T = sampled_ids_S.clamp(min=0).index_select(0, rows_T)
    input_ids_T.copy_(torch.where(input_ids_T < 0, sampled_ids_T, input_ids_T))


def _sampling_inputs(
    batch: Batch, arrays: dict[str, Array], extras: dict[str, Array], sent: dict[str, Tensor]
) -> SamplingInputs:
    top_k_B = arrays["top_k_B"]
    return SamplingInputs(
        **{name: sent[name] for name in arrays},
        extras=SamplingExtras(**{name: sent[name] for name in extras}) if extras else None,
        num_logprobs=max([sequence.num_logprobs for sequence in batch.sampled]),
        greedy=not arrays["temperature_B"].any(),
        unfiltered=not _is_filtered(arrays),
        max_top_k=int(top_k_B.max()) if top_k_B.all() else 0,
    )


def _has_graph(batch: Batch, max_prompt_tokens: int) -> bool:
    """Whether a step is of a kind that has graphs: decodes, or the whole of one short prompt."""
    if not batch.is_plain:
        return False
    if len(batch.sequences) == 1:
        return batch.query_lens[0] <= max_prompt_tokens
    return sum(batch.query_lens) == len(batch.sequences)


def _is_filtered(arrays: dict[str, Array]) -> bool:
    """Whether any row has top-k, top-p or min-p."""
    return bool(arrays["top_k_B"].any() or arrays["min_p_B"].any() or (arrays["top_p_B"] < 1.0).any())


def _send(arrays: dict[str, Array], device: torch.device) -> dict[str, Tensor]:
    packed = pack(arrays, pinned=device.type == "cuda").to(device, non_blocking=True)
    return unpack(packed, arrays)
