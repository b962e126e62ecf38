from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from thinkstream_client import Client, JobStatus, PromptTooLong
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.records import JobRef

if TYPE_CHECKING:
    from tests.client.conftest import Worker

    from .conftest import Command

    Until = Callable[[Callable[[], object]], None]


def test_inspect(command: Command, worker: Worker, client: Client, until: Until) -> None:
    worker.start(allowed=2)
    client.submit("Hello", id="seen", tags=["x", "y"], priority="high")
    until(lambda: client.job("seen").status() is JobStatus.RUNNING)
    note = json.dumps({"temperature": 0.6, "top_k": 20, "seed": 5, "stop": [], "logprobs": None})
    owner = Connection(client.settings)
    call = functions.note(client.settings.keys, 0, worker.session, "nonce", JobRef("default", "seen"), note)
    owner.run(call)
    owner.close()
    told = command("inspect", "seen", "--json").json
    assert (told["status"], told["priority"], told["tags"]) == ("running", "high", ["x", "y"])
    assert (told["owner"], told["sampling"]["top_k"]) == (worker.session, 20)
    assert (told["claims"], told["attempts"], told["error"]) == (1, 0, None)
    worker.allow(None)
    client.job("seen").result()
    shown = command("inspect", "seen").out
    rows = {line[:12].strip(): line[12:].strip() for line in shown.splitlines()}
    assert (rows["status"], rows["reason"], rows["tokens"]) == ("done", "length", "8")
    assert rows["waited"].endswith("s") and rows["ran"].endswith("s") and rows["result kept"] == "1 h 0 min"
    assert rows["sampling"] == "temperature 0.6, top_k 20, seed 5"
    assert "logprobs" not in shown and "deadline" not in rows


def test_inspect_tells_who_had_it_and_what_it_took(
    command: Command, worker: Worker, next_worker: Worker, client: Client, until: Until
) -> None:
    assert command("inspect", client.submit("Hello", id="waiting").id, "--json").json["tenures"] == []
    client.job("waiting").cancel()
    worker.start(allowed=3)
    stream = client.submit("Hello", id="seen").stream(timeout_s=10)
    for _ in range(3):
        next(stream)
    told = command("inspect", "seen", "--json").json
    assert (told["usage"], told["timings"]) == (None, None)
    worker.die()
    next_worker.start()
    client.job("seen").result(timeout_s=10)
    told = command("inspect", "seen", "--json").json
    had = [(one["number"], one["session"], one["num_tokens"]) for one in told["tenures"]]
    assert had == [(1, worker.session, 0), (2, next_worker.session, 3)]
    assert told["tenures"][1]["claimed_ms"] == told["claimed_ms"]
    assert told["usage"] == {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 8}
    assert told["timings"] == {"queued_ms": 1, "prefill_ms": 20, "first_token_ms": 30, "decode_ms": 1400}
    rows = {line[:12].strip(): line[12:].strip() for line in command("inspect", "seen").out.splitlines()}
    assert rows["claim 1"].endswith(worker.session)
    assert rows["claim 2"].endswith(f"{next_worker.session}, from token 3")
    assert rows["usage"] == "3 prompt (0 cached), 8 result"
    assert rows["timings"] == "queued 1 ms, prefill 20 ms, first token 30 ms, decode 1.4 s"


def test_inspect_takes_no_message_for_markup(command: Command, worker: Worker, client: Client) -> None:
    worker.start()
    with pytest.raises(PromptTooLong):
        client.submit("too long", id="long").result(timeout_s=10)
    rows = {line[:12].strip(): line[12:].strip() for line in command("inspect", "long").out.splitlines()}
    assert rows["error"] == "PromptTooLong: too [/long]"


def test_jobs(command: Command, client: Client) -> None:
    assert command("jobs").err == "tenant default has no jobs\n"
    for name in ("a", "b" * 90):
        client.submit("Hello", id=name, tags=["night"])
    client.submit("Hello", id="c")
    assert command("jobs", "--json").json[0]["id"] == "c"
    assert {job["id"] for job in command("jobs", "--tag", "night", "--json").json} == {"a", "b" * 90}
    shown = command("jobs", "--tag", "night").out.splitlines()
    assert len(shown) == 3, "a pipe gets whole lines"
    assert any("b" * 90 in line and "queued" in line and "night" in line for line in shown)
    assert "no jobs with the tag none" in command("jobs", "--tag", "none").err
    assert len(command("jobs", "--limit", 2, "--json").json) == 2


def test_inspect_leaves_out_what_nobody_knows(command: Command, client: Client) -> None:
    client.submit("Hello", id="gone").cancel()
    shown = command("inspect", "gone").out
    assert "cancelled" in shown and "usage" not in shown and "timings" not in shown
    told = command("inspect", "gone", "--json").json
    assert (told["usage"], told["timings"]) == (None, None)
