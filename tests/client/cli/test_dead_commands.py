from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from thinkstream_client import Client, JobFailed
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import JobFailure
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.records import JobRef, SessionId
from thinkstream_client.settings import RedisSettings

if TYPE_CHECKING:
    from tests.client.conftest import Worker

    from .conftest import Command

KEYS, SESSION = Keys(), SessionId("bad.1")
FAILURE = JobFailure(code="JobFailed", message="it [always] fails", data={"attempts": 3})


@pytest.fixture
def dead(client: Client, redis_url: str) -> str:
    """The id of a letter; its job has asked for the capital of France."""
    client.submit(prompt="capital?", id="poison", tenant="small", max_tokens=4)
    connection = Connection(RedisSettings(redis_url))
    connection.run(functions.hello(KEYS, 0, SESSION, "n", replica="bad", slots=1, lease_ms=60_000, info={}))
    connection.run(functions.claim(KEYS, 0, SESSION, 1))
    ref = JobRef("small", "poison")
    connection.run(functions.fail(KEYS, 0, SESSION, "n", ref, failure=FAILURE, retry=False))
    (letter,) = connection.run(functions.dead_letters(KEYS, 0))
    connection.run(functions.bye(KEYS, 0, SESSION, "n"))
    connection.close()
    return letter.id


def test_list_and_show(command: Command, dead: str) -> None:
    shown = command("dead", "list")
    assert (shown.code, shown.err) == (0, "")
    assert [line.split()[:1] for line in shown.out.splitlines()] == [["letter"], [dead]]
    assert "small" in shown.out and "poison" in shown.out
    (told,) = command("dead", "list", "--json").json
    assert (told["letter"], told["id"], told["tenant"]) == (dead, "poison", "small")
    assert told["error"] == {"code": "JobFailed", "message": "it [always] fails", "data": {"attempts": 3}}
    shown = command("dead", "show", dead)
    assert shown.code == 0 and "JobFailed: it [always] fails" in shown.out
    request = command("dead", "show", dead, "--json").json["request"]
    assert (request["prompt"], request["sampling"]["max_tokens"]) == ("capital?", 4)


def test_retry_lets_the_job_run_again(command: Command, dead: str, client: Client, worker: Worker) -> None:
    job = client.job("poison", tenant="small")
    with pytest.raises(JobFailed, match="always"):
        job.result()
    told = command("dead", "retry", dead, "--json")
    assert told.err == ""
    assert told.json == {"letter": dead, "id": "poison", "tenant": "small"}
    worker.start()
    assert job.result(timeout_s=20).token_ids == (8, 9, 10, 11)
    assert command("dead", "list").err == "no dead letters\n"
    assert f"dead letter {dead}: not found" in command("dead", "retry", dead).refused(2)


def test_drop_removes_the_letter_alone(command: Command, dead: str, client: Client) -> None:
    assert command("dead", "drop", dead).out == f"{dead}: dropped\n"
    assert command("dead", "list", "--json").json == []
    assert client.job("poison", tenant="small").status() == "failed"


@pytest.mark.parametrize("name", ["show", "retry", "drop"])
@pytest.mark.parametrize(
    ("letter", "words"),
    [
        ("1-0", "dead letter 1-0: not found"),
        ("poison", "letter: got 'poison', allowed: an id as `thinkstream dead list` prints it"),
        ("1-0@1", "letter: got '1-0@1'"),
        ("", "letter: got ''"),
    ],
)
def test_letters_that_are_none(command: Command, client: Client, name: str, letter: str, words: str) -> None:
    client.connect()
    assert words in command("dead", name, letter).refused(2)


def test_letters_of_every_partition(command: Command, redis_url: str) -> None:
    settings = RedisSettings(redis_url, num_partitions=4)
    keys = settings.keys
    ref = next(ref for ref in (JobRef("small", f"j{i}") for i in range(100)) if keys.partition_of(ref) == 3)
    with Client(settings=settings) as client:
        client.submit("capital?", id=ref.job_id, tenant=ref.tenant)
    connection = Connection(settings)
    connection.run(functions.hello(keys, 3, SESSION, "n", replica="bad", slots=1, lease_ms=60_000, info={}))
    connection.run(functions.claim(keys, 3, SESSION, 1))
    connection.run(functions.fail(keys, 3, SESSION, "n", ref, failure=FAILURE, retry=False))
    connection.close()
    (told,) = command("dead", "list", "--json").json
    assert told["id"] == ref.job_id
    assert command("dead", "drop", told["letter"]).code == 0
