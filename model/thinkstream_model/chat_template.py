"""The checkpoint's chat template: how the turns of a chat are joined into one text.

A template comes with the weights and is code, so it runs in jinja2's sandbox, bounded in how often it may
go round, in time and in what it may write. What in its text is a special token, and what only looks like
one, is ``chat``'s business.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

from .errors import TemplateError, TokenizerError
from .json_files import read_object

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
_MAX_ROUNDS = 10_000
_MAX_ROUNDS_PER_MESSAGE = 1_000
_MAX_CPU_S = 0.5
_MAX_CPU_S_PER_MESSAGE = 0.001
_MAX_EXTRA_CHARACTERS = 1 << 20
_MAX_FACTOR = 1 << 40
_MAX_REPEATED = 1 << 16
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """A jinja2 template, sandboxed: no attribute with underscores, bounded in time and size.

    The usual variables and functions of chat templates are there, except for the clock: a prompt is a
    function of its messages alone, or else a resumed job would go on from another prompt.

    Args:
        source: The template.
        file: Where it was read.
        variables: Special tokens that it may name (``eos_token``).

    Raises:
        TokenizerError: It is not a template.
    """

    def __init__(self, source: str, file: str | Path, variables: Mapping[str, str] | None = None) -> None:
        environment = _Sandbox()
        try:
            tree = environment.parse(source)
            _count_rounds(tree)
            code = cast("Any", environment.compile(tree))
            self._template = environment.template_class.from_code(
                environment, code, environment.make_globals(None)
            )
        except (JinjaError, RecursionError) as error:
            raise TokenizerError(file, "a chat template", error) from error
        self._variables = dict(variables or {})

    @classmethod
    def built_in(cls) -> ChatTemplate:
        """ChatML without a default system prompt, as the released model was trained on."""
        return cls(_CHATML, "the built-in chat template")

    @classmethod
    def find(cls, folder: Path, tokenizer_config: Mapping[str, object]) -> ChatTemplate | None:
        """The template of a checkpoint's folder, None where it has none.

        Args:
            folder: Where ``chat_template.jinja`` and ``chat_template.json`` would be.
            tokenizer_config: The third place to look in.

        Raises:
            TokenizerError: What is there is not a template.
            ConfigError: A JSON file is broken.
        """
        variables = _token_variables(tokenizer_config)
        plain = folder / "chat_template.jinja"
        if plain.is_file():
            try:
                return cls(plain.read_text(encoding="utf-8"), plain, variables)
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(plain, "a readable file", error) from error
        own = folder / "chat_template.json"
        for file, document in ((own, read_object(own)), (folder / "tokenizer_config.json", tokenizer_config)):
            source = document.get("chat_template")
            if source is not None:
                return cls(_default_of(source, file), file, variables)
        return None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The whole chat as text, up to where the assistant's next turn begins.

        Raises:
            TemplateError: The template refuses the messages, fails, or takes too long.
        """
        size = sum(len(message["content"]) for message in messages)
        budget = _Budget(
            max_characters=4 * size + _MAX_EXTRA_CHARACTERS,
            max_rounds=_MAX_ROUNDS + _MAX_ROUNDS_PER_MESSAGE * len(messages),
            max_cpu_s=_MAX_CPU_S + _MAX_CPU_S_PER_MESSAGE * len(messages),
        )
        variables = {
            **self._variables,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            _BUDGET: budget,
        }
        try:
            return "".join(map(budget.count, self._template.generate(variables)))
        except TemplateError:
            raise
        except Exception as error:
            message = " ".join(str(error).split())[:200]
            raise TemplateError(f"the chat template failed: {message or type(error).__name__}") from error


def token_text(config: Mapping[str, object], name: str) -> str | None:
    """A token that ``tokenizer_config.json`` names, spelled as text or as an object with ``content``."""
    value = config.get(name)
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("content")
    return value if isinstance(value, str) else None


_BUDGET = "_thinkstream_budget"


class _Budget:
    """What one rendering may still use."""

    def __init__(self, *, max_characters: int, max_rounds: int, max_cpu_s: float) -> None:
        self._characters_left = max_characters
        self._rounds_left = max_rounds
        self._deadline_s = time.thread_time() + max_cpu_s

    def count_round(self) -> None:
        # Rounds are the same on every machine; time is for bodies that are long.
        self._rounds_left -= 1
        if self._rounds_left < 0:
            raise TemplateError("the chat template takes too long on these messages")
        self.check_time()

    def check_time(self) -> None:
        # The thread's own time: on a busy machine a good template must not fail.
        if time.thread_time() > self._deadline_s:
            raise TemplateError("the chat template takes too long on these messages")

    def count(self, piece: str) -> str:
        self.check_time()
        self._characters_left -= len(piece)
        if self._characters_left < 0:
            raise TemplateError("the chat template wrote far more text than the messages hold")
        return piece


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the blanks, filters and functions that chat templates are written for."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.filters["tojson"] = _to_json
        cast("dict[str, Any]", self.globals)["raise_exception"] = _refuse
        self.count_round = _count_round

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply, unless the product could fill the memory by itself."""
        if operator == "*" and isinstance(right, int):
            if isinstance(left, int | float) and max(abs(left), abs(right)) < _MAX_FACTOR:
                return left * right
            if isinstance(left, str) and len(left) * right <= _MAX_REPEATED:
                return left * right
        raise TemplateError(f"the chat template uses {operator} on values that are too large")


def _count_rounds(tree: nodes.Template) -> None:
    """Count wherever the template could go round: in loops and in macros."""
    for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        count = nodes.Call(nodes.EnvironmentAttribute("count_round"), [], [], None, None)
        body = cast("list[nodes.Node]", cast("Any", node).body)
        body.insert(0, nodes.ExprStmt(count).set_lineno(node.lineno))


@pass_context
def _count_round(context: Context) -> None:
    # ``parent`` is what render was given; the template's own assignments do not reach it.
    cast("_Budget", context.parent[_BUDGET]).count_round()


def _refuse(message: str) -> None:
    raise TemplateError(f"the chat template refuses these messages: {' '.join(str(message).split())[:200]}")


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _default_of(source: object, file: Path) -> str:
    """One template, or the one named ``default`` of several."""
    if isinstance(source, list):
        for entry in cast("list[object]", source):
            if isinstance(entry, dict) and cast("dict[str, object]", entry).get("name") == "default":
                source = cast("dict[str, object]", entry).get("template")
    if not isinstance(source, str):
        found = "a list without one" if isinstance(source, list) else repr(source)
        raise TokenizerError(file, "chat_template: a text, or a list with one named default", found)
    return source


def _token_variables(config: Mapping[str, object]) -> dict[str, str]:
    texts = {name: token_text(config, name) for name in _TOKEN_NAMES}
    return {name: text for name, text in texts.items() if text is not None}
