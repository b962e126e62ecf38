"""A replica's first steps, which no client asked for: they pay for first use, and tell what a step costs."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from thinkstream_client.errors import ServiceUnavailable
from thinkstream_client.records import JobRef
from thinkstream_model.dry_steps import doubling

from .buckets import MAX_PROMPT_TOKENS, PROMPT_BUCKETS
from .engine import Engine
from .mailboxes import Inbox, Outbox
from .orders import JobKey, SequenceEnd, Submit
from .sampling import ResolvedSampling

logger = logging.getLogger(__name__)

_REF = JobRef("-", "warm-up")
_POLL_S = 0.02
_NUM_PROBE_TOKENS = 64

_SHORT = (0, 1)
_CONTEXTS = (300, 1_100)
"""Tokens of prompts that are decoded: attention merges the first one's splits, a kernel the other's."""

_FILTERED = ResolvedSampling(max_tokens=4, temperature=0.6, top_k=20, top_p=0.95)
"""As most jobs want it. Of four tokens the prompt brings one, a bucket's first step the next, its capture and
a replay the others."""
_UNFILTERED = ResolvedSampling(max_tokens=4)
_WITH_EXTRAS = replace(_FILTERED, presence_penalty=0.5, logit_bias={0: 0.5}, logprobs=1)
_ONE_TOKEN, _TWO_TOKENS = replace(_FILTERED, max_tokens=1), replace(_FILTERED, max_tokens=2)


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
        self._first_ids = itertools.count()

    def run(self) -> None:
        """Has the engine make two tokens, so that the first job does not pay for what first use costs.

        Raises:
            ServiceUnavailable: The engine fails.
        """
        self._do([_SHORT], _TWO_TOKENS)

    def rehearse(self, num_seqs: int, step_tokens: int) -> None:
        """Has the engine meet what service meets most, so that few jobs wait for what first use costs.

        Our own kernels need none of it: those of every step are made ready before the weights are read.

        Rehearsed are decodes of 1, 2, 4 and so on sequences, the most of them first, whose graphs take the
        memory that the others' share; decodes with keys of several splits and with more than 1,024, of one
        sequence and of all; sampling without filters and with all that a request may ask for; prompts up to
        the longest step.

        Not rehearsed are graphs of other numbers of rows, of longer contexts, of prompts beside decodes: at
        the second step of each the engine stops for as long as a capture takes, some tens of milliseconds.

        Args:
            num_seqs: Sequences decoded at once.
            step_tokens: Tokens of a step.

        Raises:
            ServiceUnavailable: The engine fails.
        """
        for num_rows in reversed([*doubling(1, num_seqs)]):
            self._do([_SHORT] * num_rows)
        for sampling in (_UNFILTERED, _WITH_EXTRAS):
            self._do([_SHORT] * num_seqs, sampling)
        for num_tokens in _CONTEXTS:
            for num_rows in (1, num_seqs):
                self._do([self._prompt(num_tokens), *[_SHORT] * (num_rows - 1)])
        longer = doubling(MAX_PROMPT_TOKENS, min(step_tokens, self._engine.max_context))
        for num_tokens in (*PROMPT_BUCKETS, *PROMPT_BUCKETS, *longer):  # captured the second time
            self._do([self._prompt(num_tokens)], _ONE_TOKEN)

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
        self._do([(0, 1) * (num_tokens // 2) + (0,) * (num_tokens % 2)], _ONE_TOKEN)
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

    def _prompt(self, num_tokens: int) -> tuple[int, ...]:
        """So many tokens, or as many as there is room for; it begins as no other, so that it is computed."""
        num_tokens = min(num_tokens, max(1, self._engine.max_context - _FILTERED.max_tokens))
        return (next(self._first_ids),) * num_tokens

    def _do(self, prompts: Sequence[tuple[int, ...]], sampling: ResolvedSampling = _FILTERED) -> None:
        """Has the engine answer prompts that it finds together, cut where they leave no room for a token."""
        longest = self._engine.max_context - 1
        self._inbox.put_all(
            Submit(key=JobKey(_REF, number), prompt_ids=prompt_ids[:longest], sampling=sampling)
            for number, prompt_ids in enumerate(prompts)
        )
        ends: list[SequenceEnd] = []
        while len(ends) < len(prompts):
            if self._is_stopping():
                raise ServiceUnavailable("the engine failed at its first step")
            output = self._outbox.get(_POLL_S)
            ends += output.ends if output is not None else []
        for end in ends:
            if end.error is not None:
                raise ServiceUnavailable(f"the engine's first step failed: {end.error.message}")


def affordable_tokens(num_tokens: int, step_s: float, lease_ms: int) -> int:
    """Tokens of a step that takes a quarter of the lease, if so many tokens take so long."""
    return int(num_tokens * lease_ms / 1e3 / 4 / max(step_s, 1e-6))
