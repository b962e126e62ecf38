"""The records that go into the queue: what is asked, and the names of jobs and sessions.

Plain frozen data, checked where it is made. How they look as bytes is ``wire_request``'s business; how they
travel is ``functions``'. Nothing here knows Redis. What comes back is in ``outcome``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NewType, cast

from .checks import check_integer, check_kind, check_number, check_text
from .errors import InvalidRequest

SessionId = NewType("SessionId", str)
"""One incarnation of one replica: its name, a dot and random letters."""

MAX_PROMPT_BYTES = 1 << 20
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_TAGS = 8
MAX_TOKEN_ID = (1 << 31) - 1
MAX_TOKENS = 1 << 20
"""Tokens that a result has at most."""
PRIORITIES = ("high", "normal", "low")
"""Class names by priority number: 0 is served first."""


class JobRef(NamedTuple):
    """A job's full name: ids are unique within a tenant."""

    tenant: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Raises:
        InvalidRequest: The role is unknown, or the content is no valid text.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant"):
            raise InvalidRequest("messages.role", self.role, "system, user or assistant")
        check_text("messages.content", self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. ``None`` means: as the checkpoint's generation config says.

    Raises:
        InvalidRequest: A value outside its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, 0, 1 << 20)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _integer("seed", self.seed, 0, (1 << 64) - 1)
        if type(self.ignore_eos) is not bool:
            raise InvalidRequest("sampling.ignore_eos", self.ignore_eos, "true or false")
        self._check_stops()
        self._check_bias()

    def _check_stops(self) -> None:
        if not _is_sequence_of(self.stop, object) or len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest("sampling.stop", self.stop, f"up to {MAX_STOP_STRINGS} strings")
        for place, text in enumerate(self.stop):
            allowed = f"a string of 1 to {MAX_STOP_BYTES} bytes"
            if not 1 <= len(check_text(f"sampling.stop[{place}]", text, allowed)) <= MAX_STOP_BYTES:
                raise InvalidRequest(f"sampling.stop[{place}]", text, allowed)
        if not _is_sequence_of(self.stop_token_ids, object) or len(self.stop_token_ids) > MAX_STOP_STRINGS:
            raise InvalidRequest(
                "sampling.stop_token_ids", self.stop_token_ids, f"up to {MAX_STOP_STRINGS} ids"
            )
        for place, token_id in enumerate(self.stop_token_ids):
            check_integer(f"sampling.stop_token_ids[{place}]", token_id, 0, MAX_TOKEN_ID)

    def _check_bias(self) -> None:
        is_mapping = isinstance(self.logit_bias, Mapping)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not is_mapping or len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(
                "sampling.logit_bias", self.logit_bias, f"up to {MAX_LOGIT_BIAS} ids with a bias"
            )
        for token_id, bias in self.logit_bias.items():
            check_integer("sampling.logit_bias", token_id, 0, MAX_TOKEN_ID)
            check_number(f"sampling.logit_bias[{token_id}]", bias, -100.0, 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one job asks for. Exactly one of ``prompt``, ``messages`` and ``token_ids`` is given.

    Attributes:
        prompt: Raw text to go on from, without the chat template.
        messages: A chat; the worker applies the checkpoint's chat template.
        token_ids: A prompt that the caller has tokenized.
        sampling: How tokens are chosen.
        grain: Tokens per entry of the result stream, 1 for a live stream, 16 otherwise.
        tags: Labels to find the job by.

    Raises:
        InvalidRequest: A value of another type or outside its range.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    grain: int = 1
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [n for n in ("prompt", "messages", "token_ids") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InvalidRequest("prompt", given or None, "exactly one of prompt, messages and token_ids")
        self._check_types()
        check_integer("grain", self.grain, 1, 1024)
        if not 1 <= self.num_prompt_bytes <= MAX_PROMPT_BYTES:
            raise InvalidRequest(given[0], f"{self.num_prompt_bytes} bytes", f"1 to {MAX_PROMPT_BYTES} bytes")
        for token_id in self.token_ids or ():
            check_integer("token_ids", token_id, 0, MAX_TOKEN_ID)
        if len(self.tags) > MAX_TAGS:
            raise InvalidRequest("tags", self.tags, f"up to {MAX_TAGS} tags")

    def _check_types(self) -> None:
        if self.prompt is not None:
            check_text("prompt", self.prompt)
        if self.messages is not None:
            if not _is_sequence_of(self.messages, object):
                raise InvalidRequest("messages", self.messages, "a sequence of messages")
            for place, message in enumerate(self.messages):
                check_kind(f"messages[{place}]", message, Message, "a message")
        if self.token_ids is not None and not _is_sequence_of(self.token_ids, int):
            raise InvalidRequest("token_ids", self.token_ids, "a sequence of integers")
        check_kind("sampling", self.sampling, SamplingParams, "sampling parameters")
        if not _is_sequence_of(self.tags, str):
            raise InvalidRequest("tags", self.tags, "a sequence of names")

    @property
    def num_prompt_bytes(self) -> int:
        """Size of the prompt as given: UTF-8 bytes of text, four bytes per token id."""
        if self.prompt is not None:
            return len(self.prompt.encode())
        if self.messages is not None:
            return sum(len(m.content.encode()) for m in self.messages)
        return 4 * len(self.token_ids or ())


def _is_sequence_of(value: object, kind: type) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(v, kind) for v in cast("list[object]", value))


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if value is not None:
        check_number(f"sampling.{name}", value, low, high, open_low=open_low)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if value is not None:
        check_integer(f"sampling.{name}", value, low, high)
