"""From what a caller writes to a checked ``Request``: the keyword forms that both clients share."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, TypeVar

from thinkstream_client.checks import check_kind, check_number, check_several
from thinkstream_client.errors import InvalidRequest
from thinkstream_client.keys import check_name
from thinkstream_client.protocol.job_calls import MAX_DEADLINE_MS
from thinkstream_client.records import PRIORITIES, Message, Request, SamplingParams

T = TypeVar("T")

LIVE_GRAIN = 1
"""Tokens per entry of a stream that somebody watches."""
BULK_GRAIN = 16
"""Tokens per entry of a result that is read as a whole: a sixteenth of the entries."""

Chat = Sequence[Message | Mapping[str, str] | tuple[str, str]]
"""A chat as callers may write it."""


class SamplingFields(TypedDict, total=False):
    """The fields of ``SamplingParams``, for calls that spell them out."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    max_tokens: int | None
    stop: Sequence[str] | str
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logit_bias: Mapping[int, float]
    logprobs: int | None
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """One job of a batch, or why it cannot be one.

    Attributes:
        number: Its place in the batch or its line in the file, from 1.
        custom_id: The caller's name for it, any text.
        request: What it asks for; None where it cannot be taken.
        error: Why it cannot be taken.
        is_chat: Whether a result line is to look like a chat completion.
        model: The model that a line names; only copied to the answer.

    Raises:
        InvalidRequest: The name is no text, or the request none.
    """

    number: int
    custom_id: str
    request: Request | None = None
    error: InvalidRequest | None = None
    is_chat: bool = False
    model: str = ""

    def __post_init__(self) -> None:
        check_kind("custom_id", self.custom_id, str, "text")
        if self.request is not None:
            check_kind("request", self.request, Request, "a request")


def new_job_id() -> str:
    """Returns an id that no other job has."""
    return secrets.token_hex(12)


def priority_number(priority: str) -> int:
    """Returns the number of a class.

    Raises:
        InvalidRequest: There is no such class.
    """
    if priority not in PRIORITIES:
        raise InvalidRequest("priority", priority, ", ".join(PRIORITIES))
    return PRIORITIES.index(priority)


