"""The process behind `up --detach`: what it serves comes in by stdin, and one line goes back about the start.

Not by its command line: every user of the machine may read that, and the URL may carry a password.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from typing import Any, NamedTuple, TextIO

from thinkstream_client.errors import ConfigError, ServiceError, ServiceUnavailable, ThinkstreamError
from thinkstream_workers.log_format import LOG_FORMAT

from .serve import serve
from .state_folder import only_one
from .up_arguments import UpArguments

logger = logging.getLogger(__name__)

_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130


class StartReport(NamedTuple):
    """How a start went.

    Attributes:
        error: What was wrong; empty where the service is ready.
        may_pass: Whether the error is one that trying again later may mend.
    """

    error: str = ""
    may_pass: bool = False

    @classmethod
    def of(cls, error: ThinkstreamError) -> StartReport:
        """The report of a failure."""
        return cls(str(error), isinstance(error, ServiceError))

    def check(self) -> None:
        """Returns if the service is ready.

        Raises:
            ConfigError, ServiceUnavailable: It is not.
        """
        if self.error:
            raise (ServiceUnavailable if self.may_pass else ConfigError)(self.error)


def encode_arguments(arguments: UpArguments) -> bytes:
    """What the process reads from its stdin."""
    return json.dumps(asdict(arguments)).encode()


def decode_report(line: bytes) -> StartReport:
    """Reads what the process said of its start."""
    found: dict[str, Any] = json.loads(line)
    return StartReport(**found)


def main() -> None:
    """Serves as stdin says; the arguments are descriptors: where to report, and the state folder's lock."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    descriptor, lock = map(int, sys.argv[1:])
    os.set_inheritable(descriptor, False)  # who outlives this process must not hold the line open
    arguments = UpArguments(**json.load(sys.stdin))
    with os.fdopen(descriptor, "w") as line:
        try:
            with only_one(lock):
                serve(arguments, lambda: _report(line, StartReport()))
        except ThinkstreamError as error:
            logger.error("%s", error)
            _report(line, StartReport.of(error))
            sys.exit(_EXIT_FAILED)
        except KeyboardInterrupt:
            _report(line, StartReport("the service was ended before it was ready", may_pass=True))
            sys.exit(_EXIT_INTERRUPTED)
        except Exception as error:
            logger.exception("the service ends")
            _report(line, StartReport(f"{type(error).__name__}: {error}", may_pass=True))
            sys.exit(_EXIT_FAILED)


def _report(line: TextIO, report: StartReport) -> None:
    """Says it once; nobody listens after the first report."""
    if not line.closed:
        json.dump(report._asdict(), line)
        line.close()


if __name__ == "__main__":
    main()
