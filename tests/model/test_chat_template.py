from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from thinkstream_model.chat_template import ChatTemplate
from thinkstream_model.errors import ConfigError, TemplateError, TokenizerError

MESSAGES = [{"role": "user", "content": "Hi"}]


def _render(source: str, **variables: str) -> str:
    return ChatTemplate(source, "test", variables).render(MESSAGES)


def test_the_usual_surroundings() -> None:
    assert _render("{% if tools is none and add_generation_prompt %}\nyes\n{% endif %}") == "yes\n"
    assert _render("{{ eos_token }}", eos_token="</s>") == "</s>"
    assert _render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "Hi"}'
    assert _render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert _render("{{ '-' * 3 }}{{ 6 * 7 }}") == "---42"
    assert _render("{{ strftime_now is defined }}") == "False"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('two\nlines') }}",
        "{% include 'other' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails(source: str) -> None:
    with pytest.raises(TemplateError) as failed:
        _render(source)
    assert "\n" not in str(failed.value)


ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) if loop.depth < 5 }}{% endfor %}",
    "{% set _thinkstream_budget = 1 %}"
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_without_an_end_is_stopped_at_once(source: str) -> None:
    began_s = time.thread_time()
    with pytest.raises(TemplateError, match="takes too long"):
        _render(source)
    assert time.thread_time() - began_s < 0.8


@pytest.mark.parametrize("source", ENDLESS)
def test_rounds_end_it_where_time_does_not(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkstream_model.chat_template._MAX_CPU_S", 5.0)
    began_s = time.thread_time()
    with pytest.raises(TemplateError, match="takes too long"):
        _render(source)
    assert time.thread_time() - began_s < 4.0


def test_time_ends_what_does_much_in_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinkstream_model.chat_template._MAX_CPU_S", 0.1)
    with pytest.raises(TemplateError, match="takes too long"):
        _render("{% for i in range(999) %}{% set x = range(99999) | list | sort %}{% endfor %}")


def test_a_look_at_all_messages_for_each_is_not_too_long() -> None:
    source = "{% for m in messages %}{% for n in messages %}{% endfor %}{% endfor %}done"
    assert ChatTemplate(source, "test").render(MESSAGES * 120) == "done"


@pytest.mark.parametrize(
    "expression", ["10 ** 10 ** 10", "'a' * 10 ** 9", "'a' * 999999999", "[1] * 9", "2 * 1e30", "9 * 'a'"]
)
def test_a_product_that_would_fill_the_memory(expression: str) -> None:
    with pytest.raises(TemplateError, match="too large"):
        _render("{{ " + expression + " }}")


def test_a_template_that_writes_without_end() -> None:
    with pytest.raises(TemplateError, match="far more text"):
        _render("{% for i in range(9999) %}{{ 'a' * 60000 }}{% endfor %}")


def test_many_messages_are_not_too_long() -> None:
    template = ChatTemplate.built_in()
    text = template.render([{"role": "user", "content": "x"}] * 5000)
    assert text.count("<|im_start|>") == 5001


def _find(folder: Path, config: dict[str, object]) -> str:
    template = ChatTemplate.find(folder, config)
    assert template is not None
    return template.render(MESSAGES)


def test_the_three_places_of_a_template(tmp_path: Path) -> None:
    assert ChatTemplate.find(tmp_path, {}) is None
    config: dict[str, object] = {"chat_template": "config {{ bos_token }}", "bos_token": {"content": "<s>"}}
    assert _find(tmp_path, config) == "config <s>"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert _find(tmp_path, config) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert _find(tmp_path, config) == "jinja"


def test_one_of_several_templates(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert _find(tmp_path, {"chat_template": several}) == "yes"
    with pytest.raises(TokenizerError, match="one named default"):
        ChatTemplate.find(tmp_path, {"chat_template": several[:1]})
    with pytest.raises(TokenizerError, match="chat_template"):
        ChatTemplate.find(tmp_path, {"chat_template": 3})


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% endfor %}", "{{ x | no_such_filter }}"])
def test_what_is_not_a_template(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(TokenizerError) as refused:
        ChatTemplate.find(tmp_path, {})
    assert refused.value.file == str(tmp_path / "chat_template.jinja")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(ConfigError, match=r"chat_template.json: expected JSON"):
        ChatTemplate.find(tmp_path, {})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="a readable file"):
        ChatTemplate.find(tmp_path, {})
