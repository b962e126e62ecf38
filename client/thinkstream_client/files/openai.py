"""OpenAI's bodies: requests for chat completions and completions in, answers out.

Answers name tokens by id (``token_id:42``), because nothing on the client's side knows a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from thinkstream_client.core.compose import compose_request
from thinkstream_client.errors import InvalidRequest
from thinkstream_client.outcome import JobResult, TokenLogprobs
from thinkstream_client.records import Request

from .json_fields import SAMPLING_NAMES, ids_of, messages_of, refuse_unknown, sampling_of, text_of

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"
_IGNORED = frozenset({"model", "user", "metadata", "store", "service_tier", "stream_options"})
_ONLY = (("n", 1), ("best_of", 1), ("echo", False), ("stream", False))
_IN_CHATS = {"sampling.max_tokens": "max_completion_tokens", "sampling.logprobs": "top_logprobs"}
"""What a chat may call our fields."""


def request_of_body(given: Mapping[str, Any], *, is_chat: bool) -> Request:
    """Returns what a body asks for.

    Raises:
        InvalidRequest: A field is unknown or outside its range; named ``body.<field>``.
    """
    try:
        return _request_of_body(dict(given), is_chat=is_chat)
    except InvalidRequest as error:
        written = _IN_CHATS.get(error.field) if is_chat else None
        name = written if written in given else error.field.removeprefix("sampling.")
        raise InvalidRequest(f"body.{name}", error.value, error.allowed) from error


def body_of_result(result: JobResult, *, is_chat: bool, model: str, created_s: int) -> dict[str, Any]:
    """Returns the answer that a result is, as a JSON object.

    Args:
        result: A whole result.
        is_chat: For a chat completion or for a completion.
        model: Name to put into it.
        created_s: Unix time to put into it.
    """
    choice: dict[str, Any] = {"index": 0, "finish_reason": result.finish_reason}
    if is_chat:
        choice["message"] = {"role": "assistant", "content": result.text}
        choice["logprobs"] = _chat_logprobs(result)
    else:
        choice["text"] = result.text
        choice["logprobs"] = _completion_logprobs(result)
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{result.job_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created_s,
        "model": model,
        "choices": [choice],
        "usage": _usage(result),
    }


def _request_of_body(body: dict[str, Any], *, is_chat: bool) -> Request:
    for name, only in _ONLY:
        value = body.pop(name, None)
        if value not in (None, only):
            raise InvalidRequest(name, value, json.dumps(only))
    if is_chat:
        longest = body.pop("max_completion_tokens", None)
        if longest is not None:
            body["max_tokens"] = longest
        _read_chat_logprobs(body)
    content = "messages" if is_chat else "prompt"
    refuse_unknown(body, SAMPLING_NAMES | _IGNORED | {content})
    if body.get(content) is None:
        raise InvalidRequest(content, None, "given")
    tokenized = not is_chat and isinstance(body["prompt"], list)
    return compose_request(
        prompt=None if is_chat or tokenized else text_of(body, "prompt"),
        messages=messages_of(body) if is_chat else None,
        token_ids=ids_of(body, "prompt") if tokenized else None,
        fields=sampling_of(body),
        stream=False,
    )


def _read_chat_logprobs(body: dict[str, Any]) -> None:
    # A chat says {"logprobs": true, "top_logprobs": 5} where a completion says {"logprobs": 5}.
    wanted, top = body.pop("logprobs", None), body.pop("top_logprobs", None)
    if wanted not in (None, True, False):
        raise InvalidRequest("logprobs", wanted, "true or false")
    if wanted:
        body["logprobs"] = top or 0
    elif top:
        raise InvalidRequest("top_logprobs", top, "only with logprobs: true")


def _usage(result: JobResult) -> dict[str, Any]:
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _name(token_id: int) -> str:
    return f"token_id:{token_id}"


def _chat_logprobs(result: JobResult) -> dict[str, Any] | None:
    if result.logprobs is None:
        return None
    return {"content": [_chat_token(*pair) for pair in zip(result.token_ids, result.logprobs, strict=True)]}


def _chat_token(token_id: int, logprobs: TokenLogprobs) -> dict[str, Any]:
    return {
        "token": _name(token_id),
        "logprob": logprobs.logprob,
        "bytes": None,
        "top_logprobs": [{"token": _name(i), "logprob": p, "bytes": None} for i, p in logprobs.top],
    }


def _completion_logprobs(result: JobResult) -> dict[str, Any] | None:
    if result.logprobs is None:
        return None
    return {
        "tokens": [_name(token_id) for token_id in result.token_ids],
        "token_logprobs": [logprobs.logprob for logprobs in result.logprobs],
        "top_logprobs": [{_name(i): p for i, p in logprobs.top} for logprobs in result.logprobs],
        "text_offset": None,
    }
