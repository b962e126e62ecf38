"""The whole service with a real Ray: started once for the module, and broken on purpose."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from thinkstream_client.client import Client
from thinkstream_client.job import Job
from thinkstream_client.outcome import FinishReason, JobResult, JobStatus
from thinkstream_client.records import Request, SamplingParams
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler import processes
from thinkstream_scheduler.embedded import EmbeddedServer
from thinkstream_scheduler.launch import Service, ServiceOptions, start_service
from thinkstream_scheduler.leftovers import end_actors
from thinkstream_workers.config import ReplicaConfig

NUM_JOBS = 64
NUM_TOKENS = 40


@dataclass(frozen=True)
class Running:
    service: Service
    client: Client


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = EmbeddedServer(tmp_path_factory.mktemp("server"))
    server.start()
    redis = RedisSettings(url=server.url)
    replica = ReplicaConfig(redis=redis, model="demo", slots=16, num_threads=1)
    before = processes.descendants(os.getpid())
    service = start_service(ServiceOptions(redis=redis, replica=replica, num_replicas=2, show_logs=False))
    with Client(settings=redis) as client:
        yield Running(service, client)
    service.stop()
    server.stop()
    left = processes.descendants(os.getpid()).items() - before.items()
    assert not left


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def requests() -> list[Request]:
    """Greedy ones and sampled ones, all of them as long as the others."""
    return [
        Request(
            prompt=f"{i} is a number, and",
            sampling=SamplingParams(
                temperature=1.0 if i % 2 else 0.0, seed=i, max_tokens=NUM_TOKENS, ignore_eos=True
            ),
        )
        for i in range(NUM_JOBS)
    ]


def results(jobs: Sequence[Job]) -> list[JobResult]:
    return [job.result(timeout_s=60) for job in jobs]


def test_answers_in_both_languages(running: Running) -> None:
    for question, answer in (
        ("What is the capital of France?", "Paris"),
        ("Какая столица России?", "Москва"),
    ):
        job = running.client.submit(messages=[("user", question)], temperature=0)
        assert answer in "".join(chunk.text for chunk in job.stream(timeout_s=30))


def test_killing_a_replica_loses_doubles_and_changes_nothing(running: Running) -> None:
    undisturbed = results(running.client.submit_many(requests()))
    assert {len(result.token_ids) for result in undisturbed} == {NUM_TOKENS}

    jobs = running.client.submit_many(requests())
    stream = jobs[0].stream(timeout_s=60)
    for _ in range(3):
        next(stream)
    os.kill(running.service.pids["replica-0"], signal.SIGKILL)
    disturbed = results(jobs)

    assert [result.token_ids for result in disturbed] == [result.token_ids for result in undisturbed]
    assert [result.text for result in disturbed] == [result.text for result in undisturbed]
    assert {result.finish_reason for result in disturbed} == {FinishReason.LENGTH}
    taken_over = [job for job in jobs if job.info().claims > 1]
    assert 0 < len(taken_over) <= 16
    wait_for(lambda: len(running.client.replicas()) == 2)


def test_killing_the_scheduler_delays_and_changes_nothing(running: Running) -> None:
    wait_for(lambda: len(running.client.replicas()) == 2)
    sessions = {info.session for info in running.client.replicas()}
    os.kill(running.service.pids["scheduler"], signal.SIGKILL)
    job = running.client.submit(messages=[("user", "What is the capital of France?")], temperature=0)
    assert "Paris" in job.text(timeout_s=30)
    # It has adopted the replicas that it found.
    assert {info.session for info in running.client.replicas()} == sessions


def test_only_a_scheduler_that_was_told_the_same_is_adopted(running: Running) -> None:
    # Not above: what imports Ray's actors may be imported once Ray runs.
    from thinkstream_scheduler.actor import SchedulerHandle

    told = running.service.settings
    assert SchedulerHandle.lives(told)
    assert not SchedulerHandle.lives(told._replace(replica=replace(told.replica, model="another")))
    elsewhere = told._replace(config=replace(told.config, service_id="f00d"))
    assert not SchedulerHandle.lives(elsewhere)
    # Nothing is left of a service that never was, and what is ended for it is nobody else's.
    assert end_actors(elsewhere.namespace) == 0
    assert SchedulerHandle.lives(told)


def test_a_prompt_beyond_the_context_fails_alone(running: Running) -> None:
    long = running.client.submit("word " * 20_000)
    short = running.client.submit(messages=[("user", "Какая столица России?")], temperature=0)
    assert "Москва" in short.text(timeout_s=30)
    wait_for(lambda: long.status() is JobStatus.FAILED)
    failure = long.info().failure
    assert failure is not None
    assert failure.code == "PromptTooLong"
