from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from thinkstream_model.checkpoint_files import find_tensors
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.errors import WeightsError
from thinkstream_model.layouts import Place, check_copies, place_of, text_tensors

_EXPERTS = "layers.1.mlp.experts"
_STACK = f"thinker.model.{_EXPERTS}"


def _check(folder: Path) -> None:
    config = ThinkerConfig.from_json(folder)
    check_copies(text_tensors(find_tensors(folder)), config, folder)


def _refused_after(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> WeightsError:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    with pytest.raises(WeightsError) as refused:
        _check(folder)
    assert "\n" not in str(refused.value)
    return refused.value


@pytest.mark.parametrize("thinker", ["thinker.", ""])
@pytest.mark.parametrize("language_model", ["language_model.", ""])
def test_spellings_of_one_place(thinker: str, language_model: str) -> None:
    model = f"{thinker}model.{language_model}"
    assert place_of(f"{model}embed_tokens.weight") == Place("embed_tokens.weight")
    assert place_of(f"{model}norm.weight") == Place("norm.weight")
    assert place_of(f"{thinker}lm_head.weight") == Place("lm_head.weight")
    assert place_of(f"{model}{_EXPERTS}.gate_up_proj") == Place(f"{_EXPERTS}.gate_up_proj")
    gate_up, down = f"{_EXPERTS}.gate_up_proj", f"{_EXPERTS}.down_proj"
    assert place_of(f"{model}{_EXPERTS}.12.gate_proj.weight") == Place(gate_up, 12, "gate")
    assert place_of(f"{model}{_EXPERTS}.12.up_proj.weight") == Place(gate_up, 12, "up")
    assert place_of(f"{model}{_EXPERTS}.12.down_proj.weight") == Place(down, 12, "down")


@pytest.mark.parametrize(
    "name",
    [
        "talker.model.layers.0.mlp.experts.0.gate_proj.weight",
        "talker.code_predictor.model.norm.weight",
        "code2wav.decoder.0.conv.weight",
        "thinker.audio_tower.conv1.weight",
        "thinker.visual.blocks.0.norm1.weight",
        "thinker.model.audio_tower.conv1.weight",
        "model.visual.blocks.0.norm1.weight",
        "audio_tower.ln_post.bias",
        "visual.pos_embed.weight",
    ],
)
def test_other_parts_of_an_omni_checkpoint_have_no_place(name: str) -> None:
    assert place_of(name) is None


@pytest.mark.parametrize(
    "name", ["visualizer.weight", "thinker.talker.x", "norm.weight", "model.lm_head.weight"]
)
def test_names_of_no_layout(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        place_of(name)


def test_a_whole_model_passes(small_checkpoint: Path) -> None:
    _check(small_checkpoint)


def test_a_missing_tensor(small_checkpoint: Path) -> None:
    name = "thinker.model.layers.0.self_attn.q_norm.weight"
    error = _refused_after(small_checkpoint, lambda tensors: tensors.pop(name))
    assert (error.tensor, error.expected) == (name, "a tensor of shape [4]")
    assert error.file == str(small_checkpoint)
    assert error.found == "nothing"


def test_missing_experts_are_counted(small_checkpoint: Path) -> None:
    error = _refused_after(small_checkpoint, lambda tensors: tensors.pop(f"{_STACK}.gate_up_proj"))
    assert error.tensor == f"{_STACK}.0.gate_proj.weight"
    assert error.expected == "a tensor of shape [6, 8]"
    assert error.found == "nothing (and 5 more are missing)"


def test_one_missing_expert(small_checkpoint: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        down_EDI = tensors.pop(f"{_STACK}.down_proj")
        for expert in (0, 2):
            tensors[f"{_STACK}.{expert}.down_proj.weight"] = down_EDI[expert].clone()

    assert _refused_after(small_checkpoint, change).tensor == f"{_STACK}.1.down_proj.weight"


@pytest.mark.parametrize(
    "name",
    [
        "thinker.model.layers.2.input_layernorm.weight",  # one layer too many
        "thinker.model.layers.0.mlp.gate.weight",  # the layer is dense
        f"{_STACK}.3.down_proj.weight",  # one expert too many
        "thinker.model.layers.0.self_attn.q_proj.bias",
        "thinker.model.layers.0.self_attn.rotary_emb.inv_freq",
        "thinker.audio_embed.weight",
    ],
)
def test_a_surplus_tensor(small_checkpoint: Path, name: str) -> None:
    error = _refused_after(small_checkpoint, lambda tensors: tensors.update({name: torch.zeros(8, 6)}))
    assert error.tensor == name
    assert error.file == str(small_checkpoint / "model.safetensors")
    assert error.expected.startswith("no tensor of this name")
    assert error.found == "F32 [8, 6]"


@pytest.mark.parametrize(
    ("name", "tensor", "expected", "found"),
    [
        ("model.norm.weight", torch.zeros(9), "shape [8]", "shape [9]"),
        ("model.norm.weight", torch.zeros(8, 1), "shape [8]", "shape [8, 1]"),
        ("model.norm.weight", torch.tensor(1.0), "shape [8]", "shape []"),
        # Some families store stacked experts the other way round.
        (f"model.{_EXPERTS}.gate_up_proj", torch.zeros(3, 8, 12), "shape [3, 12, 8]", "shape [3, 8, 12]"),
        ("model.norm.weight", torch.zeros(8, dtype=torch.int64), "one of F64, F32, F16, BF16", "I64"),
        (
            "model.norm.weight",
            torch.zeros(8, dtype=torch.float8_e4m3fn),
            "one of F64, F32, F16, BF16",
            "F8_E4M3",
        ),
    ],
)
def test_a_tensor_of_another_shape_or_kind(
    small_checkpoint: Path, name: str, tensor: Tensor, expected: str, found: str
) -> None:
    error = _refused_after(small_checkpoint, lambda tensors: tensors.update({f"thinker.{name}": tensor}))
    assert (error.tensor, error.expected, error.found) == (f"thinker.{name}", expected, found)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{_STACK}.1.down_proj.weight", (8, 6)),
        ("model.norm.weight", (8,)),
        ("thinker.model.language_model.norm.weight", (8,)),
    ],
)
def test_two_tensors_for_one_place(small_checkpoint: Path, name: str, shape: tuple[int, ...]) -> None:
    error = _refused_after(small_checkpoint, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    assert error.expected == "one tensor for one place"


def test_a_tied_output_matrix_is_not_stored(small_checkpoint: Path) -> None:
    config = json.loads((small_checkpoint / "config.json").read_text())
    (small_checkpoint / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(WeightsError, match="lm_head"):
        _check(small_checkpoint)
    tensors = load_file(small_checkpoint / "model.safetensors")
    del tensors["thinker.lm_head.weight"]
    save_file(tensors, small_checkpoint / "model.safetensors")
    _check(small_checkpoint)
