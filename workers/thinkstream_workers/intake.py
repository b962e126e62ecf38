"""From a claimed job to an order: decode, render, tokenize, resolve, resume.

One thread of its own, so that neither the decode loop nor the Publisher ever waits for a long prompt.
Jobs come by two ways, the Scheduler's assignment and the owned set of a beat, and both end in ``adopt``.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from thinkstream_client.errors import (
    Fenced,
    JobNotFound,
    ServiceError,
    ThinkstreamError,
)
from thinkstream_client.outcome import FinishReason, JobFailure
from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.protocol.wire_request import decode_request
from thinkstream_client.records import JobRef, Request
from thinkstream_model.generation import GenerationDefaults

from .failures import failure_of
from .job_table import JobTable
from .job_times import JobTimes
from .mailboxes import IDLE_WAIT_S, Inbox, Outbox
from .orders import JobKey, SequenceEnd, StepOutput, Submit
from .publication import IncrementalText, Publication
from .resolve import Limits, check_prompt, resolve, sampling_note
from .sampling import ResolvedSampling
from .session import Session

logger = logging.getLogger(__name__)

_RETRY_S = 0.2
_MAX_NOTES = 64


class Text(Protocol):
    """The part of the tokenizer that is needed here."""

    def encode(self, text: str) -> list[int]:
        """Ids of raw text."""
        ...

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a chat, rendered by the template, up to where the answer begins."""
        ...

    def detokenizer(self, stop: Sequence[str]) -> IncrementalText:
        """A fresh detokenizer that ends at one of the stop strings."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A job that the session owns, with all that is needed to take it up.

    Attributes:
        key: The ownership.
        payload: Its request as bytes.
        grain: Tokens per entry of its stream, which Redis counts by; the payload's word is not asked.
        resumed: Its stream may hold tokens.
        suspect: It may have killed its last worker.
        queued_ms: From submission to the claim.
    """

    key: JobKey
    payload: bytes
    grain: int
    resumed: bool
    suspect: bool
    queued_ms: int


