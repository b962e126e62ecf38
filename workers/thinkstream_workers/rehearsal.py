"""Graphs of the steps that service meets most, made while there is no work, a step at a time.

A replica takes jobs as soon as it can. What it has not rehearsed by then costs the first two steps of a
bucket some tens of milliseconds each, and a job that comes in the midst of a rehearsed step waits as long.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Sequence as Seq

from thinkstream_client.records import JobRef

from .batch import Batch
from .buckets import Bucket
from .orders import JobKey, Submit
from .runner import ModelRunner
from .sampling import ResolvedSampling
from .sequence import Sequence
from .step_graphs import MAX_GRAPHS

logger = logging.getLogger(__name__)

_KEY = JobKey(JobRef("-", "rehearsal"), 0)


class Rehearsal:
    """Makes the graphs of some buckets. It belongs to the thread that steps.

    Args:
        runner: Whose graphs.
        buckets: The most wanted first; of more than there may be at a time the last are left out.
    """

    def __init__(self, runner: ModelRunner, buckets: Seq[Bucket]) -> None:
        self._runner = runner
        self._left = deque(buckets[:MAX_GRAPHS])

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do; any thread may read it."""
        return not self._left

    def step(self) -> None:
        """Does the next step, if there is one to do.

        Raises:
            RuntimeError: The device failed. What else fails ends the rehearsal, and nothing more.
        """
        try:
            while self._left and not self._runner.rehearse(blank_batch(self._left[0]), self._left[0]):
                self._left.popleft()
        except Exception as error:
            if self._runner.is_fatal(error):
                raise
            logger.warning("no more graphs are made ahead: %s: %s", type(error).__name__, error)
            self._left.clear()


def blank_batch(bucket: Bucket) -> Batch:
    """A step for a bucket's memory that is nobody's: one decode, one prompt, where it has room for them."""
    num_prompts = min(1, bucket.num_prompts)
    query_lens = [1] * min(1, bucket.num_decodes) + [2] * num_prompts
    return Batch.of([_blank_sequence(num_tokens) for num_tokens in query_lens], query_lens)


def _blank_sequence(num_tokens: int) -> Sequence:
    """So many tokens, all of them in the first block."""
    order = Submit(key=_KEY, prompt_ids=(0,) * num_tokens, sampling=ResolvedSampling(max_tokens=1))
    sequence = Sequence.of(order, number=0, max_context=num_tokens + 1)
    sequence.block_table = array("i", [0] * num_tokens)
    return sequence
