"""Many readers on a few connections: blocking reads that wait at the same time share one command.

Those of one partition do, that is: in a Cluster no command reads more.

A reader that comes while other reads are under way does not wait for them: it gets a lane of its own as long
as there are few, and shares one from its next read on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .core.effects import MAX_STREAMS, Read, Results
from .protocol.connection import AsyncConnection
from .records import JobRef

if TYPE_CHECKING:
    import asyncio

MAX_LANES = 16
"""Blocking commands, which is connections, at one time; one per partition, where these are more."""
_SLICE_MS = 250  # a lane whose streams are silent takes up other readers this often


@dataclass(slots=True)
class _Waiting:
    read: Read
    end_s: float
    reply: asyncio.Future[Results]


class ReadPool:
    """Reads result streams for the tasks of one event loop.

    Args:
        connection: For commands that block.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._waiting: deque[_Waiting] = deque()
        self._lanes: set[asyncio.Task[None]] = set()

    async def read(self, read: Read) -> Results:
        """Returns what the streams hold behind their positions, as soon as one has something.

        Raises:
            ServiceUnavailable: The connection was lost.
        """
        import asyncio

        if read.block_ms is None:
            return await self._connection.run(read.call())
        reply: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(read, time.monotonic() + read.block_ms / 1000, reply))
        if len(self._lanes) < max(MAX_LANES, read.keys.num_partitions):
            lane = asyncio.create_task(self._run_lane())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await reply

    async def close(self) -> None:
        """Ends the reads under way."""
        import asyncio

        lanes = list(self._lanes)
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)

    async def _run_lane(self) -> None:
        import asyncio

        while group := self._take():
            try:
                entries = await self._connection.run(_merged(group).call())
            except Exception as error:
                for one in _not_gone(group):
                    one.reply.set_exception(error)
                continue
            except asyncio.CancelledError:
                for one in group:
                    one.reply.cancel()
                raise
            self._answer(group, entries)
            await asyncio.sleep(0)  # let the readers come back, so that they share the next command

    def _answer(self, group: list[_Waiting], entries: Results) -> None:
        now_s = time.monotonic()
        for one in _not_gone(group):
            found = {ref: entries[ref] for ref in one.read.positions if ref in entries}
            if found or now_s >= one.end_s:
                one.reply.set_result(found)
            else:
                self._waiting.append(one)

    def _take(self) -> list[_Waiting]:
        """Takes readers in the order they came; two that read the same stream do not share a command."""
        group: list[_Waiting] = []
        refs: set[JobRef] = set()
        left: deque[_Waiting] = deque()
        for one in _not_gone(self._waiting):
            more = one.read.positions.keys()
            is_apart = bool(group) and one.read.partition != group[0].read.partition
            if group and (is_apart or len(refs) + len(more) > MAX_STREAMS or refs & more):
                left.append(one)
            else:
                group.append(one)
                refs |= more
        self._waiting = left
        return group


def _not_gone(readers: Iterable[_Waiting]) -> list[_Waiting]:
    """Returns the readers whose tasks still wait."""
    return [one for one in readers if not one.reply.done()]


def _merged(group: list[_Waiting]) -> Read:
    left_ms = min(one.end_s for one in group) - time.monotonic()
    first = group[0].read
    return Read(
        keys=first.keys,
        positions={ref: position for one in group for ref, position in one.read.positions.items()},
        block_ms=max(1, min(_SLICE_MS, round(left_ms * 1000))),
        count=first.count,
    )
