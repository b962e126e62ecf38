from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.digest import model_digest, random_model_digest, tokenizer_digest


def _change_config(folder: Path, **fields: object) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **fields}))


def _change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_how_the_files_are_cut_and_spelled_does_not_matter(small_checkpoint: Path) -> None:
    before = model_digest(small_checkpoint)
    tensors = load_file(small_checkpoint / "model.safetensors")
    (small_checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file(
            {n: tensors[n] for n in part}, small_checkpoint / f"model-0000{number}-of-00002.safetensors"
        )
    _change_config(small_checkpoint, comment="something else")
    assert model_digest(small_checkpoint) == before


def test_other_parts_do_not_matter(small_checkpoint: Path) -> None:
    before = model_digest(small_checkpoint)
    _change_tensors(
        small_checkpoint, lambda t: t.update({"talker.x": t["thinker.model.norm.weight"].clone()})
    )
    assert model_digest(small_checkpoint) == before


def test_a_constant_of_the_config_matters(small_checkpoint: Path) -> None:
    before = model_digest(small_checkpoint)
    _change_config(small_checkpoint, rope_theta=1e4)
    assert model_digest(small_checkpoint) != before


def test_the_values_matter(small_checkpoint: Path) -> None:
    before = model_digest(small_checkpoint)
    _change_tensors(small_checkpoint, lambda t: t["thinker.lm_head.weight"].add_(1))
    assert model_digest(small_checkpoint) != before


def test_a_random_model_is_its_config_and_seed(small_checkpoint: Path) -> None:
    config = ThinkerConfig.from_json(small_checkpoint)
    assert random_model_digest(config, 0) == random_model_digest(ThinkerConfig.from_json(small_checkpoint), 0)
    assert random_model_digest(config, 0) != random_model_digest(config, 1)


@pytest.mark.parametrize("name", ["vocab.json", "chat_template.jinja", "tokenizer_config.json"])
def test_every_file_of_a_tokenizer_matters(tmp_path: Path, name: str) -> None:
    before = tokenizer_digest(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    assert tokenizer_digest(tmp_path) == before
    (tmp_path / name).write_text("{}")
    assert tokenizer_digest(tmp_path) != before
