"""How long a reader waits when its job's worker is broken: from the last token before to the first after."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from thinkstream_client.protocol.wire import Marker

from .faults import ON_REPLICAS, Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """One job's pause.

    Attributes:
        kind: The fault that its worker met.
        pause_s: Time without a token.
    """

    kind: str
    pause_s: float


def find_takeovers(
    arrivals: Sequence[tuple[int, float]],
    markers: Sequence[Marker],
    pids: Mapping[str, int],
    faults: Sequence[Fault],
    restarts_s: Sequence[float],
) -> list[Takeover]:
    """The pauses of one job between workers.

    Args:
        arrivals: Index and time of its chunks.
        markers: Its claims.
        pids: The process of each session.
        faults: All faults of the run.
        restarts_s: When its reader was started: a pause that holds one is the reader's own.
    """
    takeovers: list[Takeover] = []
    indices = [index for index, _ in arrivals]
    for former, marker in pairwise(markers):
        place = bisect_left(indices, marker.num_tokens + 1)
        if not 0 < place < len(arrivals):
            continue  # no token before it, or none after
        last_s, next_s = arrivals[place - 1][1], arrivals[place][1]
        if any(last_s <= at_s <= next_s for at_s in restarts_s):
            continue
        pid = pids.get(former.session)
        # A token of the moment before may arrive just behind the fault.
        causes = [
            fault.kind
            for fault in faults
            if fault.kind in ON_REPLICAS and pid in fault.pids and last_s - 1.0 <= fault.at_s <= next_s
        ]
        if causes:
            takeovers.append(Takeover(kind=causes[-1], pause_s=next_s - last_s))
    return takeovers


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which ``share`` of the values lie; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
