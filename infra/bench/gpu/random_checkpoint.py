"""Writes a checkpoint of noise as the released one is stored: its names, its shards, its kind of tokenizer.

For measurements of loading. A folder in memory-backed files is filled at the speed of the memory, and holds
the only copy of the weights.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from thinkstream_model.byte_level import CHARACTER_OF_BYTE
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.parameters import ThinkerWeights

_NUM_SHARDS = 15
_NOISE_NUMBERS = 4 << 20
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class _Tensor(NamedTuple):
    """A tensor to be written, by its released name."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * torch.bfloat16.itemsize

    @property
    def scale(self) -> float:
        """As ``random_thinker`` has it, so that tokens choose different experts."""
        return 1.0 if "embed" in self.name else self.shape[-1] ** -0.5


def write_checkpoint(folder: Path, text_config: dict[str, Any]) -> int:
    """Write config, tokenizer and shards, and return the bytes of all tensors.

    The noise repeats itself, and each tensor begins at a place of its own.

    Args:
        folder: Where to.
        text_config: The shape, in the words of the released config.
    """
    content = {"thinker_config": {"text_config": text_config}}
    config = ThinkerConfig.from_json(content)
    _write_tokenizer(folder, config.vocab_size - len(_SPECIALS))
    tensors = list(_released(config))
    normal = torch.randn(_NOISE_NUMBERS)
    noise = {scale: _bytes_of(normal * scale) for scale in {tensor.scale for tensor in tensors}}
    shards = _cut(tensors, sum(tensor.num_bytes for tensor in tensors) // _NUM_SHARDS + 1)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with ThreadPoolExecutor(os.cpu_count()) as writers:
        files = (folder / name for name in names)
        list(writers.map(partial(_write_shard, noise), files, shards))
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(content))  # last: it says that all is there
    return sum(tensor.num_bytes for tensor in tensors)


def _released(config: ThinkerConfig) -> Iterator[_Tensor]:
    """Every place of the model, one tensor per expert and matrix."""
    destinations = ThinkerWeights.empty(config, "meta", torch.bfloat16).named_destinations()
    for place, tensor in destinations.items():
        name = f"thinker.{place}" if place == "lm_head.weight" else f"thinker.model.{place}"
        stack, _, matrix = name.rpartition(".")
        if matrix == "weight":
            yield _Tensor(name, tuple(tensor.shape))
            continue
        num_experts, num_rows, width = tensor.shape
        parts = ("gate", "up") if matrix == "gate_up_proj" else ("down",)
        for expert, part in product(range(num_experts), parts):
            yield _Tensor(f"{stack}.{expert}.{part}_proj.weight", (num_rows // len(parts), width))


def _cut(tensors: Sequence[_Tensor], shard_bytes: int) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = []
    room = 0
    for tensor in tensors:
        if room <= 0:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards


def _bytes_of(numbers: torch.Tensor) -> memoryview:
    return numbers.bfloat16().view(torch.uint8).numpy().data


def _write_shard(noise: dict[float, memoryview], file: Path, tensors: Sequence[_Tensor]) -> None:
    entries: dict[str, object] = {}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes
        entries[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with file.open("wb", buffering=0) as opened:
        _write(opened, memoryview(len(header).to_bytes(8, "little") + header))
        for number, tensor in enumerate(tensors):
            of_scale = noise[tensor.scale]
            start = number * 8_198 % len(of_scale)  # even: numbers have two bytes
            left = tensor.num_bytes
            while left:
                piece = of_scale[start : start + left]
                _write(opened, piece)
                left -= len(piece)
                start = 0


def _write(file: Any, piece: memoryview) -> None:
    while piece:
        piece = piece[file.write(piece) :]


def _write_tokenizer(folder: Path, num_words: int) -> None:
    """A byte-pair tokenizer as large as the released one's, of words that no language has."""
    letters = list(CHARACTER_OF_BYTE.values())
    pairs = list(product(letters, letters))
    triples = ((first + second, third) for (first, second), third in product(pairs, letters))
    merges = list(islice(chain(pairs, triples), max(0, num_words - len(letters))))
    words = [*letters, *(first + second for first, second in merges)]
    vocab = {word: number for number, word in enumerate(words)}
    specials = {
        str(number): {"content": text, "special": True} for number, text in enumerate(_SPECIALS, len(vocab))
    }
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": specials}))
