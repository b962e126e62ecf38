"""Where one job's time goes, by this replica's clock."""

from __future__ import annotations

from dataclasses import dataclass

from thinkstream_client.outcome import Timings


@dataclass(slots=True, kw_only=True)
class JobTimes:
    """Moments in the life of one ownership, in seconds of a clock that never goes back.

    Attributes:
        queued_ms: From submission to the claim, by the server's clock.
        adopted_at: When the replica took it up.
        started_at: When its prefill began.
        first_token_at: When its first token from here arrived.
    """

    queued_ms: int
    adopted_at: float
    started_at: float | None = None
    first_token_at: float | None = None

    def timings(self, now: float) -> Timings:
        """What there is to tell at ``now``.

        The first token's time runs from the submission; a job that was resumed counts from the first
        token of its last owner.
        """
        first = now if self.first_token_at is None else self.first_token_at
        started = first if self.started_at is None else self.started_at
        return Timings(
            queued_ms=self.queued_ms,
            prefill_ms=_ms(first - started),
            first_token_ms=self.queued_ms + _ms(first - self.adopted_at),
            decode_ms=_ms(now - first),
        )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1_000))
