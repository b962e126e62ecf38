"""How a request looks as bytes: a msgpack map with full names and a version. Knows no Redis.

Requests are read from a queue that others may write to, so reading them trusts nothing: size and nesting
are limited, every type is checked, and an unknown field is refused, for it may ask for what we cannot do.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from thinkstream_client.errors import InvalidRequest, RecordInvalid
from thinkstream_client.records import MAX_PROMPT_BYTES, Message, Request, SamplingParams

from .packing import is_list, is_map, pack, unpack

VERSION = 1
MAX_REQUEST_BYTES = MAX_PROMPT_BYTES + (1 << 18)

_T = TypeVar("_T")
_SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))
_REQUEST_FIELDS = ("version", "prompt", "messages", "token_ids", "sampling", "grain", "tags")


def encode_request(request: Request) -> bytes:
    """Packs a request.

    Raises:
        InvalidRequest: A text that is not valid Unicode, or a request over the limit of size.
    """
    record = _content(request)
    record["version"], record["grain"], record["tags"] = VERSION, request.grain, list(request.tags)
    data = _pack(record)
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidRequest("prompt", f"{len(data)} bytes with the rest", f"up to {MAX_REQUEST_BYTES} bytes")
    return data


def request_digest(request: Request) -> bytes:
    """SHA-256 of prompt and sampling as given; what tells one payload from another under the same id."""
    return hashlib.sha256(_pack(_content(request))).digest()


def decode_request(data: bytes) -> Request:
    """Reads a request.

    Raises:
        RecordInvalid: The bytes are no request of this version, too many, or nested too deep.
        InvalidRequest: A field is unknown, of another type or outside its range.
    """
    record: object = unpack(data, MAX_REQUEST_BYTES)
    if not is_map(record) or record.get("version") != VERSION:
        raise RecordInvalid(f"not a request of version {VERSION}")
    _refuse_unknown(record, _REQUEST_FIELDS, "")
    return Request(
        prompt=record.get("prompt"),
        messages=_optional(record, "messages", _messages),
        token_ids=_optional(record, "token_ids", _token_ids),
        sampling=_sampling(record.get("sampling", {})),
        grain=record.get("grain", 1),
        tags=_tuple_of(record.get("tags", ())),
    )


def _content(request: Request) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if request.prompt is not None:
        record["prompt"] = request.prompt
    if request.messages is not None:
        record["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
    if request.token_ids is not None:
        record["token_ids"] = struct.pack(f"<{len(request.token_ids)}I", *request.token_ids)
    record["sampling"] = _sampling_content(request.sampling)
    return record


def _sampling_content(sampling: SamplingParams) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name in _SAMPLING_FIELDS:
        value = getattr(sampling, name)
        if name == "logit_bias":
            value = dict(sorted(sampling.logit_bias.items()))
        elif name in ("stop", "stop_token_ids"):
            value = list(value)
        # Only what was given: a new field with a default changes no digest.
        if value is not None and value is not False and value not in ([], {}):
            record[name] = value
    return record


def _pack(record: dict[str, Any]) -> bytes:
    try:
        return pack(record, is_strict=True)
    except UnicodeEncodeError as error:
        raise InvalidRequest("prompt", error.object[error.start : error.end], "valid Unicode text") from None


def _refuse_unknown(record: dict[Any, Any], known: tuple[str, ...], prefix: str) -> None:
    for name in record:
        if name not in known:
            raise InvalidRequest(f"{prefix}{name}"[:80], record[name], "no such field")


def _optional(record: dict[Any, Any], name: str, read: Callable[[str, Any], _T]) -> _T | None:
    value = record.get(name)
    return None if value is None else read(name, value)


def _tuple_of(value: Any) -> Any:
    """A list as the tuple that a record holds; the record itself refuses what else it may be."""
    return tuple(value) if is_list(value) else value


def _messages(name: str, value: Any) -> tuple[Message, ...]:
    if not is_list(value):
        raise InvalidRequest(name, value, "a list of messages")
    messages: list[Message] = []
    for one in value:
        if not is_map(one):
            raise InvalidRequest(name, one, "a map with role and content")
        _refuse_unknown(one, ("role", "content"), "messages.")
        messages.append(Message(one.get("role"), one.get("content")))  # type: ignore[arg-type]  # checked there
    return tuple(messages)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, bytes) or len(value) % 4:
        raise InvalidRequest(name, value, "little-endian 32-bit numbers")
    return struct.unpack(f"<{len(value) // 4}I", value)


def _sampling(value: Any) -> SamplingParams:
    if not is_map(value):
        raise InvalidRequest("sampling", value, "a map")
    record = dict(value)
    _refuse_unknown(record, _SAMPLING_FIELDS, "sampling.")
    for name in ("stop", "stop_token_ids"):
        if name in record:
            record[name] = _tuple_of(record[name])
    return SamplingParams(**record)
