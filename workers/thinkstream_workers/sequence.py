"""A job inside the engine: its tokens and its blocks.

Plain state, changed by the Batcher and the BlockManager alone. Knows no tensor, no Redis and no clock.
"""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field

import numpy as np

from thinkstream_client.outcome import FinishReason

from .orders import JobKey, Submit
from .sampling import ResolvedSampling

SAMPLING_RECORD = np.dtype(
    [("seed_B", "i8"), ("top_k_B", "i8"), ("temperature_B", "f4"), ("top_p_B", "f4"), ("min_p_B", "f4")]
)
"""What the sampler is told of a sequence at every step, under the names of its own fields."""


class SequenceStatus(enum.Enum):
    """Where a sequence is in its life inside the engine."""

    WAITING = "waiting"  #: holds no blocks: not admitted yet, or preempted
    RUNNING = "running"  #: holds blocks and takes part in steps
    ENDED = "ended"  #: gone from the Batcher


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One job's tokens, and the blocks that hold their keys and values.

    Tokens and blocks are arrays, so that the runner copies them into a step's tensors in one go::

        [0, num_computed_tokens)             keys and values are in the blocks once the device is done
        [num_computed_tokens, num_tokens)    to be computed; one token while decoding
        [num_prompt_tokens, num_tokens)      the result so far, published or about to be

    A token that was sampled and is still on the device alone has a placeholder in its place: ``~row``,
    which is negative, for the id in that row of what the step before sampled.

    Attributes:
        key: The ownership that this sequence serves.
        number: Place in the order of arrival; ties between sequences are broken by it.
        sampling: How its tokens are chosen.
        sampling_record: The same as a ``SAMPLING_RECORD``.
        num_logprobs: Log-probabilities per token: 0 is none, 1 the token's own, n + 1 with n alternatives.
        token_ids: int64, prompt and result.
        num_prompt_tokens: Tokens of the prompt.
        max_num_tokens: Tokens of prompt and result at most.
        alone: No other sequence shares its steps.
        has_penalties: Whether the sampler must see its text.
        has_extras: Whether it has penalties or biases.
        status: Waiting, running or ended.
        num_computed_tokens: Tokens whose keys and values are in the blocks.
        num_cached_tokens: Prompt tokens that the prefix cache spared when it was first admitted.
        block_table: int32, its blocks in order.
        block_digests: Chained digests of its full blocks, filled as far as they were asked for.
        num_shared_blocks: Leading blocks that are known to the prefix cache.
        was_admitted: Whether it has held blocks before.
        was_stepped: Whether it has taken part in a step.
    """

    key: JobKey
    number: int
    sampling: ResolvedSampling
    sampling_record: bytes
    num_logprobs: int
    token_ids: array[int]
    num_prompt_tokens: int
    max_num_tokens: int
    alone: bool = False
    has_penalties: bool = False
    has_extras: bool = False
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: array[int] = field(default_factory=lambda: array("i"))
    block_digests: list[bytes] = field(default_factory=list[bytes])
    num_shared_blocks: int = 0
    was_admitted: bool = False
    was_stepped: bool = False

    @classmethod
    def of(cls, order: Submit, number: int, max_context: int) -> Sequence:
        """Makes the sequence of an order; what is already published counts as its own result.

        Args:
            order: The order.
            number: Its place in the order of arrival.
            max_context: Tokens of prompt and result that any sequence may have.
        """
        sampling = order.sampling
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        has_penalties = penalties != (1.0, 0.0, 0.0)
        return cls(
            key=order.key,
            number=number,
            sampling=sampling,
            sampling_record=_sampling_record(sampling),
            num_logprobs=0 if sampling.logprobs is None else sampling.logprobs + 1,
            token_ids=array("q", order.prompt_ids + order.published_ids),
            num_prompt_tokens=len(order.prompt_ids),
            max_num_tokens=min(len(order.prompt_ids) + sampling.max_tokens, max_context),
            alone=order.alone,
            has_penalties=has_penalties,
            has_extras=has_penalties or bool(sampling.logit_bias),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and result."""
        return len(self.token_ids)

    @property
    def num_left_tokens(self) -> int:
        """Tokens that it may still generate."""
        return self.max_num_tokens - len(self.token_ids)

    def end_reason(self, num_tokens: int) -> FinishReason | None:
        """Why it ends with so many of its tokens, or None when it goes on behind them."""
        if (
            num_tokens > self.num_prompt_tokens
            and self.token_ids[num_tokens - 1] in self.sampling.stop_token_ids
        ):
            return FinishReason.STOP
        return FinishReason.LENGTH if num_tokens >= self.max_num_tokens else None


def _sampling_record(sampling: ResolvedSampling) -> bytes:
    seed = np.uint64(sampling.seed).astype(np.int64)  # the same bits
    fields = (seed, sampling.top_k, sampling.temperature, sampling.top_p, sampling.min_p)
    return np.array(fields, dtype=SAMPLING_RECORD).tobytes()
