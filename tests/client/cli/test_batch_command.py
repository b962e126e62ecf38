from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from thinkstream_client import Client, JobStatus

if TYPE_CHECKING:
    from tests.client.conftest import Worker

    from .conftest import Command, Process

    Start = Callable[..., Process]
    Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def write(path: Path, lines: Iterable[dict[str, Any] | str]) -> None:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def short(name: str, prompt: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"id": name, "prompt": prompt, **fields}


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The results by id, each of which must be there once."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    by_id = {row["custom_id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def test_both_forms_of_lines(command: Command, worker: Worker, source: Path, target: Path) -> None:
    worker.start()
    body = {"model": "q", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    chat = {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": body}
    write(source, [chat, "", short("привет", "abc", max_tokens=2, tags=["own"])])
    ended = command("batch", source, "-o", target, "--tag", "night")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("2 done, 0 failed, 4 tokens in ") and ended.err.count("\n") == 1
    found = rows(target)
    answer = found["chat"]["response"]["body"]
    assert (answer["object"], answer["model"]) == ("chat.completion", "q")
    assert answer["choices"][0]["message"]["content"] == "0 1 !"
    assert found["привет"]["response"]["body"]["choices"][0]["text"] == "3 4 !"
    tagged = command("jobs", "--tag", "night", "--json").json
    assert len(tagged) == 2 and {job["priority"] for job in tagged} == {"low"}


def test_bad_lines_get_result_lines(command: Command, worker: Worker, source: Path, target: Path) -> None:
    worker.start()
    lines: list[dict[str, Any] | str] = [
        short("good"),
        "oops",
        short("good", "another"),
        short("hot", temperature=-1),
        short("long", "too long"),
        '{"id": "half", "prompt": "\\ud800"}',
        '{"id": "\\ud800", "prompt": "x", "top_p": 2}',
    ]
    write(source, lines)
    ended = command("batch", source, "-o", target, "--json")
    assert (ended.code, ended.err) == (3, "")
    assert (ended.json["done"], ended.json["failed"], ended.json["already_there"]) == (1, 6, 0)
    found = rows(target)
    assert found["good"]["error"] is None and found["good"]["response"]["status_code"] == 200
    errors = {name: row["error"] for name, row in found.items() if row["error"]}
    assert errors.keys() == {"#line-2", "#line-3", "hot", "long", "half", "\ud800"}
    assert errors["#line-3"]["message"].startswith("line 3: id: got 'good'")
    assert errors["#line-3"]["message"].endswith("this one is there twice")
    assert errors["long"]["code"] == "PromptTooLong"
    again = command("batch", source, "-o", target, "--json")
    assert (again.code, again.json["failed"], again.json["already_there"]) == (3, 6, 1)
    assert rows(target) == found, "what was refused is refused again, in the place of the first time"


def test_broken_line_under_the_id_of_a_good_one(
    start: Start, command: Command, worker: Worker, source: Path, target: Path, until: Until
) -> None:
    # The broken lines are told of at once, while the good ones wait for a replica.
    write(source, [short("a"), short("a") | {"prompt": 5}, "oops", short("line-3"), short("line-2")])
    first = start("batch", source, "-o", target)
    until(lambda: target.exists() and target.read_bytes().count(b"\n") == 2)
    first.kill()
    worker.start()
    ended = command("batch", source, "-o", target, "--json")
    assert (ended.code, ended.json["done"], ended.json["failed"]) == (3, 3, 2)
    found = rows(target)
    assert [name for name, row in found.items() if row["error"]] == ["#line-2", "#line-3"]
    assert found.keys() == {"a", "line-3", "line-2", "#line-2", "#line-3"}


@pytest.mark.parametrize("is_killed", [False, True])
def test_repaired_lines_run(
    start: Start,
    command: Command,
    worker: Worker,
    source: Path,
    target: Path,
    until: Until,
    is_killed: bool,
) -> None:
    worker.start()
    long, bad = short("long", "too long"), short("hot", temperature=-1)
    write(source, [short("good"), bad, long, "oops", short("other", top_p=2)])
    assert command("batch", source, "-o", target).code == 3
    good = rows(target)["good"]
    write(source, [short("good"), short("hot"), short("long"), short("fourth"), short("other", top_p=2)])
    if is_killed:
        worker.allow(0)
        again = start("batch", source, "-o", target)
        until(lambda: b"hot" not in target.read_bytes())
        again.kill()
        worker.allow(None)
    ended = command("batch", source, "-o", target)
    assert ended.code == 3
    assert "1 result is there already, 4 missing" in ended.err
    found = rows(target)
    assert [name for name, row in found.items() if row["error"]] == ["other"]
    assert found.keys() == {"good", "hot", "long", "fourth", "other"}
    assert found["good"] == good, "an answer stays as it is"


def test_refusals_are_taken_out_of_what_a_link_names(
    command: Command, worker: Worker, source: Path, target: Path, tmp_path: Path
) -> None:
    worker.start()
    write(source, [short("a", temperature=-1)])
    link = tmp_path / "link"
    link.symlink_to(target)
    assert command("batch", source, "-o", link).code == 3
    target.chmod(0o640)
    write(source, [short("a")])
    assert command("batch", source, "-o", link).code == 0
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o640
    assert rows(target)["a"]["error"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "link", "out.jsonl"}


def test_errors_that_are_there_already_are_counted(
    command: Command, worker: Worker, source: Path, target: Path
) -> None:
    worker.start()
    write(source, [short("a"), short("b")])
    assert command("batch", source, "-o", target).code == 0
    first, second, _ = target.read_text().split("\n")
    failed = json.loads(second) | {"response": None, "error": {"code": "JobFailed", "message": "oops"}}
    target.write_text(f"{first}\n{json.dumps(failed)}\n")
    ended = command("batch", source, "-o", target)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "2 results are there already (1 error among them), 0 missing\n"
    ended = command("batch", source, "-o", target, "--json")
    assert (ended.code, ended.json["already_failed"], ended.json["failed"]) == (3, 1, 0)


def test_first_errors_are_shown(command: Command, worker: Worker, source: Path, target: Path) -> None:
    worker.start()
    write(source, [short("a"), *(short(f"b{n}", max_token=n) for n in range(4))])
    told = command("batch", source, "-o", target).err.splitlines()
    assert told[:3] == [f"line {n + 2}: max_token: got {n}, allowed: no such field" for n in range(3)]
    assert told[3] == f"the rest in {target}" and told[4].startswith("1 done, 4 failed, ")
    write(source, [short("long", "too long")])
    told = command("batch", source, "-o", target).err.splitlines()
    assert told[1] == f"4 refusals in {target} of lines that are gone: take them out"
    assert told[2].startswith("line 1: the prompt has ") and told[3].startswith("0 done, 1 failed, ")


def test_refusals_of_lines_that_are_gone_stay_errors(
    command: Command, worker: Worker, source: Path, target: Path
) -> None:
    worker.start()
    write(source, [short("a"), short("bad", temperature=-3)])
    assert command("batch", source, "-o", target).code == 3
    write(source, [short("a")])
    ended = command("batch", source, "-o", target)
    assert ended.code == 3
    assert ended.err.endswith(f"1 refusal in {target} of lines that are gone: take them out\n")


def test_only_what_is_missing_is_submitted(
    command: Command, client: Client, worker: Worker, source: Path, target: Path
) -> None:
    worker.start()
    write(source, [short("a"), short("b")])
    command("batch", source, "-o", target)
    first = target.read_bytes()
    # An answer may hold line breaks of Unicode; they end no line.
    target.write_bytes(first.replace(b"!", "\u2028\x85!".encode()))
    write(source, [short("a"), short("b"), short("c")])
    ended = command("batch", source, "-o", target)
    assert ended.code == 0 and ended.err.startswith("2 results are there already, 1 missing\n")
    assert rows(target).keys() == {"a", "b", "c"} and len(client.jobs()) == 3
    whole = target.read_bytes()
    assert command("batch", source, "-o", target).err == "3 results are there already, 0 missing\n"
    assert target.read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 2, 40, -15, -1])
