"""The command ``chat``: a conversation in the terminal, each turn a job."""

from __future__ import annotations

from typing import Annotated

import typer

from thinkstream_client.client import Client
from thinkstream_client.errors import JobError, ThinkstreamError
from thinkstream_client.job import Job

from . import options
from .output import notes, write_text

HELP = "Ctrl-C cancels an answer, /clear forgets the conversation, Ctrl-D ends."


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(chat)


def chat(
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    max_tokens: options.MaxTokens = None,
    once: Annotated[
        str | None, typer.Option("--once", help="Ask this, print the answer and end.", show_default=False)
    ] = None,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Talks with the Thinker; the whole conversation goes into each turn. Ctrl-C cancels an answer.

    Example: `thinkstream chat --system "Answer in Russian."`
    """
    opening = [("system", system)] if system else []
    turns = list(opening)
    sampling = options.sampling_fields(temperature, top_p, top_k, max_tokens)
    with Client(url, namespace=namespace) as client:
        if not client.replicas():
            notes.print("no replica is alive: answers come once one is")
        if once is None:
            notes.print(HELP)
        while (said := once if once is not None else _ask()) is not None:
            if said.strip() == "/clear":
                turns = list(opening)
            elif said.strip():
                turns.append(("user", said))
                job = client.submit(messages=turns, tenant=tenant, tags=["chat"], **sampling)
                answer = _answer(job)
                turns.append(("assistant", answer))
            if once is not None:
                return


def _ask() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        write_text("\n")
        return None


def _answer(job: Job) -> str:
    """Prints an answer as it comes and returns what there was of it."""
    told: list[str] = []
    try:
        for chunk in job.stream():
            told.append(chunk.text)
            write_text(chunk.text)
    except KeyboardInterrupt:
        job.cancel()
        notes.print("\ncancelled")
    except JobError as error:
        notes.print(f"\n{error}")
    except ThinkstreamError:
        notes.print(f"\nthe answer is not lost: thinkstream attach {job.id} --tenant {job.tenant}")
        raise
    write_text("\n")
    return "".join(told)
