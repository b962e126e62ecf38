from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thinkstream_client.errors import ConfigError, InvalidRequest
from thinkstream_model.checkpoint import Checkpoint
from thinkstream_model.config import ThinkerConfig
from thinkstream_scheduler.up_arguments import UpArguments, replica_threads
from thinkstream_workers import host_memory
from thinkstream_workers.engine_config import EngineConfig

DEMO = Checkpoint.resolve("demo").folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder as far as it is looked at: the weights hold nothing."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((DEMO / "config.json").read_text())
    (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "gpu"),
        ("device", "cuda:1"),
        ("device", "cpu:3"),
        ("dtype", "int8"),
        ("slots", 0),
        ("step_tokens", 8),
        ("ray_address", "nowhere"),
        ("max_context", 1),
        ("lease_ms", 5),
        ("slots", 4_097),
        ("step_tokens", 1 << 30),
        ("max_context", 1 << 23),
        ("lease_ms", 86_400_001),
        ("drain_timeout_s", 1e5),
        ("num_replicas", 2_000),
        ("num_partitions", 0),
    ],
)
def test_a_value_outside_its_range_is_named(field: str, value: object) -> None:
    wrong: dict[str, Any] = {field: value}
    with pytest.raises(ConfigError, match=rf"^{field}: got {value!r}, "):
        UpArguments(**wrong).checked()


def test_replicas_on_this_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "total_bytes", lambda: 8 << 30)
    assert UpArguments(kv_memory_bytes=4 << 30, num_replicas=2).checked()
    assert UpArguments(kv_memory_bytes=9 << 30, ray_address="elsewhere:6379").checked()
    assert UpArguments(kv_memory_bytes=9 << 30, device="cuda").checked()
    with pytest.raises(ConfigError, match=r"--kv-memory: got 5GiB, allowed: up to 4GiB, "):
        UpArguments(kv_memory_bytes=5 << 30, num_replicas=2).checked()
    monkeypatch.setattr(host_memory, "total_bytes", lambda: None)
    assert UpArguments(kv_memory_bytes=9 << 30).checked()


def test_more_replicas_than_this_machine_has_memory_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "total_bytes", lambda: 8 << 30)
    message = r"^--replicas: got 1000, allowed: up to \d\d, .* of this machine's 8GiB of memory at least$"
    with pytest.raises(ConfigError, match=message) as raised:
        UpArguments(num_replicas=1000).checked()
    allowed = int(str(raised.value).split("up to ")[1].split(",")[0])
    assert UpArguments(num_replicas=allowed).checked()
    assert UpArguments(num_replicas=1000, ray_address="elsewhere:6379").checked()
    assert UpArguments(num_replicas=1000, device="cuda").checked()
    monkeypatch.setattr(host_memory, "total_bytes", lambda: 1 << 20)
    assert UpArguments().checked(), "one is tried in any case"


@pytest.mark.parametrize(
    ("device", "dtype", "dtype_bytes"),
    [("cpu", None, 4), ("cpu", "bfloat16", 2), ("cuda", None, 2), ("cuda", "float32", 4)],
)
def test_memory_is_for_one_block_at_least(device: str, dtype: str | None, dtype_bytes: int) -> None:
    least = ThinkerConfig.from_json(DEMO).kv_bytes(EngineConfig().block_size, dtype_bytes)
    assert UpArguments(kv_memory_bytes=least, device=device, dtype=dtype).checked()
    message = rf"^--kv-memory: got {least - 1} bytes, allowed: at least {least}, .* as in 8GiB$"
    with pytest.raises(ConfigError, match=message):
        UpArguments(kv_memory_bytes=least - 1, device=device, dtype=dtype).checked()


def test_memory_that_no_machine_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--kv-memory: got [\d.]+TiB, allowed: up to 16TiB$"):
        UpArguments(kv_memory_bytes=1 << 45, device="cuda").checked()


def test_a_context_beyond_the_model_s_is_refused(folder: Path) -> None:
    trained = ThinkerConfig.from_json(folder).max_position_embeddings
    assert UpArguments(model=str(folder), max_context=trained).checked()
    with pytest.raises(ConfigError, match=rf"max_context: got {trained + 1}, .* the model's {trained}"):
        UpArguments(model=str(folder), max_context=trained + 1).checked()


def test_a_namespace_that_is_no_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="namespace"):
        UpArguments(namespace="a b").checked()


def test_the_model_is_named_so_that_actors_find_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert UpArguments(model="demo").checked().model == "demo"
    assert UpArguments(model="model").checked().model == str(folder)
    config = folder / "config.json"
    assert UpArguments(model="random:model/config.json").checked().model == f"random:{config}"
    assert UpArguments(model="random:model,seed=7").checked().model == f"random:{folder},seed=7"


@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_folder_without_a_config_is_no_model(folder: Path, prefix: str) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"model .*config\.json"):
        UpArguments(model=f"{prefix}{folder}").checked()


def test_a_config_of_another_model_is_told_by_its_field(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = config.get("thinker_config", config)
    text = text.get("text_config", text)
    del text["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        UpArguments(model=str(folder)).checked()


def test_a_folder_without_weights_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        UpArguments(model=str(folder)).checked()
    assert UpArguments(model=f"random:{folder}").checked()


@pytest.mark.parametrize(
    "model",
    ["random:/nowhere.json", "random:/nowhere.json,seed=x", "/nowhere", "a" * 300, f"random:{'a' * 300}"],
)
def test_a_model_that_is_not_there(model: str) -> None:
    with pytest.raises(ConfigError, match="no such"):
        UpArguments(model=model).checked()


def test_a_model_without_a_name() -> None:
    with pytest.raises(ConfigError, match=r"model: got '', allowed: demo, random:CONFIG"):
        UpArguments(model="").checked()


def test_a_hub_s_name_is_told_to_be_downloaded() -> None:
    with pytest.raises(ConfigError, match=r"no such folder; a hub's name is not fetched: download it first$"):
        UpArguments(model="Qwen/Qwen3-Omni-30B-A3B-Instruct").checked()
    with pytest.raises(ConfigError, match=r"no such folder$"):
        UpArguments(model="./nowhere").checked()


def test_replicas_share_the_machine() -> None:
    assert replica_threads(10_000) == 1
    assert replica_threads(0) == replica_threads(1) >= 1
