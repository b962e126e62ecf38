"""Sessions that call the functions directly: what the tests of single checks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason, JobFailure
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.functions import Call, Claimed, FinishRow, StepReply, StepRow
from thinkstream_client.records import SessionId

from .audit import Snapshot
from .world import World

KEYS = Keys()
OK, CAS, NOT_OURS = StepReply.OK, StepReply.CAS, StepReply.NOT_OURS
FAILURE = JobFailure(code="StepFailed", message="")
Make = Callable[[SessionId, str, Claimed], "Call[Any]"]


class Partition(World):
    """Sessions that call the functions directly, with a nonce that is always the same."""

    def hello(
        self, name: str = "w", *, slots: int = 9, lease_ms: int = 60_000, nonce: str = "n"
    ) -> SessionId:
        session = SessionId(f"{name}.1")
        call = functions.hello(KEYS, 0, session, nonce, replica=name, slots=slots, lease_ms=lease_ms, info={})
        self.run(call)
        return session

    def job(self, job_id: str = "j") -> tuple[SessionId, Claimed]:
        """A job that a session owns and that has one token."""
        self.submit(job_id)
        session = self.hello()
        (claimed,) = self.claim(session)
        assert self.run(step(session, "n", claimed)) == [OK]
        return session, claimed

    def contents(self) -> dict[str, Any]:
        """All that is there, but for the leases."""
        found = Snapshot(self.raw, KEYS).of
        found.pop(KEYS.leases(0), None)
        return found


def sweep(partition: Partition) -> functions.Swept:
    """One sweep of the only partition."""
    done: functions.Swept = partition.run(functions.sweep(KEYS, 0))
    return done


def row(claimed: Claimed, length: int) -> StepRow:
    entry = wire.encode_entry([1] * claimed.grain, 0, "")
    return StepRow(claimed.ref, length, entry, claimed.mk, claimed.grain)


def step(session: SessionId, nonce: str, claimed: Claimed, num_done: int = 0) -> Call[list[StepReply]]:
    length = claimed.n // claimed.grain + claimed.mk + num_done
    return functions.step(KEYS, 0, session, nonce, [row(claimed, length)])


def finish(
    session: SessionId, nonce: str, claimed: Claimed, num_done: int = 1, last: bool = False
) -> Call[list[StepReply]]:
    num_tokens = claimed.n + num_done * claimed.grain + int(last)
    end = FinishRow(
        ref=claimed.ref,
        expected_len=claimed.n // claimed.grain + claimed.mk + num_done,
        last_entry=wire.encode_entry([1], 0, "") if last else None,
        terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=num_tokens)),
        reason=FinishReason.STOP,
        num_tokens=num_tokens,
        cost=5,
    )
    return functions.finish(KEYS, 0, session, nonce, [end])
