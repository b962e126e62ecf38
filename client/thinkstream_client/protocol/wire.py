"""How results look as bytes. Knows no Redis; requests are the business of ``wire_request``.

A token entry is a msgpack array ``[ids, crc, text]`` or ``[ids, crc, text, logprobs]``; ids are little-endian
32-bit numbers in a row. A terminal is a msgpack map with full names, in which unknown ones are ignored, so
that an older reader follows a newer worker. The functions in Redis write terminals too.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from thinkstream_client.errors import RecordInvalid
from thinkstream_client.outcome import Finish, FinishReason, JobFailure, Timings, TokenLogprobs, Usage
from thinkstream_client.records import SessionId

from .packing import is_map, pack, unpack
from .wire_request import VERSION

SEAL_ID = b"18446744073709551615-18446744073709551615"
"""Id of the terminal entry, the last one there is; it fits no 64-bit float and is never a position."""

MAX_ENTRY_BYTES = 1 << 22
_MAX_DATA_ITEMS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Some tokens of a result.

    Attributes:
        index: Tokens of the result up to and with this entry; 0 where it was decoded without its id.
        token_ids: The tokens.
        crc: Of all ids of the result up to here; see ``chain_crc``.
        text: What became readable with them.
        logprobs: One per token where the request asked for them.
    """

    index: int = 0
    token_ids: tuple[int, ...]
    crc: int
    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """A claim, as the result stream tells it.

    Attributes:
        num_tokens: Tokens before it.
        mk: How many markers the stream has with this one.
        claims: How often the job had been claimed.
        session: Whose claim it was.
        claimed_ms: Server time of the claim.
    """

    num_tokens: int
    mk: int
    claims: int
    session: SessionId
    claimed_ms: int


@dataclass(frozen=True, slots=True)
class Terminal:
    """The end of a result stream."""

    finish: Finish


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry that is none of ours, written by somebody else."""

    entry_id: str
    detail: str


RawEntry = Entry | Marker | Terminal | Broken


def initial_crc(job_id: str) -> int:
    """The crc before the first token."""
    return zlib.crc32(job_id.encode())


def chain_crc(crc: int, token_ids: Sequence[int]) -> int:
    """The crc after some more tokens. Two histories that differ anywhere have different ones."""
    return zlib.crc32(_pack_ids(token_ids), crc)


def default_seed(job_id: str) -> int:
    """The seed of a job that was given none: the first eight bytes of its id's SHA-256."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "little")


def encode_entry(
    token_ids: Sequence[int], crc: int, text: str, logprobs: Sequence[TokenLogprobs] | None = None
) -> bytes:
    """Packs a token entry; ``crc`` is the one after its tokens."""
    fields: list[Any] = [_pack_ids(token_ids), crc, text]
    if logprobs is not None:
        fields.append([[one.logprob, [list(pair) for pair in one.top]] for one in logprobs])
    return pack(fields)


