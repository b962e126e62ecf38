"""What one job's result stream holds and what it is to hold next.

Pure bookkeeping: tokens go in, entries come out as bytes. It knows no Redis, no thread and no clock.
Every token is kept until the job ends, so that whatever Redis lost can be published again.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from thinkstream_client.errors import RecordInvalid
from thinkstream_client.outcome import Finish, FinishReason, Timings, TokenLogprobs, Usage
from thinkstream_client.protocol.wire import Entry, chain_crc, encode_entry, encode_terminal, initial_crc

from .job_times import JobTimes
from .orders import JobKey, TokenOut
from .stream_snapshot import StreamSnapshot


class IncrementalText(Protocol):
    """Text out of ids, one at a time: the part of the detokenizer that is needed here."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        ...

    def push(self, token_id: int) -> str:
        """Takes one id, returns what became readable."""
        ...

    def finish(self) -> str:
        """Returns what was held back."""
        ...


class Repair(enum.Enum):
    """What a stream that is not as long as expected turned out to be."""

    GO_ON = "go_on"  #: ours: the reply was lost, or Redis went back and the rest is to be published again
    DROP = "drop"  #: sealed, taken over, or another history


class Publication:
    """One ownership of one job: its tokens so far and how many of them are in the stream.

    Args:
        key: The ownership.
        session: The session that owns the job, as the stream's marker names it.
        grain: Tokens per entry.
        num_prompt_tokens: For the usage.
        times: Kept here for whoever has the clock.
        stop_token_ids: Ids that end the text; they count as tokens and give no text.
        text: A fresh detokenizer with the job's stop strings.

    Attributes:
        num_published: Tokens that are in the stream, as far as is known here.
        end: Why the job ended, once it has.
        num_cached_tokens: Tokens of the prompt that did not have to be computed, once it has started.
    """

    def __init__(
        self,
        key: JobKey,
        *,
        session: str,
        grain: int,
        num_prompt_tokens: int,
        times: JobTimes,
        stop_token_ids: frozenset[int],
        text: IncrementalText,
    ) -> None:
        self.key = key
        self.times = times
        self.end: FinishReason | None = None
        self.num_cached_tokens = 0
        self.num_published = 0
        self._session = session
        self.grain = grain
        self._num_prompt_tokens = num_prompt_tokens
        self._stop_token_ids = stop_token_ids
        self._text = text
        self._ids: list[int] = []
        self._pieces: list[str] = []  # what became readable with each token
        self._logprobs: list[TokenLogprobs | None] = []
        self._rest: str | None = None  # of the text, once the detokenizer has been emptied
        self._crcs = [initial_crc(key.ref.job_id)]  # behind 0, 1, 2, ... grains

    @property
    def num_tokens(self) -> int:
        """Tokens of the result, published or not."""
        return len(self._ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The result so far."""
        return tuple(self._ids)

    @property
    def expected_len(self) -> int:
        """Entries that the stream should have: our own and one marker per claim."""
        return self.num_published // self.grain + self.key.mk

    @property
    def has_entry(self) -> bool:
        """Whether a whole entry waits; the last one, whole or not, goes with the terminal."""
        waiting = self.num_tokens - self.num_published
        return waiting > self.grain or (waiting == self.grain and self.end is None)

    @property
    def has_something(self) -> bool:
        """Whether an entry or the end waits to be sent."""
        return self.end is not None or self.has_entry

    def replay(self, entries: Sequence[Entry]) -> None:
        """Takes up what former owners published.

        Raises:
            RecordInvalid: The entries do not follow from each other.
        """
        for entry in entries:
            logprobs = entry.logprobs or (None,) * len(entry.token_ids)
            for token_id, token_logprobs in zip(entry.token_ids, logprobs, strict=True):
                self._append(token_id, token_logprobs)
            if len(entry.token_ids) != self.grain or self._crc_at(self.num_tokens) != entry.crc:
                raise RecordInvalid(f"the result stream does not hold together at token {self.num_tokens}")
        self.num_published = self.num_tokens
        if self._ids and self._ids[-1] in self._stop_token_ids:
            self.finish(FinishReason.STOP)

    def push(self, token: TokenOut) -> None:
        """Takes the next token; what comes behind the end is ignored.

        Raises:
            ValueError: The token is not the next one.
        """
        if self.end is not None:
            return
        if token.index != self.num_tokens + 1:
            raise ValueError(f"got token {token.index} after {self.num_tokens}")
        self._append(token.token_id, token.logprobs)

    def finish(self, end: FinishReason) -> None:
        """Notes the end, unless a stop string made one before."""
        if self.end is None:
            self.end = end

    def next_entry(self) -> bytes:
        """The entry that follows the published ones; ``has_entry`` tells whether there is one."""
        return self._encode(self.num_published, self.num_published + self.grain)

    def acknowledge(self) -> None:
        """Notes that the entry of ``next_entry`` is in the stream."""
        self.num_published += self.grain

    def last_entry(self) -> bytes | None:
        """The entry that goes with the terminal, None where nothing is left."""
        if self.num_published == self.num_tokens:
            return None
        return self._encode(self.num_published, self.num_tokens)

    def terminal(self, timings: Timings) -> bytes:
        """The entry that seals the stream, once there is an end."""
        assert self.end is not None
        if self._rest is None:
            self._rest = "" if self._text.stopped else self._text.finish()
        return encode_terminal(
            Finish(
                reason=self.end,
                num_tokens=self.num_tokens,
                text=self._rest,
                usage=self.usage,
                timings=timings,
            )
        )

    @property
    def usage(self) -> Usage:
        """Tokens used, by what is known now."""
        return Usage(
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=self.num_cached_tokens,
            completion_tokens=self.num_tokens,
        )

    def repair(self, stream: StreamSnapshot) -> Repair:
        """Compares the stream as it stands with what we know, after Redis said that its length is another.

        Where the stream is ours, the number of published tokens is set to what it holds.
        """
        marker = stream.last_marker
        if stream.sealed or marker is None or (marker.mk, marker.session) != (self.key.mk, self._session):
            return Repair.DROP
        num_in_stream = sum(len(entry.token_ids) for entry in stream.entries)
        if num_in_stream > self.num_tokens or num_in_stream % self.grain:
            return Repair.DROP
        if stream.entries and stream.entries[-1].crc != self._crc_at(num_in_stream):
            return Repair.DROP
        if stream.num_markers != self.key.mk:
            return Repair.DROP
        self.num_published = num_in_stream
        return Repair.GO_ON

    def _append(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        is_text = token_id not in self._stop_token_ids
        self._ids.append(token_id)
        self._pieces.append(self._text.push(token_id) if is_text else "")
        self._logprobs.append(logprobs)
        if self._text.stopped:
            self.end = FinishReason.STOP

    def _encode(self, start: int, stop: int) -> bytes:
        logprobs = [p for p in self._logprobs[start:stop] if p is not None]
        return encode_entry(
            self._ids[start:stop],
            self._crc_at(stop),
            "".join(self._pieces[start:stop]),
            logprobs or None,
        )

    def _crc_at(self, num_tokens: int) -> int:
        """The crc of the first tokens; those behind whole grains are kept."""
        whole = num_tokens // self.grain
        while len(self._crcs) <= whole:
            start = (len(self._crcs) - 1) * self.grain
            self._crcs.append(chain_crc(self._crcs[-1], self._ids[start : start + self.grain]))
        rest = self._ids[whole * self.grain : num_tokens]
        return chain_crc(self._crcs[whole], rest) if rest else self._crcs[whole]
