from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from thinkstream_model.checkpoint import Checkpoint
from thinkstream_model.errors import ConfigError, TokenizerError
from thinkstream_model.parameters import ThinkerWeights


def test_a_folder(small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.resolve(str(small_checkpoint))
    assert (checkpoint.folder, checkpoint.random_seed) == (small_checkpoint, None)
    assert checkpoint.load_weights().config == checkpoint.config
    with pytest.raises(TokenizerError):
        checkpoint.load_tokenizer()


@pytest.mark.parametrize("model", ["no/such/folder", "random:no/such/config.json", "random:", ""])
def test_what_does_not_exist(model: str) -> None:
    with pytest.raises(ConfigError):
        Checkpoint.resolve(model)


def test_a_file_is_not_a_folder(small_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Checkpoint.resolve(small_checkpoint / "model.safetensors")


@pytest.mark.parametrize("model", ["{}", "random:{}/config.json"])
def test_hands_the_weights_out_before_they_are_there(small_checkpoint: Path, model: str) -> None:
    seen: list[ThinkerWeights] = []
    weights = Checkpoint.resolve(model.format(small_checkpoint)).load_weights(before_reading=seen.append)
    assert [id(other) for other in seen] == [id(weights)]


def test_random_weights(small_checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        (small_checkpoint / "config.json").read_text().replace('"vocab_size": 12', '"vocab_size": 300')
    )
    checkpoint, again = (
        Checkpoint.resolve(f"random:{file},seed=7"),
        Checkpoint.resolve(f"random:{tmp_path},seed=7"),
    )
    other = Checkpoint.resolve(f"random:{file}")
    assert (checkpoint.random_seed, other.random_seed) == (7, 0)
    tables = [c.load_weights().embedding_VD for c in (checkpoint, again, other)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert checkpoint.model_digest() == again.model_digest() != other.model_digest()
    tokenizer = checkpoint.load_tokenizer()
    assert tokenizer.num_ids == 300
    assert checkpoint.load_generation(tokenizer).eos_token_ids == (256, 258)


def test_a_tokenizer_with_more_ids_than_the_model(small_checkpoint: Path) -> None:
    vocab = {chr(ord("a") + n) if n < 26 else f"a{n}": n for n in range(41)}
    (small_checkpoint / "vocab.json").write_text(json.dumps(vocab))
    (small_checkpoint / "merges.txt").write_text("")
    with pytest.raises(ConfigError, match="vocab_size: expected at least the tokenizer's 41 ids, found 12"):
        Checkpoint.resolve(small_checkpoint).load_tokenizer()
