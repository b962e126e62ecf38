"""Prints the gate's table: ``python -m infra.mutations``. Ends with 1 where a check is not missed."""

from __future__ import annotations

import argparse
import sys

from .catalog import MUTATIONS, REDUNDANT
from .gate import judge


def main() -> int:
    """Runs the gate over every mutation and prints what is removed and what notices."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    survivors = 0
    print("| Function | Check removed | Caught by |\n|---|---|---|")
    for verdict in judge(MUTATIONS):
        mutation = verdict.mutation
        test = mutation.test.replace("[valkey]", "").replace("[valkey-", "[")
        caught = f"**{verdict.problem}**" if verdict.problem else f"`{test}`"
        survivors += bool(verdict.problem)
        print(f"| `{mutation.function}` | {mutation.check} | {caught} |", flush=True)
    print(f"\n{len(MUTATIONS) - survivors} of {len(MUTATIONS)} checks are noticed when they are gone.")
    print("\n| Check deleted as redundant | Why |\n|---|---|")
    for check, why in REDUNDANT.items():
        print(f"| {check} | {why} |")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
