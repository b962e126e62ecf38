"""How a job's end is written, and how it is logged: counts and times, no text."""

from __future__ import annotations

import logging

from thinkstream_client.protocol.functions import FinishRow

from .publication import Publication

logger = logging.getLogger(__name__)


def finish_row(publication: Publication, now: float) -> FinishRow:
    """The end of a job that has one, for the ``finish`` call."""
    assert publication.end is not None
    usage = publication.usage
    return FinishRow(
        ref=publication.key.ref,
        expected_len=publication.expected_len,
        last_entry=publication.last_entry(),
        terminal=publication.terminal(publication.times.timings(now)),
        reason=publication.end,
        num_tokens=publication.num_tokens,
        cost=usage.prompt_tokens + usage.completion_tokens,
    )


def log_end(publication: Publication, now: float) -> None:
    """Writes the one line of a job's end."""
    assert publication.end is not None
    usage, timings = publication.usage, publication.times.timings(now)
    logger.info(
        "job %s: %s after %d tokens, prompt %d (%d cached), queued %d ms, first token %d ms, decode %d ms",
        publication.key.ref.job_id,
        publication.end,
        usage.completion_tokens,
        usage.prompt_tokens,
        usage.cached_tokens,
        timings.queued_ms,
        timings.first_token_ms,
        timings.decode_ms,
    )
