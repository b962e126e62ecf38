"""The follower without a server: a few lines answer its commands."""

from __future__ import annotations

from typing import Any

import pytest

from thinkstream_client.core.effects import Effect, Operation, Pipeline, Read, Sleep
from thinkstream_client.core.follow import Follower, Reading
from thinkstream_client.core.submission import Submission
from thinkstream_client.errors import (
    JobExpired,
    JobNotFound,
    QueueFull,
    ResultExpired,
    ServiceUnavailable,
    StreamForked,
    ThinkstreamError,
)
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason, JobStatus, TokenChunk
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.wire import Entry, RawEntry, Terminal, chain_crc, initial_crc
from thinkstream_client.records import JobRef, Request

REF = JobRef("default", "job")
KEYS = Keys()
DOWN = ServiceUnavailable("down")


def entry(index: int, *ids: int, before: tuple[int, ...] = ()) -> Entry:
    crc = chain_crc(initial_crc(REF.job_id), before + ids)
    return Entry(index=index, token_ids=ids, crc=crc, text="")


class Server:
    """Answers what a follower asks."""

    def __init__(self) -> None:
        self.status: JobStatus | ThinkstreamError = JobStatus.RUNNING
        self.submitted: functions.Submitted | ThinkstreamError = functions.Submitted(
            created=True, status=JobStatus.QUEUED
        )
        self.reads: list[dict[JobRef, list[RawEntry]] | ThinkstreamError] = []
        self.asked: list[str] = []
        self.blocked: list[bool] = []
        self.now_s = 0.0

    def pump(self, operation: Operation[list[Reading]]) -> list[object]:
        reply: object = None
        try:
            while True:
                effect = operation.send(reply)
                try:
                    reply = self._answer(effect)
                except ThinkstreamError as error:
                    effect = operation.throw(error)
                    assert isinstance(effect, Sleep)
                    reply = None
        except StopIteration as end:
            readings: list[Reading] = end.value
            return [reading.what for reading in readings]

    def _answer(self, effect: Effect) -> object:
        if isinstance(effect, Read):
            self.blocked.append(effect.block_ms is not None)
            read = self.reads.pop(0) if self.reads else {}
            if isinstance(read, ThinkstreamError):
                raise read
            return read
        assert isinstance(effect, Pipeline)
        names = ["submit" if call.args[0] == "FCALL" else "status" for call in effect.calls]
        self.asked += names
        return [self.submitted if name == "submit" else self.status for name in names]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def follower(server: Server) -> Follower:
    return Follower(lambda: KEYS, patience_s=5, now=lambda: server.now_s)


def submission(**more: Any) -> Submission:
    return Submission(ref=REF, request=Request(prompt="Hello"), **more)


def test_one_who_did_not_submit_asks_first(server: Server, follower: Follower) -> None:
    server.status = JobNotFound("job")
    follower.follow(REF)
    (error,) = server.pump(follower.pump(100))
    assert isinstance(error, JobNotFound) and len(follower) == 0


def test_silence_is_asked_about(server: Server, follower: Follower) -> None:
    follower.follow(REF, submission=submission())
    for now_s, asked in ((1.0, 0), (3.0, 1), (4.0, 1), (6.0, 2)):
        server.now_s = now_s
        assert server.pump(follower.pump(100)) == []
        assert server.asked.count("status") == asked
    assert "submit" not in server.asked


def test_ended_job_without_a_stream_has_expired(server: Server, follower: Follower) -> None:
    server.status = JobStatus.DONE
    follower.follow(REF)
    (error,) = server.pump(follower.pump(100))
    assert isinstance(error, ResultExpired) and server.blocked == [False]


def test_end_that_came_between_is_read(server: Server, follower: Follower) -> None:
    server.status = JobStatus.DONE
    finish = Finish(reason=FinishReason.STOP, num_tokens=1)
    server.reads = [{REF: [entry(1, 5), Terminal(finish)]}]
    follower.follow(REF)
    chunk, end = server.pump(follower.pump(100))
    assert isinstance(chunk, TokenChunk) and end == finish and len(follower) == 0


def test_vanished_job_is_submitted_again_with_what_was_read(server: Server, follower: Follower) -> None:
    server.reads = [{REF: [entry(1, 5)]}]
    follower.follow(REF, submission=submission())
    server.pump(follower.pump(100))
    server.status, server.now_s = JobNotFound("job"), 9.0
    server.reads = [{REF: [entry(2, 6, before=(5,))]}]
    (chunk,) = server.pump(follower.pump(100))
    assert server.asked == ["status", "submit"]
    assert isinstance(chunk, TokenChunk) and chunk.index == 2


@pytest.mark.parametrize(
    "answer", [QueueFull("jobs", 100), functions.Submitted(created=True, status=JobStatus.QUEUED)]
)
def test_full_queue_does_not_end_the_reading(
    server: Server, follower: Follower, answer: functions.Submitted | ThinkstreamError
) -> None:
    follower.follow(REF, submission=submission())
    server.status, server.now_s, server.submitted = JobNotFound("job"), 9.0, answer
    assert server.pump(follower.pump(100)) == [] and len(follower) == 1


def test_late_job_is_not_submitted_again(server: Server, follower: Follower) -> None:
    follower.follow(REF, submission=submission(deadline_at_s=0.0))
    server.status, server.now_s = JobNotFound("job"), 9.0
    (error,) = server.pump(follower.pump(100))
    assert isinstance(error, JobExpired) and server.asked == ["status"]


def test_fork_is_placed_by_reading_again(server: Server, follower: Follower) -> None:
    server.reads = [{REF: [entry(1, 5), entry(2, 6, before=(5,))]}]
    follower.follow(REF, submission=submission())
    server.pump(follower.pump(100))
    other = [entry(1, 5), entry(2, 7, before=(5,)), entry(3, 8, before=(5, 7))]
    server.reads = [{REF: [other[2]]}, {REF: [*other]}]
    (error,) = server.pump(follower.pump(100))
    assert isinstance(error, StreamForked) and error.at == 1


def test_lost_connection_is_waited_for(
    server: Server, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("thinkstream_client.core.effects.time.monotonic", lambda: clock)
    follower.follow(REF, submission=submission())
    server.reads = [DOWN, DOWN, {REF: [entry(1, 5)]}, DOWN, DOWN]
    found = [server.pump(follower.pump(100)) for _ in range(4)]
    assert [len(news) for news in found] == [0, 0, 1, 0]
    clock = 6.0
    with pytest.raises(ServiceUnavailable):
        server.pump(follower.pump(100))


def test_error_while_asking_keeps_what_was_found(server: Server, follower: Follower) -> None:
    server.status = JobNotFound("job")
    follower.follow(REF)
    follower.follow(JobRef("default", "other"), submission=submission())
    server.reads = [DOWN]
    (error,) = server.pump(follower.pump(100))
    assert isinstance(error, JobNotFound) and len(follower) == 1
