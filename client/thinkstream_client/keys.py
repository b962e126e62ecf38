"""The name of every key.

The functions in Redis are given the prefix of a partition and spell the rest themselves: each name stands in
``protocol/lua`` a second time, and a test holds the two together. Outside it the product reads but a few of
the keys; the others are named for whoever looks inside.

All keys of a job carry the hash tag of its partition, so that one function call may touch them together
in a Redis Cluster.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from .errors import InvalidRequest
from .records import JobRef, SessionId

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_name(field: str, value: object) -> str:
    """Returns ``value`` if it may be part of a key.

    Raises:
        InvalidRequest: It is not 1 to 128 letters, digits, dots, underscores and dashes.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidRequest(field, value, "1 to 128 of A-Z a-z 0-9 . _ -")
    return value


@dataclass(frozen=True, slots=True)
class Keys:
    """Names the keys of one namespace.

    Args:
        namespace: First part of every key.
        num_partitions: Hash tags over which the jobs are spread: 1 standalone, 16 to 64 in a Cluster.
    """

    namespace: str = "ts"
    num_partitions: int = 1

    def __post_init__(self) -> None:
        check_name("namespace", self.namespace)

    @property
    def partitions(self) -> range:
        """Every partition."""
        return range(self.num_partitions)

    def partition_of(self, ref: JobRef) -> int:
        """The partition that holds all keys of a job."""
        return zlib.crc32(ref.job_id.encode()) % self.num_partitions

    @property
    def meta(self) -> str:
        """Hash: protocol version, partitions, digests of model and tokenizer."""
        return f"{self.namespace}:meta"

    def prefix(self, partition: int) -> str:
        """What every key of a partition begins with; functions build the other keys from it."""
        return f"{self.namespace}:{{{partition}}}:"

    def job(self, ref: JobRef) -> str:
        """Hash: one job."""
        return f"{self.prefix(self.partition_of(ref))}job:{ref.tenant}:{ref.job_id}"

    def out(self, ref: JobRef) -> str:
        """Stream: one job's result."""
        return f"{self.prefix(self.partition_of(ref))}out:{ref.tenant}:{ref.job_id}"

    def queue(self, partition: int, priority: int, tenant: str) -> str:
        """Stream: a tenant's queue of one class."""
        return f"{self.prefix(partition)}in:{priority}:{tenant}"

    def again(self, partition: int, priority: int) -> str:
        """Sorted set: jobs that ran before, by time of first submission."""
        return f"{self.prefix(partition)}again:{priority}"

    def ready(self, partition: int, priority: int) -> str:
        """Sorted set: tenants with a backlog, by virtual time."""
        return f"{self.prefix(partition)}ready:{priority}"

    def wfq(self, partition: int, priority: int) -> str:
        """Hash: the class's virtual time and counters."""
        return f"{self.prefix(partition)}wfq:{priority}"

    def tenants(self, partition: int) -> str:
        """Hash: weight and caps of each tenant."""
        return f"{self.prefix(partition)}tenants"

    def session(self, partition: int, session: SessionId) -> str:
        """Hash: nonce, slots and state of one session."""
        return f"{self.prefix(partition)}session:{session}"

    def leases(self, partition: int) -> str:
        """Sorted set: sessions by the server time at which their lease ends."""
        return f"{self.prefix(partition)}leases"

    def own(self, partition: int, session: SessionId) -> str:
        """Hash: the jobs that a session owns, with marker and grain of each."""
        return f"{self.prefix(partition)}own:{session}"

    def running(self, partition: int) -> str:
        """Sorted set: every owned job, by the time it was last seen to be whole."""
        return f"{self.prefix(partition)}running"

    def usage(self, partition: int) -> str:
        """Hash: what each tenant has waiting and running."""
        return f"{self.prefix(partition)}usage"

    def jobs(self, partition: int, tenant: str) -> str:
        """Sorted set: a tenant's jobs, by time of submission."""
        return f"{self.prefix(partition)}jobs:{tenant}"

    def tag(self, partition: int, tenant: str, tag: str) -> str:
        """Sorted set: a tenant's jobs of one label, by time of submission."""
        return f"{self.prefix(partition)}tag:{tenant}:{tag}"

    def batch(self, partition: int, tenant: str, batch: str) -> str:
        """Hash: one batch, how many of its jobs ended how."""
        return f"{self.prefix(partition)}batch:{tenant}:{batch}"

    def batch_left(self, partition: int, tenant: str, batch: str) -> str:
        """Set: its jobs that have not ended."""
        return f"{self.prefix(partition)}left:{tenant}:{batch}"

    def batch_end(self, partition: int, tenant: str, batch: str) -> str:
        """Stream of one entry: that the batch is over."""
        return f"{self.prefix(partition)}over:{tenant}:{batch}"

    def batches(self, partition: int) -> str:
        """Sorted set: every batch that is not over, by the time it was last seen to be whole."""
        return f"{self.prefix(partition)}batches"

    def pace(self, partition: int, tenant: str) -> str:
        """Hash: how fast the jobs of a tenant with caps end."""
        return f"{self.prefix(partition)}pace:{tenant}"

    def due(self, partition: int) -> str:
        """Sorted set: retries and deadlines, by their time."""
        return f"{self.prefix(partition)}due"

    def ended(self, partition: int) -> str:
        """Sorted set: jobs that have ended, by the time from which nothing lists them any more."""
        return f"{self.prefix(partition)}ended"

    def dead(self, partition: int) -> str:
        """Stream: dead letters."""
        return f"{self.prefix(partition)}dead"

    def events(self, partition: int) -> str:
        """Stream, trimmed: what happened, for the scheduler and for status pages."""
        return f"{self.prefix(partition)}events"
