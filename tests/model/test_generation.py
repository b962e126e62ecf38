from __future__ import annotations

import json
from pathlib import Path

import pytest

from thinkstream_model.errors import ConfigError
from thinkstream_model.generation import GenerationDefaults


def _load(folder: Path, document: object, eos_token_ids: tuple[int, ...] = ()) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(document))
    return GenerationDefaults.load(folder, eos_token_ids)


def test_the_released_defaults_where_there_is_no_file(tmp_path: Path) -> None:
    defaults = GenerationDefaults.load(tmp_path, (151_645, 151_643))
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.6, 0.95, 20)
    assert (defaults.repetition_penalty, defaults.min_p, defaults.max_tokens) == (1.0, 0.0, None)
    assert defaults.eos_token_ids == (151_643, 151_645)


def test_what_the_file_says(tmp_path: Path) -> None:
    document = {
        "temperature": 0.7,
        "top_p": 1,
        "top_k": None,
        "repetition_penalty": 1.05,
        "max_new_tokens": 5,
    }
    assert _load(tmp_path, {**document, "eos_token_id": 7, "talker_top_k": 50}, (9, 7)) == GenerationDefaults(
        temperature=0.7, top_p=1.0, top_k=20, repetition_penalty=1.05, max_tokens=5, eos_token_ids=(7, 9)
    )


def test_no_sampling_is_greedy(tmp_path: Path) -> None:
    assert _load(tmp_path, {"do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert _load(tmp_path, {"do_sample": True, "temperature": 0.7}).temperature == 0.7


def test_several_ends_of_text(tmp_path: Path) -> None:
    assert _load(tmp_path, {"eos_token_id": [3, 1]}, (2,)).eos_token_ids == (1, 2, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", 1.5),
        ("top_k", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("eos_token_id", "end"),
        ("eos_token_id", [1, None]),
        ("eos_token_id", -1),
    ],
)
def test_a_value_outside_its_range_is_named(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(tmp_path, {field: value})
    assert refused.value.field == field
    assert refused.value.file == str(tmp_path / "generation_config.json")
