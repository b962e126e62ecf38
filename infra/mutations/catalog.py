"""Every check of the functions, in the order of the library, and the test that misses it.

Left out are most limits on what one call may do, which change when things happen and never what happens.
"""

from __future__ import annotations

from .broken_checks import BROKEN_CHECKS
from .claim_checks import CLAIM_CHECKS
from .client_checks import CLIENT_CHECKS
from .guard_checks import GUARD_CHECKS
from .letter_checks import LETTER_CHECKS
from .mutation import Mutation
from .place_checks import PLACE_CHECKS
from .upkeep_checks import UPKEEP_CHECKS
from .worker_checks import WORKER_CHECKS

MUTATIONS: tuple[Mutation, ...] = (
    *CLIENT_CHECKS,
    *CLAIM_CHECKS,
    *WORKER_CHECKS,
    *UPKEEP_CHECKS,
    *PLACE_CHECKS,
    *LETTER_CHECKS,
    *GUARD_CHECKS,
    *BROKEN_CHECKS,
)

REDUNDANT = {
    "`NOMKSTREAM` in `step` and `finish`": (
        "A stream that is not there has length 0, and no owner expects that: each claim writes a marker."
    ),
    "`status == queued` of a job that stands in a queue": (
        "The hash names its entry only while the job is queued: what takes it out of line removes both."
    ),
    "`status == running` in `release`, `bye` and `reap`": (
        "A job has an owner only while it runs: both are written and removed together."
    ),
}
"""Checks that were in the functions and stood behind others: what was deleted, and why nothing is lost."""
