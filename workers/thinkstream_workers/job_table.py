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

    def __len__(self) -> int:
        return len(self._publications)

    def __contains__(self, key: JobKey) -> bool:
        return key in self._publications

    def keys(self) -> set[JobKey]:
        """Every ownership, prepared or not."""
        with self._lock:
            return set(self._publications)

    def expect(self, key: JobKey) -> bool:
        """Enters an ownership that intake is about to prepare; False if it is known already."""
        with self._lock:
            if key in self._publications:
                return False
            self._publications[key] = None
            return True

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

    def remove(self, key: JobKey) -> bool:
        """Forgets an ownership; False if it was not known."""
        with self._lock:
            if key not in self._publications:
                return False
            del self._publications[key]
            return True

    def clear(self) -> list[JobKey]:
        """Forgets all and returns what was known."""
        with self._lock:
            keys = list(self._publications)
            self._publications.clear()
            return keys
