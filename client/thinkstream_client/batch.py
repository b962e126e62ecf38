"""Batches, as both clients show them: results in the order of their ends, read by a few connections."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from .checks import check_wait
from .core.batch_core import BLOCK_MS, BatchCore
from .core.batch_options import BatchProgress
from .core.client_core import ClientCore
from .core.effects import AsyncRun, Run
from .core.follow import Follower, Reading
from .core.results import BatchResult
from .protocol.functions import BatchEnd

if TYPE_CHECKING:
    import asyncio

_INBOX = 64  # readings that wait to be taken; a slow caller slows the readers, not the replicas


class BatchJob:
    """Many jobs, submitted as there is room while their results are iterated over."""

    def __init__(self, run: Run, client: ClientCore, batch: BatchCore) -> None:
        self._run, self._client, self._batch = run, client, batch

    @property
    def id(self) -> str:
        """First part of the id of every job."""
        return self._batch.options.batch_id

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        return self._batch.progress

    def cancel(self) -> None:
        """Submits no more and cancels the jobs in flight; iterating goes on to the end.

        Call it from the iterating thread.
        """
        self._run(self._batch.cancel())

    def wait(self, timeout_s: float | None = None) -> BatchEnd:
        """Waits until the last job has ended, and returns how they ended. Reads no results.

        Items that are not submitted yet are submitted first, all at once. Their results can be read by
        another batch of the same requests and id.

        Args:
            timeout_s: How long to wait once all are submitted.

        Raises:
            BatchNotFound: It ended too long ago.
            ServiceUnavailable: The connection was lost and did not come back.
            TimeoutError: The end did not come in time.
        """
        check_wait("timeout_s", timeout_s)
        self._run(self._client.connect())
        self._run(self._batch.submit_all())
        return self._run(self._client.wait_batch(self._batch.options.tenant, self.id, timeout_s))

    def results(self) -> Iterator[BatchResult]:
        """Yields one result per item, in the order of their ends. To be iterated once.

        One thread per 256 jobs in flight reads; they end with the iteration, also when it is left early. Jobs
        that were submitted by then run on.

        Raises:
            ServiceUnavailable: The connection was lost and did not come back.
        """
        self._run(self._client.connect())
        inbox: queue.Queue[list[Reading] | Exception] = queue.Queue(_INBOX)
        stopping = threading.Event()
        threads: list[threading.Thread] = []
        try:
            while not self._batch.is_finished:
                self._run(self._batch.submit_some())
                for follower in self._batch.followers[len(threads) :]:
                    args = (follower, inbox, stopping)
                    thread = threading.Thread(target=self._read, args=args, name="thinkstream batch")
                    thread.daemon = True
                    thread.start()
                    threads.append(thread)
                yield from self._batch.take(_next(inbox, self._batch.wait_s))
        finally:
            stopping.set()
            for thread in threads:
                thread.join()

    def _read(
        self,
        follower: Follower,
        inbox: queue.Queue[list[Reading] | Exception],
        stopping: threading.Event,
    ) -> None:
        while not stopping.is_set():
            try:
                news: list[Reading] | Exception = self._run(follower.pump(BLOCK_MS))
            except Exception as error:  # the iterating thread raises it
                news = error
            while news and not stopping.is_set():
                try:
                    inbox.put(news, timeout=BLOCK_MS / 1000)
                    break
                except queue.Full:
                    continue
            if isinstance(news, Exception):
                return


def _next(inbox: queue.Queue[list[Reading] | Exception], wait_s: float) -> list[Reading]:
    try:
        news = inbox.get(timeout=wait_s) if wait_s > 0 else inbox.get_nowait()
    except queue.Empty:
        return []
    if isinstance(news, Exception):
        raise news
    return news


class AsyncBatchJob:
    """Many jobs, on an event loop; see ``BatchJob``."""

    def __init__(self, run: AsyncRun, client: ClientCore, batch: BatchCore) -> None:
        self._run, self._client, self._batch = run, client, batch

    @property
    def id(self) -> str:
        """First part of the id of every job."""
        return self._batch.options.batch_id

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        return self._batch.progress

    async def cancel(self) -> None:
        """Submits no more and cancels the jobs in flight; iterating goes on to the end."""
        await self._run(self._batch.cancel())

    async def wait(self, timeout_s: float | None = None) -> BatchEnd:
        """Waits until the last job has ended, and returns how they ended. Reads no results.

        Items that are not submitted yet are submitted first, all at once. Their results can be read by
        another batch of the same requests and id.

        Args:
            timeout_s: How long to wait once all are submitted.

        Raises:
            BatchNotFound: It ended too long ago.
            ServiceUnavailable: The connection was lost and did not come back.
            TimeoutError: The end did not come in time.
        """
        check_wait("timeout_s", timeout_s)
        await self._run(self._client.connect())
        await self._run(self._batch.submit_all())
        return await self._run(self._client.wait_batch(self._batch.options.tenant, self.id, timeout_s))

    async def results(self) -> AsyncIterator[BatchResult]:
        """Yields one result per item, in the order of their ends; see ``BatchJob.results``."""
        import asyncio

        await self._run(self._client.connect())
        inbox: asyncio.Queue[list[Reading] | Exception] = asyncio.Queue(_INBOX)
        tasks: list[asyncio.Task[None]] = []
        try:
            while not self._batch.is_finished:
                await self._run(self._batch.submit_some())
                for follower in self._batch.followers[len(tasks) :]:
                    tasks.append(asyncio.create_task(self._read(follower, inbox)))
                for result in self._batch.take(await _next_async(inbox, self._batch.wait_s)):
                    yield result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, follower: Follower, inbox: asyncio.Queue[list[Reading] | Exception]) -> None:
        while True:
            try:
                news = await self._run(follower.pump(BLOCK_MS))
            except Exception as error:  # the iterating task raises it
                await inbox.put(error)
                return
            if news:
                await inbox.put(news)


async def _next_async(inbox: asyncio.Queue[list[Reading] | Exception], wait_s: float) -> list[Reading]:
    import asyncio

    try:
        news = await asyncio.wait_for(inbox.get(), wait_s) if wait_s > 0 else inbox.get_nowait()
    except (asyncio.QueueEmpty, TimeoutError):
        return []
    if isinstance(news, Exception):
        raise news
    return news
