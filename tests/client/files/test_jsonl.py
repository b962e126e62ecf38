from __future__ import annotations

import json
from typing import Any

import pytest

from thinkstream_client.core.compose import BatchItem
from thinkstream_client.core.results import BatchResult
from thinkstream_client.errors import InvalidRequest, JobFailed
from thinkstream_client.files.jsonl import ResultRow, parse_line, parse_result, read_lines, result_line
from thinkstream_client.outcome import FinishReason, JobResult, TokenLogprobs, Usage
from thinkstream_client.records import Message


def parse(number: int = 1, **fields: Any) -> BatchItem:
    return parse_line(json.dumps(fields), number)


def chat(custom_id: Any = "a", url: str = "/v1/chat/completions", **body: Any) -> BatchItem:
    return parse(custom_id=custom_id, method="POST", url=url, body=body)


def line_of(item: BatchItem, outcome: JobResult | JobFailed) -> str:
    if isinstance(outcome, JobResult):
        return result_line(BatchResult(item=item, job_id="j", result=outcome), created_s=12)
    return result_line(BatchResult(item=item, job_id="j", error=outcome), created_s=12)


AUDIO = [{"type": "text", "text": "a"}, {"type": "audio"}]
HELLO = [{"role": "user", "content": "Hello"}]


def test_chat_line_becomes_request() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    line = chat(
        model="qwen",
        messages=[{"role": "user", "content": parts}],
        max_completion_tokens=7,
        stop="\n",
        logprobs=True,
        top_logprobs=2,
        logit_bias={"5": -3},
        top_k=4,
    )
    assert line.error is None and line.request is not None
    assert (line.custom_id, line.model, line.is_chat) == ("a", "qwen", True)
    assert line.request.messages == (Message("user", "Hello"),)
    sampling = line.request.sampling
    assert (sampling.max_tokens, sampling.stop, sampling.logprobs) == (7, ("\n",), 2)
    assert (sampling.logit_bias, sampling.top_k) == ({5: -3}, 4)
    assert line.request.grain == 16


def test_completion_line_takes_text_or_ids() -> None:
    text = chat(url="/v1/completions", prompt="Once", logprobs=3)
    ids = chat(url="/v1/completions", prompt=[1, 2, 3])
    assert text.request is not None and text.request.prompt == "Once" and not text.is_chat
    assert text.request.sampling.logprobs == 3
    assert ids.request is not None and ids.request.token_ids == (1, 2, 3)


def test_short_lines() -> None:
    line = parse(3, id="x", prompt="Once", temperature=0, tags=["night"])
    assert line.request is not None
    assert (line.custom_id, line.request.prompt, line.request.tags) == ("x", "Once", ("night",))
    assert parse(4, messages=HELLO).custom_id == "#line-4"
    assert parse(5, id=17, prompt="Once").custom_id == "17"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (parse_line("{", 7), "line 7"),
        (parse_line("[" * 100_000, 7), "line 7"),
        (parse_line("[1]", 7), "line 7: line"),
        (parse(7, id="x"), "line 7: prompt"),
        (parse(7, id="x", prompt="a", messages=HELLO), "line 7: prompt"),
        (parse(7, id="x", prompt="a", temprature=1), "line 7: temprature"),
        (parse(7, id="x", prompt="a", top_p=0), "line 7: sampling.top_p"),
        (parse(7, id="x", prompt=5), "line 7: prompt"),
        (parse(7, id="", prompt="a"), "line 7: id"),
        (parse(7, id="x", token_ids=["a"]), "line 7: token_ids"),
        (parse(7, id="x", messages=[{"role": "user"}]), "line 7: messages[0].content"),
        (parse(7, id="x", messages=[*HELLO, {"role": "user", "content": 5}]), "line 7: messages[1].content"),
        (parse(7, id="x", messages=[*HELLO, 5]), "line 7: messages[1]"),
        (parse(7, id="x", messages=[*HELLO, {**HELLO[0], "name": 5}]), "line 7: messages[1]"),
        (parse(7, id="x", messages=[{**HELLO[0], "content": "\ud800"}]), "line 7: messages[0].content"),
        (parse(7, id="x", messages={}), "line 7: messages"),
        (parse(7, id="x", prompt="\ud800"), "line 7: prompt"),
        (parse(7, id="x", prompt="a", stop=["b", "\ud800"]), "line 7: sampling.stop[1]"),
        (parse(7, id="x", prompt="a", temperature=float("nan")), "line 7: sampling.temperature"),
        (parse(7, id="x", prompt="a", logit_bias={"5": None}), "line 7: sampling.logit_bias[5]"),
        (parse(7, id="x", messages=[{"role": "robot", "content": ""}]), "line 7: messages[0].role"),
        (parse(7, id="x", prompt="a", tags=["a b"]), "line 7: tags"),
        (parse(7, id="x", prompt="a", logit_bias={"x": 1}), "line 7: logit_bias"),
        (parse(7, id="x", prompt="a", stop={"x": 1}), "line 7: sampling.stop"),
        (chat(messages=HELLO, temperature=-1), "line 1: body.temperature"),
        (chat(messages=HELLO, n=2), "line 1: body.n"),
        (chat(messages=HELLO, tools=[]), "line 1: body.tools"),
        (chat(messages=[*HELLO, {"role": "user", "content": None}]), "line 1: body.messages[1].content"),
        (chat(messages=[{**HELLO[0], "content": AUDIO}]), "line 1: body.messages[0].content[1]"),
        (chat(messages=HELLO, max_completion_tokens=0), "line 1: body.max_completion_tokens"),
        (chat(messages=HELLO, logprobs=True, top_logprobs="x"), "line 1: body.top_logprobs"),
        (chat(messages=HELLO, logprobs="x", top_logprobs=1), "line 1: body.logprobs"),
        (chat(messages=HELLO, max_tokens=0), "line 1: body.max_tokens"),
        (chat(), "line 1: body.messages"),
        (chat(custom_id=None, messages=HELLO), "line 1: custom_id"),
        (chat(url="/v1/embeddings", input="a"), "line 1: url"),
        (parse(7, custom_id="a", method="GET", url="/v1/completions", body={}), "line 7: method"),
        (parse(7, custom_id="a", method="POST", url="/v1/completions", body=[]), "line 7: body"),
    ],
)
def test_bad_line_names_line_and_field(line: BatchItem, field: str) -> None:
    assert line.request is None
    assert line.error is not None and line.error.field == field


