"""A step's arrays, once they are tensors, as the model's own inputs: made here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from thinkstream_model.inputs import StepInputs
from thinkstream_model.sampler import SamplingExtras, SamplingInputs

from .step_arrays import SamplingHints, StepLengths


def step_inputs(tensors: Mapping[str, Tensor], lengths: StepLengths) -> StepInputs:
    """Returns what the Thinker is handed.

    Args:
        tensors: By the names of its fields; others may be among them.
        lengths: Its fields on the host.
    """
    return StepInputs(**_named(StepInputs, tensors), **lengths._asdict())


def sampling_inputs(tensors: Mapping[str, Tensor], hints: SamplingHints) -> SamplingInputs:
    """Returns what the sampler is handed.

    Args:
        tensors: By the names of its fields and, where any row has some, of its extras'; others may be among
            them.
        hints: Its fields on the host.
    """
    extras = _named(SamplingExtras, tensors)
    return SamplingInputs(
        **_named(SamplingInputs, tensors),
        **hints._asdict(),
        extras=SamplingExtras(**extras) if extras else None,
    )


def _named(
    kind: type[StepInputs | SamplingInputs | SamplingExtras], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    return {field.name: tensors[field.name] for field in fields(kind) if field.name in tensors}
