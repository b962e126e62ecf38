"""What a mutation is, and how the library is loaded with one."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from unittest.mock import patch

from thinkstream_client.protocol import library


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One check, removed.

    Attributes:
        check: What is checked, as the table says it.
        function: Where.
        remove: Text of the library, found exactly once.
        put: What stands there instead.
        test: The name of the test that has to fail, with its parameters.
    """

    check: str
    function: str
    remove: str
    put: str = ""
    test: str

    def applied_to(self, source: str) -> str:
        """Returns the library without the check.

        Raises:
            ValueError: The text is not there exactly once: the library has changed, and this entry has not.
        """
        if source.count(self.remove) != 1:
            raise ValueError(f"{self.function}, {self.check}: {source.count(self.remove)} places to patch")
        return source.replace(self.remove, self.put)


@contextlib.contextmanager
def loaded(mutation: Mutation) -> Generator[None]:
    """Has every new connection of this process load the mutated library."""
    body = mutation.applied_to(library.source().split("\n", 2)[2])
    library.digest.cache_clear()
    try:
        with patch.object(library, "_body", lambda: body):
            yield
    finally:
        library.digest.cache_clear()
