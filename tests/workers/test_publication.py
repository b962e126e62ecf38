"""A publication against streams made by hand: grains, crc, stop strings, resuming, repairing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from thinkstream_client.errors import RecordInvalid
from thinkstream_client.outcome import Finish, FinishReason, Timings, TokenLogprobs
from thinkstream_client.protocol.wire import (
    Entry,
    Marker,
    Terminal,
    chain_crc,
    decode_entry,
    decode_terminal,
    initial_crc,
)
from thinkstream_client.records import JobRef, SessionId
from thinkstream_workers.job_times import JobTimes
from thinkstream_workers.orders import JobKey, TokenOut
from thinkstream_workers.publication import Publication, Repair
from thinkstream_workers.stream_snapshot import StreamSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.workers.conftest import Letters

    Make = Callable[..., Publication]

REF = JobRef("t", "job-1")
SESSION = SessionId("r.1")
EOS = 0


@pytest.fixture
def publication(letters: Letters) -> Make:
    def make(*, grain: int = 1, mk: int = 1, stop: str = "") -> Publication:
        return Publication(
            JobKey(REF, mk),
            session=SESSION,
            grain=grain,
            num_prompt_tokens=7,
            times=JobTimes(queued_ms=0, adopted_at=0.0),
            stop_token_ids=frozenset({EOS}),
            text=letters.detokenizer([stop] if stop else []),
        )

    return make


def push(pub: Publication, text: str) -> None:
    for letter in text:
        pub.push(TokenOut(pub.key, pub.num_tokens + 1, ord(letter)))


def take_entries(pub: Publication) -> list[Entry]:
    entries: list[Entry] = []
    while pub.has_entry:
        data = pub.next_entry()
        pub.acknowledge()
        entries.append(decode_entry(data, pub.num_published))
    return entries


def stream(
    entries: list[Entry], *, mk: int = 1, session: str = SESSION, sealed: bool = False
) -> StreamSnapshot:
    markers = [
        Marker(num_tokens=0, mk=n, claims=n, session=SessionId(session), claimed_ms=0)
        for n in range(1, mk + 1)
    ]
    seal = [Terminal(Finish(reason=FinishReason.LENGTH, num_tokens=0))] if sealed else []
    return StreamSnapshot.of([*markers, *entries, *seal])


def ended(pub: Publication, text: str, reason: FinishReason = FinishReason.LENGTH) -> Publication:
    push(pub, text)
    pub.finish(reason)
    return pub


def test_entries_hold_one_grain_each_and_the_crc_of_all_before(publication: Make) -> None:
    pub = publication(grain=2)
    push(pub, "ABCDE")
    entries = take_entries(pub)
    assert [entry.token_ids for entry in entries] == [(65, 66), (67, 68)]
    assert [entry.text for entry in entries] == ["AB", "CD"]
    assert [entry.crc for entry in entries] == [
        chain_crc(initial_crc("job-1"), [65, 66]),
        chain_crc(initial_crc("job-1"), [65, 66, 67, 68]),
    ]
    assert (pub.num_published, pub.num_tokens) == (4, 5)


def test_expected_length_counts_entries_and_markers(publication: Make) -> None:
    pub = publication(grain=2, mk=3)
    assert pub.expected_len == 3
    push(pub, "ABCD")
    take_entries(pub)
    assert pub.expected_len == 5


@pytest.mark.parametrize(("text", "last"), [("ABC", (67,)), ("ABCD", (67, 68)), ("", None)])
def test_the_last_entry_goes_with_the_end(publication: Make, text: str, last: tuple[int, ...] | None) -> None:
    pub = ended(publication(grain=2), text)
    take_entries(pub)
    data = pub.last_entry()
    assert (decode_entry(data).token_ids if data is not None else None) == last
    assert decode_terminal(pub.terminal(Timings())).num_tokens == len(text)


def test_a_stop_id_is_a_token_without_text_and_releases_what_was_held(publication: Make) -> None:
    pub = publication(stop="BYE")
    push(pub, "AB")
    pub.push(TokenOut(pub.key, 3, EOS))
    pub.num_cached_tokens = 4
    pub.finish(FinishReason.STOP)
    finish = decode_terminal(pub.terminal(Timings()))
    assert pub.token_ids == (65, 66, EOS)
    assert finish.text == "B"
    assert (finish.usage.prompt_tokens, finish.usage.cached_tokens, finish.usage.completion_tokens) == (
        7,
        4,
        3,
    )
    assert decode_terminal(pub.terminal(Timings())).text == "B", "a repeated call says the same"


def test_a_stop_string_ends_the_job_and_what_the_engine_adds_is_ignored(publication: Make) -> None:
    pub = publication(grain=16, stop="BYE")
    push(pub, "ABYE")
    assert pub.end == FinishReason.STOP
    push(pub, "XYZ")
    pub.finish(FinishReason.LENGTH)
    last = pub.last_entry()
    assert last is not None
    entry = decode_entry(last)
    assert entry.token_ids == tuple(b"ABYE")
    assert entry.text == "A"
    finish = decode_terminal(pub.terminal(Timings()))
    assert (finish.reason, finish.num_tokens, finish.text) == (FinishReason.STOP, 4, "")


def test_log_probabilities_travel_with_their_tokens(publication: Make) -> None:
    pub = publication(grain=2)
    for index, logprob in enumerate((-0.5, -0.25), start=1):
        pub.push(TokenOut(pub.key, index, 65, TokenLogprobs(logprob, ((65, logprob),))))
    logprobs = take_entries(pub)[0].logprobs
    assert logprobs is not None
    assert [one.logprob for one in logprobs] == [-0.5, -0.25]


def test_a_token_that_does_not_follow_is_refused(publication: Make) -> None:
    pub = publication()
    with pytest.raises(ValueError, match="token 2 after 0"):
        pub.push(TokenOut(pub.key, 2, 65))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_publication_goes_on_as_the_first_would_have(publication: Make, cut: int) -> None:
    whole = publication(grain=2, stop="FGX")
    push(whole, "ABCDEFGH")
    entries = take_entries(whole)
    resumed = publication(grain=2, mk=2, stop="FGX")
    resumed.replay(entries[:cut])
    assert resumed.num_published == 2 * cut
    assert resumed.expected_len == cut + 2
    push(resumed, "ABCDEFGH"[2 * cut :])
    assert take_entries(resumed) == entries[cut:]


def test_replay_notices_an_end_that_lacked_only_its_seal(publication: Make) -> None:
    first = publication(stop="BC")
    push(first, "ABC")
    first.end = None
    again = publication(mk=2, stop="BC")
    again.replay(take_entries(first))
    assert again.end == FinishReason.STOP
    by_id = publication()
    by_id.push(TokenOut(by_id.key, 1, EOS))
    third = publication(mk=2)
    third.replay(take_entries(by_id))
    assert third.end == FinishReason.STOP


def test_replay_refuses_entries_of_another_history(publication: Make) -> None:
    pub = publication()
    push(pub, "AB")
    entries = take_entries(pub)
    with pytest.raises(RecordInvalid, match="token 1"):
        publication(mk=2).replay(entries[1:])


def test_repair_after_a_lost_reply_goes_on_behind_the_entry(publication: Make) -> None:
    pub = publication(grain=2)
    push(pub, "ABCD")
    entries = take_entries(pub)
    pub.num_published = 2  # the second entry's reply never came
    assert pub.repair(stream(entries)) is Repair.GO_ON
    assert pub.num_published == 4


def test_repair_publishes_again_what_redis_lost(publication: Make) -> None:
    pub = publication(grain=2)
    push(pub, "ABCDEF")
    entries = take_entries(pub)
    assert pub.repair(stream(entries[:1])) is Repair.GO_ON
    assert take_entries(pub) == entries[1:]
    assert pub.repair(stream([])) is Repair.GO_ON
    assert take_entries(pub) == entries


@pytest.mark.parametrize(
    "what", ["sealed", "taken over", "same mark, other session", "other tokens", "longer"]
)
def test_repair_leaves_what_is_not_ours(publication: Make, what: str) -> None:
    pub = publication()
    push(pub, "AB")
    entries = take_entries(pub)
    other = publication()
    push(other, "AXC")
    theirs = take_entries(other)
    streams = {
        "sealed": stream(entries, sealed=True),
        "taken over": stream(entries, mk=2),
        "same mark, other session": stream(entries, session="r.2"),
        "other tokens": stream(theirs[:2]),
        "longer": stream(theirs),
    }
    assert pub.repair(streams[what]) is Repair.DROP
    assert pub.num_published == 2
