"""A server, and short words for what tests of the functions do with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason, JobFailure
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed, FinishRow, StepReply, StepRow
from thinkstream_client.protocol.wire import RawEntry
from thinkstream_client.records import JobRef, Request, SamplingParams, SessionId
from thinkstream_client.settings import RedisSettings

KEYS = Keys()
OK, CAS, NOT_OURS = StepReply.OK, StepReply.CAS, StepReply.NOT_OURS
FAILURE = JobFailure(code="RecordInvalid", message="no", data={"limit": 3})


class Queue:
    """A server and short words for what the tests do with it."""

    def __init__(self, url: str) -> None:
        self.run = Connection(RedisSettings(url)).run
        self.raw: Any = redis.Redis.from_url(url)

    def submit(
        self,
        name: str,
        *,
        tenant: str = "a",
        priority: int = 1,
        deadline_ms: int | None = None,
        request: Request | None = None,
        ttl_ms: int = 60_000,
    ) -> JobRef:
        ref = JobRef(tenant, name)
        request = request or Request(prompt="hi", sampling=SamplingParams(max_tokens=9))
        call = functions.submit(
            KEYS, ref, request, priority=priority, deadline_ms=deadline_ms, result_ttl_ms=ttl_ms
        )
        assert self.run(call).created
        return ref

    def hello(self, name: str = "w", *, slots: int = 100, lease_ms: int = 5000) -> SessionId:
        session = SessionId(f"{name}.1")
        self.run(
            functions.hello(
                KEYS, 0, session, "n", replica=name, slots=slots, lease_ms=lease_ms, info={"pid": "7"}
            )
        )
        return session

    def claim(self, session: SessionId, k: int = 100) -> list[Claimed]:
        return self.run(functions.claim(KEYS, 0, session, k))

    def names(self, session: SessionId, k: int = 100) -> str:
        return " ".join(one.ref.job_id for one in self.claim(session, k))

    def step(self, session: SessionId, ref: JobRef, expected_len: int, *ids: int, mk: int = 1) -> StepReply:
        row = StepRow(ref, expected_len, wire.encode_entry(ids, 0, "x"), mk, len(ids))
        return self.run(functions.step(KEYS, 0, session, "n", [row]))[0]

    def finish(
        self,
        session: SessionId,
        ref: JobRef,
        expected_len: int,
        n: int,
        last: Sequence[int] = (),
        cost: int = 9,
    ) -> StepReply:
        row = FinishRow(
            ref=ref,
            expected_len=expected_len,
            last_entry=wire.encode_entry(last, 0, "z") if last else None,
            terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=n)),
            reason=FinishReason.STOP,
            num_tokens=n,
            cost=cost,
        )
        return self.run(functions.finish(KEYS, 0, session, "n", [row]))[0]

    def fail(self, session: SessionId, ref: JobRef, *, retry: bool) -> StepReply:
        return self.run(functions.fail(KEYS, 0, session, "n", ref, failure=FAILURE, retry=retry))

    def alone(self, session: SessionId, ref: JobRef | None) -> None:
        self.run(functions.beat(KEYS, 0, session, "n", alone=ref))

    def die(self, session: SessionId) -> int:
        return self.run(functions.reap(KEYS, 0, session))

    def info(self, ref: JobRef) -> functions.JobInfo:
        return self.run(functions.job_info(KEYS, ref))

    def read(self, ref: JobRef, position: int | tuple[int, int] = 0) -> list[RawEntry]:
        found = self.run(functions.read_results(KEYS, {ref: position}, block_ms=None, count=None))
        return found.get(ref, [])

    def end_of(self, ref: JobRef) -> Finish:
        last = self.read(ref)[-1]
        assert isinstance(last, wire.Terminal)
        return last.finish

    def kinds(self, ref: JobRef) -> list[object]:
        """Markers as their number, token entries as their ids, the end as its reason."""
        found: list[object] = []
        for entry in self.read(ref):
            match entry:
                case wire.Marker():
                    found.append(entry.mk)
                case wire.Entry():
                    found.append((entry.index, *entry.token_ids))
                case wire.Terminal():
                    found.append(entry.finish.reason.value)
                case wire.Broken():
                    found.append(entry)
        return found
