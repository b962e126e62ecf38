from __future__ import annotations

from typing import Any

import pytest

from thinkstream_client.core import compose
from thinkstream_client.errors import InvalidRequest
from thinkstream_client.protocol.job_calls import MAX_DEADLINE_MS
from thinkstream_client.records import Message, Request


@pytest.mark.parametrize("content", [None, 5, b"Hello", ["Hello"]])
def test_content_of_a_message_is_text(content: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages.content: "):
        Message("user", content)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", {"prompt": 5}),
        ("prompt", {"prompt": b"Hello"}),
        ("messages", {"messages": 5}),
        ("messages", {"messages": "Hello"}),
        ("messages[0]", {"messages": (5,)}),
        ("messages[1]", {"messages": (Message("user", "x"), {"role": "user", "content": "x"})}),
        ("token_ids", {"token_ids": 5}),
        ("token_ids", {"token_ids": "12"}),
        ("token_ids", {"token_ids": (1, "2")}),
        ("token_ids", {"token_ids": (1, True)}),
        ("sampling", {"prompt": "x", "sampling": {"top_k": 1}}),
        ("sampling", {"prompt": "x", "sampling": None}),
        ("grain", {"prompt": "x", "grain": None}),
        ("grain", {"prompt": "x", "grain": "16"}),
        ("tags", {"prompt": "x", "tags": 5}),
        ("tags", {"prompt": "x", "tags": "night"}),
        ("tags", {"prompt": "x", "tags": (5,)}),
    ],
)
def test_wrong_types_make_no_request(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", {"prompt": 5}),
        ("messages", {"messages": 5}),
        ("messages[0]", {"messages": [5]}),
        ("messages[0]", {"messages": ["Hello"]}),
        ("messages", {"messages": "Hello"}),
        ("messages[0]", {"messages": [{"role": "user"}]}),
        ("messages[0]", {"messages": [("user", "Hello", "more")]}),
        ("messages[1].content", {"messages": [("system", "Hello"), ("user", None)]}),
        ("messages[0].role", {"messages": [(None, "Hello")]}),
        ("token_ids", {"token_ids": 5}),
        ("token_ids", {"token_ids": [None]}),
        ("tags", {"prompt": "x", "tags": 5}),
        ("tags", {"prompt": "x", "tags": [5]}),
        ("sampling", {"prompt": "x", "sampling": "hot"}),
        ("sampling.stop", {"prompt": "x", "fields": {"stop": 5}}),
        ("sampling.stop[2]", {"prompt": "x", "fields": {"stop": ["a", "b", 5]}}),
        ("sampling.stop[1]", {"prompt": "x", "fields": {"stop": ["a", ""]}}),
        ("sampling.stop_token_ids", {"prompt": "x", "fields": {"stop_token_ids": "5"}}),
        ("sampling.stop_token_ids[1]", {"prompt": "x", "fields": {"stop_token_ids": [5, "5"]}}),
        ("sampling.stop_token_ids[1]", {"prompt": "x", "fields": {"stop_token_ids": [5, -1]}}),
    ],
)
def test_wrong_types_are_told_by_their_field(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compose.compose_request(**values)
    assert caught.value.field == field


@pytest.mark.parametrize("deadline_s", ["5", True, float("nan"), 0, -1, float("inf"), (5,), 31_536_001])
def test_deadline_is_a_number_up_to_a_year(deadline_s: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^deadline_s: got .*, allowed: a number in \(0, 31536000\]$"):
        compose.deadline_ms(deadline_s)


def test_a_deadline_of_a_year_is_one() -> None:
    assert compose.deadline_ms(31_536_000) == MAX_DEADLINE_MS


def test_one_prompt_is_not_many() -> None:
    with pytest.raises(InvalidRequest, match=r"^requests: "):
        list(compose.bulk_requests("Hello", None))
    with pytest.raises(InvalidRequest, match=r"^requests: "):
        list(compose.batch_items("Hello", None, ()))
    (item,) = compose.batch_items([5], None, ())  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    assert item.error is not None and item.error.field == "prompt"
