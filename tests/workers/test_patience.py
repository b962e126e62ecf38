"""How long refusals are waited for."""

from __future__ import annotations

import pytest

from thinkstream_client.errors import (
    CommandRefused,
    Fenced,
    QueueFull,
    ServiceUnavailable,
    ThinkstreamError,
)
from thinkstream_workers.patience import (
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    MAX_REFUSED_CALLS,
    MAX_REFUSED_SESSIONS,
    Patience,
)


def test_pauses_grow_up_to_a_second_and_begin_anew_once_all_is_sent() -> None:
    patience, error = Patience(), ServiceUnavailable("gone")
    assert [patience.before_retry(error) for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    patience.all_sent()
    assert not patience.is_tried
    assert patience.before_retry(error) == FIRST_BACKOFF_S


@pytest.mark.parametrize("error", [ServiceUnavailable("gone"), QueueFull("memory", 1)], ids=["away", "full"])
def test_what_passes_is_waited_for_as_long_as_it_takes(error: ThinkstreamError) -> None:
    patience = Patience()
    assert [patience.before_retry(error) for _ in range(3 * MAX_REFUSED_CALLS)][-1] == MAX_BACKOFF_S


def test_a_refusal_comes_out_once_it_was_repeated_often_enough() -> None:
    patience, error = Patience(), CommandRefused("no")
    for _ in range(MAX_REFUSED_CALLS):
        patience.before_retry(error)
    with pytest.raises(CommandRefused) as caught:
        patience.before_retry(error)
    assert caught.value is error


def test_the_first_new_session_is_opened_at_once_and_too_many_are_not() -> None:
    patience, error = Patience(), Fenced("not known")
    pauses = [patience.before_session(error) for _ in range(MAX_REFUSED_SESSIONS)]
    assert pauses == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    with pytest.raises(Fenced, match="8 new sessions in a row"):
        patience.before_session(error)
    patience.beat_answered()
    assert patience.before_session(error) == 0.0
