"""Fills in what a request left open: sampling from the checkpoint's defaults, lengths from the context.

Pure: the same request, defaults and limits give the same answer on every replica, which is what lets a
job go on elsewhere as it would have here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

from thinkstream_client.errors import InvalidRequest, PromptTooLong
from thinkstream_client.protocol.job_calls import DEFAULT_MAX_TOKENS
from thinkstream_client.protocol.wire import default_seed
from thinkstream_client.records import SamplingParams
from thinkstream_model.generation import GenerationDefaults

from .sampling import ResolvedSampling

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the model can take.

    Attributes:
        max_context: Tokens of prompt and result together.
        num_ids: Vocabulary ids that have a meaning, from 0.
    """

    max_context: int
    num_ids: int


def check_prompt(prompt_ids: tuple[int, ...], limits: Limits) -> None:
    """Refuses a prompt that the model cannot read or that leaves no room for a token.

    Raises:
        InvalidRequest: It is empty or has an id outside the vocabulary.
        PromptTooLong: It fills the context.
    """
    if not prompt_ids:
        raise InvalidRequest("prompt", "no tokens", "at least one token")
    if len(prompt_ids) >= limits.max_context:
        raise PromptTooLong(len(prompt_ids), limits.max_context - 1)
    _check_ids("token_ids", prompt_ids, limits.num_ids)


def resolve(
    params: SamplingParams,
    defaults: GenerationDefaults,
    *,
    job_id: str,
    num_prompt_tokens: int,
    limits: Limits,
) -> ResolvedSampling:
    """Returns the sampling with every field filled in.

    Raises:
        InvalidRequest: A bias or a stop names an id outside the vocabulary.
    """
    _check_ids("sampling.logit_bias", params.logit_bias, limits.num_ids)
    _check_ids("sampling.stop_token_ids", params.stop_token_ids, limits.num_ids)
    ends = () if params.ignore_eos else defaults.eos_token_ids
    max_tokens = _or(params.max_tokens, _or(defaults.max_tokens, DEFAULT_MAX_TOKENS))
    return ResolvedSampling(
        temperature=_or(params.temperature, defaults.temperature),
        top_p=_or(params.top_p, defaults.top_p),
        top_k=_or(params.top_k, defaults.top_k),
        min_p=_or(params.min_p, defaults.min_p),
        repetition_penalty=_or(params.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_or(params.presence_penalty, 0.0),
        frequency_penalty=_or(params.frequency_penalty, 0.0),
        max_tokens=min(max_tokens, limits.max_context - num_prompt_tokens),
        stop=params.stop,
        stop_token_ids=frozenset((*ends, *params.stop_token_ids)),
        logit_bias=params.logit_bias,
        logprobs=params.logprobs,
        seed=default_seed(job_id) if params.seed is None else params.seed,
    )


def sampling_note(sampling: ResolvedSampling) -> str:
    """The sampling as JSON, as it is shown to whoever inspects the job."""
    shown = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    shown["stop_token_ids"] = sorted(sampling.stop_token_ids)
    shown["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
    return json.dumps(shown)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _check_ids(field: str, ids: Iterable[int], num_ids: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < num_ids:
            raise InvalidRequest(field, token_id, f"ids of the vocabulary, 0 to {num_ids - 1}")