def test_torn_last_line(
    command: Command, client: Client, worker: Worker, source: Path, target: Path, cut: int
) -> None:
    worker.start()
    write(source, [short("a"), short("b")])
    command("batch", source, "-o", target)
    first, second, _ = target.read_bytes().split(b"\n")
    target.write_bytes(first + b"\n" + (second + b"\n")[:cut])
    ended = command("batch", source, "-o", target, "--json").json
    assert ended["already_there"] == (2 if cut == -1 else 1), "a whole line only lacked its line break"
    assert rows(target).keys() == {"a", "b"} and len(client.jobs()) == 2


def test_results_that_have_expired_are_made_again(
    command: Command, client: Client, worker: Worker, source: Path, target: Path, redis_url: str
) -> None:
    worker.start()
    write(source, [short("a"), short("b")])
    command("batch", source, "-o", target)
    target.unlink()
    with redis.Redis.from_url(redis_url) as server:
        ref = next(job.ref for job in client.jobs() if job.ref.job_id.endswith(".a"))
        server.delete(client.settings.keys.out(ref))
    ended = command("batch", source, "-o", target, "--json")
    assert (ended.code, ended.json["done"], ended.json["failed"]) == (0, 2, 0)
    assert rows(target).keys() == {"a", "b"} and len(client.jobs()) == 3


