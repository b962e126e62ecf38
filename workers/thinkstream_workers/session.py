"""The replica's right to write: one session at a time, made known to Redis and renewed.

Everything that names the session goes through here, and the loops over partitions are here. It decides
nothing: who beats when, and what follows from a refusal, is the Publisher's business.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from thinkstream_client.errors import Fenced, ThinkstreamError
from thinkstream_client.outcome import JobFailure
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.functions import FinishRow, JobInfo, StepReply, StepRow
from thinkstream_client.records import JobRef, SessionId

from .config import ReplicaConfig
from .orders import JobKey
from .stream_snapshot import StreamSnapshot

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class _Row(Protocol):
    @property
    def ref(self) -> JobRef: ...


_R = TypeVar("_R", bound=_Row)


class Runs(Protocol):
    """What runs commands: the client's ``Connection``."""

    def run(self, call: Call[_T]) -> _T:
        """Runs one command and returns its reply."""
        ...

    def run_many(self, calls: Sequence[Call[_T]]) -> list[_T | ThinkstreamError]:
        """Runs commands in one pipeline; a refusal stands in the place of a reply."""
        ...


class Incarnation(NamedTuple):
    """What a session is known by, in one piece: threads that read it see the old one or the new.

    Attributes:
        id: Its name for all.
        nonce: What it alone knows, with which it proves to be it.
    """

    id: SessionId
    nonce: str

    @classmethod
    def of(cls, name: str) -> Incarnation:
        """A new one of the replica of this name."""
        return cls(SessionId(f"{name}.{secrets.token_hex(6)}"), secrets.token_hex(8))


