"""From logits to tokens, on the logits' device and without waiting for it.

The order is: padding rows of the vocabulary masked; bias; repetition, frequency and presence penalty;
temperature; top-k; top-p over what top-k left; min-p; then one token by the Gumbel-max trick, with noise
that depends on seed, index and vocabulary id alone. A row's token depends on that row alone.

B sequences, V vocabulary, L ids of the longest text, K ids with a bias or alternatives with a logprob,
N values in descending order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .philox import gumbel_noise

NOT_A_TOKEN = -1
"""Stands where a row's logits are not all numbers: whatever was chosen there would be noise."""

LEAST_TEMPERATURE = 1e-30
"""Lower ones count as this: it leaves noise no say, and what is divided by it is still finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingExtras:
    """What few requests ask for. Ids outside the vocabulary are ignored; -1 pads.

    Attributes:
        repetition_B: float32; logits of ids that occur in prompt or output are divided by it where
            positive and multiplied where negative; 1 is off.
        presence_B: float32, taken from logits of ids that occur in the output; 0 is off.
        frequency_B: float32, taken once per occurrence in the output; 0 is off.
        prompt_ids_BL: int64.
        output_ids_BL: int64.
        bias_ids_BK: int64, each id at most once per row.
        bias_values_BK: float32, added to the logits.
    """

    repetition_B: Tensor
    presence_B: Tensor
    frequency_B: Tensor
    prompt_ids_BL: Tensor
    output_ids_BL: Tensor
    bias_ids_BK: Tensor
    bias_values_BK: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingInputs:
    """How to sample each row. All tensors are on the logits' device.

    The last three fields say on the host what the tensors say on the device, to spare work; leaving them
    at their defaults changes no token.

    Attributes:
        temperature_B: float32; 0 is greedy.
        top_p_B: float32 in (0, 1]; 1 is off.
        top_k_B: int64; 0 is off.
        min_p_B: float32 in [0, 1], relative to the most likely token; 0 is off.
        seed_B: int64, two's complement of an unsigned 64-bit seed.
        index_B: int64, place in the result of the token being sampled, from 1.
        extras: Penalties and biases, where any row has them.
        num_logprobs: 0 is none; n + 1 asks for the token's own and n alternatives.
        greedy: Every row is greedy.
        unfiltered: No row has top-k, top-p or min-p.
        max_top_k: The largest top-k where every row has one, else 0.
    """

    temperature_B: Tensor
    top_p_B: Tensor
    top_k_B: Tensor
    min_p_B: Tensor
    seed_B: Tensor
    index_B: Tensor
    extras: SamplingExtras | None = None
    num_logprobs: int = 0
    greedy: bool = False
    unfiltered: bool = False
    max_top_k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One token per row.

    Log-probabilities are the model's own: before bias, penalties, temperature and filters.

    Attributes:
        token_ids_B: int64; ``NOT_A_TOKEN`` in a row whose logits are not all numbers.
        logprob_B: float32, the token's own; None where not asked for.
        top_ids_BK: int64, the most likely ids, most likely first; None where not asked for.
        top_logprobs_BK: float32, theirs.
    """

    token_ids_B: Tensor
    logprob_B: Tensor | None = None
    top_ids_BK: Tensor | None = None
    top_logprobs_BK: Tensor | None = None


@torch.inference_mode()
def sample(logits_BV: Tensor, inputs: SamplingInputs, *, num_valid_ids: int) -> Sampled:
    """Choose one token per row.

    Args:
        logits_BV: float32; not changed.
        inputs: How.
        num_valid_ids: Ids that the tokenizer knows; rows of the vocabulary behind them are padding and
            are never chosen.
    """
    logits_BV = logits_BV[:, :num_valid_ids]
    scores_BV = logits_BV if inputs.extras is None else apply_extras(logits_BV, inputs.extras)
    if not inputs.greedy:
        scores_BV = _draw(scores_BV, inputs)
    best = scores_BV.max(dim=-1)  # where any is no number, neither is the largest
    token_ids_B = best.indices.masked_fill(best.values.isnan(), NOT_A_TOKEN)
    if inputs.num_logprobs == 0:
        return Sampled(token_ids_B=token_ids_B)
    return logprobs_of(token_ids_B, logits_BV, inputs.num_logprobs)


