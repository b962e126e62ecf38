from __future__ import annotations

import pickle

import pytest
from tests.support.made_errors import made, tree_below

from thinkstream_model.errors import ModelError


@pytest.mark.parametrize("kind", tree_below(ModelError))
def test_an_error_is_pickled_whole(kind: type[ModelError]) -> None:
    error = made(kind)
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is kind
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
