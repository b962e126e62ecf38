"""What jobs have ready on its way to Redis: one call for all of them, and an answer to every refusal.

Never has more than one entry of a job under way. Knows neither where the tokens come from nor when to send,
and waits for nothing: errors of a whole call come out, and what was not taken stays to be sent again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from thinkstream_client.errors import CommandRefused, QueueFull, RecordInvalid, ThinkstreamError
from thinkstream_client.outcome import JobFailure
from thinkstream_client.protocol.functions import StepReply, StepRow

from .endings import finish_row, log_end
from .failures import failure_of, is_final
from .job_table import JobTable
from .mailboxes import Inbox
from .orders import JobKey, Stop
from .publication import Publication, Repair
from .session import Session

logger = logging.getLogger(__name__)

MAX_REPAIRS = 3
"""Refusals in a row after which a job is left to whoever owns it."""

T = TypeVar("T")


class Sender:
    """Jobs that have something to send, until it is sent or the job turns out to be another's.

    Args:
        session: Writes to Redis.
        table: The jobs taken up; those that have come to an end here are taken out.
        inbox: Where the Engine is told to forget a sequence.
    """

    def __init__(self, session: Session, *, table: JobTable, inbox: Inbox) -> None:
        self._session = session
        self._table = table
        self._inbox = inbox
        self._waiting: dict[JobKey, Publication] = {}  # have an entry or an end to send
        self._failed: dict[JobKey, JobFailure] = {}  # are to be given back as failed
        self._repairs: dict[JobKey, int] = {}  # refusals in a row

    @property
    def has_sent_all(self) -> bool:
        """Whether nothing is left to send."""
        return not self._waiting and not self._failed

    def put(self, publication: Publication) -> None:
        """Takes a job that has an entry or an end to send."""
        self._waiting[publication.key] = publication

    def put_failure(self, key: JobKey, failure: JobFailure) -> None:
        """Takes a job that is to be given back as failed."""
        self._failed[key] = failure

    def drop(self, key: JobKey, why: str) -> None:
        """Leaves a job to others, whatever there is of it to send."""
        logger.info("job %s is dropped: %s", key.ref.job_id, why)
        self._table.drop(key)
        self._forget(key)
        self._inbox.put(Stop(key=key))

    def clear(self) -> None:
        """Forgets everything: the session is no longer ours."""
        self._waiting.clear()
        self._failed.clear()
        self._repairs.clear()

    def send(self) -> None:
        """Sends all there is: entries, then ends, then failures.

        Raises:
            ThinkstreamError: Redis is away or takes no call of a kind; what it has not taken is still here.
        """
        try:
            self._send_entries()
        except QueueFull:
            # Redis has no memory for entries, but takes ends, and every end gives some back.
            self._send_ends()
            raise
        self._send_ends()
        self._send_failures()

    def _send_entries(self) -> None:
        def acknowledge(publication: Publication) -> None:
            publication.acknowledge()
            self._repairs.pop(publication.key, None)

        batch = [publication for publication in self._waiting.values() if publication.has_entry]
        self._send_batch(batch, self._step, acknowledge)

    def _send_ends(self) -> None:
        now = time.monotonic()

        def finish(batch: Sequence[Publication]) -> list[StepReply]:
            return self._session.finish([finish_row(publication, now) for publication in batch])

        def conclude(publication: Publication) -> None:
            log_end(publication, now)
            self._forget(publication.key)

        batch = [publication for publication in self._waiting.values() if not publication.has_entry]
        self._send_batch(batch, finish, conclude)

    def _step(self, batch: Sequence[Publication]) -> list[StepReply]:
        return self._session.step(
            [StepRow(p.key.ref, p.expected_len, p.next_entry(), p.key.mk, p.grain) for p in batch]
        )

    def _send_batch(
        self,
        batch: Sequence[Publication],
        call: Callable[[Sequence[Publication]], list[StepReply]],
        settle: Callable[[Publication], None],
    ) -> None:
        """Makes one call for a batch, settles what was taken, and finds out about the rest.

        A row that is refused while others are taken fails its job.
        """
        if not batch:
            return
        answered, refused = send_rows(batch, call)
        for publication, refusal in refused:
            self._fail(publication.key, refusal)
        for publication, reply in answered:
            if reply is StepReply.OK:
                settle(publication)
            else:
                self._resolve_refusal(publication, reply)
        self._waiting = {key: p for key, p in self._waiting.items() if p.has_something}

    def _fail(self, key: JobKey, error: ThinkstreamError) -> None:
        logger.warning("job %s: its row is refused: %s", key.ref.job_id, error)
        self._waiting.pop(key)
        self._failed[key] = failure_of(error)
        self._inbox.put(Stop(key=key))

    def _send_failures(self) -> None:
        for key, failure in list(self._failed.items()):
            retry = not is_final(failure)
            self._session.fail(key.ref, failure, retry=retry)
            logger.warning(
                "job %s failed with %s%s",
                key.ref.job_id,
                failure.code,
                ", to be tried again" if retry else "",
            )
            self._forget(key)

    def _resolve_refusal(self, publication: Publication, reply: StepReply) -> None:
        """Finds out why Redis did not take an entry or an end; the job goes on or is dropped."""
        key = publication.key
        if reply is StepReply.NOT_OURS:
            self.drop(key, "it has ended, or another session has it")
            return
        if reply is StepReply.INVALID:
            tokens = f"{publication.num_tokens} tokens in all, {publication.num_published} published"
            self._fail(key, RecordInvalid(f"the end does not fit the stream: {tokens}"))
            return
        self._repairs[key] = self._repairs.get(key, 0) + 1
        before = publication.num_published
        try:
            verdict = publication.repair(self._session.read_stream(key.ref))
        except RecordInvalid:
            verdict = Repair.DROP
        if verdict is Repair.DROP or self._repairs[key] > MAX_REPAIRS:
            self.drop(key, "another's")
            return
        logger.info(
            "job %s: Redis holds %d tokens, not %d", key.ref.job_id, publication.num_published, before
        )

    def _forget(self, key: JobKey) -> None:
        self._table.remove(key)
        self._waiting.pop(key, None)
        self._failed.pop(key, None)
        self._repairs.pop(key, None)


def send_rows(
    batch: Sequence[T], call: Callable[[Sequence[T]], list[StepReply]]
) -> tuple[list[tuple[T, StepReply]], list[tuple[T, CommandRefused]]]:
    """Sends rows together or, where Redis refuses that, each by itself.

    Rows that were taken the first time are then refused as sent already, which their replies tell.

    Args:
        batch: Whose rows they are, at least one.
        call: Makes the call.

    Returns:
        The replies, and whose rows were refused while others were taken.

    Raises:
        CommandRefused: All are refused: it is the call that Redis does not do.
    """
    try:
        return list(zip(batch, call(batch), strict=True)), []
    except CommandRefused:
        if len(batch) == 1:
            raise
    taken: list[tuple[T, StepReply]] = []
    refused: list[tuple[T, CommandRefused]] = []
    for one in batch:
        try:
            taken.append((one, call([one])[0]))
        except CommandRefused as error:
            refused.append((one, error))
    if not taken:
        raise refused[0][1]
    return taken, refused
