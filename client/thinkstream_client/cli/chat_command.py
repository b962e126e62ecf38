"""The command ``chat``: a conversation in the terminal, each turn a job."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from contextlib import closing
from typing import Annotated

import typer

from thinkstream_client.client import Client
from thinkstream_client.core.compose import SamplingFields
from thinkstream_client.errors import ThinkstreamError
from thinkstream_client.job import Job

from . import options
from .output import print_error, print_note, print_stream, write_text
from .presence import no_replica

HELP = "Ctrl-C cancels an answer, /clear forgets the conversation, /exit or Ctrl-D ends, /help says this."

_COMMAND = re.compile(r"/\w+")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(chat)


def chat(
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
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
    if once == "":
        raise typer.BadParameter("the prompt is empty")
    sampling = options.sampling_fields(temperature, top_p, top_k, max_tokens, stop, seed)
    with closing(Client(url, namespace=namespace)) as client:
        if told := no_replica(client):
            print_note(f"{told}: answers come once one is")
        conversation = _Conversation(client, system, tenant, sampling)
        if once is None:
            _Talk(conversation).run()
        else:
            conversation.ask(once)


class _Conversation:
    """Turns so far. One that brought no answer leaves no trace, so that the next can go on."""

    def __init__(self, client: Client, system: str | None, tenant: str, sampling: SamplingFields) -> None:
        self._client, self._tenant, self._sampling = client, tenant, sampling
        self._opening = [("system", system)] if system else []
        self._turns = list(self._opening)

    def clear(self) -> None:
        self._turns = list(self._opening)

    def ask(self, said: str) -> None:
        """Asks, and prints the answer as it comes; Ctrl-C cancels it.

        Raises:
            ThinkstreamError: There is no answer, or only a part of one.
            KeyboardInterrupt: The answer was cancelled.
        """
        turns = [*self._turns, ("user", said)]
        job = self._client.submit(messages=turns, tenant=self._tenant, tags=["chat"], **self._sampling)
        told: list[str] = []
        try:
            self._read(job, told)
        finally:
            if told:
                self._turns = [*turns, ("assistant", "".join(told))]

    @staticmethod
    def _read(job: Job, told: list[str]) -> None:
        try:
            print_stream(job.stream(), told)
        except KeyboardInterrupt:
            job.cancel()
            print_note("cancelled")
            raise


class _Talk:
    """Reads what the user says, a line a turn, and does it, until there is no more."""

    def __init__(self, conversation: _Conversation) -> None:
        self._conversation = conversation
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._was_interrupted = False

    def run(self) -> None:
        if self._is_terminal:
            print_note(HELP)
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")  # arrow keys in `input`
        while (said := self._read()) is not None and said not in ("/exit", "/quit"):
            self._do(said)

    def _read(self) -> str | None:
        """The next line, or None at the end."""
        try:
            said = input("> " if self._is_terminal else "").strip()
        except EOFError:
            if self._is_terminal:
                write_text("\n")
            return None
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            if self._was_interrupted:
                write_text("\n")
                return None
            print_note("\nCtrl-C again or Ctrl-D ends")
            self._was_interrupted = True
            return ""
        self._was_interrupted = False
        return said

    def _do(self, said: str) -> None:
        if said == "/clear":
            self._conversation.clear()
            print_note("the conversation is forgotten")
        elif said == "/help":
            print_note(HELP)
        elif _COMMAND.fullmatch(said):
            print_note(f"{said} is no command. {HELP}")
        elif said:
            with contextlib.suppress(KeyboardInterrupt):
                _take_turn(self._conversation, said)


def _take_turn(conversation: _Conversation, said: str) -> None:
    try:
        conversation.ask(said)
    except ThinkstreamError as error:  # the conversation outlives it
        print_error(error)
