"""The users in ``infra/redis/users.acl``: each role can do its work, and a tenant no more than its own."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from infra.topologies import HOST, Node, free_ports, wait_until
from tests.support.service import ThreadedService
from tests.support.worker import tokens_of

from thinkstream_client import Client
from thinkstream_client.cli import app
from thinkstream_client.errors import CommandRefused, ConfigError, RecordInvalid, ThinkstreamError
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

USERS = Path("infra/redis/users.acl")
THEIRS = JobRef("acme", "secret")


class Guarded:
    """A server with the users of the file, and a second tenant made from its template."""

    def __init__(self, folder: Path, binary: Path | None) -> None:
        users = USERS.read_text().splitlines()
        users.append(users[-1].replace("acme", "evil").replace("ACME", "EVIL"))
        (folder / "users.acl").write_text("\n".join(users) + "\n")
        self.node = Node(folder / "server", free_ports(1)[0], {"aclfile": str(folder / "users.acl")}, binary)

    def settings(self, user: str) -> RedisSettings:
        return RedisSettings(f"redis://{user}:CHANGE-ME-{user.upper()}@{HOST}:{self.node.port}/0")

    def raw(self, user: str) -> Any:
        return redis.Redis.from_url(self.settings(user).url, decode_responses=True)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    binary = None if request.param == "valkey" else shutil.which("redis-server")
    if request.param == "redis" and binary is None:
        pytest.skip("redis-server is missing")
    guarded = Guarded(tmp_path_factory.mktemp("acl"), Path(binary) if binary else None)
    guarded.node.start()
    wait_until(lambda: bool(guarded.raw("operator").ping()), "the server answers")
    yield guarded
    guarded.node.kill()


@pytest.fixture
def evil(guarded: Guarded) -> Iterator[Any]:
    """What the second tenant can send, while a job of the first one waits."""
    scheduler = Connection(guarded.settings("scheduler"))
    keys = settled(scheduler, guarded.settings("scheduler")).keys
    scheduler.run(functions.sweep(keys, 0))  # brings the library
    connection = Connection(guarded.settings("client-acme"))
    connection.run(functions.submit(keys, THEIRS, Request(prompt="secret"), deadline_ms=600_000))
    with guarded.raw("client-evil") as client:
        yield client
    with guarded.raw("scheduler") as server:
        server.delete(keys.job(THEIRS), keys.out(THEIRS), keys.queue(0, 1, THEIRS.tenant))
    for one in (connection, scheduler):
        one.close()


def test_every_role_can_do_its_work(guarded: Guarded) -> None:
    with (
        ThreadedService(guarded.settings("scheduler"), guarded.settings("worker")) as service,
        Client(settings=guarded.settings("client-acme")) as client,
    ):
        jobs = [
            client.submit("a prompt", id=f"j{i}", tenant="acme", max_tokens=5, tags=("t",), deadline_s=60)
            for i in range(4)
        ]
        assert [job.result(timeout_s=10).token_ids for job in jobs] == [tokens_of(job.id, 5) for job in jobs]
        long = client.submit("a prompt", id="long", tenant="acme", max_tokens=4000, priority="high")
        next(long.stream(timeout_s=10))
        assert long.cancel() is JobStatus.CANCELLED
        assert len(client.jobs(tenant="acme", tag="t")) == 4
        batch = client.batch(["a prompt"] * 3, tenant="acme", id="b")
        batch.cancel()
        assert list(batch.results()) == []
        keys = service.settings.keys
        with guarded.raw("operator") as operator:
            operator.acl_log()
        connection = Connection(guarded.settings("operator"))
        connection.run(functions.tenant_set(keys, 0, "acme", weight=2.0))
        assert [one.weight for one in connection.run(functions.tenants(keys, 0)) if one.tenant == "acme"] == [
            2
        ]
        assert connection.run(functions.dead_letters(keys, 0)) == []
        connection.close()


@pytest.mark.parametrize(
    "command",
    [
        "submit 'a prompt' --raw -n 2 --id {name}-new",
        "attach {name}",
        "inspect {name}",
        "cancel {name}",
        "jobs",
        "chat --once 'a prompt' -n 2",
        "batch {folder}/in.jsonl -o {folder}/out.jsonl",
    ],
)
def test_a_tenant_may_use_the_commands(
    guarded: Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "one", "max_tokens": 2}\n')
    settings, name = guarded.settings("client-acme"), f"of-{command.split()[0]}"
    with (
        ThreadedService(guarded.settings("scheduler"), guarded.settings("worker")),
        Client(settings=settings) as client,
        pytest.raises(SystemExit) as ended,
    ):
        client.submit("a prompt", id=name, tenant="acme", max_tokens=2).result(timeout_s=10)
        arguments = shlex.split(command.format(name=name, folder=tmp_path))
        app.run([*arguments, "--tenant", "acme", "--url", settings.url])
    assert ended.value.code == 0, capsys.readouterr().err


def test_a_replica_takes_a_key_away_that_stands_in_its_way(guarded: Guarded) -> None:
    settings = guarded.settings("worker")
    worker, keys = Connection(settings), settings.keys
    session = SessionId("w.1")
    worker.run(functions.hello(keys, 0, session, "n", replica="w", slots=1, lease_ms=60_000, info={}))
    with guarded.raw("operator") as operator:
        for _ in range(2):  # the second finds one that stands aside already
            operator.set(keys.leases(0), "text")
            assert worker.run(functions.step(keys, 0, session, "n", [])) == []
            assert operator.zscore(keys.leases(0), session) is not None
        operator.delete(f"{keys.leases(0)}:broken", keys.dead(0))
    worker.run(functions.bye(keys, 0, session, "n"))
    worker.close()


def test_a_tenant_has_no_use_for_the_sdk_on_others(guarded: Guarded, evil: Any) -> None:
    del evil
    with Client(settings=guarded.settings("client-evil")) as client:
        theirs = client.job(THEIRS.job_id, tenant=THEIRS.tenant)
        for ask in (theirs.status, theirs.info, theirs.cancel, theirs.stream().__next__):
            with pytest.raises((ConfigError, CommandRefused, RecordInvalid)):
                ask()
        with pytest.raises(ThinkstreamError):
            client.jobs(tenant=THEIRS.tenant)
        with pytest.raises(ThinkstreamError):
            client.submit("a prompt", id="x", tenant=THEIRS.tenant)
    assert_untouched(guarded)


@pytest.mark.parametrize(
    "command",
    [
        "HGETALL ts:{0}:job:acme:secret",
        "HSET ts:{0}:job:acme:secret status cancelled",
        "DEL ts:{0}:job:acme:secret",
        "XREAD STREAMS ts:{0}:out:acme:secret 0-0",
        "XADD ts:{0}:out:acme:secret 1-0 t x",
        "DEL ts:{0}:in:1:acme",
        "ZREVRANGE ts:{0}:jobs:acme 0 -1",
        "XREAD STREAMS ts:{0}:events 0-0",
        "DEL ts:{0}:events",
        "DEL ts:{0}:ready:1",
        "HSET ts:{0}:tenants evil:weight 1000",
        "HSET ts:{0}:usage acme:queued 1",
        "ZADD ts:{0}:again:0 1 evil:x",
        "HGETALL ts:{0}:session:s",
        "ZADD ts:{0}:leases 1 s",
        "HSET ts:{0}:own:s acme:secret 1:1",
        "HSET ts:meta protocol 2",
        "DEL ts:meta",
        "XREAD STREAMS ts:{0}:dead 0-0",
        "KEYS *",
        "SCAN 0",
        "FLUSHALL",
        "FUNCTION FLUSH",
        "CONFIG GET *",
        "ACL LIST",
        "MONITOR",
        "EVAL return 0",
        "FCALL ts1_cancel 1 ts:{0}: acme secret",
        "FCALL ts1_list 1 ts:{0}: acme '' 10",
        "FCALL ts1_hello 1 ts:{0}: s n r 8 5000",
        "FCALL ts1_claim 1 ts:{0}: s 8",
        "FCALL ts1_sweep 1 ts:{0}:",
        "FCALL ts1_reap 1 ts:{0}: s",
        "FCALL ts1_tenant_set 1 ts:{0}: evil weight 1000",
    ],
)
def test_a_hostile_tenant_is_refused(guarded: Guarded, evil: Any, command: str) -> None:
    try:
        reply = evil.execute_command(*command.split())
    except redis.ResponseError as error:
        assert any(
            word in str(error) for word in ("permission", "NOPERM", "ACL", "can't access", "can't run")
        )
    else:
        assert reply in (["BROKEN"], ["FENCED"], 0)  # a function that found nothing it may see
    assert_untouched(guarded)


def test_a_deadline_is_the_jobs_own(guarded: Guarded, evil: Any) -> None:
    """Whoever may say that a job is due cannot end it before its time."""
    evil.execute_command("ZADD", "ts:{0}:due", 0, "deadline:acme:secret")
    scheduler = Connection(guarded.settings("scheduler"))
    keys = guarded.settings("scheduler").keys
    for _ in range(2):
        assert scheduler.run(functions.sweep(keys, 0)).expired == 0
    assert_untouched(guarded)
    with guarded.raw("operator") as operator:
        left_ms = operator.zscore("ts:{0}:due", "deadline:acme:secret") - operator.time()[0] * 1000
    assert left_ms > 500_000  # and it expires as it would have
    scheduler.close()


def assert_untouched(guarded: Guarded) -> None:
    connection = Connection(guarded.settings("client-acme"))
    info = connection.run(functions.job_info(guarded.settings("client-acme").keys, THEIRS))
    assert (info.status, info.priority, info.deadline_at_ms is not None) == (JobStatus.QUEUED, 1, True)
    connection.close()
