"""A replica's first steps, which no client asked for: they pay for first use, and tell what a step costs."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable

from thinkstream_client.errors import ServiceUnavailable
from thinkstream_client.records import JobRef

from .engine import Engine
from .mailboxes import Inbox, Outbox
from .orders import JobKey, SequenceEnd, Submit
from .sampling import ResolvedSampling

logger = logging.getLogger(__name__)

_KEY = JobKey(JobRef("-", "warm-up"), 0)
_POLL_S = 0.02
_NUM_PROBE_TOKENS = 64

_ONE_TOKEN, _TWO_TOKENS = (
    ResolvedSampling(max_tokens=num_tokens, temperature=0.6, top_k=20, top_p=0.95) for num_tokens in (1, 2)
)
"""As most jobs want it."""


class WarmUp:
    """Runs jobs of its own through an engine whose mailboxes nobody else uses yet.

    Args:
        engine: It runs in a thread of its own.
        inbox: Its orders.
        outbox: Its tokens.
        is_stopping: Whether the engine has failed.
        clock: Seconds.
    """

    def __init__(
        self,
        engine: Engine,
        inbox: Inbox,
        outbox: Outbox,
        *,
        is_stopping: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine, self._inbox, self._outbox = engine, inbox, outbox
        self._is_stopping, self._clock = is_stopping, clock

    def run(self) -> None:
        """Has the engine make two tokens, so that the first job does not pay for what first use costs.

        What the process has made by then stays: Python's collector is told to pass over it from now on, since
        looking through it holds every thread for some 80 ms.

        Raises:
            ServiceUnavailable: The engine fails.
        """
        self._do((0, 1), _TWO_TOKENS)
        gc.collect()
        gc.freeze()

    def size_step(self, lease_ms: int, *, num_seqs: int, usual_tokens: int) -> None:
        """Limits the tokens of a step to what takes a quarter of the lease, by the time of a short one.

        Between steps a replica shows that it is alive; one whose steps outlast half of the lease would lose
        its jobs.

        Args:
            lease_ms: The lease.
            num_seqs: Sequences decoded at once, below which no step can be limited.
            usual_tokens: The limit until now, which is not raised.

        Raises:
            ServiceUnavailable: The engine fails.
        """
        num_tokens = min(_NUM_PROBE_TOKENS, usual_tokens, self._engine.max_context - 1)
        began_s = self._clock()
        self._do((0, 1) * (num_tokens // 2) + (0,) * (num_tokens % 2), _ONE_TOKEN)
        step_s = self._clock() - began_s
        affordable = affordable_tokens(num_tokens, step_s, lease_ms)
        if affordable >= usual_tokens:
            return
        limit = self._engine.limit_step(affordable)
        logger.info("%d tokens take %.2f s: a step has %d at most", num_tokens, step_s, limit)
        if num_seqs > affordable_tokens(num_tokens, step_s, 2 * lease_ms):
            logger.warning(
                "a step of %d sequences may take longer than half of the lease of %.1f s: "
                "give fewer --slots or a longer --lease",
                num_seqs,
                lease_ms / 1e3,
            )

    def _do(self, prompt_ids: tuple[int, ...], sampling: ResolvedSampling) -> None:
        """Has the engine answer a prompt, cut where it leaves no room for a token."""
        longest = self._engine.max_context - 1
        self._inbox.put(Submit(key=_KEY, prompt_ids=prompt_ids[:longest], sampling=sampling))
        ends: list[SequenceEnd] = []
        while not ends:
            if self._is_stopping():
                raise ServiceUnavailable("the engine failed at its first step")
            output = self._outbox.get(_POLL_S)
            ends += output.ends if output is not None else []
        error = ends[0].error
        if error is not None:
            raise ServiceUnavailable(f"the engine's first step failed: {error.message}")


def affordable_tokens(num_tokens: int, step_s: float, lease_ms: int) -> int:
    """Tokens of a step that takes a quarter of the lease, if so many tokens take so long."""
    return int(num_tokens * lease_ms / 1e3 / 4 / max(step_s, 1e-6))
