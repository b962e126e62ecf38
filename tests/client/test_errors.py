from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
from tests.support.made_errors import made, tree_below

from thinkstream_client.errors import InvalidRequest, ThinkstreamError
from thinkstream_client.outcome import JobResult


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("kind", tree_below(ThinkstreamError))
def test_an_error_is_pickled_whole(kind: type[ThinkstreamError], protocol: int) -> None:
    error = made(kind)
    error.partial = JobResult(job_id="j", text="Par", token_ids=(5, 6))
    error.add_note("a note")
    for other in (pickle.loads(pickle.dumps(error, protocol)), copy.deepcopy(error)):
        assert type(other) is kind
        assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


def _refuse() -> None:
    try:
        int("many")
    except ValueError as error:
        raise InvalidRequest("temperature", 101, "a number in [0, 100]") from error


def test_an_error_leaves_a_pool_of_processes() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(InvalidRequest, match=r"^temperature: got 101, allowed: a number in") as refused:
            pool.submit(_refuse).result(30)
        assert "invalid literal" in str(refused.value.__cause__), (
            "the pool hands on what it came from as text"
        )
        assert pool.submit(abs, -1).result(30) == 1
