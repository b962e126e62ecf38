"""The arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from thinkstream_client.core.compose import SamplingFields
from thinkstream_client.errors import shown

FLAG = ""
"""Metavar of an option that takes no value."""


def integer(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser of integers in a range, whose errors name it and what was given."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise typer.BadParameter(f"got {shown(text)}, allowed: an integer in [{low}, {high}]")
        return value

    return parse


Url = Annotated[
    str | None,
    typer.Option("--url", help="Redis; else THINKSTREAM_URL, else what `up` started.", show_default=False),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", help="First part of the service's keys.", show_default=False)
]
JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]
Tenant = Annotated[str, typer.Option("--tenant", "-t", help="Whose the jobs are.")]
Priority = Annotated[str, typer.Option("--priority", help="high, normal or low.")]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="Label to find it by; repeatable.")]
Json = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print JSON, for scripts.")]
System = Annotated[
    str | None, typer.Option("--system", "-s", help="System message before the chat.", show_default=False)
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", help="0 takes the likeliest token.", show_default=False)
]
TopP = Annotated[float | None, typer.Option("--top-p", help="In (0, 1].", show_default=False)]
TopK = Annotated[int | None, typer.Option("--top-k", help="0 is off.", show_default=False)]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", help="At least 1.", show_default=False)]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Ends the text; repeatable.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Fixes the random numbers.", show_default=False)]


def sampling_fields(
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_tokens: int | None = None,
    stop: list[str] | None = None,
    seed: int | None = None,
) -> SamplingFields:
    """Returns what was given on the command line; the rest is left to the checkpoint's defaults."""
    return SamplingFields(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        seed=seed,
    )
