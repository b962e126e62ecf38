"""Loads what a replica serves: weights, tokenizer, defaults, by the name that its settings give.

The model's own errors become the client's here, so that whoever starts a replica or sends it a chat sees
one tree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from thinkstream_client.errors import ConfigError, InvalidRequest, WeightsError
from thinkstream_model import errors as model_errors
from thinkstream_model.checkpoint import Checkpoint
from thinkstream_model.detokenizer import Detokenizer
from thinkstream_model.device_ops import ops_for
from thinkstream_model.dry_steps import compile_steps
from thinkstream_model.generation import GenerationDefaults
from thinkstream_model.ops import Ops
from thinkstream_model.parameters import ThinkerWeights
from thinkstream_model.thinker import Thinker
from thinkstream_model.tokenizer import Tokenizer

from .buckets import most_tokens, sequence_counts
from .config import ReplicaConfig
from .engine_config import EngineConfig
from .publication import IncrementalText

logger = logging.getLogger(__name__)


class Digests(NamedTuple):
    """What tells one model from another: the namespace keeps them, and refuses others."""

    model: str
    tokenizer: str


class ModelText:
    """Text in and out of ids, by the checkpoint's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of raw text."""
        return self._tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a chat up to where the answer begins.

        Raises:
            InvalidRequest: The chat template cannot render it.
        """
        try:
            return self._tokenizer.encode_chat(messages)
        except model_errors.TemplateError as error:
            raise InvalidRequest(
                "messages", f"{len(messages)} turns", f"what the template takes: {error}"
            ) from None

    def detokenizer(self, stop: Sequence[str]) -> IncrementalText:
        """A fresh detokenizer that ends at one of the stop strings."""
        return Detokenizer(self._tokenizer, stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """All that a replica needs of its model.

    Attributes:
        thinker: The weights, on their device.
        text: The tokenizer's face.
        num_ids: Ids that mean something.
        defaults: The checkpoint's sampling.
        digests: Its identity.
        arithmetic: What decides a text's bits beside model and tokenizer, in words.
    """

    thinker: Thinker
    text: ModelText
    num_ids: int
    defaults: GenerationDefaults
    digests: Digests
    arithmetic: str


def load_model(config: ReplicaConfig, claim: Callable[[Digests], None] | None = None) -> LoadedModel:
    """Loads the model that the settings name.

    Args:
        config: The settings.
        claim: Told what the model is before its weights are read, which may take minutes; what it raises
            ends the load.

    Raises:
        ConfigError: The folder, its config or its tokenizer is wrong, or the device is not there.
        WeightsError: Its tensors are not what the config says.
    """
    try:
        checkpoint = Checkpoint.resolve(config.model)
        logger.info("model %s", config.model)
        tokenizer = checkpoint.load_tokenizer()
        digests = Digests(checkpoint.model_digest(), checkpoint.tokenizer_digest())
        if claim is not None:
            claim(digests)
        device = _device(config)
        ops = ops_for(checkpoint.config, device)
        weights = _weights(checkpoint, config, device, ops, tokenizer.num_ids)
        return LoadedModel(
            thinker=Thinker(weights, ops),
            text=ModelText(tokenizer),
            num_ids=tokenizer.num_ids,
            defaults=checkpoint.load_generation(tokenizer),
            digests=digests,
            arithmetic=_arithmetic(ops, weights),
        )
    except model_errors.WeightsError as error:
        raise WeightsError(str(error)) from error
    except model_errors.ModelError as error:
        raise ConfigError(str(error)) from error


def _weights(
    checkpoint: Checkpoint, config: ReplicaConfig, device: torch.device, ops: Ops, num_ids: int
) -> ThinkerWeights:
    """Compiles the kernels, and then reads the weights.

    Raises:
        ConfigError: The device has no room for them.
    """
    try:
        return checkpoint.load_weights(
            device=device, dtype=_dtype(config), before_reading=partial(_compile, ops, config.engine, num_ids)
        )
    except torch.OutOfMemoryError as error:
        told = str(error).splitlines()[0]
        raise ConfigError(f"device: got {config.device!r}, which has no room for the model: {told}") from None


def _arithmetic(ops: Ops, weights: ThinkerWeights) -> str:
    embedding_VD = weights.embedding_VD
    kernels = "our kernels" if ops.is_capturable else "plain torch"
    return f"{str(embedding_VD.dtype).removeprefix('torch.')} on {embedding_VD.device.type} by {kernels}"


def _compile(ops: Ops, limits: EngineConfig, num_ids: int, weights: ThinkerWeights) -> None:
    """Compiles the kernels of all steps within the limits."""
    compile_steps(
        weights,
        ops,
        num_valid_ids=num_ids,
        block_size=limits.block_size,
        sequence_counts=sequence_counts(limits.slots),
        max_tokens=most_tokens(limits.slots, limits.step_tokens),
        max_context=limits.max_context or weights.config.max_position_embeddings,
    )


def _device(config: ReplicaConfig) -> torch.device:
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for one that is not there
        raise ConfigError(f"device: got {config.device!r}: {str(error).splitlines()[0]}") from error
    return device


def _dtype(config: ReplicaConfig) -> torch.dtype | None:
    if config.dtype is None:
        # Most CPUs have no fast bfloat16, and all have float32.
        return torch.float32 if torch.device(config.device).type == "cpu" else None
    dtype = getattr(torch, config.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype: got {config.dtype!r}, allowed: bfloat16, float16 or float32")
    return dtype
