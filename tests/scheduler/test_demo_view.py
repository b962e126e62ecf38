from __future__ import annotations

import pytest
from rich.console import Console

from thinkstream_scheduler.demo_questions import FIRST, demo_questions
from thinkstream_scheduler.demo_view import DemoJob, answer


def test_brackets_in_an_answer_are_what_the_model_said() -> None:
    job = DemoJob(FIRST[0], text="[/x] Paris [bold]")
    console = Console(width=80)
    with console.capture() as shown:
        console.print(answer(job))
    assert shown.get() == f"\n{FIRST[0].text}\n[/x] Paris [bold]\n"


@pytest.mark.parametrize(("text", "is_right"), [("The capital is Paris.", True), ("It is Lyon.", False)])
def test_answers_that_are_known_are_checked(text: str, is_right: bool) -> None:
    assert DemoJob(FIRST[0], text=text).is_right is is_right


def test_only_the_questions_that_are_shown_have_known_answers() -> None:
    assert [question for question in demo_questions() if question.expected] == list(FIRST)
    assert all(DemoJob(question).is_right for question in demo_questions() if not question.expected)
