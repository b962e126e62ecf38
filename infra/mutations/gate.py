"""Runs the tests that the mutations name, in this process, and tells what became of each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from .mutation import Mutation, loaded

_TESTS = Path(__file__).parents[2] / "tests" / "client" / "protocol"
_OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a mutation met.

    Attributes:
        mutation: The mutation.
        problem: Why it counts as not caught; empty where the test failed as it should.
    """

    mutation: Mutation
    problem: str = ""


class _Recorder:
    """How many tests ran, and which phase failed first."""

    def __init__(self) -> None:
        self.num_run = 0
        self.failed_in: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes one phase of one test."""
        self.num_run += report.when == "call"
        if report.failed and self.failed_in is None:
            self.failed_in = report.when


def run(tests: Sequence[str]) -> _Recorder:
    """Runs tests quietly, up to the first failure."""
    recorder = _Recorder()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*_OPTIONS, *dict.fromkeys(_node(test) for test in tests)], plugins=[recorder])
    return recorder


def _node(test: str) -> str:
    """Where a test is, by its name."""
    name = test.partition("[")[0]
    found = [file for file in sorted(_TESTS.glob("test_*.py")) if f"def {name}(" in file.read_text()]
    if len(found) != 1:
        raise RuntimeError(f"{name} is in {len(found)} files")
    return f"{found[0]}::{test}"


def judge(mutations: Sequence[Mutation]) -> Iterator[Verdict]:
    """Yields a verdict per mutation, after all tests have passed on the library as it is.

    Raises:
        RuntimeError: A test fails without any mutation, or is not there.
    """
    tests = [mutation.test for mutation in mutations]
    sound = run(tests)
    if sound.failed_in is not None or sound.num_run < len(set(tests)):
        raise RuntimeError("the tests do not pass on the library as it is")
    for mutation in mutations:
        yield Verdict(mutation=mutation, problem=_problem(mutation))


def _problem(mutation: Mutation) -> str:
    try:
        with loaded(mutation):
            found = run([mutation.test])
    except ValueError as error:
        return str(error)
    return "" if found.failed_in == "call" else f"survives ({found.failed_in or 'passed'})"
