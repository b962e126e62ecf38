"""A Publisher turned by hand, on a connection that refuses and loses what it is told to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from thinkstream_client.errors import (
    CommandRefused,
    Fenced,
    RecordInvalid,
    ServiceUnavailable,
    ThinkstreamError,
)
from thinkstream_client.outcome import FinishReason, JobFailure
from thinkstream_client.protocol.call import Call
from thinkstream_workers.job_table import JobTable
from thinkstream_workers.job_times import JobTimes
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, SequenceEnd, StepOutput, Stop, TokenOut
from thinkstream_workers.publication import Publication
from thinkstream_workers.publisher import Publisher
from thinkstream_workers.pulse import Pulse
from thinkstream_workers.session import Session

if TYPE_CHECKING:
    from tests.workers.conftest import Letters, Service

T = TypeVar("T")


class FlakyConnection:
    """Carries out a call and loses its reply, or loses the call, when told to."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.lose_reply_of: list[str] = []
        self.refuse = False
        self.refuse_rows_of = ""
        self.refuse_call = ""
        self.refusal: ThinkstreamError = RecordInvalid("refused by the test")
        self.fence_calls = ""
        self.sent: list[str] = []

    def run(self, call: Call[T]) -> T:
        if self.refuse:
            raise ServiceUnavailable("refused by the test")
        if call.args[1] in ("ts1_step", "ts1_finish") and self.refuse_rows_of in call.args:
            raise CommandRefused("refused for good by the test")
        if call.args[1] == self.fence_calls:
            raise Fenced("fenced by the test")
        if call.args[1] == self.refuse_call:
            raise self.refusal
        reply = self._service.connection.run(call)
        name = str(call.args[1]) if call.args[0] == "FCALL" else str(call.args[0])
        self.sent.append(name)
        if name in self.lose_reply_of:
            self.lose_reply_of.remove(name)
            raise ServiceUnavailable("lost by the test")
        return reply

    def run_many(self, calls: Sequence[Call[T]]) -> list[T | ThinkstreamError]:
        return [self.run(call) for call in calls]


class Replica:
    """A Publisher with its surroundings, turned by hand."""

    def __init__(self, service: Service, letters: Letters) -> None:
        self._service, self._letters = service, letters
        self.connection = FlakyConnection(service)
        self.session = Session(service.config(lease_ms=20_000), self.connection, {})
        self.table, self.inbox, self.outbox, self.pulse = JobTable(), Inbox(), Outbox(), Pulse()
        self.adopted: list[JobKey] = []
        self.publisher = Publisher(
            self.session,
            20_000,
            table=self.table,
            inbox=self.inbox,
            outbox=self.outbox,
            pulse=self.pulse,
            adopt=self.adopted.append,
        )
        self.session.open()

    def take(self, *, grain: int = 1, stop: tuple[str, ...] = ()) -> list[JobKey]:
        """Claims all jobs there are and prepares their publications."""
        keys: list[JobKey] = []
        for claimed in self._service.claim(self.session.id):
            key = self.table.expect(JobKey(claimed.ref, claimed.mk))
            assert key is not None
            publication = Publication(
                key,
                session=self.session.id,
                grain=grain,
                num_prompt_tokens=3,
                times=JobTimes(queued_ms=0, adopted_at=time.monotonic()),
                stop_token_ids=frozenset({0}),
                text=self._letters.detokenizer(stop),
            )
            publication.replay(self.session.read_stream(claimed.ref).entries)
            self.table.place(publication)
            keys.append(key)
        return keys

    def make(self, *outputs: StepOutput, num_turns: int = 1) -> None:
        """Puts outputs into the outbox and turns."""
        for output in outputs:
            assert self.outbox.put(output, 0.0)
        for _ in range(num_turns):
            self.publisher.turn(0.0)

    def stops(self) -> list[JobKey]:
        return [order.key for order in self.inbox.drain(block=False) if isinstance(order, Stop)]


def tokens(key: JobKey, text: str, start: int = 1) -> list[StepOutput]:
    """One output per token, as decode steps bring them."""
    return [StepOutput(tokens=[TokenOut(key, index, ord(c))]) for index, c in enumerate(text, start)]


def end(
    key: JobKey, reason: FinishReason = FinishReason.LENGTH, error: JobFailure | None = None
) -> StepOutput:
    return StepOutput(ends=[SequenceEnd(key=key, reason=reason, error=error)])
