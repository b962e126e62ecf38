"""Filling in what a request left open."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from thinkstream_client.errors import InvalidRequest, PromptTooLong
from thinkstream_client.protocol.functions import job_cost
from thinkstream_client.records import Request, SamplingParams
from thinkstream_model.generation import GenerationDefaults
from thinkstream_workers.resolve import Limits, check_prompt, resolve, sampling_note
from thinkstream_workers.sampling import ResolvedSampling

LIMITS = Limits(max_context=1_000, num_ids=50)
DEFAULTS = GenerationDefaults(
    temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05, eos_token_ids=(7, 8)
)


def resolved(params: SamplingParams, num_prompt_tokens: int = 10) -> ResolvedSampling:
    return resolve(params, DEFAULTS, job_id="job-1", num_prompt_tokens=num_prompt_tokens, limits=LIMITS)


def test_what_is_not_given_is_the_checkpoints() -> None:
    sampling = resolved(SamplingParams())
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20)
    assert sampling.repetition_penalty == 1.05
    assert (sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.0, 0.0, 0.0)
    assert sampling.stop_token_ids == {7, 8}


def test_what_is_given_wins_zero_included() -> None:
    sampling = resolved(SamplingParams(temperature=0.0, top_k=0, seed=0, stop_token_ids=(3,)))
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.0, 0, 0)
    assert sampling.stop_token_ids == {3, 7, 8}
    assert resolved(SamplingParams(ignore_eos=True, stop_token_ids=(3,))).stop_token_ids == {3}


def test_the_length_is_cut_at_the_context() -> None:
    assert resolved(SamplingParams(max_tokens=5)).max_tokens == 5
    assert resolved(SamplingParams()).max_tokens == 990
    assert resolved(SamplingParams(max_tokens=5_000), 999).max_tokens == 1


def test_a_length_that_nobody_gives_is_what_the_job_was_charged_for() -> None:
    roomy = Limits(max_context=10_000, num_ids=50)

    def max_tokens(defaults: GenerationDefaults) -> int:
        return resolve(SamplingParams(), defaults, job_id="j", num_prompt_tokens=1, limits=roomy).max_tokens

    assert max_tokens(DEFAULTS) == job_cost(Request(token_ids=(1,))) - 1
    assert max_tokens(replace(DEFAULTS, max_tokens=5)) == 5


def test_a_job_without_a_seed_has_its_ids() -> None:
    digest = hashlib.sha256(b"job-1").digest()
    assert resolved(SamplingParams()).seed == int.from_bytes(digest[:8], "little")


def test_prompts_outside_the_models_reach_are_refused() -> None:
    check_prompt((1,) * 999, LIMITS)
    with pytest.raises(PromptTooLong) as too_long:
        check_prompt((1,) * 1_000, LIMITS)
    assert (too_long.value.num_tokens, too_long.value.limit) == (1_000, 999)
    with pytest.raises(InvalidRequest, match="token_ids"):
        check_prompt((1, 50), LIMITS)
    with pytest.raises(InvalidRequest, match="prompt"):
        check_prompt((), LIMITS)
    with pytest.raises(InvalidRequest, match="logit_bias"):
        resolved(SamplingParams(logit_bias={50: 1.0}))
    with pytest.raises(InvalidRequest, match=r"stop_token_ids: got 50, allowed: ids .* 0 to 49"):
        resolved(SamplingParams(stop_token_ids=(49, 50)))


def test_the_note_is_json_that_holds_every_field() -> None:
    sampling = resolved(SamplingParams(logit_bias={3: -1.5}, stop=("x",)))
    note = json.loads(sampling_note(sampling))
    assert note["logit_bias"] == {"3": -1.5}
    assert note["stop_token_ids"] == [7, 8]
    assert note["seed"] == sampling.seed
