"""Half a minute of what `make chaos` does for half an hour."""

from __future__ import annotations

import pytest
from infra.chaos.options import ChaosOptions
from infra.chaos.run import run_chaos


@pytest.mark.timeout(240)  # half a minute, on a machine that does nothing else
def test_nothing_is_lost_doubled_reordered_changed_or_stuck() -> None:
    report = run_chaos(
        ChaosOptions(
            seed=11,
            seconds=18.0,
            light_s=4.0,
            heavy_s=12.0,
            num_replicas=2,
            lease_ms=2_000,
            window=8,
            num_specs=8,
            patience_s=30.0,
        )
    )
    assert report.is_clean, report.as_json()
    assert report.jobs.total() >= 16
    assert report.num_claims > 0
    assert {"kill", "redis", "scheduler"} <= report.faults_by_kind.keys()
