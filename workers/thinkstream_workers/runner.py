"""From a batch to tokens: the Thinker and the sampler, told what to do and not waited for.

It keeps nothing of a sequence between steps. A step is launched without waiting for the device and
collected when its tokens are wanted, so that the next one can be on its way meanwhile.

S sequences that get a token, B rows of a captured step, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thinkstream_model.kv_cache import KVCache
from thinkstream_model.sampler import Sampled
from thinkstream_model.thinker import Thinker

from .batch import Batch, SampledTokens
from .buckets import Bucket, GraphEnd, most_sequences
from .device_errors import is_fatal
from .packing import send
from .readback import listed, logprobs_of, to_host
from .step_arrays import (
    Array,
    SamplingHints,
    StepLengths,
    input_arrays,
    sampling_arrays,
    sampling_hints,
)
from .step_graphs import Capture, StepGraphs
from .step_tensors import sampling_inputs, step_inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A step that the device has been told to do.

    Attributes:
        batch: The step.
        on_host: What it brings, to be read once it is there; None where all are chunks in the middle of a
            prompt.
        is_there: Says so; None where the device is the host.
        kind: Its bucket, whose steps take as long; None where it has none.
    """

    batch: Batch
    on_host: Sampled | None
    is_there: torch.cuda.Event | None
    kind: Bucket | None


class ModelRunner:
    """Runs batches on one device.

    Args:
        thinker: The model.
        kv: Its cache; block ids of the sequences count its blocks.
        num_valid_ids: Vocabulary ids that the tokenizer knows, from 0; no other is ever sampled.
        max_num_seqs: Sequences of one step at most.
        max_context: Tokens of one sequence at most.
        capture: Makes a graph of a step; None has every step done launch by launch.
    """

    def __init__(
        self,
        thinker: Thinker,
        kv: KVCache,
        *,
        num_valid_ids: int,
        max_num_seqs: int,
        max_context: int,
        capture: Capture | None = None,
    ) -> None:
        self._thinker = thinker
        self._kv = kv
        self._num_valid_ids = num_valid_ids
        self._max_context = max_context
        num_rows, device = most_sequences(max_num_seqs), thinker.device
        self._newest_ids_S = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._graphs: StepGraphs | None = None
        if capture is not None:
            self._logits_BV = torch.empty(num_rows, thinker.config.vocab_size, device=device)
            self._graphs = StepGraphs(self._do_captured, capture, device=device, block_size=kv.block_size)

    @torch.inference_mode()
    def launch(self, batch: Batch, before: InFlight | None = None) -> InFlight:
        """Tells the device to do a step, and waits for nothing.

        Args:
            batch: The step.
            before: The step launched last, where placeholders stand for its tokens.

        Raises:
            ValueError: A token id has no row in the embedding. On a GPU it would end the process.
        """
        inputs = input_arrays(batch, self._kv.block_size)
        self._check_ids(inputs["input_ids_T"], before)
        sampling = sampling_arrays(batch)
        hints = sampling_hints(batch, sampling)
        bucket = None if self._graphs is None else self._bucket_of(batch, hints)
        if self._graphs is None or bucket is None:
            tensors = self._send(inputs | sampling)  # host -> device, one copy
            logits_SV = self._forward(tensors, StepLengths(batch.query_lens, batch.context_lens))
            sampled = self._sample(logits_SV, tensors, hints) if batch.sampled else None
        elif bucket.end == "none":
            self._graphs.run(inputs, bucket)
            logits_SV = self._logits_BV[: len(batch.sampled)]
            sampled = self._sample(logits_SV, self._send(sampling), hints)
        else:
            self._graphs.run(inputs | sampling, bucket)
            sampled = Sampled(token_ids_B=self._newest_ids_S[: len(batch.sampled)])
        on_host = None if sampled is None else to_host(sampled)  # device -> host, not waited for
        return InFlight(batch=batch, on_host=on_host, is_there=self._record(), kind=bucket)

    @torch.inference_mode()
    def rehearse(self, batch: Batch, bucket: Bucket) -> bool:
        """Does a step towards a bucket's graph and keeps nothing: no key is written, no id is read.

        Returns:
            Whether there was one to do: not where the bucket has its graph, nor where nothing is captured.
        """
        if self._graphs is None:
            return False
        arrays = input_arrays(batch, self._kv.block_size) | sampling_arrays(batch)
        arrays["slot_mapping_T"] = np.full_like(arrays["slot_mapping_T"], -1)
        return self._graphs.prepare(arrays, bucket)

    def has_ended(self, step: InFlight) -> bool:
        """Whether collecting a step would not wait."""
        return step.is_there is None or bool(step.is_there.query())  # type: ignore[no-untyped-call]

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

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device itself has failed, so that no later step on it can be trusted."""
        return is_fatal(error)

    def _do_captured(self, tensors: dict[str, Tensor], bucket: Bucket) -> None:
        """Does what a graph holds: a step from the newest ids to the next ones, or to its logits."""
        logits_BV = self._forward(tensors, bucket.lengths)
        if bucket.end == "none":
            self._logits_BV[: bucket.num_sequences].copy_(logits_BV)
        else:
            hints = SamplingHints(unfiltered=bucket.end == "unfiltered")
            self._sample(logits_BV, tensors, hints)

    def _forward(self, tensors: dict[str, Tensor], lengths: StepLengths) -> Tensor:
        """Computes a step: float32 logits [S, V] of the sequences that get a token."""
        fill_pending(tensors["input_ids_T"], self._newest_ids_S)
        return self._thinker.forward(step_inputs(tensors, lengths), self._kv)

    def _sample(self, logits_SV: Tensor, tensors: dict[str, Tensor], hints: SamplingHints) -> Sampled:
        """Chooses the tokens, which stay on the device for the step launched next."""
        sampling = sampling_inputs(tensors, hints)
        sampled = self._thinker.sample(logits_SV, sampling, num_valid_ids=self._num_valid_ids)
        self._newest_ids_S[: len(logits_SV)].copy_(sampled.token_ids_B)
        return sampled

    def _bucket_of(self, batch: Batch, hints: SamplingHints) -> Bucket | None:
        """The bucket of a step that may be a graph: each sequence gets a token."""
        if len(batch.sampled) < len(batch.sequences):
            return None
        end: GraphEnd = "none"
        if batch.is_plain:
            end = "unfiltered" if hints.unfiltered else "filtered"
        return Bucket.of(batch.query_lens, batch.context_lens, end, longest=self._max_context)

    def _send(self, arrays: dict[str, Array]) -> dict[str, Tensor]:
        return send(arrays, self._thinker.device)

    def _check_ids(self, input_ids_T: Array, before: InFlight | None) -> None:
        """Sees that each id has a row in the embedding, or stands for a row of the step before."""
        num_ids = self._thinker.config.vocab_size
        num_rows = 0 if before is None else len(before.batch.sampled)
        if input_ids_T.min() < -num_rows or input_ids_T.max() >= num_ids:
            raise ValueError(f"a token id outside the vocabulary of {num_ids}")

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
