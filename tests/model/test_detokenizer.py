from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkstream_model.detokenizer import Detokenizer
from thinkstream_model.tokenizer import Tokenizer

BYTES = Tokenizer.of_bytes(300)
"""Ids 0 to 255 are bytes, 256 to 258 special, the others spell their own number."""

any_ids = st.lists(st.integers(0, 320), max_size=60)
some_text = st.text(st.sampled_from("abcа🙂日\n "), max_size=40)
some_stops = st.lists(st.text(st.sampled_from("abcа🙂"), min_size=1, max_size=4), max_size=4)


def _stream(token_ids: list[int], stop: list[str]) -> tuple[str, bool]:
    detokenizer = Detokenizer(BYTES, stop)
    text = "".join(map(detokenizer.push, token_ids))
    return text + detokenizer.finish(), detokenizer.stopped


def _cut(text: str, stop: list[str]) -> tuple[str, bool]:
    """What the text should be, found the plain way: every end, every stop string."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@settings(deadline=None)
@given(any_ids)
def test_pieces_make_the_whole(token_ids: list[int]) -> None:
    assert _stream(token_ids, []) == (BYTES.decode(token_ids), False)


@settings(deadline=None)
@given(any_ids, st.integers(0, 60))
def test_nothing_released_is_taken_back(token_ids: list[int], place: int) -> None:
    detokenizer = Detokenizer(BYTES)
    released = "".join(map(detokenizer.push, token_ids[:place]))
    assert BYTES.decode(token_ids).startswith(released)
    assert BYTES.decode(token_ids[:place]).startswith(released)


@settings(deadline=None)
@given(some_text, some_stops)
def test_ends_where_the_first_stop_string_is_complete(text: str, stop: list[str]) -> None:
    assert _stream(list(text.encode()), stop) == _cut(text, stop)


@settings(deadline=None)
@given(any_ids, some_stops)
def test_stop_strings_in_any_bytes(token_ids: list[int], stop: list[str]) -> None:
    assert _stream(token_ids, stop) == _cut(BYTES.decode(token_ids), stop)


@settings(deadline=None)
@given(some_text, some_stops)
def test_holds_back_no_more_than_it_must(text: str, stop: list[str]) -> None:
    detokenizer = Detokenizer(BYTES, stop)
    released = ""
    for place, character in enumerate(text, 1):
        released += "".join(map(detokenizer.push, character.encode()))
        if detokenizer.stopped:
            return
        held = text[len(released) : place]
        assert text[:place] == released + held
        assert not held or any(s.startswith(held) for s in stop)


def test_a_character_appears_with_its_last_byte() -> None:
    detokenizer = Detokenizer(BYTES)
    assert [detokenizer.push(byte) for byte in "я🙂".encode()] == ["", "я", "", "", "", "🙂"]


def test_a_special_token_has_no_text_and_breaks_no_character() -> None:
    first, second = "я".encode()
    detokenizer = Detokenizer(BYTES)
    assert [detokenizer.push(i) for i in (first, 258, second, 257)] == ["", "", "я", ""]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    detokenizer = Detokenizer(BYTES)
    assert detokenizer.push("🙂".encode()[0]) == ""
    assert detokenizer.finish() == "�"


def test_text_that_only_began_like_a_stop_string_is_released() -> None:
    detokenizer = Detokenizer(BYTES, ["Конец."])
    released = [detokenizer.push(byte) for byte in "Коня".encode()]
    assert [text for text in released if text] == ["Коня"]


def test_the_rest_is_released_at_the_end() -> None:
    detokenizer = Detokenizer(BYTES, ["END"])
    assert "".join(map(detokenizer.push, b"the EN")) == "the "
    assert detokenizer.finish() == "EN"
    assert not detokenizer.stopped


def test_nothing_comes_after_a_stop_string() -> None:
    detokenizer = Detokenizer(BYTES, ["b"])
    assert "".join(map(detokenizer.push, b"abc")) == "a"
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


def test_a_stop_string_inside_one_token_and_over_several(qwen: Tokenizer) -> None:
    ids = qwen.encode("Столица Франции — Париж 🙂. Ещё вопросы?")
    for stop, text in [("Париж", "Столица Франции — "), ("🙂. Е", "Столица Франции — Париж ")]:
        detokenizer = Detokenizer(qwen, [stop])
        assert "".join(map(detokenizer.push, ids)) == text
        assert detokenizer.stopped


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30), st.lists(st.integers(0, 151_675), max_size=30))
def test_the_real_tokenizer_in_pieces(qwen: Tokenizer, text: str, token_ids: list[int]) -> None:
    tokenizer = qwen
    for ids in (tokenizer.encode(text), token_ids):
        detokenizer = Detokenizer(tokenizer)
        assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("num_stops", [0, 16])
def test_long_texts_take_linear_time(num_stops: int) -> None:
    # Each character could begin every stop string; a search from the start would take minutes.
    stops = ["a" * 255 + chr(ord("b") + n) for n in range(num_stops)]
    detokenizer = Detokenizer(BYTES, stops)
    text = "".join(detokenizer.push(ord("a")) for _ in range(20_000))
    assert text + detokenizer.finish() == "a" * 20_000
