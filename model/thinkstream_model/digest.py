"""Short names for what a model is, so that two replicas can tell whether they serve the same.

A digest of the weights looks at every tensor's name, kind and shape and at a sample of their bytes. It
does not depend on how the tensors are cut into files, but it does on the layout's spelling.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from .checkpoint_files import find_tensors, read_bytes
from .config import ThinkerConfig
from .layouts import text_tensors
from .tokenizer import TOKENIZER_FILES

_NUM_SAMPLED_TENSORS = 256
_SAMPLE_BYTES = 64


def model_digest(path: str | Path) -> str:
    """SHA-256 in hex over the config, the text decoder's tensors and samples of their bytes.

    Raises:
        ConfigError: The config is missing or does not describe a Thinker.
        WeightsError: Weights are missing or broken.
    """
    folder = Path(path)
    digest = hashlib.sha256(_as_bytes(ThinkerConfig.from_json(folder)))
    tensors = [copy.stored for copy in text_tensors(find_tensors(folder))]
    step = max(1, len(tensors) // _NUM_SAMPLED_TENSORS)
    for number, stored in enumerate(tensors):
        digest.update(f"{stored.name} {stored.dtype} {list(stored.shape)}\n".encode())
        if number % step == 0:
            size = min(_SAMPLE_BYTES, stored.num_bytes)
            digest.update(read_bytes(stored, (stored.num_bytes - size) // 2, size))
    return digest.hexdigest()


def random_model_digest(config: ThinkerConfig, seed: int) -> str:
    """The same for a model of random weights: SHA-256 in hex over its config and seed."""
    digest = hashlib.sha256(_as_bytes(config))
    digest.update(f"random weights, seed {seed}".encode())
    return digest.hexdigest()


def tokenizer_digest(path: str | Path) -> str:
    """SHA-256 in hex over every file of a folder that decides between text and ids."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        file = Path(path) / name
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _as_bytes(config: ThinkerConfig) -> bytes:
    return json.dumps(asdict(config), sort_keys=True).encode()
