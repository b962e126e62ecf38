"""Whether a partition is whole: what has to hold between any two commands, whatever was killed before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thinkstream_client.keys import Keys
from thinkstream_client.protocol import wire
from thinkstream_client.records import JobRef

_LIVING = {"queued": "queued", "waiting": "queued", "running": "running"}
_READS: dict[str, Callable[[Any, str], Any]] = {
    "hash": lambda pipe, key: pipe.hgetall(key),
    "stream": lambda pipe, key: pipe.xrange(key),
    "zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One job as its hash and its stream tell it."""

    ref: JobRef
    fields: Mapping[bytes, bytes]
    entries: tuple[wire.RawEntry, ...]

    @property
    def status(self) -> str:
        return self.fields[b"status"].decode()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token of the stream, in its order."""
        return tuple(i for entry in self.entries if isinstance(entry, wire.Entry) for i in entry.token_ids)

    @property
    def num_markers(self) -> int:
        return sum(isinstance(entry, wire.Marker) for entry in self.entries)

    @property
    def finish(self) -> wire.Terminal | None:
        last = self.entries[-1] if self.entries else None
        return last if isinstance(last, wire.Terminal) else None


class Snapshot:
    """Every key of a partition, read by one client at one moment.

    Args:
        client: A redis-py client with raw replies.
        keys: The namespace.
    """

    def __init__(self, client: Any, keys: Keys, p: int = 0) -> None:
        self.keys, self.p = keys, p
        prefix = keys.prefix(p)
        names = sorted(key.decode() for key in client.scan_iter(f"{prefix}*", count=10_000))
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.type(name)
            kinds = [kind.decode() for kind in pipe.execute()]
            read = [(name, kind) for name, kind in zip(names, kinds, strict=True) if kind in _READS]
            for name, kind in read:
                _READS[kind](pipe, name)
            found = pipe.execute()
        self.of: dict[str, Any] = {name: value for (name, _), value in zip(read, found, strict=True)}
        self.jobs = {
            job.ref: job for name in names if name.startswith(f"{prefix}job:") for job in [self._job(name)]
        }

    def members(self, key: str) -> dict[bytes, Any]:
        """A sorted set or a hash, empty where there is none."""
        return dict(self.of.get(key, {}))

    def _job(self, name: str) -> Job:
        _, tenant, job_id = name.rsplit(":", 2)
        ref = JobRef(tenant, job_id)
        raw = self.of.get(self.keys.out(ref), [])
        entries = tuple(
            wire.parse_stream_entry(entry_id, [part for pair in fields.items() for part in pair])
            for entry_id, fields in raw
        )
        return Job(ref, self.of[name], entries)


def check(snapshot: Snapshot, token_of: Callable[[str, int], int] | None = None) -> None:
    """Asserts everything that has to hold.

    Args:
        snapshot: The partition.
        token_of: The token that belongs to each place, where the test knows it.
    """
    counted: Counter[bytes] = Counter()
    for job in snapshot.jobs.values():
        _check_stream(job, token_of)
        _check_places(snapshot, job)
        what = _LIVING.get(job.status)
        if what is not None:
            counted[f"{job.ref.tenant}:{what}".encode()] += 1
        if what == "queued":
            counted[f"{job.ref.tenant}:bytes".encode()] += int(job.fields[b"bytes"])
    usage = snapshot.members(snapshot.keys.usage(snapshot.p))
    shown = {name: int(value) for name, value in usage.items() if b":level" not in name}
    assert shown == dict(counted), "the usage counters are wrong"
    _check_owners(snapshot)


def check_empty(snapshot: Snapshot) -> None:
    """Asserts that nothing waits, runs or is counted any more, and that all that is left expires."""
    keys, p = snapshot.keys, snapshot.p
    left = [name for name in snapshot.of if ":own:" in name or ":in:" in name or ":again:" in name]
    assert not left, left
    assert not snapshot.members(keys.running(p))
    assert all(job.fields[b"status"].decode() not in _LIVING for job in snapshot.jobs.values())
    assert {name.partition(b":")[0] for name in snapshot.members(keys.due(p))} <= {b"forget"}


def _check_stream(job: Job, token_of: Callable[[str, int], int] | None) -> None:
    crc, num_tokens, num_markers = wire.initial_crc(job.ref.job_id), 0, 0
    grain = int(job.fields[b"grain"])
    for place, entry in enumerate(job.entries, 1):
        match entry:
            case wire.Entry():
                assert entry.index == num_tokens + len(entry.token_ids), (job.ref, "a gap")
                assert len(entry.token_ids) == grain or place == len(job.entries) - 1, (
                    job.ref,
                    "half a grain",
                )
                crc = wire.chain_crc(crc, entry.token_ids)
                assert entry.crc == crc, (job.ref, "another history")
                num_tokens = entry.index
            case wire.Marker():
                num_markers += 1
                assert (entry.num_tokens, entry.mk) == (num_tokens, num_markers), (job.ref, "markers")
            case wire.Terminal():
                assert place == len(job.entries), (job.ref, "written behind the end")
                assert entry.finish.num_tokens == num_tokens, (job.ref, "the end counts wrong")
            case wire.Broken():
                raise AssertionError((job.ref, entry))
    if token_of is not None:
        right = tuple(token_of(job.ref.job_id, index) for index in range(1, num_tokens + 1))
        assert job.token_ids == right, (job.ref, "a token lost, doubled or changed")
    assert int(job.fields[b"mk"]) == num_markers, (job.ref, "markers written and counted")
    if job.status not in _LIVING:
        assert job.finish is not None, (job.ref, "ended without an end")
        assert int(job.fields[b"n"]) == num_tokens
    else:
        assert job.finish is None, (job.ref, "sealed and alive")


def _check_places(snapshot: Snapshot, job: Job) -> None:
    """A living job is in exactly one place where somebody looks for it, one that has ended in none."""
    keys, p = snapshot.keys, snapshot.p
    member = f"{job.ref.tenant}:{job.ref.job_id}".encode()
    places: list[str] = []
    for priority in range(3):
        queue = keys.queue(p, priority, job.ref.tenant)
        for _, fields in snapshot.of.get(queue, ()):
            if fields.get(b"job") == job.ref.job_id.encode():
                places.append("queue")
                ready = snapshot.members(keys.ready(p, priority))
                assert job.ref.tenant.encode() in ready, (job.ref, "nobody looks at its queue")
        if member in snapshot.members(keys.again(p, priority)):
            places.append("again")
    if b"retry:" + member in snapshot.members(keys.due(p)):
        places.append("due")
    owner = job.fields.get(b"owner")
    for name in snapshot.of:
        if ":own:" in name and member in snapshot.of[name]:
            assert owner == name.rpartition(":own:")[2].encode(), (job.ref, "owned by another than its owner")
            places.append("own")
    if member in snapshot.members(keys.running(p)):
        places.append("running")
    allowed = {"queued": (["queue"], ["again"]), "waiting": (["due"],), "running": (["own", "running"],)}
    assert places in allowed.get(job.status, ([],)), (job.ref, job.status, places)


def _check_owners(snapshot: Snapshot) -> None:
    """Every owner has a lease: somebody will notice its death."""
    leases = snapshot.members(snapshot.keys.leases(snapshot.p))
    for name in snapshot.of:
        if ":own:" in name:
            assert name.rpartition(":own:")[2].encode() in leases, (
                name,
                "owned by a session without a lease",
            )
