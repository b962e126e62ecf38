"""The blocking client: a thin face over ``core``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self, Unpack

from .batch import BatchJob
from .checks import check_kind
from .core.batch_options import BatchOptions
from .core.client_core import ClientCore
from .core.compose import (
    BatchItem,
    Chat,
    SamplingFields,
    batch_items,
    bulk_requests,
    compose_request,
    new_job_id,
)
from .core.follow import PATIENCE_S
from .core.service import ServiceStatus, TenantSettings
from .core.submission import job_ref, submission_of
from .discovery import find_service
from .job import Job
from .protocol.functions import BatchEnd, JobSummary, SessionInfo, TenantInfo
from .records import Request, SamplingParams
from .runner import Runner
from .settings import RedisSettings


class Client:
    """Submits jobs and reads their results. May be shared by threads.

    The first operation connects. What follows survives a lost connection for ``patience_s``.

    Args:
        url: Redis, as ``redis://host:port``; without it ``THINKSTREAM_URL``, else the service that
            ``thinkstream up`` started on this machine.
        namespace: First part of the service's keys.
        patience_s: How long a connection that was lost is tried again.
        settings: All of the first two at once, wins over them.

    Raises:
        ServiceUnavailable: Nothing says where the service is.
        ConfigError: The URL is none of Redis.
        InvalidRequest: The namespace is no name, or the patience is outside its range.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        patience_s: float = PATIENCE_S,
        settings: RedisSettings | None = None,
    ) -> None:
        if settings is None:
            settings = find_service(url, namespace)
        self.settings = check_kind("settings", settings, RedisSettings, "settings of Redis")
        self._core = ClientCore(self.settings, patience_s=patience_s)
        self._runner = Runner(self.settings)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connects, and checks that server and namespace are ones we can work with.

        Raises:
            ServiceUnavailable: Nobody answers.
            ConfigError: The server is too old or evicts keys, or the namespace speaks another protocol.
        """
        self._runner.run(self._core.connect())

    def close(self) -> None:
        """Closes the sockets. Jobs run on."""
        self._runner.close()

    def submit(
        self,
        prompt: str | None = None,
        *,
        messages: Chat | None = None,
        token_ids: Sequence[int] | None = None,
        sampling: SamplingParams | None = None,
        id: str | None = None,
        tenant: str = "default",
        priority: str = "normal",
        deadline_s: float | None = None,
        stream: bool = True,
        tags: Sequence[str] = (),
        block: bool = False,
        timeout_s: float | None = None,
        **fields: Unpack[SamplingFields],
    ) -> Job:
        """Submits a job and returns at once.

        Args:
            prompt: Raw text to go on from, without the chat template; this, ``messages`` or ``token_ids``.
            messages: A chat, which goes through the model's template: ``Message``,
                ``{"role": ..., "content": ...}`` or ``(role, content)`` each.
            token_ids: A tokenized prompt.
            sampling: How tokens are chosen; or single fields by name (``temperature=0``).
            id: The job's id; submitting the same job under the same id again changes nothing.
            tenant: Whose it is.
            priority: ``high``, ``normal`` or ``low``.
            deadline_s: Time from now after which it is not wanted any more.
            stream: Whether tokens are to come one by one; False is cheaper.
            tags: Labels to find it by.
            block: Whether to wait while the tenant's queue is full.
            timeout_s: How long to wait for room.

        Raises:
            InvalidRequest: A value outside its range; nothing was sent.
            Conflict: The id is taken by another payload.
            QueueFull: The tenant has no room, or had none in time.
            ServiceUnavailable: Nobody answers.
        """
        request = compose_request(
            prompt=prompt,
            messages=messages,
            token_ids=token_ids,
            sampling=sampling,
            fields=dict(fields),
            stream=stream,
            tags=tags,
        )
        one = submission_of(request, job_id=id, tenant=tenant, priority=priority, deadline_s=deadline_s)
        self._runner.run(self._core.submit([one], block=block, timeout_s=timeout_s))
        return Job(self._runner.run, self._core, one.ref, one)

    def submit_many(
        self,
        requests: Iterable[str | Request],
        *,
        sampling: SamplingParams | None = None,
        tenant: str = "default",
        priority: str = "normal",
        deadline_s: float | None = None,
        batch: str | None = None,
        block: bool = True,
        timeout_s: float | None = None,
    ) -> list[Job]:
        """Submits many jobs in few round trips and returns them in order; see ``submit``.

        Args:
            requests: Prompts as text, or whole requests.
            sampling: How tokens are chosen for prompts given as text.
            tenant: Whose they are.
            priority: Their class.
            deadline_s: Time from now after which they are not wanted any more.
            batch: Id of a batch that they make, whose end ``wait_batch`` waits for.
            block: Whether to wait while the tenant's queue is full.
            timeout_s: How long to wait for room.
        """
        all_of_them = [
            submission_of(
                request, job_id=None, tenant=tenant, priority=priority, deadline_s=deadline_s, batch=batch
            )
            for request in bulk_requests(requests, sampling)
        ]
        self._runner.run(self._core.submit(all_of_them, block=block, timeout_s=timeout_s))
        if batch is not None:
            self._runner.run(self._core.close_batch(tenant, batch))
        return [Job(self._runner.run, self._core, one.ref, one) for one in all_of_them]

    def job(self, id: str, *, tenant: str = "default") -> Job:
        """Returns a job by its id; nothing is asked yet.

        Raises:
            InvalidRequest: The id or the tenant is no name.
        """
        return Job(self._runner.run, self._core, job_ref(id, tenant))

    def jobs(self, *, tag: str | None = None, tenant: str = "default", limit: int = 100) -> list[JobSummary]:
        """Returns a tenant's jobs, those with a tag where one is given, newest first.

        One whose record in Redis others have broken is left out, and a warning logged; by its id it
        raises ``RecordInvalid``.

        Args:
            tag: A label.
            tenant: Whose they are.
            limit: Jobs at most, up to a million.

        Raises:
            InvalidRequest: A name or the limit is outside its range.
        """
        return self._runner.run(self._core.jobs(tenant, tag, limit))

    def wait_batch(self, id: str, timeout_s: float | None = None, *, tenant: str = "default") -> BatchEnd:
        """Waits until the last job of a batch has ended, whoever submitted it, and returns how they ended.

        Args:
            id: The batch's id.
            timeout_s: How long to wait.
            tenant: Whose it is.

        Raises:
            BatchNotFound: There is no such batch, or none any more.
            ServiceUnavailable: The connection was lost and did not come back.
            TimeoutError: The end did not come in time.
        """
        return self._runner.run(self._core.wait_batch(tenant, id, timeout_s))

    def replicas(self) -> list[SessionInfo]:
        """Returns the replicas that are alive."""
        return self._runner.run(self._core.replicas())

    def status(self) -> ServiceStatus:
        """Returns how the service stands: replicas and their load, queues, tenants."""
        return self._runner.run(self._core.service_status())

    def tenant_set(self, tenant: str, **settings: Unpack[TenantSettings]) -> TenantInfo:
        """Sets a tenant's weight and caps and returns how it stands now.

        Args:
            tenant: Its name.
            **settings: What to set; a cap of 0 is none, and what is not named stays as it is.

        Raises:
            InvalidRequest: The name or a value is outside its range.
        """
        return self._runner.run(self._core.tenant_set(tenant, settings))

    def tenant_drop(self, tenant: str) -> TenantInfo:
        """Forgets a tenant's weight and caps and returns how it stands now; its jobs stay.

        Raises:
            InvalidRequest: The name is none.
        """
        return self._runner.run(self._core.tenant_drop(tenant))

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Waits until a replica is alive.

        Raises:
            ServiceUnavailable: None came in time.
        """
        self._runner.run(self._core.wait_ready(timeout_s))

    def batch(
        self,
        requests: Iterable[str | Request | BatchItem],
        *,
        sampling: SamplingParams | None = None,
        id: str | None = None,
        tenant: str = "default",
        priority: str = "normal",
        deadline_s: float | None = None,
        tags: Sequence[str] = (),
        max_in_flight: int = 1024,
    ) -> BatchJob:
        """Returns a batch, which is submitted while its ``results()`` are iterated over.

        Args:
            requests: Prompts as text, whole requests, or items as ``read_lines`` gives them.
            sampling: How tokens are chosen for prompts given as text.
            id: The batch's id; the same batch under the same id finds its jobs again.
            tenant: Whose the jobs are.
            priority: Their class.
            deadline_s: Time each job has from its submission.
            tags: Labels to find the jobs by, beside each one's own.
            max_in_flight: Jobs in the queue or at work at one time.
        """
        options = BatchOptions(
            batch_id=new_job_id() if id is None else id,
            tenant=tenant,
            priority=priority,
            deadline_s=deadline_s,
            max_in_flight=max_in_flight,
        )
        batch = self._core.batch(batch_items(requests, sampling, tags), options)
        return BatchJob(self._runner.run, self._core, batch)
