"""Batches as files: lines in, lines out.

A line is either OpenAI's batch form (``custom_id``, ``method``, ``url``, ``body``) for chat completions and
completions, or the short form: ``id`` and one of ``prompt``, ``messages`` and ``token_ids``, with sampling
fields beside them. Both forms may be mixed. Result lines are OpenAI's.

A line that cannot be taken becomes a ``BatchItem`` with an ``InvalidRequest`` that names the line and the
field; the others are not touched by it. A line without an id of its own is named after its number
(``#line-7``), as no id of a caller's may be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from thinkstream_client.core.compose import BatchItem, compose_request
from thinkstream_client.core.results import BatchResult
from thinkstream_client.errors import Conflict, InvalidRequest, PromptTooLong

from .json_fields import (
    SAMPLING_NAMES,
    ids_of,
    json_list,
    json_object,
    messages_of,
    refuse_unknown,
    sampling_of,
    text_of,
)
from .openai import CHAT_URL, COMPLETIONS_URL, body_of_result, request_of_body

MAX_CUSTOM_ID = 512
MODEL = "thinkstream"
"""What a result names as its model where its line names none."""
LINE_ID = "#line-"
"""How the names begin that lines without an id of their own are given."""

_REFUSALS = frozenset(kind.code for kind in (InvalidRequest, PromptTooLong, Conflict))


def read_lines(lines: Iterable[str]) -> Iterator[BatchItem]:
    """Yields a ``BatchItem`` for each line that is not blank; an id that was seen before is an error.

    No two of them have the same ``custom_id``.
    """
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parsed = parse_line(line, number)
        if parsed.custom_id in seen:
            # Its error goes by another name: under this one it would stand for the first line's result.
            error = parsed.error or InvalidRequest(
                f"line {number}: {_id_field(json.loads(line))}",
                parsed.custom_id,
                "an id of its own; this one is there twice",
            )
            parsed = BatchItem(number=number, custom_id=f"{LINE_ID}{number}", error=error)
        seen.add(parsed.custom_id)
        yield parsed


def parse_line(line: str, number: int) -> BatchItem:
    """Returns what one line asks for; never raises."""
    custom_id = f"{LINE_ID}{number}"
    try:
        fields = json_object(json.loads(line), "line")
        custom_id = _custom_id(fields, custom_id)
        return _openai(fields, number, custom_id) if "body" in fields else _short(fields, number, custom_id)
    except InvalidRequest as error:
        told = InvalidRequest(f"line {number}: {error.field}", error.value, error.allowed)
    except (ValueError, RecursionError):
        told = InvalidRequest(f"line {number}", line.strip(), "a JSON object")
    return BatchItem(number=number, custom_id=custom_id, error=told)


def result_line(result: BatchResult, *, created_s: int) -> str:
    """Returns a result in OpenAI's form, without a line break.

    Args:
        result: What came of an item.
        created_s: Unix time to put into the answer.
    """
    item, error, response = result.item, None, None
    if result.result is not None:
        answer = body_of_result(
            result.result, is_chat=item.is_chat, model=item.model or MODEL, created_s=created_s
        )
        response = {"status_code": 200, "request_id": result.job_id, "body": answer}
    elif result.error is not None:
        error = {"code": result.error.code, "message": str(result.error)}
    name = f"{result.job_id}\n{item.custom_id}".encode("utf-8", "surrogatepass")
    row = {
        "id": f"batch_req_{hashlib.sha256(name).hexdigest()[:24]}",
        "custom_id": item.custom_id,
        "response": response,
        "error": error,
    }
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a pair that a line brought in as an escape goes back as one
        return json.dumps(row)
    return line


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """What a line of a result file tells.

    Attributes:
        custom_id: Whose result it is.
        error_code: Code of the error where it holds one, else empty.
    """

    custom_id: str
    error_code: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether the request was wrong, so that nothing ran."""
        return self.error_code in _REFUSALS


def parse_result(line: str) -> ResultRow | None:
    """Returns what a line of a result file tells, or None where it is none, as one torn by a crash."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match row:
        case {"custom_id": str(custom_id), "error": {"code": str(code)}}:
            return ResultRow(custom_id=custom_id, error_code=code)
        case {"custom_id": str(custom_id)}:
            return ResultRow(custom_id=custom_id)
        case _:
            return None


def _id_field(fields: Mapping[str, Any]) -> str:
    """The field that holds a line's id."""
    return "custom_id" if "custom_id" in fields or "body" in fields else "id"


def _custom_id(fields: Mapping[str, Any], otherwise: str) -> str:
    name = _id_field(fields)
    value = fields.get(name, None if name == "custom_id" else otherwise)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_CUSTOM_ID:
        raise InvalidRequest(name, value, f"text of 1 to {MAX_CUSTOM_ID} characters")
    if value.startswith(LINE_ID) and value != otherwise:
        raise InvalidRequest(name, value, f"an id that does not begin with {LINE_ID}")
    return value


def _short(fields: dict[str, Any], number: int, custom_id: str) -> BatchItem:
    refuse_unknown(fields, SAMPLING_NAMES | {"id", "custom_id", "prompt", "messages", "token_ids", "tags"})
    request = compose_request(
        prompt=text_of(fields, "prompt"),
        messages=messages_of(fields),
        token_ids=ids_of(fields, "token_ids"),
        fields=sampling_of(fields),
        stream=False,
        tags=json_list(fields.get("tags", []), "tags"),
    )
    return BatchItem(number=number, custom_id=custom_id, request=request, is_chat="messages" in fields)


def _openai(fields: dict[str, Any], number: int, custom_id: str) -> BatchItem:
    url, body = fields.get("url"), json_object(fields["body"], "body")
    if fields.get("method", "POST") != "POST":
        raise InvalidRequest("method", fields["method"], "POST")
    if url not in (CHAT_URL, COMPLETIONS_URL):
        raise InvalidRequest("url", url, f"{CHAT_URL} or {COMPLETIONS_URL}")
    refuse_unknown(fields, ("custom_id", "method", "url", "body"))
    return BatchItem(
        number=number,
        custom_id=custom_id,
        request=request_of_body(body, is_chat=url == CHAT_URL),
        is_chat=url == CHAT_URL,
        model=str(body.get("model", "")),
    )
