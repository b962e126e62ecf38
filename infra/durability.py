"""Measures what Redis can lose under each ``appendfsync``, and what clients and Publisher make of it.

    python -m infra.durability

A server is killed while jobs stream. Killed alone, it leaves all that it wrote to the kernel. For lost power
the append-only file is also cut behind what had been written when the last finished sync began, which strace
tells, so that what the server had not synced is gone. What readers had been told and the server does not have
any more is counted; then it starts again, and every job is followed to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path

import redis
from infra.bench.free_replica import FreeReplica, token_at

from thinkstream_client import AsyncClient, JobNotFound, Request, SamplingParams, StreamForked
from thinkstream_client.aio_job import AsyncJob
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.wire import Entry, Terminal
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.embedded import EmbeddedServer

NUM_JOBS, STEP_S, RUN_S, PATIENCE_S = 32, 0.02, 5.0, 60.0
SETTINGS = ("always", "everysec", "no")
_RESULT = re.compile(r"= (\d+)$")


class DiskWatch:
    """Traces a server's writes and syncs, to know how much of its append-only file is on disk.

    WAITAOF is not asked: the embedded server was seen to confirm hundreds of writes between two syncs.

    Args:
        pid: The server.
        file: Its append-only file.
        log: Where the trace goes.
    """

    def __init__(self, pid: int, file: Path, log: Path) -> None:
        self._log, self._size = log, file.stat().st_size
        options = ["-f", "-ttt", "-y", "-e", "trace=write,fdatasync", "-e", "signal=none", "-s", "0"]
        self._strace = subprocess.Popen(
            ["strace", *options, "-p", str(pid), "-o", str(log)], stderr=subprocess.PIPE
        )
        assert self._strace.stderr is not None
        self._strace.stderr.readline()  # it is attached
        self._file = file.name

    def synced(self) -> tuple[int, float]:
        """Waits for the server's death; returns the bytes on disk and when the last sync began."""
        self._strace.wait(10)
        written = on_disk = self._size
        synced_s = 0.0
        begun: dict[str, tuple[int, float]] = {}
        writing: set[str] = set()
        for line in self._log.read_text().splitlines():
            thread, at, call = line.split(maxsplit=2)
            size = _RESULT.search(call)  # none where another thread's call came between, or the end did
            if "write(" in call and self._file in call:
                writing.add(thread)
            elif "fdatasync(" in call and self._file in call:
                begun[thread] = (written, float(at))
            if "write" in call and size and thread in writing:
                writing.remove(thread)
                written += int(size[1])
            elif "fdatasync" in call and size and thread in begun:
                on_disk, synced_s = begun.pop(thread)
        return on_disk, synced_s


