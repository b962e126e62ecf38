"""A replica that is turned by hand: real session, intake and Publisher, and an engine that only counts.

Nothing here has a thread or a clock of its own, so a test decides what happens between any two of its
commands. A replica that is not turned is a paused one, and wakes up when it is turned again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from thinkstream_client.errors import Fenced, ServiceError
from thinkstream_client.outcome import FinishReason, JobFailure
from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.records import JobRef
from thinkstream_client.settings import RedisSettings
from thinkstream_model.generation import GenerationDefaults
from thinkstream_workers.config import ReplicaConfig
from thinkstream_workers.intake import Intake
from thinkstream_workers.job_table import JobTable
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, SequenceEnd, StepOutput, Stop, Submit, TokenOut
from thinkstream_workers.publisher import Publisher
from thinkstream_workers.pulse import Pulse
from thinkstream_workers.resolve import Limits
from thinkstream_workers.session import Runs, Session

LEASE_MS = 60_000
NUM_IDS = 50_000


def token_of(job_id: str, index: int) -> int:
    """The token at a place of a job's result: whoever computes it, it is the same."""
    return zlib.crc32(f"{job_id}/{index}".encode()) % NUM_IDS


def tokens_of(job_id: str, num_tokens: int) -> tuple[int, ...]:
    """The first tokens of a job's result."""
    return tuple(token_of(job_id, index) for index in range(1, num_tokens + 1))


def text_of(token_ids: Sequence[int]) -> str:
    """What they read as."""
    return "".join(f"{token_id} " for token_id in token_ids)


class NumberText:
    """A tokenizer of bytes, and a detokenizer that prints ids."""

    stopped = False

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        return self.encode("".join(content for _, content in messages))

    def detokenizer(self, stop: Sequence[str]) -> NumberText:
        assert not stop
        return self

    def push(self, token_id: int) -> str:
        return text_of([token_id])

    def finish(self) -> str:
        return ""


@dataclass(slots=True)
class _Sequence:
    order: Submit
    num_tokens: int = field(default=0)


class HandWorker:
    """One replica with its surroundings.

    Args:
        settings: Server and namespace.
        connection: Carries its commands, all of them.
        name: The replica.
        slots: Jobs at once.
    """

    def __init__(
        self,
        settings: RedisSettings,
        connection: Runs,
        name: str = "r",
        *,
        slots: int = 8,
        lease_ms: int = LEASE_MS,
    ) -> None:
        config = ReplicaConfig(redis=settings, name=name, slots=slots, lease_ms=lease_ms)
        self.session = Session(config, connection, {})
        self.table, self.inbox, self.outbox, self.pulse = JobTable(), Inbox(), Outbox(), Pulse()
        self.intake = Intake(
            self.session,
            text=NumberText(),
            defaults=GenerationDefaults(),
            limits=Limits(max_context=4096, num_ids=NUM_IDS),
            table=self.table,
            inbox=self.inbox,
            outbox=self.outbox,
        )
        self.publisher = Publisher(
            self.session,
            lease_ms,
            table=self.table,
            inbox=self.inbox,
            outbox=self.outbox,
            pulse=self.pulse,
            adopt=self.intake.adopt,
        )
        self.failing: set[str] = set()
        """Jobs whose next step fails, once each."""
        self._sequences: dict[JobKey, _Sequence] = {}

    def assign(self, jobs: Sequence[Claimed]) -> None:
        """Takes up jobs as a replica does."""
        for claimed in jobs:
            self.intake.adopt(JobKey(claimed.ref, claimed.mk), claimed)

    def turn(self, num_turns: int = 1) -> None:
        """Takes up what came, decodes one token of each job, publishes."""
        for _ in range(num_turns):
            while self.intake.turn(0.0):
                pass
            self._decode()
            self.publisher.turn(0.0)

    def beat(self) -> None:
        """Publishes after a beat, with no new token."""
        self.publisher.beat_soon()
        self.publisher.turn(0.0)

    def close(self) -> None:
        """Drains and ends, giving back what is in hand; again where a connection is lost."""
        for _ in range(3):
            try:
                self.session.drain()
                self.session.close([key.ref for key in sorted(self.table.keys())])
                return
            except ServiceError:
                continue
            except Fenced:  # it had ended when the reply was lost
                return

    def _decode(self) -> None:
        self.pulse.stamp()
        for order in self.inbox.drain(block=False):
            if isinstance(order, Stop):
                self._sequences.pop(order.key, None)
            else:
                self._sequences[order.key] = _Sequence(order, len(order.published_ids))
        suspects = [one for one in self._sequences.values() if one.order.alone]
        for one in suspects:
            self._announce(one.order.key.ref)
        output = StepOutput()
        for key, sequence in list(self._sequences.items()):
            self._step(key, sequence, output)
        if suspects:
            self._announce(None)
        if output.tokens or output.ends:
            assert self.outbox.put(output, 0.0)

    def _step(self, key: JobKey, sequence: _Sequence, output: StepOutput) -> None:
        if key.ref.job_id in self.failing:
            self.failing.discard(key.ref.job_id)
            del self._sequences[key]
            failure = JobFailure(code="StepFailed", message="as the test wants")
            output.ends.append(SequenceEnd(key=key, reason=FinishReason.FAILED, error=failure))
            return
        sequence.num_tokens += 1
        token_id = token_of(key.ref.job_id, sequence.num_tokens)
        output.tokens.append(TokenOut(key, sequence.num_tokens, token_id))
        if sequence.num_tokens >= sequence.order.sampling.max_tokens:
            output.ends.append(SequenceEnd(key=key, reason=FinishReason.LENGTH))
            del self._sequences[key]

    def _announce(self, ref: JobRef | None) -> None:
        for _ in range(3):
            try:
                self.session.announce(ref)
            except ServiceError:
                continue
            except Fenced:
                pass
            return


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes replicas wait a millisecond before they try a lost connection again."""
    monkeypatch.setattr("thinkstream_workers.patience.FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr("thinkstream_workers.patience.MAX_BACKOFF_S", 0.001)
    monkeypatch.setattr("thinkstream_workers.intake._RETRY_S", 0.001)