class Session:
    """One incarnation of a replica at a time.

    Its id is the replica's name and random letters, new at every start and after every refusal, so that
    nothing written for a predecessor can ever be taken for its own. Methods raise ``ServiceUnavailable``
    when Redis cannot be reached and ``Fenced`` when it no longer knows the session.

    Args:
        config: Name, lease, slots, namespace.
        connection: Runs the commands; used by several threads.
        info: What the replica tells about itself once, for status pages.
        load: What it tells with every beat.
    """

    def __init__(
        self,
        config: ReplicaConfig,
        connection: Runs,
        info: Mapping[str, str],
        load: Callable[[], Mapping[str, str]] = dict[str, str],
    ) -> None:
        self._config = config
        self._keys = config.redis.keys
        self._connection = connection
        self._info = dict(info)
        self._load = load
        # One beat at a time: a beat that was built before another thread named a suspect must not
        # arrive after that and take the name back.
        self._beating = threading.RLock()
        self._alone: JobRef | None = None
        self._is_draining = False
        self._is_open = False
        self._incarnation = Incarnation.of(config.name)

    @property
    def id(self) -> SessionId:
        """The present incarnation."""
        return self._incarnation.id

    @property
    def is_open(self) -> bool:
        """Whether Redis has been told of it."""
        return self._is_open

    @property
    def is_draining(self) -> bool:
        """Whether it takes no more jobs."""
        return self._is_draining

    def replace(self) -> None:
        """Becomes a new incarnation, which Redis does not know yet."""
        with self._beating:
            self._is_open = False
            self._alone = None
            self._incarnation = Incarnation.of(self._config.name)

    def drain(self) -> None:
        """Takes no more jobs, and says so at once, so that none are claimed for it."""
        self._is_draining = True
        self.beat()

    def open(self) -> None:
        """Makes the session known; from now on it is given jobs."""
        now = self._incarnation
        self._run_each(
            [
                functions.hello(
                    self._keys,
                    partition,
                    now.id,
                    now.nonce,
                    replica=self._config.name,
                    slots=self._config.slots,
                    lease_ms=self._config.lease_ms,
                    info=self._info,
                )
                for partition in self._keys.partitions
            ]
        )
        self._is_open = True
        logger.info("session %s is open", now.id)

    def beat(self) -> set[JobKey]:
        """Renews the lease and returns what the session owns."""
        with self._beating:
            now, load = self._incarnation, self._load()
            marks = self._run_each(
                [
                    functions.beat(
                        self._keys,
                        partition,
                        now.id,
                        now.nonce,
                        draining=self._is_draining,
                        alone=self._alone_in(partition),
                        info=load,
                    )
                    for partition in self._keys.partitions
                ]
            )
        return {JobKey(ref, mk) for owned in marks for ref, mk in owned.items()}

    def announce(self, ref: JobRef | None) -> None:
        """Writes which suspect is about to be stepped alone, None when it has been.

        Should the process die in that step, this name is what its death is counted against.
        """
        with self._beating:
            self._alone = ref
            self.beat()

    def step(self, rows: Sequence[StepRow]) -> list[StepReply]:
        """Appends one entry to the stream of each row's job; replies in the order of the rows."""
        now = self._incarnation
        return self._by_partition(
            rows, lambda p, some: functions.step(self._keys, p, now.id, now.nonce, some)
        )

    def finish(self, rows: Sequence[FinishRow]) -> list[StepReply]:
        """Seals the stream of each row's job; replies in the order of the rows."""
        now = self._incarnation
        return self._by_partition(
            rows, lambda p, some: functions.finish(self._keys, p, now.id, now.nonce, some)
        )

    def fail(self, ref: JobRef, failure: JobFailure, *, retry: bool) -> StepReply:
        """Gives a job back as failed: for good, or to be tried again."""
        partition, now = self._keys.partition_of(ref), self._incarnation
        return self._run(
            functions.fail(self._keys, partition, now.id, now.nonce, ref, failure=failure, retry=retry)
        )

    def note(self, texts: Mapping[JobRef, str]) -> None:
        """Leaves a note at each job, for whoever inspects it; those of others keep theirs."""
        now = self._incarnation
        self._run_each(
            [
                functions.note(self._keys, self._keys.partition_of(ref), now.id, now.nonce, ref, text)
                for ref, text in texts.items()
            ]
        )

    def close(self, owned: Iterable[JobRef]) -> None:
        """Gives back all jobs, counting no attempt, and ends the session."""
        refs, now = list(owned), self._incarnation
        by_partition: dict[int, list[JobRef]] = {}
        for ref in refs:
            by_partition.setdefault(self._keys.partition_of(ref), []).append(ref)
        release = [
            functions.release(self._keys, partition, now.id, now.nonce, here)
            for partition, here in by_partition.items()
        ]
        self._run_each(release)
        self._run_each(
            [functions.bye(self._keys, partition, now.id, now.nonce) for partition in self._keys.partitions]
        )
        self._is_open = False
        logger.info("session %s is closed, %d jobs given back", now.id, len(refs))

    def read_stream(self, ref: JobRef) -> StreamSnapshot:
        """Reads a job's result stream from its start; empty if there is none.

        Raises:
            RecordInvalid: An entry is not one of ours.
        """
        found = self._run(functions.read_results(self._keys, {ref: 0}, block_ms=None, count=None))
        return StreamSnapshot.of(found.get(ref, ()))

    def read_job(self, ref: JobRef) -> JobInfo:
        """Reads a job's hash.

        Raises:
            JobNotFound: There is none.
        """
        return self._run(functions.job_info(self._keys, ref))

    def _run(self, call: Call[_T]) -> _T:
        return self._connection.run(call)

    def _run_each(self, calls: Sequence[Call[_T]]) -> list[_T]:
        """Runs a call per partition. Each is sent, so that none goes without for what another says."""
        if len(calls) == 1:
            return [self._run(calls[0])]
        replies = self._connection.run_many(calls)
        refusals = [reply for reply in replies if isinstance(reply, ThinkstreamError)]
        if refusals:
            raise next((one for one in refusals if isinstance(one, Fenced)), refusals[0])
        return [reply for reply in replies if not isinstance(reply, ThinkstreamError)]

    def _alone_in(self, partition: int) -> JobRef | None:
        alone = self._alone
        return alone if alone is not None and self._keys.partition_of(alone) == partition else None

    def _by_partition(
        self, rows: Sequence[_R], call: Callable[[int, Sequence[_R]], Call[list[StepReply]]]
    ) -> list[StepReply]:
        if self._keys.num_partitions == 1:
            return self._run(call(0, rows))
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(self._keys.partition_of(row.ref), []).append(place)
        answers = self._run_each([call(p, [rows[place] for place in here]) for p, here in places.items()])
        replies: dict[int, StepReply] = {}
        for here, answered in zip(places.values(), answers, strict=True):
            replies.update(zip(here, answered, strict=True))
        return [replies[place] for place in range(len(rows))]
