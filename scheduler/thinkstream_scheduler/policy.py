"""Which partition is served next, and which session gets how many of its jobs: plain functions of numbers.

Jobs are bound to a replica as late as possible, when one of its slots is free, so the choice is only how
to spread them. Knows no Redis, no Ray and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from thinkstream_client.records import SessionId


def turns(waiting: Mapping[int, Sequence[int]], num_free: int, num_turns: int) -> Iterator[tuple[int, int]]:
    """Says in which order partitions are served: class by class, and within a class each gets a share first.

    Each partition keeps its own line, fair within itself. Serving them by shares, and beginning with another
    one each time, keeps a tenant who waits in one of them from waiting for all jobs of the others.

    Args:
        waiting: Jobs that wait in each partition, by class.
        num_free: Free slots.
        num_turns: Turns that were taken before this one.

    Yields:
        A partition and how many of its jobs may be taken now.
    """
    if len(waiting) == 1:  # Redis itself goes by classes
        yield from ((partition, sum(classes)) for partition, classes in waiting.items())
        return
    order = sorted(waiting)
    first = num_turns % len(order) if order else 0
    order = order[first:] + order[:first]
    for of_class in range(max((len(classes) for classes in waiting.values()), default=0)):
        left = {p: waiting[p][of_class] for p in order if waiting[p][of_class] > 0}
        share = max(1, num_free // len(left)) if left else 0
        yield from ((partition, min(share, num_jobs)) for partition, num_jobs in left.items())
        yield from ((partition, num_jobs - share) for partition, num_jobs in left.items() if num_jobs > share)


def spread(free: Mapping[SessionId, int], num_jobs: int) -> dict[SessionId, int]:
    """Spreads jobs over sessions so that the emptiest are served first.

    The jobs go where most slots are free, one by one, which leaves the free slots as level as they can
    be. Of sessions with equally many free slots the first by name comes first.

    Args:
        free: Free slots of each session; sessions without any get nothing.
        num_jobs: Jobs that wait.

    Returns:
        Jobs for each session that gets at least one, the one that had most free slots first.
    """
    num_jobs = min(num_jobs, sum(slots for slots in free.values() if slots > 0))
    if num_jobs <= 0:
        return {}
    level = _level(free, num_jobs)
    shares: dict[SessionId, int] = {}
    left = num_jobs
    for session in sorted(free, key=lambda s: (-free[s], s)):
        if free[session] > level:
            shares[session] = free[session] - level
            left -= shares[session]
    # What is left is less than one job for each of the sessions that now stand at the level.
    at_level = sorted(session for session in free if free[session] >= level > 0)
    for session in at_level[:left]:
        shares[session] = shares.get(session, 0) + 1
    return shares


def _level(free: Mapping[SessionId, int], num_jobs: int) -> int:
    """The fewest free slots to which every session can be filled with ``num_jobs``."""
    low, high = 0, max(free.values())
    while low < high:
        level = (low + high) // 2
        if sum(slots - level for slots in free.values() if slots > level) <= num_jobs:
            high = level
        else:
            low = level + 1
    return low