def logprobs_of(token_ids_B: Tensor, logits_BV: Tensor, num_logprobs: int) -> Sampled:
    """Add log-probabilities to chosen tokens.

    Args:
        token_ids_B: The tokens.
        logits_BV: float32, the model's own, without padding rows of the vocabulary.
        num_logprobs: As in ``SamplingInputs``, at least 1.
    """
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    top = logprobs_BV.topk(min(num_logprobs - 1, logprobs_BV.shape[1]), dim=-1)
    return Sampled(
        token_ids_B=token_ids_B,
        logprob_B=logprobs_BV.gather(1, token_ids_B.clamp(min=0).unsqueeze(1)).squeeze(1),
        top_ids_BK=top.indices,
        top_logprobs_BK=top.values,
    )


def _draw(logits_BV: Tensor, inputs: SamplingInputs) -> Tensor:
    """Scores whose largest is the token: filtered, with noise in the rows that are not greedy."""
    is_random_B1 = (inputs.temperature_B > 0).unsqueeze(1)
    temperature_B1 = torch.where(
        is_random_B1, inputs.temperature_B.unsqueeze(1).clamp(min=LEAST_TEMPERATURE), 1.0
    )
    scaled_BV = logits_BV / temperature_B1
    noise_BV = gumbel_noise(inputs.seed_B, inputs.index_B, logits_BV.shape[1])
    scores_BV = scaled_BV + torch.where(is_random_B1, noise_BV, 0.0)
    if inputs.unfiltered:
        return scores_BV
    return scores_BV.masked_fill(scaled_BV < _lowest_kept(scaled_BV, inputs), float("-inf"))


def _lowest_kept(scaled_BV: Tensor, inputs: SamplingInputs) -> Tensor:
    """The smallest value that top-k, top-p and min-p all keep, [B, 1]; what ties with it stays too.

    Works on values, not ids, and sums in descending order, so that it does not matter how many values
    behind the top k were sorted for the sake of other rows.
    """
    if inputs.max_top_k:
        sorted_BN = scaled_BV.topk(min(inputs.max_top_k, scaled_BV.shape[1]), dim=-1).values
    else:
        sorted_BN = scaled_BV.sort(dim=-1, descending=True).values
    ranks_N = torch.arange(sorted_BN.shape[1], device=sorted_BN.device)
    top_k_B1, top_p_B1 = inputs.top_k_B.unsqueeze(1), inputs.top_p_B.unsqueeze(1)
    in_top_k_BN = (ranks_N < top_k_B1) | (top_k_B1 == 0)
    # Relative to the most likely: all that top-p and min-p need.
    log_likelihood_BN = sorted_BN - sorted_BN[:, :1]
    likelihood_BN = log_likelihood_BN.exp().masked_fill(~in_top_k_BN, 0.0)
    summed_BN = likelihood_BN.cumsum(dim=-1)
    in_top_p_BN = (summed_BN - likelihood_BN < top_p_B1 * summed_BN[:, -1:]) | (top_p_B1 >= 1.0)
    in_min_p_BN = log_likelihood_BN >= inputs.min_p_B.unsqueeze(1).log()
    num_kept_B1 = (in_top_k_BN & in_top_p_BN & in_min_p_BN).sum(dim=-1, keepdim=True)
    return sorted_BN.gather(1, (num_kept_B1 - 1).clamp(min=0))


def apply_extras(logits_BV: Tensor, extras: SamplingExtras) -> Tensor:
    """Bias, then repetition, frequency and presence penalty, [B, V]."""
    vocab = logits_BV.shape[1]
    bias_BV = _scatter(extras.bias_ids_BK, extras.bias_values_BK, vocab)
    in_prompt_BV = _count(extras.prompt_ids_BL, vocab) > 0
    counts_BV = _count(extras.output_ids_BL, vocab)
    in_output_BV = counts_BV > 0
    repetition_BV = torch.where(in_prompt_BV | in_output_BV, extras.repetition_B.unsqueeze(1), 1.0)
    logits_BV = logits_BV + bias_BV
    logits_BV = torch.where(logits_BV > 0, logits_BV / repetition_BV, logits_BV * repetition_BV)
    logits_BV = logits_BV - extras.frequency_B.unsqueeze(1) * counts_BV
    return logits_BV - extras.presence_B.unsqueeze(1) * in_output_BV


def _count(ids_BL: Tensor, vocab: int) -> Tensor:
    return _scatter(ids_BL, torch.ones_like(ids_BL, dtype=torch.float32), vocab)


def _scatter(ids_BL: Tensor, values_BL: Tensor, vocab: int) -> Tensor:
    """Sum values by id, [B, V]; ids outside the vocabulary fall into a column that is cut off."""
    ids_BL = torch.where((ids_BL >= 0) & (ids_BL < vocab), ids_BL, vocab)
    return values_BL.new_zeros(ids_BL.shape[0], vocab + 1).scatter_add_(1, ids_BL, values_BL)[:, :vocab]
