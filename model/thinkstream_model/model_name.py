"""What ``--model`` may name, taken apart. Looks at no file, and needs no torch.

demo                          the small checkpoint that comes with the package
random:CONFIG[,seed=N]        random weights in the shape of a config.json, for measurements
PATH                          a checkpoint's folder
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DEMO = "demo"

_DEMO_FOLDER = Path(__file__).with_name("demo")
_RANDOM = re.compile(r"random:(?P<config>.+?)(,seed=(?P<seed>\d{1,18}))?")


class ModelName(NamedTuple):
    """Where a model is.

    Attributes:
        path: The checkpoint's folder; for random weights the config, or the folder that it is in.
        random_seed: Seed of the weights, where they are made rather than read.
    """

    path: Path
    random_seed: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Take a name apart; what is none of the other two is a path."""
        if text == DEMO:
            return cls(_DEMO_FOLDER)
        if random := _RANDOM.fullmatch(text):
            return cls(Path(random["config"]), int(random["seed"] or 0))
        return cls(Path(text))

    def from_anywhere(self) -> str:
        """The name by which it is found from any working directory."""
        if self.path == _DEMO_FOLDER:
            return DEMO
        if self.random_seed is None:
            return str(self.path.absolute())
        return f"random:{self.path.absolute()}{f',seed={self.random_seed}' if self.random_seed else ''}"
