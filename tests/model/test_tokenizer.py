from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from thinkstream_model.errors import ConfigError, TokenizerError
from thinkstream_model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def qwen_pieces(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer as the released repository stores it: vocabulary and merges."""
    folder = tmp_path_factory.mktemp("pieces")
    model = json.loads((qwen_folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])))
    (folder / "tokenizer_config.json").write_text((qwen_folder / "tokenizer_config.json").read_text())
    return folder


@pytest.fixture(scope="module")
def qwen_of_pieces(qwen_pieces: Path) -> Tokenizer:
    return Tokenizer.load(qwen_pieces)


@pytest.fixture(scope="module")
def library(qwen_folder: Path) -> Backend:
    return Backend.from_file(str(qwen_folder / "tokenizer.json"))


def test_qwens_ids(qwen: Tokenizer) -> None:
    assert qwen.num_ids == 151_676
    assert qwen.eos_token_ids == (151_645, 151_643)
    assert [qwen.encode(text) for text in ("system", "user", "assistant", "\n", "\n\n", "!")] == [
        [8948], [872], [77091], [198], [271], [0]
    ]  # fmt: skip
    assert {151_669, 151_671, 151_675} <= qwen.special_ids
    assert 151_667 not in qwen.special_ids


@pytest.mark.parametrize("which", ["qwen", "qwen_of_pieces"])
def test_a_chat_has_the_reference_ids(which: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(which)
    assert tokenizer.encode_chat([("system", "You are a helpful assistant."), ("user", "Hello")]) == [
        151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198,
        151644, 872, 198, 9707, 151645, 198, 151644, 77091, 198,
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_both_ways_of_storing_it_agree(qwen: Tokenizer, qwen_of_pieces: Tokenizer, text: str) -> None:
    assert qwen_of_pieces.encode(text) == qwen.encode(text)


def test_both_ways_agree_on_awkward_text(qwen: Tokenizer, qwen_of_pieces: Tokenizer) -> None:
    text = "Ёлки-палки, I'll pay 12345 ₽!\r\n\r\n   if x:\n\treturn 🙂\u0301 e\u0301 'S   \u3000ﬁ <think>\n"
    ids = qwen.encode(text)
    assert qwen_of_pieces.encode(text) == ids
    assert 151_667 in ids  # <think> is a token of its own, not a special one
    assert qwen.decode(ids) == text.replace("e\u0301", "é")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 151_668), max_size=40))
def test_decodes_as_the_library_does(qwen: Tokenizer, library: Backend, token_ids: list[int]) -> None:
    assert qwen.decode(token_ids) == library.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "a<|endoftext|>b", "<|im_start|>system\nhi", "<|audio_pad|>", "<tts_pad>"]
)
def test_special_tokens_are_not_read_out_of_text(qwen: Tokenizer, text: str) -> None:
    ids = qwen.encode(text)
    assert not qwen.special_ids.intersection(ids)
    assert qwen.decode(ids) == text


def test_halves_of_surrogate_pairs_are_replaced(qwen: Tokenizer) -> None:
    assert qwen.decode(qwen.encode("a\ud83db\ud83d\ude42")) == "a�b🙂"


def test_ids_without_meaning_have_no_text(qwen: Tokenizer) -> None:
    assert [qwen.token_bytes(i) for i in (151_645, 151_676, 152_063, -1)] == [b""] * 4
    assert qwen.token_bytes(151_667) == b"<think>"


def test_one_id_per_byte() -> None:
    tokenizer = Tokenizer.of_bytes(400)
    text = "й<|im_end|> "
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.encode_chat([("user", "й")])[:1] == [257]
    assert (tokenizer.num_ids, tokenizer.eos_token_ids) == (400, (258, 256))
    assert tokenizer.decode([65, 258, 399, 400]) == "A 399"


def _refused(folder: Path) -> TokenizerError:
    with pytest.raises(TokenizerError) as refused:
        Tokenizer.load(folder)
    assert "\n" not in str(refused.value)
    return refused.value


def test_missing_files(tmp_path: Path) -> None:
    assert _refused(tmp_path).file == str(tmp_path / "vocab.json")
    (tmp_path / "vocab.json").write_text("{}")
    assert _refused(tmp_path).file == str(tmp_path / "merges.txt")


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b")
    assert "vocab.json" in str(_refused(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    assert _refused(tmp_path).file == str(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: expected a JSON object, found list"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    from tokenizers import decoders, models

    backend = Backend(models.BPE({"a": 0}, []))
    backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    assert _refused(tmp_path).expected == "a byte-level decoder"


def _small_vocabulary(folder: Path, added: object, **config: object) -> Path:
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (folder / "merges.txt").write_text("a b\n")
    document = {"added_tokens_decoder": added, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(document))
    return folder


def test_added_tokens(tmp_path: Path) -> None:
    added = {"4": {"content": "<é>", "special": False}, "3": {"content": "</s>", "special": True}}
    tokenizer = Tokenizer.load(_small_vocabulary(tmp_path, added, eos_token={"content": "</s>"}))
    assert tokenizer.encode("ab<é></s>")[:2] == [2, 4]
    assert tokenizer.eos_token_ids == (3,)
    assert tokenizer.decode([2, 3, 4]) == "ab<é>"


def test_an_added_token_whose_id_does_not_follow(tmp_path: Path) -> None:
    _small_vocabulary(tmp_path, {"5": {"content": "<x>", "special": True}})
    assert "'<x>' as id 5" in str(_refused(tmp_path))


@pytest.mark.parametrize("added", [[], {"x": {}}, {"3": {}}, {"3": 1}])
def test_added_tokens_that_make_no_sense(tmp_path: Path, added: object) -> None:
    assert "added_tokens_decoder" in str(_refused(_small_vocabulary(tmp_path, added)))