class Intake:
    """Takes up jobs.

    Args:
        session: Who owns the jobs, and reads them.
        text: Tokenizes.
        defaults: What the checkpoint says about sampling.
        limits: What the model can take.
        table: The jobs taken up.
        inbox: The way to the Engine.
        outbox: The way to the Publisher, for jobs that never reach the Engine.
    """

    def __init__(
        self,
        session: Session,
        *,
        text: Text,
        defaults: GenerationDefaults,
        limits: Limits,
        table: JobTable,
        inbox: Inbox,
        outbox: Outbox,
    ) -> None:
        self._session = session
        self._text = text
        self._defaults = defaults
        self._limits = limits
        self._table = table
        self._inbox = inbox
        self._outbox = outbox
        self._arrivals: queue.SimpleQueue[tuple[JobKey, Claimed | None]] = queue.SimpleQueue()
        self._notes: dict[JobRef, str] = {}  # of jobs taken up, sent when nothing waits: none waits for them
        self._stopping = threading.Event()

    def limit_context(self, num_tokens: int) -> None:
        """Has jobs keep within a shorter context; before ``run`` only, for jobs must end alike."""
        self._limits = replace(self._limits, max_context=num_tokens)

    def adopt(self, claim: JobKey, claimed: Claimed | None = None) -> None:
        """Takes up a job, once, however often it is called. Any thread may call.

        Args:
            claim: The ownership as Redis names it.
            claimed: What the claim returned; without it the job's hash is read.
        """
        key = self._table.expect(claim)
        if key is not None:
            self._arrivals.put((key, claimed))

    def run(self) -> None:
        """Prepares one job after the other until told to stop."""
        while not self._stopping.is_set():
            self.turn()

    def turn(self, wait_s: float = IDLE_WAIT_S) -> bool:
        """Prepares the next job, waiting up to ``wait_s`` for one; tells whether there was any."""
        try:
            key, claimed = self._arrivals.get(timeout=wait_s)
        except queue.Empty:
            return False
        self._take_up(key, claimed)
        if self._notes and (self._arrivals.empty() or len(self._notes) >= _MAX_NOTES):
            self._send_notes()
        return True

    def stop(self) -> None:
        """Ends ``run`` after the present job."""
        self._stopping.set()

    def _take_up(self, key: JobKey, claimed: Claimed | None) -> None:
        while key in self._table and not self._stopping.is_set():
            try:
                self._prepare(self._arrival(key, claimed))
            except ServiceError:
                self._stopping.wait(_RETRY_S)
                continue
            except JobNotFound:
                self._table.remove(key)
            except ThinkstreamError as error:
                self._refuse(key, failure_of(error))
            except Exception as error:
                # One job's input must not end the thread that all others need.
                logger.exception("job %s could not be taken up", key.ref.job_id)
                self._refuse(key, JobFailure(code="JobFailed", message=f"intake: {type(error).__name__}"))
            return

    def _arrival(self, key: JobKey, claimed: Claimed | None) -> Arrival:
        if claimed is not None:
            return Arrival(
                key=key,
                payload=claimed.payload,
                grain=claimed.grain,
                resumed=claimed.n > 0,
                suspect=claimed.suspect,
                queued_ms=claimed.claimed_ms - claimed.submitted_ms,
            )
        info = self._session.read_job(key.ref)
        if info.payload is None or info.claimed_ms is None:
            raise JobNotFound(key.ref.job_id)
        return Arrival(
            key=key,
            payload=info.payload,
            grain=info.grain,
            resumed=True,  # or not: after a lost assignment nobody knows
            suspect=info.suspect,
            queued_ms=info.claimed_ms - info.submitted_ms,
        )

    def _prepare(self, arrival: Arrival) -> None:
        adopted_at, session_id = time.monotonic(), self._session.id
        prompt_ids, sampling = self._read_request(arrival)
        publication = Publication(
            arrival.key,
            session=session_id,
            grain=arrival.grain,
            num_prompt_tokens=len(prompt_ids),
            times=JobTimes(queued_ms=max(0, arrival.queued_ms), adopted_at=adopted_at),
            stop_token_ids=sampling.stop_token_ids,
            text=self._text.detokenizer(sampling.stop),
        )
        if arrival.resumed:
            self._resume(publication, sampling)
        if not self._table.place(publication):
            return
        if publication.end is not None:  # all but the seal was there already
            self._end(SequenceEnd(key=arrival.key, reason=publication.end))
            return
        self._inbox.put(
            Submit(
                key=arrival.key,
                prompt_ids=prompt_ids,
                published_ids=publication.token_ids,
                sampling=sampling,
                alone=arrival.suspect,
            )
        )
        self._notes[arrival.key.ref] = sampling_note(sampling)

    def _read_request(self, arrival: Arrival) -> tuple[tuple[int, ...], ResolvedSampling]:
        """The prompt as ids, and the sampling with every field filled in."""
        request = decode_request(arrival.payload)
        prompt_ids = self._encode(request)
        check_prompt(prompt_ids, self._limits)
        sampling = resolve(
            request.sampling,
            self._defaults,
            job_id=arrival.key.ref.job_id,
            num_prompt_tokens=len(prompt_ids),
            limits=self._limits,
        )
        return prompt_ids, sampling

    def _resume(self, publication: Publication, sampling: ResolvedSampling) -> None:
        """Takes up what former owners published."""
        publication.replay(self._session.read_stream(publication.key.ref).entries)
        if publication.num_tokens >= sampling.max_tokens:
            publication.finish(FinishReason.LENGTH)

    def _send_notes(self) -> None:
        """Says at the jobs how their sampling was resolved; nothing is held up if that fails."""
        notes, self._notes = self._notes, {}
        try:
            self._session.note(notes)
        except (ServiceError, Fenced) as error:
            logger.info("%d jobs have no note: %s", len(notes), error)

    def _encode(self, request: Request) -> tuple[int, ...]:
        if request.token_ids is not None:
            return request.token_ids
        if request.messages is not None:
            return tuple(self._text.encode_chat([(m.role, m.content) for m in request.messages]))
        return tuple(self._text.encode(request.prompt or ""))

    def _refuse(self, key: JobKey, failure: JobFailure) -> None:
        self._end(SequenceEnd(key=key, reason=FinishReason.FAILED, error=failure))

    def _end(self, end: SequenceEnd) -> None:
        output = StepOutput(ends=[end])
        while not self._outbox.put(output, IDLE_WAIT_S) and not self._stopping.is_set():
            pass
