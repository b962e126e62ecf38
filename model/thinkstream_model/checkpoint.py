"""A model that was named, and everything that can be read from it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import ThinkerConfig
from .digest import model_digest, random_model_digest, tokenizer_digest
from .errors import ConfigError
from .generation import GenerationDefaults
from .loader import load_weights
from .model_name import ModelName
from .parameters import ThinkerWeights
from .thinker import random_weights
from .tokenizer import TOKENIZER_FILES, Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model that exists; nothing of it has been loaded yet.

    Attributes:
        folder: Where its files are.
        config: Its shape.
        random_seed: Seed of the weights, where they are made rather than read.
    """

    folder: Path
    config: ThinkerConfig
    random_seed: int | None = None

    @classmethod
    def resolve(cls, model: str | Path) -> Checkpoint:
        """Find what a ``ModelName`` names, and read its config.

        Raises:
            ConfigError: There is no such folder or file, or its config does not describe a Thinker.
        """
        path, random_seed = ModelName.parse(str(model))
        if path.is_dir():
            return cls(folder=path, config=ThinkerConfig.from_json(path), random_seed=random_seed)
        if random_seed is None:
            raise ConfigError(path, "", "a checkpoint's folder", "no such folder")
        return cls(folder=path.parent, config=ThinkerConfig.from_json(path), random_seed=random_seed)

    def load_weights(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        before_reading: Callable[[ThinkerWeights], object] | None = None,
    ) -> ThinkerWeights:
        """Read the weights, or make them.

        Args:
            device: Where they go.
            dtype: Kind of their numbers. None keeps the checkpoint's own; random weights are bfloat16
                on an accelerator and float32 on the CPU.
            before_reading: Called with the weights once they are in their places, before they are read.

        Raises:
            WeightsError: Weights are missing or broken, or are not the config's.
        """
        if self.random_seed is None:
            return load_weights(self.folder, device=device, dtype=dtype, before_reading=before_reading)
        logger.info("making random weights, seed %d\n%s", self.random_seed, self.config.describe())
        on_cpu = torch.device(device).type == "cpu"
        usual = torch.float32 if on_cpu else torch.bfloat16
        weights = random_weights(self.config, device=device, dtype=dtype or usual, seed=self.random_seed)
        if before_reading is not None:
            before_reading(weights)
        return weights

    def load_tokenizer(self) -> Tokenizer:
        """Read the tokenizer; random weights without one beside them get one id per byte.

        Raises:
            TokenizerError: Its files are missing or broken.
            ConfigError: A JSON file beside them is broken, or the model has fewer rows than it has ids.
        """
        has_files = any((self.folder / name).is_file() for name in TOKENIZER_FILES)
        if self.random_seed is not None and not has_files:
            return Tokenizer.of_bytes(self.config.vocab_size)
        tokenizer = Tokenizer.load(self.folder)
        if tokenizer.num_ids > self.config.vocab_size:
            expected = f"at least the tokenizer's {tokenizer.num_ids} ids"
            raise ConfigError(self.folder, "vocab_size", expected, self.config.vocab_size)
        return tokenizer

    def load_generation(self, tokenizer: Tokenizer) -> GenerationDefaults:
        """Read how it wants to be sampled.

        Raises:
            ConfigError: ``generation_config.json`` is broken.
        """
        return GenerationDefaults.load(self.folder, tokenizer.eos_token_ids)

    def model_digest(self) -> str:
        """Digest of config and weights.

        Raises:
            WeightsError: Weights are missing or broken.
        """
        if self.random_seed is None:
            return model_digest(self.folder)
        return random_model_digest(self.config, self.random_seed)

    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's files."""
        return tokenizer_digest(self.folder)
