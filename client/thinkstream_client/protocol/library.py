"""The functions library as one text, for FUNCTION LOAD, and which of two libraries is the newer.

The parts in ``lua/`` share their local names, so they are joined in an order and loaded as one library.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Any

from .call import Call

LIBRARY = "thinkstream1"
BUILD = 1
"""Raised with every release that changes the library: the server keeps the highest it has seen."""

_PARTS = (
    "guard",
    "common",
    "fairness",
    "pace",
    "batches",
    "ending",
    "client_calls",
    "claim",
    "worker_calls",
    "places",
    "upkeep_calls",
    "dead_calls",
)


@functools.cache
def _body() -> str:
    folder = resources.files("thinkstream_client.protocol") / "lua"
    return "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in _PARTS)


@functools.cache
def digest() -> str:
    """What tells one text of a build from another, while it is being worked on."""
    return hashlib.sha256(_body().encode()).hexdigest()[:16]


def source() -> str:
    """The whole text of the library."""
    return f"#!lua name={LIBRARY}\nlocal BUILD, DIGEST = {BUILD}, '{digest()}'\n{_body()}"


def load() -> Call[None]:
    """Puts the library in the place of the one that is there."""
    return Call(("FUNCTION", "LOAD", "REPLACE", source()), lambda _: None)


def is_current() -> Call[bool]:
    """Whether the server's library may stay: it is this one, or of a later build."""

    def parse(reply: Any) -> bool:
        build, found = reply
        return bool(build > BUILD or (build == BUILD and found == digest().encode()))

    return Call(("FCALL_RO", "ts1_build", 0), parse)
