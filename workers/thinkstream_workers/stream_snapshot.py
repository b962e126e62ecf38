"""One result stream as it stands, read whole: to resume a job, or to see why a write was refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thinkstream_client.errors import RecordInvalid
from thinkstream_client.protocol.wire import Broken, Entry, Marker, RawEntry, Terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSnapshot:
    """What a stream holds.

    Attributes:
        entries: Token entries in order.
        num_markers: Claims that left their marker in it.
        last_marker: The last of them.
        sealed: Whether it has its end.
    """

    entries: tuple[Entry, ...] = ()
    num_markers: int = 0
    last_marker: Marker | None = None
    sealed: bool = False

    @classmethod
    def of(cls, raw_entries: Iterable[RawEntry]) -> StreamSnapshot:
        """Sorts a stream's entries by what they are.

        Raises:
            RecordInvalid: An entry is none of ours.
        """
        raw = list(raw_entries)
        for entry in raw:
            if isinstance(entry, Broken):
                raise RecordInvalid(f"entry {entry.entry_id} of a result stream: {entry.detail}")
        markers = [entry for entry in raw if isinstance(entry, Marker)]
        return cls(
            entries=tuple(entry for entry in raw if isinstance(entry, Entry)),
            num_markers=len(markers),
            last_marker=markers[-1] if markers else None,
            sealed=any(isinstance(entry, Terminal) for entry in raw),
        )
