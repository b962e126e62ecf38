"""A replica whose Thinker costs nothing: real session, intake, Publisher and claims, tokens out of the air.

What it takes is what everything round the model takes. It claims for itself as the Scheduler would, at each
event.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event

from thinkstream_client.errors import Fenced, ServiceError
from thinkstream_client.outcome import FinishReason
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.settings import RedisSettings
from thinkstream_model.generation import GenerationDefaults
from thinkstream_workers.config import ReplicaConfig
from thinkstream_workers.intake import Intake, Text
from thinkstream_workers.job_table import JobTable
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, SequenceEnd, StepOutput, Stop, Submit, TokenOut
from thinkstream_workers.publisher import Publisher
from thinkstream_workers.pulse import Pulse
from thinkstream_workers.resolve import Limits
from thinkstream_workers.session import Session

NUM_IDS, MAX_CONTEXT = 50_000, 1 << 20
EVENT_WAIT_MS = 50
RETRY_S = 0.05


def token_at(index: int) -> int:
    """The token at a place of every job's result."""
    return (index * 7919) % NUM_IDS


class WordText:
    """Ids of bytes, and a detokenizer for which each token is one short word."""

    stopped = False

    def encode(self, text: str) -> list[int]:
        """Ids of raw text."""
        return list(text.encode())

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of the last message."""
        return self.encode(messages[-1][1])

    def detokenizer(self, stop: Sequence[str]) -> WordText:
        """Itself: it keeps no state and knows no stop strings."""
        return self

    def push(self, token_id: int) -> str:
        """The text of a token."""
        return " word"

    def finish(self) -> str:
        """Nothing is ever held back."""
        return ""


@dataclass(slots=True)
class _Sequence:
    order: Submit
    num_tokens: int


class FreeReplica:
    """Serves one namespace until it is closed.

    Args:
        url: Redis.
        slots: Jobs at one time.
        step_s: Time that a step takes; 0 is as fast as the rest allows.
        ends_at_once: Jobs end without a token instead of at their ``max_tokens``.
        text: What makes text of its tokens.
    """

    def __init__(
        self,
        url: str,
        *,
        slots: int = 256,
        step_s: float = 0.0,
        ends_at_once: bool = False,
        text: Text | None = None,
    ) -> None:
        config = ReplicaConfig(redis=RedisSettings(url), name="free", slots=slots)
        self._config, self._step_s, self._ends_at_once = config, step_s, ends_at_once
        self._connections = [Connection(config.redis) for _ in range(2)]
        self._events = Connection(config.redis, blocking=True)
        self._session = Session(config, self._connections[0], {})
        self._table, self._inbox, self._outbox, self._pulse = JobTable(), Inbox(), Outbox(), Pulse()
        self._intake = Intake(
            self._session,
            text=text or WordText(),
            defaults=GenerationDefaults(),
            limits=Limits(max_context=MAX_CONTEXT, num_ids=NUM_IDS),
            table=self._table,
            inbox=self._inbox,
            outbox=self._outbox,
        )
        self._publisher = Publisher(
            self._session,
            config.lease_ms,
            table=self._table,
            inbox=self._inbox,
            outbox=self._outbox,
            pulse=self._pulse,
            adopt=self._intake.adopt,
        )
        self._sequences: dict[JobKey, _Sequence] = {}
        self._stopping = threading.Event()
        self._session.open()
        loops = (self._decode, self._claim, self._intake.run, self._publisher.run)
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop; what it owns stays owned until the lease is over."""
        self._stopping.set()
        self._intake.stop()
        self._publisher.stop()
        for thread in self._threads:
            thread.join()
        for connection in (*self._connections, self._events):
            connection.close()

    def _claim(self) -> None:
        keys, seen, connection = self._config.redis.keys, "$", self._connections[1]
        while not self._stopping.is_set():
            try:
                free = self._config.slots - len(self._table)
                jobs = connection.run(functions.claim(keys, 0, self._session.id, free)) if free else []
                for claimed in jobs:
                    self._intake.adopt(JobKey(claimed.ref, claimed.mk), claimed)
                if not jobs:
                    events = self._events.run(functions.read_events(keys, 0, seen, block_ms=EVENT_WAIT_MS))
                    seen = events[-1].entry_id if events else seen
            except (Fenced, ServiceError):
                self._stopping.wait(RETRY_S)

    def _decode(self) -> None:
        while not self._stopping.is_set():
            self._pulse.stamp()
            for order in self._inbox.drain(block=not self._sequences):
                if isinstance(order, Stop):
                    self._sequences.pop(order.key, None)
                else:
                    self._sequences[order.key] = _Sequence(order, len(order.published_ids))
            if not self._sequences:
                continue
            if self._step_s:
                time.sleep(self._step_s)
            output = self._step()
            while not self._outbox.put(output, RETRY_S) and not self._stopping.is_set():
                self._pulse.stamp()

    def _step(self) -> StepOutput:
        output = StepOutput()
        for key, sequence in list(self._sequences.items()):
            if not self._ends_at_once:
                sequence.num_tokens += 1
                output.tokens.append(TokenOut(key, sequence.num_tokens, token_at(sequence.num_tokens)))
            if self._ends_at_once or sequence.num_tokens >= sequence.order.sampling.max_tokens:
                output.ends.append(SequenceEnd(key=key, reason=FinishReason.LENGTH))
                del self._sequences[key]
        return output


class StampText(WordText):
    """Tokens read as the time at which the Publisher takes them, on the machine's monotonic clock."""

    def detokenizer(self, stop: Sequence[str]) -> StampText:
        """Itself."""
        return self

    def push(self, token_id: int) -> str:
        """The time in nanoseconds, and a space."""
        return f"{time.monotonic_ns()} "


@contextmanager
def free_replica(
    url: str, *, step_s: float = 0.0, ends_at_once: bool = False, stamped: bool = False
) -> Generator[None, None, None]:
    """Run a replica in a process of its own, as a worker has; see ``FreeReplica``.

    Args:
        url: Redis.
        step_s: Time that a step takes.
        ends_at_once: Jobs end without a token.
        stamped: Whether tokens read as the time of their publication.
    """
    context = get_context("spawn")
    is_ready, is_over = context.Event(), context.Event()
    child = context.Process(target=_serve, args=(url, step_s, ends_at_once, stamped, is_ready, is_over))
    child.start()
    try:
        assert is_ready.wait(30), "the replica did not start"
        yield
    finally:
        is_over.set()
        child.join()


def _serve(
    url: str, step_s: float, ends_at_once: bool, stamped: bool, is_ready: Event, is_over: Event
) -> None:
    text = StampText() if stamped else WordText()
    replica = FreeReplica(url, step_s=step_s, ends_at_once=ends_at_once, text=text)
    is_ready.set()
    is_over.wait()
    replica.close()
