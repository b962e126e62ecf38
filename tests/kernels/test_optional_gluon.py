"""Gluon kernels that this Triton cannot compile: said once, then left alone."""

from __future__ import annotations

import ast
import logging
from unittest.mock import Mock

import pytest
from triton import CompilationError  # pyright: ignore[reportMissingTypeStubs]

from thinkstream_model.kernels.optional_gluon import OptionalGluon


@pytest.fixture
def kernels() -> OptionalGluon:
    return OptionalGluon("tests", "they take twice as long")


def test_what_can_be_launched_is(kernels: OptionalGluon, caplog: pytest.LogCaptureFixture) -> None:
    with kernels.importing():
        launch = Mock()
    assert kernels.is_usable and kernels.try_launch(launch, 1, width=2)
    launch.assert_called_once_with(1, width=2)
    assert kernels.is_usable and not caplog.records


@pytest.mark.parametrize("error", [ImportError("no warp_specialize"), AttributeError("no NVMMASharedLayout")])
def test_what_cannot_be_imported_is_not_used(
    error: Exception, kernels: OptionalGluon, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), kernels.importing():
        raise error
    assert not kernels.is_usable
    (record,) = caplog.records
    assert repr(error) in record.getMessage()


@pytest.mark.parametrize(
    "error",
    [
        TypeError("of 3 arguments"),
        AttributeError("no mbarrier"),
        CompilationError(None, ast.parse("f()").body[0]),
    ],
)
def test_what_cannot_be_compiled_is_not_used_again(
    error: Exception, kernels: OptionalGluon, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not kernels.try_launch(Mock(side_effect=error))
    assert not kernels.is_usable
    (record,) = caplog.records
    assert repr(error) in record.getMessage()


def test_a_launch_that_fails_is_not_hidden(kernels: OptionalGluon) -> None:
    failing = Mock(side_effect=RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        kernels.try_launch(failing)
    assert kernels.is_usable
