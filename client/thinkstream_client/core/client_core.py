"""Everything a client can do, written once as operations. Opens no socket; ``client`` and ``aio`` run it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from thinkstream_client.checks import MAX_S, check_integer, check_number, check_wait
from thinkstream_client.errors import (
    ConfigError,
    QueueFull,
    ServiceUnavailable,
    StreamForked,
    ThinkstreamError,
)
from thinkstream_client.outcome import JobResult, JobStatus, TokenChunk
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.functions import BatchEnd
from thinkstream_client.protocol.namespace import settle
from thinkstream_client.protocol.server_check import ServerInfo, server_check
from thinkstream_client.records import MAX_TOKENS, JobRef
from thinkstream_client.settings import RedisSettings

from .batch_core import BatchCore
from .batch_end import closing_calls, wait_for_end
from .batch_options import BatchOptions
from .chunk_stream import ChunkStream
from .compose import BatchItem
from .durability import is_durable
from .effects import PER_PIPELINE, Operation, Sleep, ask, ask_many
from .follow import PATIENCE_S, Follower
from .history import JobHistory, history_of
from .results import MAX_REWINDS
from .service import (
    ServiceStatus,
    TenantSettings,
    ask_all,
    living_replicas,
    service_status,
    tenant_drop,
    tenant_set,
)
from .submission import Submission

_READY_EVERY_MS = 200


class ClientCore:
    """The operations of one client.

    Args:
        settings: Where the service is.
        patience_s: How long a connection that was lost is tried again.

    Raises:
        InvalidRequest: The patience is no number of seconds from 0 to a year.
    """

    def __init__(self, settings: RedisSettings, *, patience_s: float = PATIENCE_S) -> None:
        check_number("patience_s", patience_s, 0, MAX_S)
        self._settings, self._patience_s = settings, patience_s
        self._keys = settings.keys  # those that the namespace has, once we are connected
        self._server: ServerInfo | None = None

    def connect(self) -> Operation[ServerInfo]:
        """Checks, once, that server and namespace are ones we can work with.

        Raises:
            ConfigError: The server is too old or evicts keys, or the namespace speaks another protocol.
            ServiceUnavailable: Nobody answers; the first connection is not tried again.
        """
        if self._server is None:
            server: ServerInfo = yield server_check()
            self._settings = yield from settle(self._settings)
            self._keys = self._settings.keys
            self._server = server
        return self._server

    def submit(
        self, submissions: Sequence[Submission], *, block: bool, timeout_s: float | None
    ) -> Operation[None]:
        """Submits jobs, in order and many per round trip. Submitting one twice changes nothing.

        Args:
            submissions: The jobs.
            block: Whether to wait while the tenant's queue is full.
            timeout_s: How long to wait for room.

        Raises:
            Conflict: An id is taken by another payload.
            QueueFull: There is no room, or none came in time. Jobs before the refused one are in.
        """
        check_wait("timeout_s", timeout_s)
        yield from self.connect()
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        pending = list(submissions)
        while pending:
            now, pending = pending[:PER_PIPELINE], pending[PER_PIPELINE:]
            calls: list[Call[functions.Submitted]] = [one.call(self._keys) for one in now]
            replies = yield from ask_many(calls, self._patience_s)
            full: QueueFull | None = None
            refused: list[Submission] = []
            for one, reply in zip(now, replies, strict=True):
                if isinstance(reply, QueueFull):
                    full = reply
                    refused.append(one)
                elif isinstance(reply, ThinkstreamError):
                    raise reply
            if full is None:
                continue
            left_ms = full.retry_ms if end_s is None else round((end_s - time.monotonic()) * 1000)
            if not block or left_ms <= 0:
                raise full
            pending = refused + pending
            yield Sleep(min(full.retry_ms, left_ms))

    def status(self, ref: JobRef) -> Operation[JobStatus]:
        """Returns a job's status.

        Raises:
            JobNotFound: There is no such job.
        """
        yield from self.connect()
        return (yield from ask(functions.job_status(self._keys, ref), self._patience_s))

    def info(self, ref: JobRef) -> Operation[functions.JobInfo]:
        """Returns all that the queue knows about a job.

        Raises:
            JobNotFound: There is no such job.
        """
        yield from self.connect()
        return (yield from ask(functions.job_info(self._keys, ref), self._patience_s))

    def history(self, ref: JobRef) -> Operation[JobHistory]:
        """Returns who had a job and how it ended; reads the whole stream."""
        yield from self.connect()
        call = functions.read_results(self._keys, {ref: 0}, block_ms=None, count=None)
        return history_of((yield from ask(call, self._patience_s)).get(ref, ()))

    def cancel(self, ref: JobRef) -> Operation[JobStatus]:
        """Cancels a job unless it has ended, and returns its status.

        Raises:
            JobNotFound: There is no such job.
        """
        yield from self.connect()
        return (yield from ask(functions.cancel(self._keys, ref), self._patience_s))

    def jobs(self, tenant: str, tag: str | None, limit: int) -> Operation[list[functions.JobSummary]]:
        """Returns a tenant's jobs, newest first."""
        yield from self.connect()
        calls = [
            functions.list_jobs(self._keys, p, tenant, tag=tag, limit=limit) for p in self._keys.partitions
        ]
        found = [job for part in (yield from ask_all(calls, self._patience_s)) for job in part]
        return sorted(found, key=lambda job: -job.submitted_ms)[:limit]

    def replicas(self) -> Operation[list[functions.SessionInfo]]:
        """Returns the sessions whose lease holds, each once."""
        yield from self.connect()
        return list((yield from living_replicas(self._keys, self._patience_s)))

    def service_status(self) -> Operation[ServiceStatus]:
        """Returns how the service stands: replicas, queues, tenants."""
        server = yield from self.connect()
        return (yield from service_status(self._keys, server, self._patience_s))

    def tenant_set(self, tenant: str, settings: TenantSettings) -> Operation[functions.TenantInfo]:
        """Sets what is given of a tenant's share and caps, and returns how it stands now.

        Raises:
            InvalidRequest: The name or a value is outside its range.
        """
        yield from self.connect()
        return (yield from tenant_set(self._keys, tenant, settings, self._patience_s))

    def tenant_drop(self, tenant: str) -> Operation[functions.TenantInfo]:
        """Forgets a tenant's share and caps, and returns how it stands now.

        Raises:
            InvalidRequest: The name is none.
        """
        yield from self.connect()
        return (yield from tenant_drop(self._keys, tenant, self._patience_s))

    def wait_ready(self, timeout_s: float) -> Operation[None]:
        """Waits until a replica is alive that takes jobs.

        Raises:
            ServiceUnavailable: None came in time.
        """
        check_number("timeout_s", timeout_s, 0, MAX_S)
        end_s = time.monotonic() + timeout_s
        while all(replica.draining for replica in (yield from self.replicas())):
            if time.monotonic() >= end_s:
                raise ServiceUnavailable(
                    f"no replica is alive in namespace {self._keys.namespace} after {timeout_s:g} s; "
                    "`thinkstream up` starts one"
                )
            yield Sleep(_READY_EVERY_MS)

    def stream(
        self,
        ref: JobRef,
        submission: Submission | None,
        *,
        from_index: int = 0,
        timeout_s: float | None = None,
    ) -> ChunkStream:
        """Returns a stream of a job's chunks; nothing is asked before its first ``next_chunk``.

        Raises:
            InvalidRequest: ``from_index`` is no number of tokens, or the timeout none of seconds.
        """
        check_integer("from_index", from_index, 0, MAX_TOKENS)
        check_wait("timeout_s", timeout_s)
        follower = Follower(lambda: self._keys, patience_s=self._patience_s)
        return ChunkStream(follower, ref, from_index=from_index, submission=submission, timeout_s=timeout_s)

    def next_chunk(self, stream: ChunkStream) -> Operation[TokenChunk | None]:
        """Connects if need be and returns the stream's next chunk; see ``ChunkStream.next_chunk``."""
        yield from self.connect()
        return (yield from stream.next_chunk())

    def result(
        self, ref: JobRef, submission: Submission | None, *, confirm: bool, timeout_s: float | None
    ) -> Operation[JobResult]:
        """Waits for a job's end and returns the whole result.

        Should Redis lose tokens under way, it is read again from the start: nobody has seen any of it.

        Args:
            ref: The job.
            submission: Its payload, if this process submitted it.
            confirm: Whether to return only what a crash of Redis cannot take back.
            timeout_s: How long to wait for the end, and for its confirmation.

        Raises:
            ThinkstreamError: How the job ended otherwise, with ``partial`` set.
            TimeoutError: The end did not come, or was not confirmed, in time.
            ConfigError: ``confirm`` was asked of a server that keeps no append-only file, never syncs it, or
                does not tell when.
        """
        check_wait("timeout_s", timeout_s)
        server = yield from self.connect()
        if confirm and not server.append_only:
            raise ConfigError(f"this {server.name} keeps no append-only file: nothing can be confirmed")
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        num_rewinds = 0
        while True:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            stream = self.stream(ref, submission, timeout_s=left_s)
            try:
                result = yield from stream.drain()
            except StreamForked:
                num_rewinds += 1
                if num_rewinds > MAX_REWINDS:
                    raise
                continue
            if not confirm:
                return result
            num_tokens = len(result.token_ids)
            if (yield from is_durable(self._keys, ref, num_tokens, server, self._patience_s, end_s)):
                return result

    def close_batch(self, tenant: str, batch_id: str) -> Operation[None]:
        """Says that all jobs of a batch were submitted; saying it again changes nothing."""
        yield from self.connect()
        yield from ask_all(closing_calls(self._keys, tenant, batch_id), self._patience_s)

    def wait_batch(self, tenant: str, batch_id: str, timeout_s: float | None) -> Operation[BatchEnd]:
        """Waits until the last job of a batch has ended. Asks nothing again and again.

        Raises:
            BatchNotFound: There is no such batch.
            TimeoutError: The end did not come in time.
        """
        check_wait("timeout_s", timeout_s)
        yield from self.connect()
        return (yield from wait_for_end(self._keys, tenant, batch_id, timeout_s, self._patience_s))

    def batch(self, items: Iterator[BatchItem], options: BatchOptions) -> BatchCore:
        """Returns a batch; nothing is submitted before its first ``submit_some``."""
        return BatchCore(items, options, lambda: self._keys, patience_s=self._patience_s)
