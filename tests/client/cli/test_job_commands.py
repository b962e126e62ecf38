from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from thinkstream_client import Client, JobStatus, Message
from thinkstream_client.core import submission

if TYPE_CHECKING:
    from tests.client.conftest import Worker

    from .conftest import Command, Process

    Start = Callable[..., Process]

NO_JOB = "4f0c21d7a9be5e6f01c3a2d4"


def test_submit_prints_the_text_alone(command: Command, worker: Worker) -> None:
    worker.start()
    ended = command("submit", "Hello", "-s", "Be brief.", "-n", 4)
    assert (ended.code, ended.out) == (0, "0 1 2 3 !\n")
    assert ended.err.startswith("length: 3 prompt + 4 answer tokens") and ended.err.count("\n") == 1
    assert worker.requests[0].messages == (Message("system", "Be brief."), Message("user", "Hello"))


def test_submit_takes_every_sampling_option(command: Command, worker: Worker) -> None:
    worker.start()
    options = ("--temperature", 0, "--top-p", 0.5, "--top-k", 4, "--stop", "a", "--stop", "b", "--seed", 7)
    assert command("submit", "Hello", "-n", 2, *options).code == 0
    sampling = worker.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 4)
    assert (sampling.stop, sampling.seed, sampling.max_tokens) == (("a", "b"), 7, 2)


def test_prompt_from_stdin(command: Command, worker: Worker) -> None:
    worker.start()
    assert command("submit", "-", stdin="Привет\n\n").code == 0
    assert command("submit", "-", "--raw", stdin="Hi\n").out.startswith("3 4 ")
    assert worker.requests[0].messages == (Message("user", "Привет\n"),)
    assert worker.requests[1].prompt == "Hi\n"
    assert "UTF-8" in command("submit", "-", stdin=b"ab\xffcd").refused(2)


def test_submit_json(command: Command, worker: Worker) -> None:
    worker.start()
    told = command("submit", "abc", "--raw", "-n", 2, "--json", "--id", "one", "-t", "me").json
    assert (told["id"], told["tenant"], told["text"], told["token_ids"]) == ("one", "me", "3 4 !", [3, 4])
    assert (told["finish_reason"], told["error"]) == ("length", None)
    assert told["usage"]["completion_tokens"] == 2 and "decode_ms" in told["timings"]


def test_detach_then_attach_from_the_middle(command: Command, worker: Worker) -> None:
    job_id = command("submit", "Hello", "--detach").out.strip()
    assert command("submit", "Hello", "-d", "--json", "--id", "b").json == {"id": "b", "tenant": "default"}
    worker.start()
    assert command("attach", job_id).out == "0 1 2 3 4 5 6 7 !\n"
    assert command("attach", job_id, "--from", 6).out == "6 7 !\n"
    assert command("attach", job_id, "--from", 8, "--json").json["text"] == "0 1 2 3 4 5 6 7 !"


def test_failed_job(command: Command, worker: Worker) -> None:
    worker.start()
    line = command("submit", "too long", "--raw").refused(2)
    assert line == "thinkstream: the prompt has 9 tokens, the limit is 4\n"
    ended = command("submit", "too long", "--raw", "--json")
    assert (ended.code, ended.json["finish_reason"], ended.json["text"]) == (2, "failed", "")
    assert ended.json["error"] == {
        "code": "PromptTooLong",
        "message": line.removeprefix("thinkstream: ")[:-1],
    }


def test_cancel(command: Command, worker: Worker, client: Client) -> None:
    job = client.submit("Hello")
    assert command("cancel", job.id).out == "cancelled\n"
    assert command("cancel", job.id, "--json").json == {"id": job.id, "status": "cancelled"}
    assert command("attach", job.id).refused(3) == f"thinkstream: job {job.id}: was cancelled\n"
    worker.start()
    done = client.submit("Hello")
    done.result()
    assert command("cancel", done.id).out == "it had ended before: done\n"


@pytest.mark.parametrize("name", ["attach", "cancel", "inspect"])
def test_unknown_job(command: Command, name: str) -> None:
    assert command(name, NO_JOB).refused(3) == f"thinkstream: job {NO_JOB}: not found\n"
    assert "A-Z a-z 0-9" in command(name, "a b").refused(2)


def test_no_word_of_replicas_where_none_is_needed(command: Command, client: Client, worker: Worker) -> None:
    client.submit("Hello", id="one").cancel()
    assert "no replica" not in command("attach", "one").err
    worker.start()
    assert "no replica" not in command("submit", "Hello").err


def test_ctrl_c_on_submit_detaches(start: Start, client: Client, worker: Worker, command: Command) -> None:
    worker.start(allowed=3)
    process = start("submit", "Hello", "--id", "kept")
    assert process.read(6) == "0 1 2 "
    process.interrupt()
    ended = process.end()
    assert (ended.code, ended.out) == (130, "\n")
    assert ended.err == "detached; the job runs on: thinkstream attach kept\n"
    assert client.job("kept").status() is JobStatus.RUNNING
    worker.allow(None)
    assert command("attach", "kept", "--from", 3).out == "3 4 5 6 7 !\n"


def test_ctrl_c_in_the_queue_detaches(start: Start, client: Client) -> None:
    process = start("submit", "Hello", "--json", "-t", "me")
    (told, where, queue) = process.read_note().partition(f", namespace {client.settings.namespace}: job ")
    assert told == f"no replica is alive at {client.settings.masked_url}" and where
    process.interrupt()
    (job,) = client.jobs(tenant="me")
    assert queue == f"{job.ref.job_id} waits in the queue\n"
    ended = process.end()
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.endswith(
        f"; the job waits in the queue: thinkstream attach {job.ref.job_id} --tenant me\n"
    )


def test_how_to_attach_names_what_was_named(start: Start, client: Client) -> None:
    url = client.settings.url.replace("//", "//default:secret@")
    process = start("submit", "Hello", "--id", "kept", "--namespace", "other", "--url", url)
    assert ", namespace other: job kept waits in the queue" in process.read_note()
    process.interrupt()
    masked = url.replace("secret", "***")
    assert process.end().err.endswith(f": thinkstream attach kept --url '{masked}' --namespace other\n")


def test_deadline_that_is_over_at_once_is_named_as_it_was_given(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def already_over(deadline_s: float | None) -> int:
        return -5

    monkeypatch.setattr(submission, "deadline_ms", already_over)
    line = command("submit", "Hello", "--deadline-s", "0.0001").refused(2)
    assert "deadline_s: got 0.0001, allowed: a time that is not over" in line


def test_reader_that_has_gone(start: Start, worker: Worker) -> None:
    worker.start(allowed=1)
    process = start("submit", "Hello", "-n", 50)
    process.read(2)
    process.close_output()
    worker.allow(None)
    ended = process.end()
    assert (ended.code, ended.err) == (1, "")
