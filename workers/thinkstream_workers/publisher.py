"""The only thread that writes tokens to Redis.

It takes step outputs from the Engine and turns them into entries, which its Sender sends, and renews the
lease. It keeps all tokens until the job's end: whatever Redis did not take or has lost is sent again, and
nothing is dropped but what belongs to others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from thinkstream_client.errors import Fenced, QueueFull, ThinkstreamError
from thinkstream_client.outcome import FinishReason, JobFailure

from .job_table import JobTable
from .mailboxes import IDLE_WAIT_S, Inbox, Outbox
from .orders import JobKey, SequenceEnd, StepOutput, Stop, TokenOut
from .patience import Patience
from .pulse import Pulse
from .sending import Sender
from .session import Session

logger = logging.getLogger(__name__)


class Publisher:
    """Publishes what the Engine makes, and keeps the session alive while the Engine is.

    Args:
        session: Writes to Redis.
        lease_ms: Length of the lease.
        table: The jobs taken up.
        inbox: Where the Engine is told to forget a sequence.
        outbox: Where its outputs come from.
        pulse: Whether it is alive.
        adopt: Takes up a job that Redis says is ours and that we do not know.
    """

    def __init__(
        self,
        session: Session,
        lease_ms: int,
        *,
        table: JobTable,
        inbox: Inbox,
        outbox: Outbox,
        pulse: Pulse,
        adopt: Callable[[JobKey], None],
    ) -> None:
        self._session = session
        self._beat_every_s = lease_ms / 4_000
        self._max_silence_ms = lease_ms / 2
        self._table = table
        self._inbox = inbox
        self._outbox = outbox
        self._pulse = pulse
        self._adopt = adopt
        self._stopping = threading.Event()
        self._sender = Sender(session, table=table, inbox=inbox)
        self._beat_at = 0.0
        self._patience = Patience()
        self._must_ask = False  # a reply was lost: nothing is sent before a beat tells what is ours

    def run(self) -> None:
        """Publishes until told to stop."""
        while not self._stopping.is_set():
            self.turn()

    def stop(self) -> None:
        """Ends ``run`` after the present turn; what is not sent stays unsent."""
        self._stopping.set()

    def beat_soon(self) -> None:
        """Makes the next turn beat, whenever the last one was."""
        self._beat_at = 0.0

    def turn(self, wait_s: float = IDLE_WAIT_S) -> None:
        """Beats if it is time, takes what the Engine has made, and sends it.

        While something of earlier turns is unsent nothing new is taken: the outbox fills, and the Engine
        waits with it. A call that Redis refuses says nothing about any job: it is sent again as if Redis had
        been away, and an error that no waiting mends comes out, to end the replica.
        """
        try:
            self._beat_if_due()
            if self._must_ask:  # the engine hangs
                self._stopping.wait(wait_s)
                return
            if self._sender.has_sent_all:
                self._take_all(wait_s)
            self._sender.send()
            self._patience.all_sent()
        except Fenced as error:
            self._start_over(error)
        except ThinkstreamError as error:
            self._back_off(error)

    def _beat_if_due(self) -> None:
        now = time.monotonic()
        if now < self._beat_at or not self._pulse.is_younger_than(self._max_silence_ms):
            return
        if not self._session.is_open:
            self._session.open()
        known = self._table.keys()
        owned = self._session.beat()
        # Only what was known before the beat: a job assigned since may be missing from the reply.
        for key in known:
            if key.claim not in owned:
                self._sender.drop(key, "not ours any more")
        for claim in owned - {key.claim for key in known}:
            self._adopt(claim)
        self._beat_at = now + self._beat_every_s
        self._patience.beat_answered()
        self._must_ask = False

    def _take_all(self, wait_s: float) -> None:
        output = self._outbox.get(wait_s)
        while output is not None:
            self._take(output)
            output = self._outbox.get(0.0)

    def _take(self, output: StepOutput) -> None:
        now = time.monotonic()
        for started in output.started:
            publication = self._table.get(started.key)
            if publication is not None:
                publication.times.started_at = now
                publication.num_cached_tokens = started.num_cached_tokens
        for token in output.tokens:
            self._take_token(token, now)
        for end in output.ends:
            self._take_end(end)

    def _take_token(self, token: TokenOut, now: float) -> None:
        publication = self._table.get(token.key)
        if publication is None:  # dropped while the token was under way
            self._inbox.put(Stop(key=token.key))
            return
        if publication.end is not None:  # behind a stop string
            return
        try:
            publication.push(token)
        except ValueError:
            logger.exception("job %s: the engine's tokens do not follow each other", token.key.ref.job_id)
            self._sender.drop(token.key, "broken")
            return
        if publication.times.first_token_at is None:
            publication.times.first_token_at = now
        if publication.end is not None:
            self._inbox.put(Stop(key=token.key))
        if publication.has_something:
            self._sender.put(publication)

    def _take_end(self, end: SequenceEnd) -> None:
        if end.key not in self._table:
            return
        if end.reason is FinishReason.FAILED:
            failure = end.error or JobFailure(code="JobFailed", message="no reason given")
            self._sender.put_failure(end.key, failure)
            return
        publication = self._table.get(end.key)
        if publication is not None:
            publication.finish(end.reason)
            self._sender.put(publication)

    def _start_over(self, error: Fenced) -> None:
        """Leaves everything to others and becomes a new session, later each time that it is refused too."""
        keys = self._table.clear()
        logger.warning("session %s is fenced, %d jobs are dropped", self._session.id, len(keys))
        for key in keys:
            self._inbox.put(Stop(key=key))
        self._sender.clear()
        if self._session.is_draining:
            self.stop()
            return
        self._stopping.wait(self._patience.before_session(error))
        self._session.replace()
        self._must_ask = True
        self.beat_soon()

    def _back_off(self, error: ThinkstreamError) -> None:
        """Waits before the same is sent again; after a lost connection the session asks first if it lives."""
        is_first = not self._patience.is_tried
        wait_s = self._patience.before_retry(error)
        if is_first:
            logger.warning("publishing waits: %s", error)
        if not isinstance(error, QueueFull):
            self._must_ask = True
            self.beat_soon()
        self._stopping.wait(wait_s)