def deadline_ms(deadline_s: float | None) -> int | None:
    """Returns a relative deadline in milliseconds.

    Raises:
        InvalidRequest: It is not a number above 0, or more than a year.
    """
    if deadline_s is None:
        return None
    check_number("deadline_s", deadline_s, 0, MAX_DEADLINE_MS // 1000, open_low=True)
    return max(1, round(deadline_s * 1000))


def sampling_from_fields(fields: Mapping[str, object]) -> SamplingParams:
    """Returns the sampling that keyword fields describe.

    Raises:
        InvalidRequest: A field is unknown or outside its range.
    """
    given = dict(fields)
    unknown = sorted(given.keys() - SamplingFields.__annotations__.keys())
    if unknown:
        raise InvalidRequest(unknown[0], given[unknown[0]], "no such field")
    stop = given.get("stop")
    if isinstance(stop, str):
        given["stop"] = (stop,)
    elif isinstance(stop, list):
        given["stop"] = tuple(stop)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    stop_ids = given.get("stop_token_ids")
    if isinstance(stop_ids, list):
        given["stop_token_ids"] = tuple(stop_ids)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return SamplingParams(**given)  # type: ignore[arg-type]  # every value is checked by the record itself


def compose_request(
    *,
    prompt: str | None = None,
    messages: Chat | None = None,
    token_ids: Sequence[int] | None = None,
    sampling: SamplingParams | None = None,
    fields: Mapping[str, object] | None = None,
    stream: bool = True,
    tags: Iterable[str] = (),
) -> Request:
    """Returns the request that a call describes.

    Args:
        prompt: Raw text to go on from.
        messages: A chat.
        token_ids: A tokenized prompt.
        sampling: How tokens are chosen.
        fields: The same as single fields; not together with ``sampling``.
        stream: Whether somebody watches the tokens come.
        tags: Labels to find the job by.

    Raises:
        InvalidRequest: A value outside its range.
    """
    if sampling is not None and fields:
        raise InvalidRequest("sampling", sorted(fields), "either sampling or single fields, not both")
    turns = None if messages is None else check_several("messages", messages, "a sequence of messages")
    return Request(
        prompt=prompt,
        messages=None if turns is None else tuple(_message(place, turn) for place, turn in enumerate(turns)),
        token_ids=None if token_ids is None else _ids(token_ids),
        sampling=sampling if sampling is not None else sampling_from_fields(fields or {}),
        grain=LIVE_GRAIN if stream else BULK_GRAIN,
        tags=_labels(tags),
    )


def batch_items(
    given: Iterable[str | Request | BatchItem], sampling: SamplingParams | None, tags: Iterable[str]
) -> Iterator[BatchItem]:
    """Returns the items of a batch; plain text becomes a prompt with ``sampling``.

    Args:
        given: Prompts, requests or items.
        sampling: How tokens are chosen for prompts given as text.
        tags: Labels to add to each.

    Raises:
        InvalidRequest: A tag is no name, or the requests are no sequence.
    """
    labels, several = _labels(tags), _prompts(given)

    def item_of(number: int, one: str | Request | BatchItem) -> BatchItem:
        item = one if isinstance(one, BatchItem) else _bulk_item(one, number, sampling)
        return item if item.request is None or not labels else _labelled(item, item.request, labels)

    return (item_of(number, one) for number, one in enumerate(several, start=1))


def _bulk_item(given: str | Request, number: int, sampling: SamplingParams | None) -> BatchItem:
    custom_id = f"item-{number}"
    try:
        request = _bulk_request(given, sampling)
    except InvalidRequest as error:
        return BatchItem(number=number, custom_id=custom_id, error=error)
    return BatchItem(number=number, custom_id=custom_id, request=request)


def _labelled(item: BatchItem, request: Request, tags: tuple[str, ...]) -> BatchItem:
    try:
        return replace(item, request=replace(request, tags=tuple(dict.fromkeys(request.tags + tags))))
    except InvalidRequest as error:
        return replace(item, request=None, error=error)


def bulk_requests(given: Iterable[str | Request], sampling: SamplingParams | None) -> Iterator[Request]:
    """Yields requests; plain text becomes a prompt with ``sampling``.

    Raises:
        InvalidRequest: One of them cannot be taken; names its place, from 1.
    """
    for number, one in enumerate(_prompts(given), start=1):
        try:
            request = _bulk_request(one, sampling)
        except InvalidRequest as error:
            raise InvalidRequest(f"item {number}: {error.field}", error.value, error.allowed) from None
        yield request


def _bulk_request(given: str | Request, sampling: SamplingParams | None) -> Request:
    if isinstance(given, Request):
        return given
    return compose_request(prompt=given, sampling=sampling, stream=False)


def _labels(tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(check_name("tags", tag) for tag in check_several("tags", tags, "a sequence of names"))


def _ids(token_ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(check_several("token_ids", token_ids, "a sequence of integers"))


def _prompts(given: Iterable[T]) -> Iterable[T]:
    return check_several("requests", given, "a sequence of prompts")


def _message(place: int, given: Message | Mapping[str, str] | tuple[str, str]) -> Message:
    where = f"messages[{place}]"
    try:
        return _turn(where, given)
    except InvalidRequest as error:
        field = error.field.replace("messages.", f"{where}.", 1)
        raise InvalidRequest(field, error.value, error.allowed) from None


def _turn(where: str, given: Message | Mapping[str, str] | tuple[str, str]) -> Message:
    match given:
        case Message():
            return given
        case Mapping() if set(given) == {"role", "content"}:
            return Message(given["role"], given["content"])
        case (role, content):
            return Message(role, content)
        case _:
            raise InvalidRequest(where, given, "a role and a content")
