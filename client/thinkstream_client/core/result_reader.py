"""One result stream: raw entries in, checked chunks out. Knows no connection and no other job."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from thinkstream_client.errors import InvalidRequest, RecordInvalid, StreamForked
from thinkstream_client.outcome import Finish, TokenChunk
from thinkstream_client.protocol import wire
from thinkstream_client.records import JobRef

News = wire.Marker | TokenChunk | Finish


class ResultReader:
    """Reads one result stream from a given token on.

    It keeps the ids it has handed out, so that it can say where a fork began. A reader that starts behind
    token 0 takes the history before as given: its check begins with the first entry's own crc.

    An entry that straddles the starting point is cut to the tokens behind it. Text cannot be cut by
    tokens, so the whole entry's text comes with them.

    Args:
        ref: The job.
        from_index: Tokens that the caller has already.
    """

    def __init__(self, ref: JobRef, from_index: int = 0) -> None:
        self.ref = ref
        self.finish: Finish | None = None
        self._start = from_index
        self._ids = array("I")
        self._mk = 0
        self._crc = wire.initial_crc(ref.job_id) if from_index == 0 else None

    @property
    def num_tokens(self) -> int:
        """Tokens up to which the result is known here."""
        return self._start + len(self._ids)

    @property
    def position(self) -> tuple[int, int]:
        """Where to read on: the id of the last token entry or marker, never that of the end."""
        return self.num_tokens, self._mk

    def feed(self, entries: Iterable[wire.RawEntry]) -> list[News]:
        """Takes the next entries and returns what is new in them.

        Text that the end held back comes as a chunk without tokens before the ``Finish``.

        Raises:
            StreamForked: They do not go on from what was read before.
            InvalidRequest: The result ended before the token that was to be read from.
            RecordInvalid: One of them is not ours.
        """
        news: list[News] = []
        for entry in entries:
            match entry:
                case wire.Entry():
                    news.extend(self._append(entry))
                case wire.Marker():
                    news.append(self._mark(entry))
                case wire.Terminal():
                    news.extend(self._end(entry.finish))
                case wire.Broken():
                    raise RecordInvalid(f"job {self.ref.job_id}: entry {entry.entry_id}: {entry.detail}")
        return news

    def rewind_markers(self) -> None:
        """Reads markers from their first again: the stream was made anew."""
        self._mk = 0

    def agreement_with(self, entries: Iterable[wire.RawEntry]) -> int:
        """Returns up to which token the stream, read from its very start, is the one that was read here."""
        theirs = array("I")
        for entry in entries:
            if isinstance(entry, wire.Entry):
                theirs.extend(entry.token_ids)
        behind = theirs[self._start :]
        same = 0
        while same < min(len(behind), len(self._ids)) and behind[same] == self._ids[same]:
            same += 1
        return min(self._start, len(theirs)) + same

    def _mark(self, marker: wire.Marker) -> wire.Marker:
        if marker.num_tokens > self.num_tokens:  # the tokens before it are gone
            raise StreamForked(self.ref.job_id, self._start)
        self._mk = marker.mk
        return marker

    def _append(self, entry: wire.Entry) -> list[TokenChunk]:
        num_known = self.num_tokens
        num_new = entry.index - num_known
        if num_new <= 0:
            return []
        if num_new > len(entry.token_ids):  # tokens between ours and these are gone
            raise StreamForked(self.ref.job_id, num_known)
        new_ids = entry.token_ids[-num_new:]
        if self._crc is not None and wire.chain_crc(self._crc, new_ids) != entry.crc:
            raise StreamForked(self.ref.job_id, self._start)
        self._crc, self._mk = entry.crc, 0
        self._ids.extend(new_ids)
        logprobs = None if entry.logprobs is None else tuple(entry.logprobs[-num_new:])
        return [TokenChunk(index=entry.index, token_ids=tuple(new_ids), text=entry.text, logprobs=logprobs)]

    def _end(self, finish: Finish) -> list[News]:
        if not self._ids and finish.num_tokens < self._start:
            raise InvalidRequest(
                "from_index", self._start, f"up to {finish.num_tokens}, where the result ends"
            )
        if finish.num_tokens != self.num_tokens:
            raise StreamForked(self.ref.job_id, min(self._start, finish.num_tokens))
        self.finish = finish
        if not finish.text:
            return [finish]
        return [TokenChunk(index=self.num_tokens, token_ids=(), text=finish.text), finish]
