"""From a batch to tokens: a step's tensors, the Thinker, the sampler.

The only part of the engine that knows torch. It keeps nothing of a sequence between steps.

S sequences that get a token, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thinkstream_client.records import TokenLogprobs
from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.sampler import Sampled, SamplingExtras, SamplingInputs, sample
from thinkstream_model.thinker import Thinker

from .batch import Batch, SampledTokens
from .sequence import Sequence
from .step_arrays import Array, extras_arrays, input_arrays, sampling_arrays

_ALIGNMENT_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step on the device.

    Attributes:
        inputs: For the Thinker.
        sampling: For the sampler; None where all are chunks in the middle of a prompt.
        sampled: The sequences that get a token, one per row of the logits.
    """

    inputs: StepInputs
    sampling: SamplingInputs | None
    sampled: tuple[Sequence, ...]


class ModelRunner:
    """Runs batches on one device.

    Args:
        thinker: The model.
        kv: Its cache; block ids of the sequences count its blocks.
        num_valid_ids: Vocabulary ids that the tokenizer knows, from 0; no other is ever sampled.
    """

    def __init__(self, thinker: Thinker, kv: KVCache, *, num_valid_ids: int) -> None:
        self._thinker = thinker
        self._kv = kv
        self._num_valid_ids = num_valid_ids

    def prepare(self, batch: Batch) -> Step:
        """Lays out a batch and sends it to the device in one copy.

        Raises:
            ValueError: A token id has no row in the embedding. On a GPU it would end the process.
        """
        arrays = input_arrays(batch, self._kv.block_size)
        input_ids_T = arrays["input_ids_T"]
        num_ids = self._thinker.config.vocab_size
        if input_ids_T.min() < 0 or input_ids_T.max() >= num_ids:
            raise ValueError(f"a token id outside the vocabulary of {num_ids}")
        inputs = StepInputs(
            **_send(arrays, self._thinker.device),
            query_lens=batch.query_lens,
            context_lens=tuple(arrays["context_lens_B"].tolist()),
        )
        sampling = self._prepare_sampling(batch.sampled) if batch.sampled else None
        return Step(inputs=inputs, sampling=sampling, sampled=batch.sampled)

    def forward(self, step: Step) -> Tensor:
        """Computes a step: float32 logits [S, V] of the sequences that get a token."""
        return self._thinker.forward(step.inputs, self._kv)

    def sample(self, logits_SV: Tensor, step: Step) -> SampledTokens:
        """Chooses the tokens and waits for them: what it returns is on the host."""
        if step.sampling is None:
            return SampledTokens([])
        sampled = sample(logits_SV, step.sampling, num_valid_ids=self._num_valid_ids)
        token_ids: list[int] = _on_host(sampled.token_ids_B)
        if not step.sampling.num_logprobs:
            return SampledTokens(token_ids)
        return SampledTokens(token_ids, _logprobs(sampled, step.sampled))

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device itself has failed, so that no later step on it can be trusted.

        Out of memory is not: a smaller step may do.
        """
        return isinstance(error, torch.AcceleratorError) or (
            isinstance(error, RuntimeError)
            and any(word in str(error) for word in ("CUDA error", "HIP error"))
        )

    def _prepare_sampling(self, sequences: tuple[Sequence, ...]) -> SamplingInputs:
        device = self._thinker.device
        arrays = sampling_arrays(sequences)
        top_k_B = arrays["top_k_B"]
        extras = None
        if any(sequence.has_extras for sequence in sequences):
            extras = SamplingExtras(**_send(extras_arrays(sequences), device))
        return SamplingInputs(
            **_send(arrays, device),
            extras=extras,
            num_logprobs=max(_num_logprobs(sequence) for sequence in sequences),
            greedy=not arrays["temperature_B"].any(),
            unfiltered=not (top_k_B.any() or arrays["min_p_B"].any() or (arrays["top_p_B"] < 1.0).any()),
            max_top_k=int(top_k_B.max()) if top_k_B.all() else 0,
        )


def _send(arrays: dict[str, Array], device: torch.device) -> dict[str, Tensor]:
    """Copies arrays to the device, all in one piece, from pinned memory where that helps."""
    ends: list[int] = []
    num_bytes = 0
    for array in arrays.values():
        ends.append(num_bytes + array.nbytes)
        num_bytes += -(-array.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    # Fresh memory for each step: torch keeps pinned memory from reuse while a copy from it is under way.
    packed = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    bytes_on_host = packed.numpy()
    for end, array in zip(ends, arrays.values(), strict=True):
        bytes_on_host[end - array.nbytes : end] = array.reshape(-1).view("uint8")
    packed = packed.to(device, non_blocking=True)
    tensors: dict[str, Tensor] = {}
    for end, (name, array) in zip(ends, arrays.items(), strict=True):
        dtype: torch.dtype = getattr(torch, array.dtype.name)
        tensors[name] = packed[end - array.nbytes : end].view(dtype).view(array.shape)
    return tensors


def _on_host(tensor: Tensor) -> list[Any]:
    """Waits for a tensor and returns its numbers."""
    return tensor.tolist()  # pyright: ignore[reportUnknownVariableType]


def _num_logprobs(sequence: Sequence) -> int:
    """As ``SamplingInputs`` counts them: 0 is none, 1 the token's own, n + 1 with n alternatives."""
    return 0 if sequence.sampling.logprobs is None else sequence.sampling.logprobs + 1


def _logprobs(sampled: Sampled, sequences: tuple[Sequence, ...]) -> list[TokenLogprobs | None]:
    assert sampled.logprob_B is not None
    assert sampled.top_ids_BK is not None
    assert sampled.top_logprobs_BK is not None
    rows = zip(
        sequences,
        _on_host(sampled.logprob_B),
        _on_host(sampled.top_ids_BK),
        _on_host(sampled.top_logprobs_BK),
        strict=True,
    )
    result: list[TokenLogprobs | None] = []
    for sequence, logprob, top_ids, top_logprobs in rows:
        num_top = sequence.sampling.logprobs
        if num_top is None:
            result.append(None)
        else:
            top = tuple(zip(top_ids[:num_top], top_logprobs[:num_top], strict=True))
            result.append(TokenLogprobs(logprob, top))
    return result
