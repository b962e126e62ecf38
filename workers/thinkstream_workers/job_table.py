"""The jobs that this replica has taken up: what intake and Publisher share.

An ownership is in the table from the moment that the replica hears of it until its end is written or it
turns out to be somebody else's. Any thread may call; nothing here waits.
"""

from __future__ import annotations

import threading

from .orders import JobKey
from .publication import Publication


class JobTable:
    """Ownerships, each with its publication once intake has prepared it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._publications: dict[JobKey, Publication | None] = {}
        self._claims: set[JobKey] = set()
        self._life = 0

    def __len__(self) -> int:
        return len(self._publications)

    def __contains__(self, key: JobKey) -> bool:
        return key in self._publications

    def keys(self) -> set[JobKey]:
        """Every ownership, prepared or not."""
        with self._lock:
            return set(self._publications)

    def expect(self, claim: JobKey) -> JobKey | None:
        """Enters an ownership that intake is about to prepare, and names its life; None if it lives already.

        Args:
            claim: The ownership as Redis names it.
        """
        with self._lock:
            if claim in self._claims:
                return None
            key = claim._replace(life=self._life)
            self._claims.add(claim)
            self._publications[key] = None
            return key

    def place(self, publication: Publication) -> bool:
        """Puts a prepared publication to its ownership; False if that is gone in the meantime."""
        with self._lock:
            if publication.key not in self._publications:
                return False
            self._publications[publication.key] = publication
            return True

    def get(self, key: JobKey) -> Publication | None:
        """The publication of an ownership, None while it is not prepared or not known."""
        return self._publications.get(key)

    def remove(self, key: JobKey) -> None:
        """Forgets an ownership that has come to its end here."""
        with self._lock:
            if key in self._publications:
                del self._publications[key]
                self._claims.remove(key.claim)

    def drop(self, key: JobKey) -> None:
        """Forgets an ownership before its end: should it come back, it has another life."""
        self.remove(key)
        with self._lock:
            self._life += 1

    def clear(self) -> list[JobKey]:
        """Drops all and returns what was known."""
        with self._lock:
            keys = list(self._publications)
            self._publications.clear()
            self._claims.clear()
            self._life += 1
            return keys