@dataclass(slots=True)
class Reader:
    """What one reader was told of one job."""

    job: AsyncJob
    num_tokens: int
    told: list[int] = field(default_factory=list[int])
    is_done: bool = False
    is_gone: bool = False
    num_forks: int = 0

    async def read(self) -> None:
        """Follows the job to its end, from the start again where its history has changed."""
        while not (self.is_done or self.is_gone):
            stream = self.job.stream(len(self.told))
            try:
                async for chunk in stream:
                    self.told.extend(chunk.token_ids)
                self.is_done = True
            except StreamForked:
                self.num_forks += 1
                self.told.clear()
            except JobNotFound:  # of a reader that comes later: nobody submits it again for him
                self.is_gone = True

    @property
    def is_right(self) -> bool:
        """Whether it was told every token once, in order."""
        return self.told == [token_at(index) for index in range(1, self.num_tokens + 1)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a crash cost, as its readers see it; of several crashes the worst.

    Attributes:
        lost_ms: Time since the last sync began; 0 where there was none.
        lost_tokens: Tokens that readers had and Redis had no more.
        lost_ends: Ends that they had been told and Redis knew no more.
        lost_jobs: Jobs that Redis knew no more.
        forks: Times that a reader was told that another history had followed.
        not_read: Jobs that a reader who stayed did not get whole and in order.
        not_found: Jobs that a reader who came after all had ended did not get so.
    """

    lost_ms: int
    lost_tokens: int
    lost_ends: int
    lost_jobs: int
    forks: int
    not_read: int
    not_found: int

    def worst(self, other: Outcome) -> Outcome:
        """Joins two crashes."""
        return Outcome(*map(max, astuple(self), astuple(other)))


async def crash(folder: Path, setting: str, *, power: bool, phase_s: float) -> Outcome:
    """Runs jobs, lets the server crash under them, starts it again and follows every job to its end.

    Args:
        folder: For the server's data.
        setting: Its ``appendfsync``.
        power: Whether to lose what was not synced.
        phase_s: When to crash, for syncs come once a second.
    """
    server = EmbeddedServer(folder / "data")
    server.start()
    _configure(server.url, setting)
    (file,) = server.folder.glob("appendonlydir/*.incr.aof")
    watch = DiskWatch(server.pid, file, folder / "trace")
    replica = FreeReplica(server.url, step_s=STEP_S)
    async with AsyncClient(server.url, patience_s=PATIENCE_S) as client:
        readers = await _start_readers(client)
        tasks = [asyncio.create_task(reader.read()) for reader in readers]
        await asyncio.sleep(RUN_S + phase_s)
        os.kill(server.pid, signal.SIGKILL)
        crashed_s = time.time()
        await asyncio.sleep(0.2)  # what was in the sockets arrives
        told = {reader.job.id: (len(reader.told), reader.is_done) for reader in readers}
        server.stop()
        on_disk, synced_s = watch.synced()
        if power:
            os.truncate(file, on_disk)
        held = _held_tokens(folder)
        server.start()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        # Ends that were taken back are written again; whoever had left would find them.
        final = [Reader(client.job(one.job.id), one.num_tokens) for one in readers]
        await asyncio.wait_for(asyncio.gather(*(one.read() for one in final)), PATIENCE_S)
    await asyncio.to_thread(replica.close)
    server.stop()
    return Outcome(
        lost_ms=round((crashed_s - synced_s) * 1000) if power and synced_s else 0,
        lost_tokens=sum(max(0, num - held.get(job_id, (0, False))[0]) for job_id, (num, _) in told.items()),
        lost_ends=sum(done and not held.get(job_id, (0, False))[1] for job_id, (_, done) in told.items()),
        lost_jobs=sum(job_id not in held for job_id in told),
        forks=sum(reader.num_forks for reader in readers),
        not_read=sum(not reader.is_right for reader in readers),
        not_found=sum(not reader.is_right for reader in final),
    )


def main() -> None:
    """Prints a table, one line per setting and kind of crash."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--crashes", type=int, default=3, help="crashes per line, of which the worst is shown"
    )
    num_crashes = parser.parse_args().crashes
    logging.disable(logging.WARNING)
    columns = (
        "not on disk, ms | tokens lost | ends lost | jobs lost | forks | not read whole | not found later"
    )
    print(f"| appendfsync | what dies | {columns} |\n|{'---|' * 9}")
    for setting in SETTINGS:
        for power in (False, True):
            found = [_crash_once(setting, power, number / num_crashes) for number in range(num_crashes)]
            worst = functools.reduce(Outcome.worst, found)
            cells = (setting, "power" if power else "process", *map(str, astuple(worst)))
            print(f"| {' | '.join(cells)} |", flush=True)


def _crash_once(setting: str, power: bool, phase_s: float) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="thinkstream-") as folder:
        return asyncio.run(crash(Path(folder), setting, power=power, phase_s=phase_s))


async def _start_readers(client: AsyncClient) -> list[Reader]:
    # A new job ends every 0.2 s from half the time on, so that some have just ended when the server dies.
    lengths = [round(RUN_S / 2 / STEP_S) + 10 * number for number in range(NUM_JOBS)]
    requests = [
        Request(prompt="x", sampling=SamplingParams(max_tokens=length, ignore_eos=True)) for length in lengths
    ]
    jobs = await client.submit_many(requests)
    return [Reader(job, length) for job, length in zip(jobs, lengths, strict=True)]


def _configure(url: str, setting: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("appendfsync", setting)


def _held_tokens(folder: Path) -> dict[str, tuple[int, bool]]:
    """Tokens and whether there is an end, per job that a server with a copy of the data finds."""
    shutil.copytree(folder / "data", folder / "copy")
    (folder / "copy" / "port").unlink()
    server = EmbeddedServer(folder / "copy")
    server.start()
    keys, connection = Keys(), Connection(RedisSettings(server.url))
    jobs = connection.run(functions.list_jobs(keys, 0, "default", limit=10 * NUM_JOBS))
    results = (
        connection.run(functions.read_results(keys, {one.ref: 0 for one in jobs}, block_ms=None, count=None))
        if jobs
        else {}
    )
    connection.close()
    server.stop()
    held: dict[str, tuple[int, bool]] = {one.ref.job_id: (0, False) for one in jobs}
    for ref, entries in results.items():
        num_tokens = sum(len(entry.token_ids) for entry in entries if isinstance(entry, Entry))
        held[ref.job_id] = (num_tokens, any(isinstance(entry, Terminal) for entry in entries))
    return held


if __name__ == "__main__":
    main()
