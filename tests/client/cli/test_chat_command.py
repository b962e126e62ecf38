from __future__ import annotations

import fcntl
import os
import pty
import select
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from thinkstream_client import Client, JobStatus, Message
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import tenant_set

if TYPE_CHECKING:
    from tests.client.conftest import Worker

    from .conftest import Command, Process

    Start = Callable[..., Process]

ANSWER = "0 1 !"


def said(worker: Worker) -> list[list[str]]:
    """What each turn sent."""
    return [[message.content for message in request.messages or ()] for request in worker.requests]


def test_conversation_goes_into_each_turn(command: Command, worker: Worker) -> None:
    worker.start()
    lines = "one\n\n  two  \n/clear\nthree"
    ended = command("chat", "-n", 2, "-s", "Be brief.", stdin=lines)
    assert (ended.code, ended.out) == (0, f"{ANSWER}\n" * 3), "no prompt in a pipe"
    assert ended.err == "the conversation is forgotten\n"
    assert said(worker) == [
        ["Be brief.", "one"],
        ["Be brief.", "one", ANSWER, "two"],
        ["Be brief.", "three"],
    ]
    assert worker.requests[1].messages is not None
    assert worker.requests[1].messages[2] == Message("assistant", ANSWER)
    assert worker.requests[0].tags == ("chat",)


def test_once(command: Command, worker: Worker) -> None:
    worker.start()
    assert command("chat", "--once", "Hello", "-n", 2).out == f"{ANSWER}\n"
    assert "the prompt is empty" in command("chat", "--once", "").refused(2)


def test_that_nobody_answers_is_said(command: Command, client: Client, worker: Worker) -> None:
    told = command("chat", stdin="").err
    where = f"at {client.settings.masked_url}, namespace ts"
    assert told == f"no replica is alive {where}: answers come once one is\n"
    worker.start()
    assert command("chat", stdin="").err == ""


def test_words_of_its_own(command: Command, worker: Worker) -> None:
    worker.start()
    ended = command("chat", "-n", 2, stdin="/help\n/nonsense\n/etc/passwd\n/exit\nnever")
    assert (ended.code, ended.out) == (0, f"{ANSWER}\n"), "a path is no command"
    listed, refused = ended.err.splitlines()
    assert all(word in listed for word in ("/clear", "/exit", "/help"))
    assert refused == f"/nonsense is no command. {listed}"
    assert command("chat", stdin="/quit\nnever").out == ""
    assert said(worker) == [["/etc/passwd"]]


def test_seed_and_stop(command: Command, worker: Worker) -> None:
    worker.start()
    assert command("chat", "--once", "Hello", "-n", 2, "--seed", 7, "--stop", "!").code == 0
    sampling = worker.requests[0].sampling
    assert (sampling.seed, sampling.stop) == (7, ("!",))


def test_refused_turn_leaves_no_trace(command: Command, worker: Worker, client: Client) -> None:
    operator = Connection(client.settings)
    operator.run(tenant_set(client.settings.keys, 0, "small", max_bytes=400))
    operator.close()
    worker.start()
    ended = command("chat", "-n", 2, "-t", "small", stdin=f"{'x' * 500}\nshort\n")
    assert (ended.code, ended.out) == (0, f"{ANSWER}\n")
    assert ended.err.startswith("thinkstream: the tenant's queue is full (bytes)")
    assert said(worker) == [["short"]]


def test_ctrl_c_cancels_the_answer(start: Start, client: Client, worker: Worker) -> None:
    worker.start(allowed=2)
    process = start("chat", "-n", 4)
    process.write("one\n")
    assert process.read(4) == "0 1 "
    process.interrupt()
    assert process.read(1) == "\n"
    worker.allow(None)
    process.write("two\n")
    assert process.read(10) == "0 1 2 3 !\n"
    ended = process.end()
    assert (ended.code, ended.err) == (0, "cancelled\n")
    assert {job.status for job in client.jobs(tag="chat")} == {JobStatus.CANCELLED, JobStatus.DONE}
    assert said(worker) == [["one"], ["one", "0 1 ", "two"]]


def test_ctrl_c_ends_a_single_question(start: Start, client: Client, worker: Worker) -> None:
    worker.start(allowed=2)
    process = start("chat", "--once", "one")
    process.read(4)
    process.interrupt()
    assert process.end().code == 130
    assert client.jobs()[0].status is JobStatus.CANCELLED


@pytest.mark.parametrize("is_ended_by_ctrl_c", [False, True])
def test_at_a_terminal(start: Start, worker: Worker, is_ended_by_ctrl_c: bool) -> None:
    worker.start()
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = start(
        "chat",
        "-n",
        2,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)

    ahead = ""

    def read_until(text: str, *, again: bytes = b"") -> str:
        nonlocal ahead
        while text not in ahead:
            if select.select([ours], [], [], 1)[0]:
                ahead += os.read(ours, 1024).decode()
            else:
                os.write(ours, again)
        shown, _, ahead = ahead.partition(text)
        return shown

    assert "Ctrl-C cancels an answer" in read_until("> ")
    # Python sees a Ctrl-C that comes just before it waits for input only at the next one.
    read_until("Ctrl-C again or Ctrl-D ends", again=b"\x03")
    os.write(ours, b"one\n")
    read_until(ANSWER)
    read_until("> ")
    if is_ended_by_ctrl_c:
        read_until("Ctrl-C again or Ctrl-D ends", again=b"\x03")
        read_until("> ")
        time.sleep(0.5)  # until it waits
        os.write(ours, b"\x03")
    else:
        os.write(ours, b"\x04")
    assert process.end().code == 0
    os.close(ours)
