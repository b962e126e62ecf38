from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkstream_client.errors import InvalidRequest, RecordInvalid, RequestError
from thinkstream_client.outcome import Finish, FinishReason, JobFailure, Timings, TokenLogprobs, Usage
from thinkstream_client.protocol import wire
from thinkstream_client.protocol.packing import pack, unpack
from thinkstream_client.protocol.wire_request import (
    MAX_REQUEST_BYTES,
    decode_request,
    encode_request,
    request_digest,
)
from thinkstream_client.records import Message, Request, SamplingParams

FULL = Request(
    messages=(Message("system", "Be brief."), Message("user", "Какая столица России?")),
    sampling=SamplingParams(
        temperature=0.0,
        top_p=0.9,
        top_k=0,
        max_tokens=32,
        stop=("\n\n",),
        stop_token_ids=(7,),
        logit_bias={9: -1.5, 3: 2.0},
        logprobs=0,
        seed=(1 << 64) - 1,
        ignore_eos=True,
    ),
    grain=16,
    tags=("night",),
)


def request_map(**changes: Any) -> bytes:
    return pack({"version": 1, "prompt": "hi", "sampling": {}, "grain": 1, "tags": [], **changes})


def test_request_golden_bytes() -> None:
    assert encode_request(Request(prompt="hi", sampling=SamplingParams(top_k=0))) == (
        b"\x85\xa6prompt\xa2hi\xa8sampling\x81\xa5top_k\x00\xa7version\x01\xa5grain\x01\xa4tags\x90"
    )


def test_entry_golden_bytes() -> None:
    crc = wire.chain_crc(wire.initial_crc("job-1"), [1, 258])
    assert crc == 0x8D2ED8A9
    assert wire.encode_entry([1, 258], 5, "ab") == b"\x93\xc4\x08\x01\0\0\0\x02\x01\0\0\x05\xa2ab"


@pytest.mark.parametrize(
    "request_",
    [FULL, Request(prompt="x"), Request(token_ids=(1, 2, (1 << 31) - 1))],
    ids=["full", "prompt", "ids"],
)
def test_request_round_trip(request_: Request) -> None:
    assert decode_request(encode_request(request_)) == request_


