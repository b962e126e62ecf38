from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
import typer

from thinkstream_client.cli import app
from thinkstream_client.errors import (
    ConfigError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    PromptTooLong,
    QueueFull,
    ServiceUnavailable,
    ThinkstreamError,
)

if TYPE_CHECKING:
    from thinkstream_client import Client

    from .conftest import Command

COMMANDS = [
    (),
    ("submit",),
    ("attach",),
    ("cancel",),
    ("inspect",),
    ("jobs",),
    ("chat",),
    ("batch",),
    ("status",),
    ("tenant",),
    ("tenant", "set"),
    ("tenant", "list"),
    ("up",),
    ("down",),
    ("demo",),
]
NOBODY = "redis://127.0.0.1:1"


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_help_has_an_example(command: Command, name: tuple[str, ...]) -> None:
    shown = command(*name, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert f"Example: thinkstream {' '.join(name)}" in " ".join(shown.out.split())


def test_no_arguments_is_help(command: Command) -> None:
    shown = command()
    assert shown.code == 2 and "submit" in shown.out and "batch" in shown.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"thinkstream {version('thinkstream')}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("bogus",), "No such command 'bogus'; see `thinkstream --help`"),
        (("submit",), "Missing argument 'prompt'; see `thinkstream submit --help`"),
        (("submit", "Hello", "--bogus"), "No such option: --bogus"),
        (("submit", "Hello", "--top-k", "x"), "--top-k"),
        (("submit", "Hello", "--temperature", "nan"), "sampling.temperature: got nan"),
        (("submit", "Hello", "--temperature", -1), "sampling.temperature: got -1.0"),
        (("submit", "Hello", "--top-p", 0), "sampling.top_p: got 0.0, allowed: a number in (0, 1]"),
        (("submit", "Hello", "-n", 0), "sampling.max_tokens: got 0"),
        (("submit", "Hello", "--priority", "urgent"), "priority: got 'urgent', allowed: high, normal, low"),
        (("submit", "Hello", "--deadline-s", 0), "deadline_s: got 0.0"),
        (("submit", "Hello", "--id", "a b"), "id: got 'a b'"),
        (("submit", "Hello", "--tag", "a b"), "tags: got 'a b'"),
        (("submit", "Hello", "-t", ""), "tenant: got ''"),
        (("submit", ""), "the prompt is empty; see `thinkstream submit --help`"),
        (("submit", "Hello", "--url", "http://here"), "expected redis://host:port"),
        (("status", "--namespace", "a:b"), "namespace: got 'a:b'"),
        (("attach", "one", "--from", -1), "--from"),
    ],
)
def test_wrong_usage_takes_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...], words: str
) -> None:
    # What is wrong with a request is told before anything is asked of a server.
    monkeypatch.setenv("THINKSTREAM_URL", NOBODY)
    assert words in command(*args).refused(2)


def test_conflict(command: Command) -> None:
    command("submit", "Hello", "--id", "one", "-d")
    assert command("submit", "Hello", "--id", "one", "-d").out == "one\n"
    assert "exists with another payload" in command("submit", "Bye", "--id", "one", "-d").refused(2)


@pytest.mark.parametrize(
    "args",
    [("submit", "Hello"), ("attach", "one"), ("jobs",), ("chat",), ("status",), ("tenant", "set", "a")],
)
def test_nobody_there(command: Command, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]) -> None:
    assert NOBODY in command(*args, "--url", NOBODY).refused(1)
    monkeypatch.delenv("THINKSTREAM_URL")
    assert "start one with `thinkstream up`" in command(*args).refused(1)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ServiceUnavailable("away"), 1),
        (QueueFull("jobs", 5), 1),
        (ConfigError("wrong"), 2),
        (InvalidRequest("top_p", 2, "less"), 2),
        (PromptTooLong(9, 4), 2),
        (JobCancelled("j"), 3),
        (JobFailed("j", "StepFailed", "two\nlines"), 3),
    ],
)
def test_exit_codes(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: ThinkstreamError, code: int
) -> None:
    def fail() -> None:
        raise error

    def build_app() -> typer.Typer:
        failing = typer.Typer()
        failing.command()(fail)
        return failing

    monkeypatch.setattr(app, "build_app", build_app)
    assert command().refused(code) == f"thinkstream: {' '.join(str(error).split())}\n"


def test_interrupt(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "build_app", interrupt)
    assert command().code == 130


def test_missing_package_of_the_extra(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = command("up")
    assert ended.code == 2
    assert "pip install 'thinkstream[service]'" in ended.err and ended.err.count("\n") == 1


def test_colours_only_at_a_terminal(command: Command) -> None:
    for args in (("jobs",), ("status",), ("submit",)):
        shown = command(*args)
        assert "\x1b" not in shown.out + shown.err


def test_module_runs_as_a_script() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "thinkstream_client.cli", "--version"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"thinkstream {version('thinkstream')}\n"


BIG = "1" + "0" * 30
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("jobs", "--limit", BIG), "--limit': got '1000"),
        (("jobs", "--limit", "0"), "got '0', allowed: an integer in [1, 1000000]"),
        (("jobs", "--limit", "x"), "got 'x', allowed: an integer in [1, 1000000]"),
        (("batch", "in", "-o", "out", "--in-flight", "0"), "got '0', allowed: an integer in [1, 1048576]"),
        (("attach", "j", "--from", "-1"), "got '-1', allowed: an integer in [0, "),
        (("tenant", "set", "a", "--max-jobs", "-1"), "got '-1', allowed: an integer in [0, 10000000000000]"),
    ],
)
def test_a_number_is_refused_with_what_is_allowed(command: Command, args: tuple[str, ...], told: str) -> None:
    assert told in command(*args).refused(2)


def test_help_shows_no_value_for_flags(command: Command) -> None:
    for name in ("submit", "jobs", "batch", "status", "up", "down"):
        shown = command(name, "--help").out
        flags = [line for line in shown.splitlines() if "<bool>" in line]
        assert all("--help" in line for line in flags), flags
        assert "<=x<=" not in shown


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("temperature", ("submit", "x", "--temperature", "nan")),
        ("temperature", ("submit", "x", "--temperature", "1e400")),
        ("top_p", ("submit", "x", "--top-p", "-inf")),
        ("top_k", ("submit", "x", "--top-k", BIG)),
        ("max_tokens", ("submit", "x", "--max-tokens", BIG)),
        ("--max-tokens", ("submit", "x", "--max-tokens", HUGE)),
        ("seed", ("submit", "x", "--seed", BIG)),
        ("deadline_s", ("submit", "x", "--deadline-s", "nan")),
        ("deadline_s", ("submit", "x", "--deadline-s", HUGE)),
        ("stop[0]", ("submit", "x", "--stop", "\udc80")),
        ("messages[0].content", ("submit", "\udc80")),
        ("prompt", ("submit", "\udc80", "--raw")),
        ("id", ("submit", "x", "--id", "\udc80")),
        ("--from", ("attach", "j", "--from", BIG)),
        ("--limit", ("jobs", "--limit", BIG)),
        ("--limit", ("jobs", "--limit", "0")),
        ("--limit", ("dead", "list", "--limit", BIG)),
        ("weight", ("tenant", "set", "a", "--weight", "nan")),
        ("--max-jobs", ("tenant", "set", "a", "--max-jobs", BIG)),
        ("--max-tokens-per-s", ("tenant", "set", "a", "--max-tokens-per-s", BIG)),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_name(
    command: Command, client: Client, name: str, args: tuple[str, ...]
) -> None:
    client.submit("x", id="j")
    told = command(*args).refused(2)
    assert name in told and len(told) < 6000
