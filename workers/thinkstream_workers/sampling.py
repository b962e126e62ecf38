"""The sampling of one sequence with every field filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from thinkstream_client.protocol.job_calls import DEFAULT_MAX_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSampling:
    """A request's sampling after the checkpoint's defaults and the context limit were applied.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        max_tokens: Tokens to generate at most, cut at the context.
        stop: Stop strings; the Publisher looks for them.
        stop_token_ids: Ids that end the text, the checkpoint's own ends among them. The stop id itself is
            part of the ids and not of the text.
        seed: Key of the random numbers.
        logprobs: Number of alternatives per token; None is off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    logprobs: int | None = None
    seed: int = 0