def test_other_lines_run_on() -> None:
    lines = list(read_lines(['{"id": "a", "prompt": "x"}', "", "oops", '{"id": "a", "prompt": "y"}']))
    assert [line.number for line in lines] == [1, 3, 4]
    assert [line.error is None for line in lines] == [True, False, False]
    assert lines[2].error is not None and lines[2].error.field == "line 4: id"


def test_every_line_has_a_name_of_its_own() -> None:
    good = '{"id": "a", "prompt": "x"}'
    lines = ["oops", '{"id": "#line-1", "prompt": "x"}', good, '{"id": "a", "prompt": 5}', good]
    found = list(read_lines(lines))
    assert [line.custom_id for line in found] == ["#line-1", "#line-2", "a", "#line-4", "#line-5"]
    assert [line.error and line.error.field for line in found] == [
        "line 1",
        "line 2: id",
        None,
        "line 4: prompt",
        "line 5: id",
    ]
    named_as_we_did = parse(7, id="#line-7", prompt="x")
    assert (named_as_we_did.custom_id, named_as_we_did.error) == ("#line-7", None)


def test_result_line_has_openai_form() -> None:
    result = JobResult(
        job_id="j",
        text="Привет",
        token_ids=(5, 6),
        logprobs=(TokenLogprobs(-0.5, ((5, -0.5),)), TokenLogprobs(-1.0)),
        finish_reason=FinishReason.STOP,
        usage=Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2),
    )
    row = json.loads(line_of(chat(messages=HELLO, model="q"), result))
    assert (row["custom_id"], row["error"], row["response"]["status_code"]) == ("a", None, 200)
    body = row["response"]["body"]
    assert (body["object"], body["model"], body["created"]) == ("chat.completion", "q", 12)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Привет"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:5"
    assert body["usage"]["total_tokens"] == 5
    short = json.loads(line_of(parse(id="b", prompt="x"), result))
    assert short["response"]["body"]["choices"][0]["text"] == "Привет"
    assert short["response"]["body"]["choices"][0]["logprobs"]["token_logprobs"] == [-0.5, -1.0]
    assert short["response"]["body"]["model"] == "thinkstream"


def test_error_line_and_resume() -> None:
    row = line_of(chat(messages=HELLO), JobFailed("j", "StepFailed", "oops"))
    assert json.loads(row)["error"] == {"code": "JobFailed", "message": "job j: failed with StepFailed: oops"}
    assert json.loads(row)["response"] is None
    assert parse_result(row) == ResultRow(custom_id="a", error_code="JobFailed")
    assert [parse_result(line) for line in ('{"custom_id": "torn', "7", "", "[" * 100_000)] == [None] * 4


def test_lines_of_all_kinds_have_the_same_shape() -> None:
    refused = BatchResult(item=parse(7, id="x", prompt=5), error=InvalidRequest("prompt", 5, "text"))
    rows = [
        json.loads(line_of(parse(id="b", prompt="x"), JobFailed("j", "StepFailed", "oops"))),
        json.loads(result_line(refused, created_s=12)),
    ]
    assert [row.keys() for row in rows] == [{"id", "custom_id", "response", "error"}] * 2
    assert [len(row["id"]) for row in rows] == [len("batch_req_") + 24] * 2
    assert rows[0]["id"] != rows[1]["id"]
