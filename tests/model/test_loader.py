"""The same tiny Omni model, saved by transformers and cut in every known way, loads to the same tensors."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.errors import ConfigError, WeightsError
from thinkstream_model.loader import load_thinker, load_weights
from thinkstream_model.parameters import ThinkerWeights
from thinkstream_model.pieces import Piece, PieceReader


def _omni_config() -> Any:
    transformers: Any = importlib.import_module("transformers")
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 2,
        "norm_topk_prob": True, "rope_parameters": rope,
    }  # fmt: skip
    ids = {"audio_token_id": 54, "image_token_id": 57, "video_token_id": 58, "audio_start_token_id": 52}
    ids |= {"vision_start_token_id": 55, "position_id_per_seconds": 13}
    audio = {
        "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "output_dim": 32, "downsample_hidden_size": 8,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    predictor = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_code_groups": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    talker = {
        "spatial_merge_size": 2,
        "accept_hidden_layer": 2,
        "thinker_hidden_size": 32,
        "num_code_groups": 4,
    }
    code2wav = {
        "codebook_size": 16, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_quantizers": 4, "decoder_dim": 32,
        "upsample_rates": [2, 2, 2, 2], "upsampling_ratios": [2, 2],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    return transformers.Qwen3OmniMoeConfig(
        thinker_config={**ids, "text_config": text, "audio_config": audio, "vision_config": vision},
        talker_config={
            **ids, **talker, "code_predictor_config": predictor,
            "text_config": {**text, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
        },
        code2wav_config=code2wav,
    )  # fmt: skip


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of one model as transformers writes it: ``A``, the released layout, and ``B``, its own."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    model = transformers.Qwen3OmniMoeForConditionalGeneration._from_config(
        _omni_config(), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    folders = {name: tmp_path_factory.mktemp(name) for name in "AB"}
    model.save_pretrained(folders["A"])
    model.save_pretrained(folders["B"], save_original_format=False)
    return folders


@pytest.fixture(scope="module")
def expected(omni: dict[str, Path]) -> dict[str, Tensor]:
    """The text decoder's tensors, put together from transformers' own layout."""
    stored = load_file(omni["B"] / "model.safetensors")
    text = {re.sub(r"^thinker\.(model\.language_model\.)?", "", name): t for name, t in stored.items()}
    wanted = re.compile(r"(layers|embed_tokens|norm|lm_head)\..*")
    return {name: tensor for name, tensor in text.items() if wanted.fullmatch(name)}


def _stack_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in [name for name in tensors if name.endswith(".experts.0.gate_proj.weight")]:
        stem = name.removesuffix(".0.gate_proj.weight")
        num_experts = sum(other.startswith(stem) and "gate_proj" in other for other in tensors)

        def all_of(matrix: str, stem: str = stem, num: int = num_experts) -> Tensor:
            return torch.stack([tensors[f"{stem}.{e}.{matrix}_proj.weight"] for e in range(num)])

        stacked[f"{stem}.gate_up_proj"] = torch.cat([all_of("gate"), all_of("up")], dim=1)
        stacked[f"{stem}.down_proj"] = all_of("down")
    return stacked


def _thinker_alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("thinker."): t for n, t in tensors.items() if n.startswith("thinker.")}


def _tensors_in_layout(layout: str, omni: dict[str, Path]) -> dict[str, Tensor]:
    released, own = (load_file(omni[name] / "model.safetensors") for name in "AB")
    return {
        "A": released,
        "B": own,
        "C": _stack_experts(released),
        "D": _thinker_alone(released),
        "D, stacked": _thinker_alone(own),
    }[layout]


def _save(tensors: dict[str, Tensor], folder: Path, arrangement: str) -> None:
    if arrangement == "one file":
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        share = dict(list(tensors.items())[number::3])
        save_file(share, folder / file)
        weight_map |= dict.fromkeys(share, file)
    if arrangement == "index":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("arrangement", ["one file", "index", "shards"])
@pytest.mark.parametrize("layout", ["A", "B", "C", "D", "D, stacked"])
def test_every_layout_and_arrangement_loads_the_same(
    omni: dict[str, Path], expected: dict[str, Tensor], tmp_path: Path, layout: str, arrangement: str
) -> None:
    shutil.copy(omni["A"] / "config.json", tmp_path)
    _save(_tensors_in_layout(layout, omni), tmp_path, arrangement)
    loaded = load_thinker(tmp_path).weights.named_destinations()
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_thinkers_own_config_will_do(omni: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((omni["A"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config["thinker_config"]))
    _save(_tensors_in_layout("D", omni), tmp_path, "one file")
    assert load_thinker(tmp_path).config == load_thinker(omni["A"]).config


def test_keeps_the_checkpoints_kind_of_number_unless_told(small_checkpoint: Path) -> None:
    file = small_checkpoint / "model.safetensors"
    originals = load_file(file)
    save_file({name: tensor.bfloat16() for name, tensor in originals.items()}, file)
    assert load_thinker(small_checkpoint).dtype is torch.bfloat16
    wide = load_thinker(small_checkpoint, dtype=torch.float32)
    assert wide.dtype is torch.float32
    rounded = originals["thinker.model.norm.weight"].bfloat16().float()
    assert torch.equal(wide.weights.norm_D, rounded)


def test_logs_the_shape_and_what_was_read(small_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "thinkstream_model.loader"):
        thinker = load_thinker(small_checkpoint)
    shape, summary = (record.getMessage() for record in caplog.records)
    assert thinker.config.describe() in shape
    num_bytes = 4 * thinker.config.num_parameters
    assert f"{num_bytes} bytes" in summary


def test_nothing_is_allocated_for_a_checkpoint_that_does_not_fit(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((small_checkpoint / "config.json").read_text())
    (small_checkpoint / "config.json").write_text(json.dumps({**config, "vocab_size": 13}))
    allocated: list[object] = []
    empty = torch.empty

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        allocated.append(kwargs.get("device"))
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", spy)
    with pytest.raises(
        WeightsError, match=r"lm_head.weight: expected shape \[13, 8\], found shape \[12, 8\]"
    ):
        load_thinker(small_checkpoint)
    assert set(allocated) == {"meta"}


def test_a_file_that_shrinks_after_it_was_checked(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = small_checkpoint / "model.safetensors"
    empty = ThinkerWeights.empty

    def shrink(config: ThinkerConfig, device: torch.device | str, dtype: torch.dtype) -> ThinkerWeights:
        if device == "cpu":
            file.write_bytes(file.read_bytes()[:-10])
        return empty(config, device, dtype)

    monkeypatch.setattr(ThinkerWeights, "empty", shrink)
    with pytest.raises(WeightsError, match=r"model.safetensors: thinker\..* found the file's end after \d+"):
        load_thinker(small_checkpoint)


def test_something_can_be_done_with_the_weights_before_they_are_read(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    read = PieceReader.read

    def spy(reader: PieceReader, piece: Piece) -> None:
        done.append(piece)
        read(reader, piece)

    monkeypatch.setattr(PieceReader, "read", spy)
    weights = load_weights(small_checkpoint, before_reading=done.append)
    assert done[0] is weights
    assert {type(other) for other in done[1:]} == {Piece}


def test_what_fails_before_the_reading_ends_the_load(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PieceReader, "read", None)

    def fail(weights: ThinkerWeights) -> None:
        raise MemoryError(str(weights.config.num_layers))

    with pytest.raises(MemoryError, match="2"):
        load_weights(small_checkpoint, before_reading=fail)


def test_the_first_failure_ends_the_load_and_is_told(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, taken = itertools.count(), list[int]()

    def read(reader: PieceReader, piece: Piece) -> None:
        taken.append(number := next(numbers))
        if number == 1:
            raise OSError("the first to fail")
        time.sleep(0.1)
        if number == 0:
            raise OSError("the next to fail")

    monkeypatch.setattr("thinkstream_model.pieces._PIECE_BYTES", 64)
    monkeypatch.setattr(PieceReader, "read", read)
    with pytest.raises(OSError, match="the first to fail"):
        load_weights(small_checkpoint)
    assert len(taken) <= 6  # of some hundred: one a reader, and two that were faster than the failure


def test_a_reader_that_fails_waits_for_what_is_under_way(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, waited = list[PieceReader](), list[PieceReader]()

    def read(reader: PieceReader, piece: Piece) -> None:
        failed.append(reader)
        raise OSError("no disk")

    def wait(reader: PieceReader) -> None:
        waited.append(reader)

    monkeypatch.setattr(PieceReader, "read", read)
    monkeypatch.setattr(PieceReader, "wait", wait)
    with pytest.raises(OSError, match="no disk"):
        load_weights(small_checkpoint)
    assert failed
    assert {*failed} <= {*waited}


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_thinker(tmp_path)


def _rename(folder: Path, old: str, new: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[new] = tensors.pop(old)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("thinker.model.norm.weight", "thinker.model.final_norm.weight", "thinker.model.norm.weight nothing"),
        (
            "thinker.model.layers.1.mlp.experts.down_proj",
            "thinker.model.layers.1.mlp.experts.w2",
            r"thinker.model.layers.1.mlp.experts.0.down_proj.weight nothing \(and 2 more are missing\)",
        ),
    ],
)
def test_a_renamed_tensor_is_told_by_both_names(
    small_checkpoint: Path, old: str, new: str, missing: str
) -> None:
    _rename(small_checkpoint, old, new)
    with pytest.raises(
        WeightsError, match=rf"{new}: expected no tensor of this name .*, found F32 .*, and for {missing}$"
    ):
        load_thinker(small_checkpoint)


def test_of_a_surplus_tensor_that_replaces_none_only_its_own_name_is_told(small_checkpoint: Path) -> None:
    file = small_checkpoint / "model.safetensors"
    save_file(load_file(file) | {"thinker.extra": torch.zeros(3)}, file)
    with pytest.raises(WeightsError, match=r"thinker\.extra: expected no tensor of this name .* F32 \[3\]$"):
        load_thinker(small_checkpoint)