def test_digest_is_of_prompt_and_sampling_alone() -> None:
    digest = request_digest(Request(prompt="a"))
    assert len(digest) == 32
    assert digest == request_digest(Request(prompt="a", grain=16, tags=("x",)))
    others = [
        Request(prompt="b"),
        Request(prompt="a", sampling=SamplingParams(temperature=0.0)),
        Request(prompt="a", sampling=SamplingParams(top_k=0)),
        Request(prompt="a", sampling=SamplingParams(seed=0)),
    ]
    assert len({digest, *(request_digest(other) for other in others)}) == 5


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x81\xa7version", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\xa2\xff\xfe", "not msgpack"),
        (b"\x82\xa1a\x01\xa1a\x02", "twice"),
        (b"\xd4\x05\x00", "extension"),
        (b"\x81\xa7version\xd6\xff\x00\x00\x00\x00", "extension"),
        (b"\x91" * 17 + b"\x01", "nested"),
        (b"\x91" * 5000 + b"\x01", "n"),
        (pack([1]), "version"),
        (pack({"prompt": "x"}), "version"),
        (pack({"version": 2, "prompt": "x"}), "version"),
        (b"\0" * (MAX_REQUEST_BYTES + 1), "limit"),
    ],
)
def test_bytes_that_are_no_request(data: bytes, detail: str) -> None:
    with pytest.raises(RecordInvalid, match=detail):
        decode_request(data)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "x"}, "model"),
        ({"sampling": {"best_of": 2}}, "sampling.best_of"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature"),
        ({"sampling": {"temperature": "hot"}}, "sampling.temperature"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens"),
        ({"sampling": {"stop": "text"}}, "sampling.stop"),
        ({"sampling": {"logit_bias": [1]}}, "sampling.logit_bias"),
        ({"sampling": [1]}, "sampling"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": None, "messages": [{"role": "robot", "content": "x"}]}, "messages.role"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "messages.content"),
        ({"prompt": None, "messages": ["x"]}, "messages"),
        ({"prompt": None, "token_ids": [1, 2]}, "token_ids"),
        ({"prompt": None, "token_ids": b"\xff\xff\xff\xff"}, "token_ids"),
        ({"grain": 0}, "grain"),
        ({"tags": "x"}, "tags"),
    ],
)
def test_request_with_a_bad_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_request(request_map(**changes))
    assert caught.value.field == field


def test_half_a_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        encode_request(Request(prompt="a\ud800"))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_break_the_readers(data: bytes) -> None:
    for read in (decode_request, wire.decode_entry, wire.decode_terminal, wire.decode_failure):
        with contextlib.suppress(RecordInvalid, RequestError):
            read(data)
    wire.parse_stream_entry(b"1-0", [b"t", data])
    wire.parse_stream_entry(b"0-1", [b"m", data])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["prompt", "messages", "token_ids", "sampling", "grain", "tags"]
SAMPLING = st.dictionaries(st.sampled_from(list(SamplingParams.__dataclass_fields__)), PLAIN, max_size=3)


@given(st.dictionaries(st.sampled_from(FIELDS), PLAIN | SAMPLING, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_values_break_the_request(record: dict[str, Any]) -> None:
    try:
        request = decode_request(pack({"version": 1, **record}))
    except (RecordInvalid, RequestError):
        return
    assert decode_request(encode_request(request)) == request


IDS = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=20)


@given(IDS, st.text(max_size=20), st.integers(0, 20))
@settings(deadline=None)
def test_entry_round_trip_and_chain(ids: list[int], text: str, cut: int) -> None:
    start = wire.initial_crc("j")
    crc = wire.chain_crc(start, ids)
    assert wire.chain_crc(wire.chain_crc(start, ids[:cut]), ids[cut:]) == crc
    logprobs = [TokenLogprobs(-0.5, ((3, -0.5), (4, -1.25)))] * len(ids)
    entry = wire.decode_entry(wire.encode_entry(ids, crc, text, logprobs), 40)
    assert entry == wire.Entry(index=40, token_ids=tuple(ids), crc=crc, text=text, logprobs=tuple(logprobs))


def test_terminal_round_trip_and_unknown_fields() -> None:
    finish = Finish(
        reason=FinishReason.FAILED,
        num_tokens=7,
        text="é",
        usage=Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=7),
        timings=Timings(queued_ms=1, prefill_ms=2, first_token_ms=3, decode_ms=4),
        error=JobFailure(code="PromptTooLong", message="too long", data={"limit": 8}),
    )
    data = wire.encode_terminal(finish)
    assert wire.decode_terminal(data) == finish
    record: dict[str, Any] = {**unpack(data, 1000), "later": [1]}
    record["usage"] = {**record["usage"], "later": 5}
    assert wire.decode_terminal(pack(record)) == finish


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"reason": "bored"}, {"num_tokens": -1}, {"usage": {"prompt_tokens": "x"}}]
)
def test_terminal_of_another_form(changes: dict[str, Any]) -> None:
    record = {"version": 1, "reason": "stop", "num_tokens": 1, **changes}
    with pytest.raises(RecordInvalid):
        wire.decode_terminal(pack(record))


def test_foreign_entries_are_told_apart() -> None:
    terminal = wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=1))
    assert isinstance(wire.parse_stream_entry(wire.SEAL_ID, [b"f", terminal]), wire.Terminal)
    broken = [
        (wire.SEAL_ID, [b"t", b"x"]),
        (wire.SEAL_ID, [b"f", b"x"]),
        (b"5-0", [b"x", b"y"]),
        (b"5-0", [b"m", pack([1, "s", 2])]),
        (b"5-1", [b"t", wire.encode_entry([1], 0, "")]),
        (b"5-1", [b"m", pack({})]),
    ]
    for entry_id, fields in broken:
        assert isinstance(wire.parse_stream_entry(entry_id, fields), wire.Broken)


def test_default_seed_is_of_the_id() -> None:
    assert wire.default_seed("a") == 14608863320967583690
    assert wire.default_seed("b") != wire.default_seed("a")