def test_killed_in_the_middle(
    start: Start, command: Command, client: Client, worker: Worker, source: Path, target: Path, until: Until
) -> None:
    names = [f"item-{number}" for number in range(300)]
    write(source, [short(name, max_tokens=16 + 16 * (i % 40)) for i, name in enumerate(names)])
    worker.start(allowed=6)
    first = start("batch", source, "-o", target, "--in-flight", 100)
    until(lambda: target.exists() and target.read_bytes().count(b"\n") >= 10)
    first.kill()
    num_written = target.read_bytes().count(b"\n")
    assert num_written < 300
    worker.allow(None)
    ended = command("batch", source, "-o", target, "--json")
    assert (ended.code, ended.json["done"]) == (0, 300 - num_written)
    found = rows(target)
    assert sorted(found) == sorted(names)
    assert len(client.jobs(limit=1000)) == 300, "no job was submitted twice"


def test_ctrl_c_detaches(
    start: Start, client: Client, worker: Worker, source: Path, target: Path, command: Command, until: Until
) -> None:
    write(source, [short("a"), short("b", max_tokens=64)])
    worker.start(allowed=1)
    process = start("batch", source, "-o", target)
    until(lambda: target.exists() and target.read_bytes().count(b"\n") == 1)
    other = command("batch", source, "-o", target).refused(2)
    assert other == f"thinkstream: {target}: another run is writing it\n"
    process.interrupt()
    ended = process.end()
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.startswith("detached; ") and ended.err.count("\n") == 1
    assert {job.status for job in client.jobs()} == {JobStatus.DONE, JobStatus.RUNNING}
    worker.allow(None)
    assert command("batch", source, "-o", target).code == 0
    assert rows(target).keys() == {"a", "b"}


def test_files_that_cannot_be_used(
    command: Command, client: Client, worker: Worker, source: Path, target: Path, tmp_path: Path
) -> None:
    missing = command("batch", source, "-o", target).refused(2)
    assert missing == f"thinkstream: {source}: No such file or directory\n"
    assert not target.exists()
    source.write_bytes(b'{"id": "a"}\n\xff\n')
    assert command("batch", source, "-o", target).refused(2).endswith("line 2 is not UTF-8\n")
    write(source, [short("a")])
    assert str(tmp_path) in command("batch", source, "-o", tmp_path).refused(2)
    assert "No such file" in command("batch", source, "-o", tmp_path / "none" / "out").refused(2)
    assert "results would go into the requests" in command("batch", source, "-o", source).refused(2)
    for text in ("my notes", "my notes\n", '{"id": "batch_req_1", "custom_id": "a"}\nmy notes'):
        target.write_text(text)
        assert "something else than results" in command("batch", source, "-o", target).refused(2)
        assert target.read_text() == text
    assert client.jobs() == [], "nothing was submitted before the file was open"
    worker.start()
    target.write_text("\n")
    source.write_bytes(b"\xef\xbb\xbf" + json.dumps(short("a")).encode() + b"\r\n")
    assert command("batch", source, "-o", target).code == 0


def test_no_replica_is_said(start: Start, source: Path, target: Path, client: Client, until: Until) -> None:
    write(source, [short("a")])
    process = start("batch", source, "-o", target)
    until(client.jobs)
    process.interrupt()
    assert process.end().err.startswith(
        f"no replica is alive at {client.settings.masked_url}, namespace ts: the jobs wait in the queue\n"
    )


def test_requests_from_stdin(command: Command, worker: Worker, target: Path) -> None:
    worker.start()
    given = '{"id": "a", "prompt": "Hello"}\n{"id": "b"}\n'
    ended = command("batch", "-", "-o", target, stdin=given)
    assert ended.code == 3
    assert ended.err.startswith(
        "line 2: prompt: got None, allowed: exactly one of prompt, messages and token_ids"
    )
    assert rows(target).keys() == {"a", "b"}


def test_empty_file(command: Command, source: Path, target: Path) -> None:
    write(source, ["", "  "])
    began_s = time.monotonic()
    assert command("batch", source, "-o", target, "--json").json["done"] == 0
    assert time.monotonic() - began_s < 5


def test_device_as_target(command: Command, worker: Worker, source: Path) -> None:
    worker.start()
    write(source, [short("a")])
    assert json.loads(command("batch", source, "-o", "/dev/stdout").out)["custom_id"] == "a"
    assert "No space left on device" in command("batch", source, "-o", "/dev/full").refused(2)
