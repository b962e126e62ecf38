"""Kernels in Gluon, which stand aside where this Triton's Gluon is not the one they were written in.

Gluon still changes from one Triton to the next: what it lacks shows at the import, what it calls otherwise at
the first launch. Neither is an error, for the kernels in Triton beside them give the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import ParamSpec

import triton

logger = logging.getLogger(__name__)

_Operands = ParamSpec("_Operands")


class OptionalGluon:
    """Whether some Gluon kernels can be used; once they cannot, it is said, and they are not tried again.

    Args:
        work: What they do on Hopper, for the warning.
        loss: What goes how much slower without them, for the warning.
    """

    def __init__(self, work: str, loss: str) -> None:
        self.is_usable = True
        self._work, self._loss = work, loss

    @contextmanager
    def importing(self) -> Generator[None, None, None]:
        """Import them inside; their names are bound only while ``is_usable``."""
        try:
            yield
        except (ImportError, AttributeError) as error:
            self._give_up(error)

    def try_launch(
        self, launch: Callable[_Operands, object], *operands: _Operands.args, **options: _Operands.kwargs
    ) -> bool:
        """Launch one of them; to be asked only while ``is_usable``.

        Returns:
            Whether it is launched. An error of the device is not hidden.
        """
        try:
            launch(*operands, **options)
        except (triton.CompilationError, TypeError, AttributeError) as error:
            self._give_up(error)
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        self.is_usable = False
        logger.warning(
            "this Triton's Gluon is not the one that Hopper's kernels for %s were written in (%r): "
            "without them %s there, with the same results",
            self._work, error, self._loss,
        )  # fmt: skip
