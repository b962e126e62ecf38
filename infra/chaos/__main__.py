"""Breaks the service on purpose and counts what was lost: ``make chaos``.

Exit code 1 if anything was.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from thinkstream_scheduler.stop_signals import StopSignals

from .options import parse_options
from .report import HEADER
from .run import run_chaos


def main() -> int:
    """Run once, as the command line says."""
    options = parse_options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # Ray tells of every process that dies; what matters of it is in the replicas' own logs.
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        StopSignals() as signals,
    ):
        report = run_chaos(options, signals.check)
    if options.report is not None:
        options.report.write_text(report.as_json())
    if not report.is_clean:
        print(report.as_json())
    print(f"\n{HEADER}\n{report.row()}")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
