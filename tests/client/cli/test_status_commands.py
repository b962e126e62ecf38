from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from thinkstream_client import Client

if TYPE_CHECKING:
    from tests.client.conftest import Worker

    from .conftest import Command


def test_status_without_replicas(command: Command, client: Client) -> None:
    client.submit("Hello", priority="high")
    client.submit("Hello", tenant="small", priority="low")
    shown = command("status")
    assert (shown.code, shown.err) == (1, "")
    assert "\nno replica is alive: jobs wait in the queue\n" in shown.out
    told = command("status", "--json")
    assert told.code == 1 and told.json["replicas"] == []
    assert told.json["queues"]["classes"]["high"] == {"waiting": 1, "again": 0}
    assert told.json["queues"]["classes"]["normal"] == {"waiting": 0, "again": 0}
    assert {one["tenant"]: one["waiting"] for one in told.json["tenants"]} == {"default": 1, "small": 1}


def test_status_with_a_replica(command: Command, client: Client, worker: Worker) -> None:
    worker.start(allowed=1)
    for _ in client.submit("Hello").stream():
        break
    told = command("status", "--json")
    assert told.code == 0
    assert (told.json["namespace"], told.json["server"]["name"]) == ("ts", "Valkey")
    (replica,) = told.json["replicas"]
    assert (replica["replica"], replica["session"]) == ("test", worker.session)
    assert (replica["running"], replica["slots"], replica["draining"]) == (1, 64, False)
    assert told.json["queues"]["running"] == 1 and told.json["queues"]["dead_letters"] == 0
    shown = command("status")
    assert shown.code == 0 and "no replica" not in shown.out
    assert ["test", "1", "64", "alive"] in [line.split() for line in shown.out.splitlines()]


def test_status_shows_the_load(command: Command, client: Client, worker: Worker) -> None:
    worker.start()
    worker.beat(waiting="2", free_blocks="40", num_blocks="64", tokens="512", device="[/gpu]")
    (replica,) = command("status", "--json").json["replicas"]
    assert replica["load"] == {"waiting": 2, "free_blocks": 40, "num_blocks": 64, "tokens": 512}
    assert replica["info"] == {"device": "[/gpu]"}
    lines = [line.split() for line in command("status").out.splitlines()]
    assert ["replica", "running", "slots", "state", "waiting", "free", "blocks", "tokens", "device"] in lines
    assert ["test", "0", "64", "alive", "2", "40", "of", "64", "512", "[/gpu]"] in lines


def test_status_hides_the_password(command: Command, redis_url: str) -> None:
    url = redis_url.replace("://", "://default:secret@")
    shown = command("status", "--url", url)
    assert "secret" not in shown.out + shown.err


def test_tenant_set(command: Command, client: Client) -> None:
    shown = command("tenant", "set", "small", "--weight", 2.5, "--max-jobs", 1)
    assert (shown.code, shown.out) == (0, "small: weight 2.5, at most 1 waiting\n")
    client.submit("Hello", tenant="small")
    assert "queue is full (jobs)" in command("submit", "Hello", "-t", "small", "-d").refused(1)
    told = command("tenant", "set", "small", "--max-jobs", 0, "--max-running", 3, "--json").json
    assert (told["weight"], told["max_jobs"], told["max_running"], told["waiting"]) == (2.5, 0, 3, 1)
    assert "at most 3 running" in command("status").out
    assert command("tenant", "set", "new").out == "new: weight 1, no caps\n"


def test_tenant_drop(command: Command, client: Client) -> None:
    command("tenant", "set", "small", "--weight", 2.5, "--max-jobs", 1)
    assert command("tenant", "drop", "small").err == "small: forgotten; weight 1 and no caps from now on\n"
    assert command("tenant", "list").err == "no tenant has settings or jobs\n"
    assert command("tenant", "drop", "small").refused(2) == "thinkstream: tenant small: it had no settings\n"
    command("tenant", "set", "small", "--weight", 3)
    told = command("tenant", "drop", "small", "--json").json
    assert (told["tenant"], told["weight"]) == ("small", 1)
    client.submit("Hello", tenant="busy")
    assert "tenant busy: it had no settings" in command("tenant", "drop", "busy").refused(2)
    assert "tenant: got 'a b'" in command("tenant", "drop", "a b").refused(2)


def test_tenant_list(command: Command, client: Client) -> None:
    assert command("tenant", "list").err == "no tenant has settings or jobs\n"
    command("tenant", "set", "small", "--weight", 2.5, "--max-jobs", 7)
    client.submit("Hello")
    lines = [line.split() for line in command("tenant", "list").out.splitlines()]
    assert lines == [
        ["tenant", "weight", "waiting", "running", "caps"],
        ["default", "1", "1", "0"],
        ["small", "2.5", "0", "0", "at", "most", "7", "waiting"],
    ]
    told = command("tenant", "list", "--json").json
    assert told == command("status", "--json").json["tenants"]


def test_help_of_tenants_says_what_counts(command: Command) -> None:
    assert "10 s of it at once" in " ".join(command("tenant", "set", "--help").out.replace("│", " ").split())
    assert "settings, or waiting or running jobs" in " ".join(command("tenant", "list", "--help").out.split())


def test_status_says_what_its_columns_are(command: Command) -> None:
    shown = " ".join(command("status", "--help").out.split())
    assert all(word in shown for word in ("slots", "free blocks", "draining", "of them again", "weight"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("small", "--weight", 0), "weight: got 0.0, allowed: a number in [0.001, 1000]"),
        (("small", "--weight", "nan"), "weight: got nan"),
        (("small", "--max-jobs", -1), "--max-jobs"),
        (("small", "--max-bytes", "many"), "--max-bytes"),
        (("a b", "--weight", 1), "tenant: got 'a b'"),
        ((), "tenant"),
    ],
)
def test_tenant_set_refuses(command: Command, args: tuple[object, ...], words: str) -> None:
    assert words in command("tenant", "set", *args).refused(2)
    assert command("status", "--json").json["tenants"] == []


def test_server_that_evicts(command: Command, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
    for args in (("status",), ("submit", "Hello"), ("chat",)):
        assert "set maxmemory-policy to noeviction" in command(*args).refused(2)


def test_other_protocol(command: Command, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as server:
        server.hset("ts:meta", mapping={"protocol": "9", "partitions": "1"})
    assert "was set up for protocol 9, this is 1" in command("submit", "Hello").refused(2)
