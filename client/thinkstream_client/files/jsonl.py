"""Batches as files: lines in, lines out.

A line is either OpenAI's batch form (``custom_id``, ``method``, ``url``, ``body``) for chat completions and
completions, or the short form: ``id`` and one of ``prompt``, ``messages`` and ``token_ids``, with sampling
fields beside them. Both forms may be mixed. Result lines are OpenAI's.

A line that cannot be taken becomes a ``BatchItem`` with an ``InvalidRequest`` that names the line and the
field; the others are not touched by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from thinkstream_client.core.compose import BatchItem, compose_request
from thinkstream_client.core.results import BatchResult
from thinkstream_client.errors import InvalidRequest

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


def read_lines(lines: Iterable[str]) -> Iterator[BatchItem]:
    """Yields a ``BatchItem`` for each line that is not blank; an id that was seen before is an error."""
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parsed = parse_line(line, number)
        if parsed.error is None and parsed.custom_id in seen:
            # Its error goes by another name: under this one it would stand for the first line's result.
            error = InvalidRequest(f"line {number}: custom_id", parsed.custom_id, "an id of its own")
            parsed = BatchItem(number=number, custom_id=f"line-{number}", error=error)
        seen.add(parsed.custom_id)
        yield parsed


def parse_line(line: str, number: int) -> BatchItem:
    """Returns what one line asks for; never raises."""
    custom_id = f"line-{number}"
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
        answer = body_of_result(result.result, is_chat=item.is_chat, model=item.model, created_s=created_s)
        response = {"status_code": 200, "request_id": result.job_id, "body": answer}
    elif result.error is not None:
        error = {"code": result.error.code, "message": str(result.error)}
    row = {
        "id": f"batch_req_{result.job_id or item.number}",
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


def answered_ids(lines: Iterable[str]) -> set[str]:
    """Returns the ids that a result file holds already; a line torn by a crash counts as missing."""
    ids: set[str] = set()
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            custom_id = cast("dict[str, Any]", row).get("custom_id")
            if isinstance(custom_id, str):
                ids.add(custom_id)
    return ids


def _custom_id(fields: Mapping[str, Any], otherwise: str) -> str:
    name = "custom_id" if "custom_id" in fields or "body" in fields else "id"
    value = fields.get(name, None if name == "custom_id" else otherwise)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_CUSTOM_ID:
        raise InvalidRequest(name, value, f"text of 1 to {MAX_CUSTOM_ID} characters")
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
