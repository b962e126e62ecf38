"""Calls about a batch as a whole: say that it is complete, ask after it, wait for its end.

A batch lives in every partition, for its jobs do; each counts its own and writes one entry at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thinkstream_client.keys import Keys, check_name

from .call import Call, function_call

_COUNTS = ("done", "failed", "cancelled", "expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnd:
    """How the jobs of a batch ended.

    Attributes:
        done: Those that brought a result.
        failed: Those that failed for good.
        cancelled: Those that were cancelled.
        expired: Those whose deadline passed.
        ended_ms: Server time of the last one's end.
    """

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    ended_ms: int = 0

    @property
    def num_jobs(self) -> int:
        """All of its jobs."""
        return self.done + self.failed + self.cancelled + self.expired

    def __add__(self, other: BatchEnd) -> BatchEnd:
        """Joins the ends of two partitions."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return BatchEnd(**counts, ended_ms=max(self.ended_ms, other.ended_ms))


def batch_close(keys: Keys, partition: int, tenant: str, batch: str) -> Call[None]:
    """Says that all jobs of a batch were submitted: it ends with the last of them, if need be now.

    Jobs submitted later open a batch that has ended again; it is to be closed and will end once more.

    Raises:
        InvalidRequest: The tenant or the batch is no name.
    """
    check_name("tenant", tenant)
    check_name("batch", batch)

    def parse(reply: Any) -> None:
        del reply

    return Call(function_call("batch_close", keys.prefix(partition), tenant, batch), parse)


def batch_exists(keys: Keys, partition: int, tenant: str, batch: str) -> Call[bool]:
    """Whether the partition knows the batch: it does until a day after its end."""
    return Call(("EXISTS", keys.batch(partition, tenant, batch)), bool)


def read_batch_end(
    keys: Keys, partition: int, tenant: str, batch: str, *, block_ms: int | None = None
) -> Call[BatchEnd | None]:
    """Reads how a batch ended; None where it has not.

    Args:
        keys: Names of the keys.
        partition: The partition.
        tenant: Whose it is.
        batch: Its id.
        block_ms: How long to wait for its end, at least 1; None does not wait. A call that waits belongs on
            a connection made with ``blocking=True``.
    """
    block: tuple[str | int, ...] = () if block_ms is None else ("BLOCK", max(1, block_ms))

    def parse(reply: Any) -> BatchEnd | None:
        if not reply:
            return None
        ((_, ((_, flat),)),) = reply
        found = {flat[i].decode(): int(flat[i + 1]) for i in range(0, len(flat), 2)}
        return BatchEnd(**{name: found[name] for name in _COUNTS}, ended_ms=found["ms"])

    return Call(("XREAD", *block, "STREAMS", keys.batch_end(partition, tenant, batch), "0-0"), parse)
