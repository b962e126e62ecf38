"""The hot loop of one replica, and nothing else.

Orders in, steps, outputs out. It knows no Redis and no Ray, and the clock is its ``Pace``'s, so the same
engine runs in the actor, in tests and in benchmarks. Whoever starts it gives it a thread of its own.

Where it runs ahead, the device need not wait for the host: while it does one step, the host hands out the
tokens of the step before, waits for whoever may come, and launches the next step shortly before the device
is ready for it::

    device    |     step 1     |     step 2     |     step 3     |
    host       . . . . launch 2 read 1 . launch 3 read 2 . launch 4
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from thinkstream_client.outcome import JobFailure

from .batch import Batch, EngineLoad
from .batcher import Batcher
from .mailboxes import IDLE_WAIT_S, Inbox, Outbox
from .orders import JobKey, StepOutput
from .pacing import Pace
from .rehearsal import Rehearsal
from .runner import InFlight, ModelRunner

logger = logging.getLogger(__name__)


class Engine:
    """Steps all its sequences together, one token each at a time.

    Args:
        batcher: Chooses who takes part in a step.
        runner: Does the step.
        inbox: Where orders come from.
        outbox: Where tokens and ends go.
        pace: How long it may wait for orders while a step is in flight.
        announce: Told the suspect that the next steps are for before the first of them, and None before
            anything else happens. What kills the process in between is laid at that suspect's door.
        on_turn: Called at each turn of the loop and while it waits for room in the outbox, so that others
            see it alive.
        rehearsal: What to do while there is no work.
        run_ahead: Whether a step is launched before the tokens of the one before it are read.
    """

    def __init__(
        self,
        *,
        batcher: Batcher,
        runner: ModelRunner,
        inbox: Inbox,
        outbox: Outbox,
        pace: Pace,
        announce: Callable[[JobKey | None], None],
        on_turn: Callable[[], None],
        rehearsal: Rehearsal,
        run_ahead: bool = False,
    ) -> None:
        self._batcher = batcher
        self._runner = runner
        self._inbox = inbox
        self._outbox = outbox
        self._pace = pace
        self._announce = announce
        self._on_turn = on_turn
        self._run_ahead = run_ahead
        self._rehearsal = rehearsal
        self._in_flight: InFlight | None = None
        self._announced: JobKey | None = None
        self._stopping = threading.Event()

    @property
    def load(self) -> EngineLoad:
        """What it has in hand and has done; any thread may read it."""
        return self._batcher.load

    @property
    def max_context(self) -> int:
        """Tokens of prompt and result that one sequence may have here."""
        return self._batcher.max_context

    @property
    def is_rehearsed(self) -> bool:
        """Whether nothing is left to do while there is no work; any thread may read it."""
        return self._rehearsal.is_over

    def limit_step(self, num_tokens: int) -> int:
        """Has later steps take so many tokens at most; returns what holds. Any thread may call it."""
        return self._batcher.limit_step(num_tokens)

    def stop(self) -> None:
        """Makes ``run`` return after its turn; sequences that have not ended stay as they are."""
        self._stopping.set()

    def run(self) -> None:
        """Steps until told to stop.

        Raises:
            RuntimeError: The device failed. Nothing on it can be trusted any more; the process should end.
        """
        while not self._stopping.is_set():
            self._on_turn()
            is_idle = not self._batcher.has_work
            if is_idle:
                self._announce_suspect(None)
            self._hold()
            self._emit(self._batcher.admit(self._inbox.drain(block=is_idle and self.is_rehearsed)))
            batch = self._batcher.next_batch()
            if batch is None:
                self._collect_in_flight()
                if not self._batcher.has_work:
                    self._rehearsal.step()
            else:
                self._announce_suspect(batch.alone)
                self._emit(StepOutput(started=list(batch.started)))  # before the step, to be timed
                self._step(batch)
        self._announce_suspect(None)

    def _hold(self) -> None:
        """Waits while the step in flight leaves time: whoever comes meanwhile is in the next one."""
        if self._in_flight is not None:
            self._stopping.wait(self._pace.spare_s)

    def _step(self, batch: Batch) -> None:
        """Launches one step, then collects the one before it."""
        try:
            launched = self._runner.launch(batch, self._in_flight)
        except Exception as error:
            if self._runner.is_fatal(error):
                raise
            failure = JobFailure(code="StepFailed", message=f"{type(error).__name__}: {error}")
            if self._in_flight is None and len(batch.sequences) == 1:
                logger.exception("a sequence failed in a step of %d tokens", batch.query_lens[0])
        else:
            self._launched(launched)
            return
        # Out here the error is gone, and with it the tensors its traceback held.
        self._step_again(batch, failure)

    def _launched(self, step: InFlight) -> None:
        """Counts a step as done that the device has been told to do, and collects the one before it."""
        before = self._in_flight
        self._pace.launched(step.kind, is_late=before is not None and self._runner.has_ended(before))
        self._batcher.advance(step.batch)
        self._collect_in_flight()
        self._in_flight = step
        if not self._run_ahead or step.batch.needs_ids:
            self._collect_in_flight()

    def _step_again(self, batch: Batch, failure: JobFailure) -> None:
        """Does a failed batch with no other in flight, then in halves, until what fails is one sequence."""
        if self._in_flight is not None:
            self._collect_in_flight()  # some of the batch may end there
            parts = batch.living()
        else:
            parts = batch.halves()
            if not parts:
                self._emit(self._batcher.fail(batch, failure))
        for part in parts:
            self._step(part)
            self._collect_in_flight()

    def _collect_in_flight(self) -> None:
        """Waits for the step in flight, if there is one, and hands out what it brought."""
        if self._in_flight is not None:
            step, self._in_flight = self._in_flight, None
            sampled = self._runner.collect(step)
            self._pace.ended()
            self._emit(self._batcher.commit(step.batch, sampled))

    def _announce_suspect(self, suspect: JobKey | None) -> None:
        if suspect != self._announced:
            self._collect_in_flight()  # what it may do to the process is not laid at the next one's door
            self._announce(suspect)
            self._announced = suspect

    def _emit(self, output: StepOutput) -> None:
        if not (output.tokens or output.ends or output.started):
            return
        while not self._outbox.put(output, IDLE_WAIT_S) and not self._stopping.is_set():
            self._on_turn()
