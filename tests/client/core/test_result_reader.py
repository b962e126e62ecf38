from __future__ import annotations

from collections.abc import Sequence

import pytest

from thinkstream_client.core.result_reader import ResultReader
from thinkstream_client.errors import InvalidRequest, RecordInvalid, StreamForked
from thinkstream_client.outcome import Finish, FinishReason, TokenChunk, TokenLogprobs
from thinkstream_client.protocol.wire import Broken, Entry, Marker, Terminal, chain_crc, initial_crc
from thinkstream_client.records import JobRef, SessionId

REF = JobRef("default", "job")


def entries(ids: Sequence[int], grain: int) -> list[Entry]:
    crc, found = initial_crc(REF.job_id), list[Entry]()
    for start in range(0, len(ids), grain):
        some = tuple(ids[start : start + grain])
        crc = chain_crc(crc, some)
        logprobs = tuple(TokenLogprobs(-float(token_id)) for token_id in some)
        text = "".join(chr(97 + token_id) for token_id in some)
        found.append(Entry(index=start + len(some), token_ids=some, crc=crc, text=text, logprobs=logprobs))
    return found


def marker(num_tokens: int, mk: int) -> Marker:
    return Marker(num_tokens=num_tokens, mk=mk, claims=mk, session=SessionId("s.1"), claimed_ms=0)


def end(num_tokens: int, text: str = "") -> Terminal:
    return Terminal(Finish(reason=FinishReason.STOP, num_tokens=num_tokens, text=text))


def test_reads_to_the_end() -> None:
    reader = ResultReader(REF)
    one, two = entries([1, 2, 3], 2)
    assert reader.feed([marker(0, 1)]) == [marker(0, 1)]
    assert reader.position == (0, 1)
    assert reader.feed([one]) == [
        TokenChunk(index=2, token_ids=(1, 2), text="bc", logprobs=(TokenLogprobs(-1.0), TokenLogprobs(-2.0)))
    ]
    assert reader.position == (2, 0)
    news = reader.feed([marker(2, 2), two, end(3, "!")])
    assert [type(one).__name__ for one in news] == ["Marker", "TokenChunk", "TokenChunk", "Finish"]
    assert news[2] == TokenChunk(index=3, token_ids=(), text="!")
    assert reader.finish is not None and reader.position == (3, 0)


@pytest.mark.parametrize("start", range(6))
def test_first_entry_is_cut_at_the_start(start: int) -> None:
    reader = ResultReader(REF, start)
    stream = [entry for entry in entries([1, 2, 3, 4, 5], 4) if entry.index > start]
    chunks = [one for one in reader.feed([*stream, end(5)]) if isinstance(one, TokenChunk)]
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == [1, 2, 3, 4, 5][start:]
    assert [one.logprob for chunk in chunks for one in chunk.logprobs or ()] == [-1, -2, -3, -4, -5][start:]
    assert reader.num_tokens == 5


def test_entry_that_was_read_before_says_nothing_new() -> None:
    reader = ResultReader(REF)
    stream = entries([1, 2, 3], 1)
    reader.feed(stream)
    assert reader.feed(stream) == []


@pytest.mark.parametrize(
    ("read", "then", "whole"),
    [
        ([1, 2, 3], entries([1, 9, 3, 4], 1)[3:], entries([1, 9, 3, 4], 1)),  # another history
        ([1, 2, 3], [end(2)], entries([1, 2], 1)),  # it ended before what was read
        ([1, 2, 3], entries([1, 2, 3, 4, 5], 1)[4:], entries([1, 2, 3], 1)),  # a gap
        ([1, 2, 3], [marker(5, 1)], entries([1, 2, 3], 1)),  # a gap before a claim
        ([1, 2, 3], [end(4)], entries([1, 2, 3], 1)),
        ([1, 2, 3], entries([1, 2, 9, 4], 4), entries([1, 2, 9, 4], 4)),  # another history in one entry
    ],
)
def test_fork_is_told_and_placed(
    read: list[int], then: list[Entry | Marker | Terminal], whole: list[Entry]
) -> None:
    reader = ResultReader(REF)
    reader.feed(entries(read, 1))
    with pytest.raises(StreamForked):
        reader.feed(then)
    true_ids = [token_id for entry in whole for token_id in entry.token_ids]
    agreed = next((i for i in range(3) if i >= len(true_ids) or true_ids[i] != read[i]), 3)
    assert reader.agreement_with(whole) == agreed


def test_reader_from_the_middle_checks_from_its_first_entry_on() -> None:
    reader = ResultReader(REF, 2)
    reader.feed(entries([1, 2, 3], 1)[2:])
    with pytest.raises(StreamForked):
        reader.feed(entries([1, 9, 3, 4], 1)[3:])


def test_start_behind_the_end_is_no_fork() -> None:
    with pytest.raises(InvalidRequest, match="from_index: got 100, allowed: up to 3"):
        ResultReader(REF, 100).feed([marker(0, 1), end(3)])
    reader = ResultReader(REF, 2)
    reader.feed(entries([1, 2, 3], 1)[2:])
    with pytest.raises(StreamForked):  # a token was read that is not there any more
        reader.feed([end(1)])


def test_foreign_entry_is_no_token() -> None:
    with pytest.raises(RecordInvalid, match="7-3"):
        ResultReader(REF).feed([Broken("7-3", "not ours")])
