"""Fields of a JSON object as a request needs them; whatever else they hold is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from thinkstream_client.core.compose import SamplingFields
from thinkstream_client.errors import InvalidRequest

SAMPLING_NAMES = frozenset(SamplingFields.__annotations__)


def json_object(value: object, field: str) -> dict[str, Any]:
    """Returns ``value`` if it is a JSON object."""
    if not isinstance(value, dict):
        raise InvalidRequest(field, value, "a JSON object")
    return cast("dict[str, Any]", value)


def refuse_unknown(fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses the first field whose name is not in ``known``."""
    for name, value in fields.items():
        if name not in known:
            raise InvalidRequest(name, value, "no such field")


def sampling_of(fields: Mapping[str, Any]) -> dict[str, object]:
    """Returns the sampling fields among ``fields``, as ``compose_request`` takes them."""
    given = {name: fields[name] for name in SAMPLING_NAMES & fields.keys()}
    for name in ("stop", "stop_token_ids", "logit_bias", "ignore_eos"):
        if name in given and given[name] is None:
            del given[name]
    if isinstance(given.get("logit_bias"), dict):
        given["logit_bias"] = {_token_id(k): v for k, v in given["logit_bias"].items()}
    return given


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdigit():
        raise InvalidRequest("logit_bias", key, "token ids as keys")
    return int(key)


def text_of(fields: Mapping[str, Any], name: str) -> str | None:
    """Returns a text, or None where there is none."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(name, value, "text")
    return value


def json_list(value: object, name: str) -> list[Any]:
    """Returns ``value`` if it is a list."""
    if not isinstance(value, list):
        raise InvalidRequest(name, value, "a list")
    return cast("list[Any]", value)  # type: ignore[redundant-cast]


def ids_of(fields: Mapping[str, Any], name: str) -> list[int] | None:
    """Returns a list of token ids, or None where there is none."""
    return None if fields.get(name) is None else json_list(fields[name], name)


def messages_of(fields: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """Returns the messages of a chat with plain contents, or None where there are none."""
    if fields.get("messages") is None:
        return None
    messages: list[dict[str, str]] = []
    for place, given in enumerate(json_list(fields["messages"], "messages")):
        message = json_object(given, f"messages[{place}]")
        content = _content(message.get("content"), f"messages[{place}].content")
        messages.append({**message, "content": content})
    return messages


def _content(value: object, where: str) -> str:
    # OpenAI writes text either plainly or as parts; parts of other kinds are refused.
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidRequest(where, value, "text, or a list of parts of type text")
    texts: list[str] = []
    for place, part in enumerate(cast("list[object]", value)):
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise InvalidRequest(f"{where}[{place}]", part, "a part of type text")
    return "".join(texts)
