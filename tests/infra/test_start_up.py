from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from infra.bench.gpu.random_checkpoint import write_checkpoint
from infra.bench.gpu.shape import RELEASED_SHAPE

from thinkstream_model.checkpoint import Checkpoint
from thinkstream_model.checkpoint_files import find_tensors

_SMALL = {
    **RELEASED_SHAPE,
    "vocab_size": 512,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "rope_scaling": None,
}


def test_a_written_checkpoint_is_a_whole_one(tmp_path: Path) -> None:
    num_bytes = write_checkpoint(tmp_path, _SMALL)
    checkpoint = Checkpoint.resolve(tmp_path)
    weights = checkpoint.load_weights()
    assert num_bytes == 2 * weights.config.num_parameters
    assert {tensor.std().item() > 0 for tensor in weights.named_destinations().values()} == {True}
    stored = find_tensors(tmp_path)
    assert "thinker.model.layers.2.mlp.experts.3.gate_proj.weight" in stored
    assert len({tensor.file for tensor in stored.values()}) > 5
    tokenizer = checkpoint.load_tokenizer()
    assert tokenizer.num_ids == weights.config.vocab_size
    assert (
        tokenizer.decode(tokenizer.encode("What is the capital of France?"))
        == "What is the capital of France?"
    )
    assert tokenizer.encode_chat([("user", "Hello")])
    assert len(tokenizer.eos_token_ids) == 2


def test_measures_a_load_and_two_starts(tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path / "checkpoint"), "--tiny", "--layers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "infra.bench.gpu.start_up", *options, "--device", "cpu", "--slots", "4"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written, loaded, *starts = map(json.loads, done.stdout.splitlines())
    assert written["measure"] == "write"
    assert loaded["compared"] > 50
    assert loaded["wrong"] == 0
    assert [start["kernel_cache"] for start in starts] == ["cold", "warm"]
    for start in starts:
        parts = [start[f"{part}_s"] for part in ("import", "load", "build", "first_step")]
        assert start["all_s"] > sum(parts) > start["import_s"] > 0.1
        assert min(start["first_token_s"], start["rehearsed_after_s"]) >= 0
