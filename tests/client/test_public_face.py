from __future__ import annotations

import subprocess
import sys

import thinkstream_client

HEAVY = ("redis", "asyncio", "torch", "ray", "typer", "rich", "jinja2", "tokenizers", "numpy")
PROBE = f"""
import sys, time
start = time.process_time()
import thinkstream_client
print(time.process_time() - start, *(name for name in {HEAVY} if name in sys.modules))
"""


def test_import_is_light() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROBE],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        ).stdout.split()
        for _ in range(3)
    ]
    assert [run[1:] for run in runs] == [[], [], []]
    assert min(float(run[0]) for run in runs) < 0.2  # of the processor: other work does not count


def test_all_names_what_is_there() -> None:
    names = thinkstream_client.__all__
    assert names == sorted(names) and len(set(names)) == len(names)
    for name in names:
        found = getattr(thinkstream_client, name)
        assert found.__module__.startswith("thinkstream_client.")


def test_every_error_is_exported() -> None:
    errors = {
        name
        for name, value in vars(thinkstream_client.errors).items()
        if isinstance(value, type) and issubclass(value, thinkstream_client.ThinkstreamError)
    }
    assert errors <= set(thinkstream_client.__all__)


def test_errors_carry_their_name_as_code() -> None:
    for name in thinkstream_client.__all__:
        value = getattr(thinkstream_client, name)
        if isinstance(value, type) and issubclass(value, thinkstream_client.ThinkstreamError):
            assert value.code == name
