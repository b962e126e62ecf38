"""What callers give is refused by the name of its field, with the value shortened and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from thinkstream_client import (
    AsyncClient,
    BatchItem,
    Client,
    ConfigError,
    InvalidRequest,
    Message,
    RedisSettings,
    Request,
    SamplingParams,
)
from thinkstream_client.core import compose

URL = "redis://127.0.0.1:1"
HUGE = 10**5000  # Python writes no integer of more than 4,300 digits
ANY_5: Any = 5
A_HUGE, MINUS_A_HUGE = pytest.param(HUGE, id="huge"), pytest.param(-HUGE, id="-huge")
NO_FLOATS = [10**400, -(10**400), A_HUGE, math.nan, math.inf, -math.inf, "1", True]
NO_INTEGERS = [A_HUGE, MINUS_A_HUGE, -1, 1.0, math.nan, "1", True]
NO_SECONDS = [A_HUGE, -1, -0.5, math.nan, math.inf, "1", True]
FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)

Use = Callable[[Any, Any], object]
"""What a client does with a value."""

TEXTS: list[tuple[str, Callable[[str], object]]] = [
    ("prompt", lambda half: Request(prompt=half)),
    ("messages.content", lambda half: Message("user", half)),
    (
        "messages[1].content",
        lambda half: compose.compose_request(messages=[("system", "x"), ("user", half)]),
    ),
    ("sampling.stop[1]", lambda half: SamplingParams(stop=("x", half))),
    ("item 2: prompt", lambda half: list(compose.bulk_requests(["x", half], None))),
]
WAITS: list[tuple[str, Use]] = [
    ("timeout_s", lambda client, value: client.submit("x", block=True, timeout_s=value)),
    ("timeout_s", lambda client, value: client.submit_many(["x"], timeout_s=value)),
    ("timeout_s", lambda client, value: client.job("j").stream(timeout_s=value)),
    ("timeout_s", lambda client, value: client.job("j").result(timeout_s=value)),
    ("timeout_s", lambda client, value: client.job("j").text(timeout_s=value)),
    ("timeout_s", lambda client, value: client.wait_batch("b", value)),
    ("timeout_s", lambda client, value: client.batch(["x"]).wait(value)),
    ("timeout_s", lambda client, value: client.wait_ready(value)),
    ("patience_s", lambda client, value: Client(client.settings.url, patience_s=value)),
    ("patience_s", lambda client, value: AsyncClient(client.settings.url, patience_s=value)),
    ("deadline_s", lambda client, value: client.submit("x", deadline_s=value)),
    ("deadline_s", lambda client, value: client.batch(["x"], deadline_s=value)),
]
COUNTS: list[tuple[str, Use]] = [
    ("limit", lambda client, value: client.jobs(limit=value)),
    ("from_index", lambda client, value: client.job("j").stream(value)),
    ("max_in_flight", lambda client, value: client.batch(["x"], max_in_flight=value)),
]
KINDS: list[tuple[str, Callable[[Any], object]]] = [
    ("batch_id", lambda client: client.batch(["x"], id=5)),
    ("batch", lambda client: client.wait_batch(5)),
    ("batch", lambda client: client.submit_many(["x"], batch=5)),
    ("id", lambda client: client.submit("x", id=5)),
    ("id", lambda client: client.job(5)),
    ("tenant", lambda client: client.submit("x", tenant=5)),
    ("tenant", lambda client: client.jobs(tenant=5)),
    ("tags", lambda client: client.jobs(tag=5)),
    ("tags", lambda client: client.batch(["x"], tags=5)),
    ("priority", lambda client: client.submit("x", priority=1)),
    ("requests", lambda client: client.submit_many(5)),
    ("requests", lambda client: client.batch(None)),
    ("custom_id", lambda client: BatchItem(number=1, custom_id=ANY_5)),
    ("request", lambda client: BatchItem(number=1, custom_id="a", request=ANY_5)),
    ("settings", lambda client: Client(settings=client.settings.url)),
    ("namespace", lambda client: Client(URL, namespace=ANY_5)),
]


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def refused(use: Callable[[], object]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        use()
    assert len(str(caught.value)) < 250
    return caught.value


@pytest.mark.parametrize("value", NO_FLOATS)
@pytest.mark.parametrize("name", FLOATS)
def test_numbers_of_sampling(name: str, value: Any) -> None:
    error = refused(lambda: SamplingParams(**{name: value}))
    assert error.field == f"sampling.{name}" and error.allowed.startswith("a number in ")


@pytest.mark.parametrize("value", NO_INTEGERS)
@pytest.mark.parametrize("name", ["top_k", "max_tokens", "logprobs", "seed"])
def test_integers_of_sampling(name: str, value: Any) -> None:
    error = refused(lambda: SamplingParams(**{name: value}))
    assert error.field == f"sampling.{name}" and error.allowed.startswith("an integer in ")


@pytest.mark.parametrize(
    ("field", "bias"),
    [
        ("sampling.logit_bias", {None: 1.0}),
        pytest.param("sampling.logit_bias", {HUGE: 1.0}, id="huge"),
        ("sampling.logit_bias", {-1: 1.0}),
        ("sampling.logit_bias[7]", {5: 1.0, 7: None}),
        ("sampling.logit_bias[7]", {7: 10**400}),
        ("sampling.logit_bias[7]", {7: math.nan}),
        ("sampling.logit_bias", None),
    ],
)
def test_biases(field: str, bias: Any) -> None:
    assert refused(lambda: SamplingParams(logit_bias=bias)).field == field


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("grain", {"prompt": "x", "grain": HUGE}),
        ("token_ids", {"token_ids": (1, HUGE)}),
        ("sampling.stop_token_ids[1]", {"prompt": "x", "fields": {"stop_token_ids": (1, HUGE)}}),
    ],
)
def test_integers_of_requests(field: str, values: dict[str, Any]) -> None:
    def make() -> Request:
        return Request(**values) if "grain" in values else compose.compose_request(**values)

    assert refused(make).field == field


def test_what_cannot_be_shown_is_told_by_its_type() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    for value in (HUGE, {1: HUGE}, Shy()):
        error = InvalidRequest("field", value, "another")
        assert str(error) == f"field: got a value of type {type(value).__name__}, allowed: another"
        assert error.value is value


@pytest.mark.parametrize(("field", "make"), TEXTS)
def test_half_a_surrogate_is_told_by_its_field(field: str, make: Callable[[str], object]) -> None:
    error = refused(lambda: make("ab\ud800c"))
    assert error.field == field and error.allowed == "valid Unicode text"
    assert "'\\ud800'" in str(error)


@pytest.mark.parametrize("value", NO_SECONDS)
@pytest.mark.parametrize(("field", "use"), WAITS)
def test_times(client: Client, field: str, use: Use, value: Any) -> None:
    error = refused(lambda: use(client, value))
    assert error.field == field and error.allowed.endswith(", 31536000]")


@pytest.mark.parametrize("value", [*NO_INTEGERS, None])
@pytest.mark.parametrize(("field", "use"), COUNTS)
def test_integers(client: Client, field: str, use: Use, value: Any) -> None:
    error = refused(lambda: use(client, value))
    assert error.field == field and error.allowed.startswith("an integer in ")


@pytest.mark.parametrize(("field", "use"), KINDS)
def test_names_and_kinds(client: Client, field: str, use: Callable[[Any], object]) -> None:
    assert refused(lambda: use(client)).field == field


@pytest.mark.parametrize("value", [math.nan, math.inf, A_HUGE, 0, "1", True])
def test_weight_of_a_tenant(client: Client, value: Any) -> None:
    assert refused(lambda: client.tenant_set("a", weight=value)).field == "weight"


@pytest.mark.parametrize("value", [math.nan, math.inf, A_HUGE, -1, "1", 1.5, True])
@pytest.mark.parametrize("name", ["max_jobs", "max_bytes", "max_running", "max_tokens_per_s"])
def test_caps_of_a_tenant(client: Client, name: str, value: Any) -> None:
    assert refused(lambda: client.tenant_set("a", **{name: value})).field == name


def test_settings_of_a_tenant_have_names(client: Client) -> None:
    wrong: Any = {"max_job": 1}
    assert refused(lambda: client.tenant_set("a", **wrong)).field == "max_job"
    assert refused(lambda: client.tenant_set("a b", weight=1)).field == "tenant"


@pytest.mark.parametrize("url", [5, b"redis://:secret@host", ["redis://host"]])
def test_a_url_is_text(url: Any) -> None:
    for make in (RedisSettings, Client, AsyncClient):
        with pytest.raises(ConfigError, match=r"Redis URL .* expected redis://") as caught:
            make(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("number", [0, -1, 1025, A_HUGE, "4", 4.0, True, math.nan])
def test_partitions_are_counted(number: Any) -> None:
    with pytest.raises(ConfigError, match=r"^num_partitions: got .*, allowed: an integer in \[1, 1024\]$"):
        RedisSettings(URL, num_partitions=number)
