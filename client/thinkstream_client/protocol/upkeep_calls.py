"""Calls that keep the queue whole and set it up: reap, sweep, tenants' settings, the namespace's identity."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from thinkstream_client.errors import ConfigError, InvalidRequest, RecordInvalid, ThinkstreamError
from thinkstream_client.keys import Keys, check_name
from thinkstream_client.records import SessionId

from .call import Call, function_call
from .status_calls import TENANT_FIELDS
from .wire_request import VERSION

_REMEDY = "give this one a namespace of its own with --namespace NAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one sweep did, in jobs.

    Attributes:
        retried: In line again, their wait over.
        expired: Sealed at their deadline.
        repaired: In line again, their owner lost.
        more: Whether it stopped at its bound with more due.
    """

    retried: int
    expired: int
    repaired: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What a namespace was set up for; digests are empty until a replica has come."""

    protocol: str
    partitions: str
    model_digest: str
    tokenizer_digest: str


def reap(keys: Keys, partition: int, session: SessionId | None = None) -> Call[int]:
    """Takes the jobs of sessions whose lease is over, or of one that is known to be dead.

    Anyone may call it, any number of times. The call returns how many jobs are in line again.
    """
    return Call(function_call("reap", keys.prefix(partition), session or ""), int)


def sweep(keys: Keys, partition: int) -> Call[Swept]:
    """Does what is due: retries, deadlines, repair of jobs without a living owner. Bounded per call."""

    def parse(reply: Any) -> Swept:
        retried, expired, repaired, more = reply
        return Swept(retried=retried, expired=expired, repaired=repaired, more=bool(more))

    return Call(function_call("sweep", keys.prefix(partition)), parse)


def tenant_set(
    keys: Keys,
    partition: int,
    tenant: str,
    *,
    weight: float | None = None,
    max_jobs: int | None = None,
    max_bytes: int | None = None,
    max_running: int | None = None,
    max_tokens_per_s: int | None = None,
) -> Call[None]:
    """Sets what is given of a tenant's share and caps; 0 lifts a cap. Caps hold within the partition.

    Raises:
        InvalidRequest: The name or a value is outside its range.
    """
    check_name("tenant", tenant)
    if weight is not None and not 0.001 <= weight <= 1000:
        raise InvalidRequest("weight", weight, "a number in [0.001, 1000]")
    pairs: list[str] = [] if weight is None else ["weight", repr(float(weight))]
    caps = {"jobs": max_jobs, "bytes": max_bytes, "running": max_running, "rate": max_tokens_per_s}
    for name, value in caps.items():
        if value is not None:
            if value < 0:
                raise InvalidRequest(name, value, "an integer from 0")
            pairs += (name, str(value) if value else "")
    return Call(function_call("tenant_set", keys.prefix(partition), tenant, *pairs), _nothing)


def tenant_drop(keys: Keys, partition: int, tenant: str) -> Call[None]:
    """Forgets what was set of a tenant. Its jobs stay.

    Raises:
        InvalidRequest: The name is none.
    """
    check_name("tenant", tenant)
    pairs = [part for field in TENANT_FIELDS for part in (field, "")]
    return Call(function_call("tenant_set", keys.prefix(partition), tenant, *pairs), _nothing)


def meta_get(keys: Keys) -> Call[Meta | None]:
    """Reads what the namespace was set up for; None where nobody has set it up.

    The call raises:
        ConfigError: Others wrote over it.
    """

    def parse(reply: Any) -> Meta | None:
        return _meta(reply) if reply else None

    return Call(("HGETALL", keys.meta), parse, refused=_refused(keys))


def meta_claim(
    keys: Keys,
    *,
    protocol: int = VERSION,
    partitions: int | None = None,
    model_digest: str | None = None,
    tokenizer_digest: str | None = None,
    arithmetic: str | None = None,
    model: str | None = None,
) -> Call[Meta]:
    """Sets what the namespace is for, once; what is None is neither set nor compared.

    Args:
        keys: The namespace.
        protocol: The version of what is written here.
        partitions: Its partitions; None are those of ``keys``.
        model_digest: What tells the model from others.
        tokenizer_digest: What tells its tokenizer from others.
        arithmetic: What else decides a text's bits: kind of numbers, device and kernels, in words.
        model: The model's name, for the message to whoever brings another; it is not compared.

    The call raises:
        ConfigError: It was set up for something else; names both. Or others wrote over what it is for.
    """
    wanted = {"protocol": str(protocol), "partitions": str(partitions or keys.num_partitions)}
    if model_digest is not None:
        wanted["model_digest"] = model_digest
    if tokenizer_digest is not None:
        wanted["tokenizer_digest"] = tokenizer_digest
    if arithmetic is not None:
        wanted["arithmetic"] = arithmetic

    def parse(reply: Any) -> Meta:
        found = _meta_fields(reply)
        for name, value in wanted.items():
            if found.get(name) != value:
                if model is not None and name in ("model_digest", "tokenizer_digest"):
                    raise ConfigError(_other_model(keys.namespace, found.get("model"), model))
                what = name.replace("_", " ")
                told = f"namespace {keys.namespace} was set up for {what} {found.get(name)}, this is {value}"
                raise ConfigError(f"{told}: {_REMEDY}" if name == "arithmetic" else told)
        return _meta(reply)

    named = wanted if model is None else {**wanted, "model": model}
    pairs = [part for pair in named.items() for part in pair]
    return Call(function_call("meta", keys.meta, *pairs), parse, refused=_refused(keys))


def context_get(keys: Keys) -> Call[int | None]:
    """Reads the tokens of prompt and result that a job of the namespace may have; None before any claim.

    The call raises:
        ConfigError: What holds is no number, or others wrote over it.
    """

    def parse(reply: Any) -> int | None:
        return None if reply is None else _context(keys, reply.decode(errors="replace"))

    return Call(("HGET", keys.meta, "max_context"), parse, refused=_refused(keys))


def context_claim(keys: Keys, max_context: int) -> Call[int]:
    """Sets the tokens of prompt and result that a job of the namespace may have, once; returns what holds.

    Replicas that differed would end a job that goes from one to the other differently than either alone.

    The call raises:
        ConfigError: What holds is no number, or others wrote over it.
    """

    def parse(reply: Any) -> int:
        return _context(keys, _meta_fields(reply)["max_context"])

    return Call(function_call("meta", keys.meta, "max_context", max_context), parse, refused=_refused(keys))


def _context(keys: Keys, found: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", found):
        raise ConfigError(f"namespace {keys.namespace} has no number as its max_context: {found[:80]!r}")
    return int(found)


def _refused(keys: Keys) -> Callable[[ThinkstreamError], ThinkstreamError]:
    """A namespace whose meta is no hash is served by nobody: what it was set up for cannot be told."""

    def explain(error: ThinkstreamError) -> ThinkstreamError:
        if not isinstance(error, RecordInvalid):
            return error
        return ConfigError(
            f"namespace {keys.namespace}: its key {keys.meta} is not the hash that it must be, others wrote "
            "over it: delete it if the namespace is for the model that is to be served, or take another one "
            "with --namespace NAME"
        )

    return explain


def _other_model(namespace: str, found: str | None, model: str) -> str:
    if found == model:
        return f"namespace {namespace} serves {model} as it was before its files changed: {_REMEDY}"
    return f"namespace {namespace} serves {found or 'another model'}, not {model}: {_REMEDY}"


def _nothing(reply: Any) -> None:
    del reply


def _meta_fields(flat: Any) -> dict[str, str]:
    return {
        flat[i].decode(errors="replace"): flat[i + 1].decode(errors="replace") for i in range(0, len(flat), 2)
    }


def _meta(reply: Any) -> Meta:
    found = _meta_fields(reply)
    return Meta(
        protocol=found.get("protocol", ""),
        partitions=found.get("partitions", ""),
        model_digest=found.get("model_digest", ""),
        tokenizer_digest=found.get("tokenizer_digest", ""),
    )