def decode_entry(data: bytes, index: int = 0) -> Entry:
    """Reads a token entry; ``index`` comes from its id.

    Raises:
        RecordInvalid: It is none.
    """
    fields = unpack(data, MAX_ENTRY_BYTES)
    match fields:
        case [bytes() as ids, int() as crc, str() as text, *rest] if len(ids) % 4 == 0:
            logprobs = _read_logprobs(rest[0], len(ids) // 4) if rest else None
            return Entry(index=index, token_ids=_unpack_ids(ids), crc=crc, text=text, logprobs=logprobs)
        case _:
            raise RecordInvalid("not a token entry")


def encode_failure(failure: JobFailure) -> bytes:
    """Packs the reason of a failure."""
    return pack(_failure_map(failure))


def decode_failure(data: bytes) -> JobFailure:
    """Reads the reason of a failure.

    Raises:
        RecordInvalid: It is none.
    """
    return _read_failure(unpack(data, MAX_ENTRY_BYTES))


def encode_terminal(finish: Finish) -> bytes:
    """Packs the entry that ends a result."""
    record: dict[str, Any] = {
        "version": VERSION,
        "reason": finish.reason.value,
        "num_tokens": finish.num_tokens,
        "text": finish.text,
        "usage": asdict(finish.usage),
        "timings": asdict(finish.timings),
    }
    if finish.error is not None:
        record["error"] = _failure_map(finish.error)
    return pack(record)


def decode_terminal(data: bytes) -> Finish:
    """Reads the entry that ends a result; names it does not know are ignored.

    Raises:
        RecordInvalid: It is none, or of another version.
    """
    record: object = unpack(data, MAX_ENTRY_BYTES)
    if not is_map(record) or record.get("version") != VERSION:
        raise RecordInvalid(f"not a terminal entry of version {VERSION}")
    error = record.get("error")
    try:
        reason = FinishReason(_text(record, "reason"))
    except ValueError:
        raise RecordInvalid("a terminal entry without a known reason") from None
    return Finish(
        reason=reason,
        num_tokens=_natural(record, "num_tokens"),
        text=_text(record, "text"),
        usage=Usage(**_naturals(record.get("usage"), Usage)),
        timings=Timings(**_naturals(record.get("timings"), Timings)),
        error=None if error is None else _read_failure(error),
    )


def parse_stream_entry(entry_id: bytes, fields: Sequence[bytes]) -> RawEntry:
    """Reads one entry of a result stream; one that is not ours comes back as ``Broken``."""
    try:
        name, value = fields[0], fields[1]
        if entry_id == SEAL_ID:
            return Terminal(decode_terminal(value)) if name == b"f" else Broken(entry_id.decode(), "not ours")
        first, second = (int(part) for part in entry_id.split(b"-"))
        if name == b"t" and second == 0:
            return decode_entry(value, first)
        if name == b"m" and second > 0:
            return _read_marker(value, first, second)
    except RecordInvalid as error:
        return Broken(entry_id.decode(), str(error))
    return Broken(entry_id.decode(), "not ours")


def _read_marker(data: bytes, num_tokens: int, mk: int) -> Marker:
    match unpack(data, MAX_ENTRY_BYTES):
        case [int() as claims, str() as session, int() as claimed_ms]:
            return Marker(
                num_tokens=num_tokens,
                mk=mk,
                claims=claims,
                session=SessionId(session),
                claimed_ms=claimed_ms,
            )
        case _:
            raise RecordInvalid("not a marker")


def _failure_map(failure: JobFailure) -> dict[str, Any]:
    return {"code": failure.code, "message": failure.message, "data": dict(failure.data)}


def _read_failure(record: object) -> JobFailure:
    if not is_map(record):
        raise RecordInvalid("not the record of a failure")
    given = record.get("data")
    data: dict[str, int | str] = {}
    if is_map(given):  # an empty map of Lua's arrives as an array
        for name, value in list(given.items())[:_MAX_DATA_ITEMS]:
            data[str(name)] = value if isinstance(value, int | str) else str(value)
    return JobFailure(code=_text(record, "code"), message=_text(record, "message"), data=data)


def _read_logprobs(value: object, num_tokens: int) -> tuple[TokenLogprobs, ...]:
    try:
        read = tuple(
            TokenLogprobs(float(own), tuple((int(token_id), float(lp)) for token_id, lp in top))
            for own, top in cast("list[Any]", value)
        )
    except (TypeError, ValueError):
        raise RecordInvalid("log-probabilities of another form") from None
    if len(read) != num_tokens:
        raise RecordInvalid(f"{len(read)} log-probabilities for {num_tokens} tokens")
    return read


def _pack_ids(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _unpack_ids(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)


def _text(record: Mapping[Any, Any], name: str) -> str:
    value = record.get(name, "")
    if not isinstance(value, str):
        raise RecordInvalid(f"{name} is not text")
    return value


def _natural(record: Mapping[Any, Any], name: str) -> int:
    value = record.get(name, 0)
    if isinstance(value, float) and value.is_integer():  # Lua knows one kind of number
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RecordInvalid(f"{name} is not a natural number")
    return value


def _naturals(value: object, kind: type[Usage] | type[Timings]) -> dict[str, int]:
    record: Mapping[Any, Any] = value if is_map(value) else {}
    return {name: _natural(record, name) for name in kind.__dataclass_fields__}
