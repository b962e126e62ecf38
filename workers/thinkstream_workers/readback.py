"""What a step sampled, on its way from the device to the host."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thinkstream_client.outcome import TokenLogprobs
from thinkstream_model.sampler import Sampled

from .sequence import Sequence


def to_host(sampled: Sampled) -> Sampled:
    """Copies, which the next step does not change; on their way from a device they are not waited for.

    They go to pinned memory, which ``to`` takes for those that do not wait.
    """

    def copied(tensor: Tensor) -> Tensor:
        return tensor.to("cpu", non_blocking=True, copy=True)

    def copied_if_any(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else copied(tensor)

    return Sampled(
        token_ids_B=copied(sampled.token_ids_B),
        logprob_B=copied_if_any(sampled.logprob_B),
        top_ids_BK=copied_if_any(sampled.top_ids_BK),
        top_logprobs_BK=copied_if_any(sampled.top_logprobs_BK),
    )


def listed(tensor: Tensor) -> list[Any]:
    """Its numbers; the tensor is on the host."""
    return tensor.tolist()  # pyright: ignore[reportUnknownVariableType]


def logprobs_of(sampled: Sampled, sequences: tuple[Sequence, ...]) -> list[TokenLogprobs | None]:
    """Log-probabilities of each sequence's token, for those that asked for them.

    Args:
        sampled: With log-probabilities, on the host.
        sequences: Whose, one per row.
    """
    assert sampled.logprob_B is not None
    assert sampled.top_ids_BK is not None
    assert sampled.top_logprobs_BK is not None
    rows = zip(
        sequences,
        listed(sampled.logprob_B),
        listed(sampled.top_ids_BK),
        listed(sampled.top_logprobs_BK),
        strict=True,
    )
    result: list[TokenLogprobs | None] = []
    for sequence, logprob, top_ids, top_logprobs in rows:
        num_top = sequence.num_logprobs - 1
        if num_top < 0:
            result.append(None)
        else:
            top = tuple(zip(top_ids[:num_top], top_logprobs[:num_top], strict=True))
            result.append(TokenLogprobs(logprob, top))
    return result
