"""The gate itself: every check of the functions is removed in turn, and its test has to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from infra.mutations.mutation import Mutation


def test_every_check_is_noticed_when_it_is_gone() -> None:
    """A process of its own, because the gate runs pytest and patches the library."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "infra.mutations"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_entry_that_fits_no_place_is_an_error() -> None:
    gone = Mutation(check="c", function="f", remove="not in the library", test="t")
    with pytest.raises(ValueError, match="0 places"):
        gone.applied_to("local x = 1")
