"""A client process: submits jobs and follows them all, and writes down what it receives.

It may be killed at any moment. Started again, it submits what it had begun under the same ids, which changes
nothing, and reads on behind the last token that it wrote down.

    python -m infra.chaos.reader FOLDER NUMBER
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from thinkstream_client.aio import AsyncClient
from thinkstream_client.aio_job import AsyncJob
from thinkstream_client.errors import (
    JobCancelled,
    JobExpired,
    ServiceUnavailable,
    StreamForked,
    ThinkstreamError,
)
from thinkstream_client.outcome import TokenChunk
from thinkstream_client.protocol.wire import chain_crc, initial_crc
from thinkstream_client.settings import RedisSettings

from .journal import Journal, Record, read_journal
from .plan import JobPlan, make_job, make_specs

STOP_FILE = "stop"
ORDERS_FILE = "orders.json"
_PATIENCE_S = 120.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What all readers of a run are told.

    Attributes:
        url: Redis.
        seed: The run's seed.
        num_specs: Different requests.
        num_readers: Readers; each takes every so many-th job.
        window: Jobs in flight at once.
        min_jobs: Jobs of this reader at least, before it heeds the stop file.
    """

    url: str
    seed: int
    num_specs: int
    num_readers: int
    window: int
    min_jobs: int

    def save(self, folder: Path) -> None:
        """Leaves them where readers look."""
        (folder / ORDERS_FILE).write_text(json.dumps(asdict(self)))


def journal_path(folder: Path, number: int) -> Path:
    """Where a reader writes."""
    return folder / f"reader-{number}.jsonl"


@dataclass(slots=True)
class _Position:
    """How far a job was read."""

    index: int
    crc: int
    has_ended: bool = False


class Reader:
    """One process's work.

    Args:
        folder: Where the orders lie and the journal goes.
        number: Which reader it is.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._orders = Orders(**json.loads((folder / ORDERS_FILE).read_text()))
        self._stop = folder / STOP_FILE
        self._number = number
        self._positions: dict[int, _Position] = {}
        self._read_back(journal_path(folder, number))
        self._journal = Journal(journal_path(folder, number))
        self._specs = make_specs(self._orders.seed, self._orders.num_specs)

    async def run(self) -> None:
        """Returns when it is told to stop and everything has ended."""
        self._journal.write(Record(kind="up"))
        parent = os.getppid()  # without it there is nobody to end us
        settings = RedisSettings(url=self._orders.url)
        open_jobs = [job for job, at in self._positions.items() if not at.has_ended]
        # Not connected here: Redis may be dead at this moment, which the first job then waits out.
        client = AsyncClient(settings=settings, patience_s=_PATIENCE_S)
        tasks = {asyncio.create_task(self._follow(client, job)) for job in open_jobs}
        while (tasks or not self._is_over()) and os.getppid() == parent:
            while len(tasks) < self._orders.window and not self._is_over():
                tasks.add(asyncio.create_task(self._follow(client, self._begin())))
            done, tasks = await asyncio.wait(tasks, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        await client.close()

    def _is_over(self) -> bool:
        return len(self._positions) >= self._orders.min_jobs and self._stop.exists()

    def _begin(self) -> int:
        job = self._number + self._orders.num_readers * len(self._positions)
        self._positions[job] = self._start_of(job)
        self._journal.write(Record(kind="begin", job=job))
        return job

    def _start_of(self, job: int) -> _Position:
        return _Position(0, initial_crc(self._plan(job).job_id))

    def _plan(self, job: int) -> JobPlan:
        return make_job(self._orders.seed, job, self._orders.num_specs)

    async def _follow(self, client: AsyncClient, number: int) -> None:
        plan = self._plan(number)
        while not (at := self._positions[number]).has_ended:
            try:
                job = await self._submit(client, plan)
                reason = await self._read(job, plan, at)
            except ServiceUnavailable:
                await asyncio.sleep(_POLL_S)
                continue
            except StreamForked as fork:
                self._go_back(number, fork.at)
                continue
            except JobCancelled:
                reason = "cancelled"
            except JobExpired:
                reason = "expired"
            except ThinkstreamError as error:
                reason = f"{error.code}: {error}"
            at.has_ended = True
            self._journal.write(Record(kind="end", job=number, index=at.index, reason=reason))

    async def _submit(self, client: AsyncClient, plan: JobPlan) -> AsyncJob:
        spec = self._specs[plan.spec]
        return await client.submit(
            spec.prompt,
            messages=spec.messages,
            sampling=spec.sampling,
            id=plan.job_id,
            tenant=plan.tenant,
            priority=plan.priority,
            deadline_s=plan.deadline_s,
            stream=plan.stream,
        )

    async def _read(self, job: AsyncJob, plan: JobPlan, at: _Position) -> str:
        is_cancelled = False
        stream = job.stream(from_index=at.index)
        async for chunk in stream:
            self._note(plan.number, chunk, at)
            if plan.cancel_after is not None and at.index >= plan.cancel_after and not is_cancelled:
                status = await job.cancel()
                is_cancelled = True
                # `cancel` names in the end that it writes the tokens that were there, and no more may come.
                finish = (await job.history()).finish
                num_tokens = finish.num_tokens if finish is not None else -1
                self._journal.write(
                    Record(kind="cancel", job=plan.number, index=num_tokens, reason=status.value)
                )
        assert stream.finish is not None
        return stream.finish.reason.value

    def _note(self, job: int, chunk: TokenChunk, at: _Position) -> None:
        at.index, at.crc = chunk.index, chain_crc(at.crc, chunk.token_ids)
        self._journal.write(
            Record(
                kind="chunk",
                job=job,
                index=at.index,
                ids=chunk.token_ids,
                crc=at.crc,
                text=chunk.text,
            )
        )

    def _go_back(self, job: int, index: int) -> None:
        """Redis has lost what is behind ``index``: reads the whole again, since nobody has used it yet."""
        self._journal.write(Record(kind="fork", job=job, index=index))
        self._positions[job] = self._start_of(job)

    def _read_back(self, path: Path) -> None:
        for record in read_journal(path):
            match record.kind:
                case "begin" | "fork":
                    self._positions[record.job] = self._start_of(record.job)
                case "chunk":
                    self._positions[record.job] = _Position(record.index, record.crc)
                case "end":
                    self._positions[record.job].has_ended = True
                case _:
                    pass


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(Reader(Path(sys.argv[1]), int(sys.argv[2])).run())
