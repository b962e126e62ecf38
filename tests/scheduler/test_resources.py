from __future__ import annotations

import pytest

from thinkstream_scheduler.resources import ReplicaResources, shortage

GPU = ReplicaResources(num_cpus=1.0, num_gpus=1.0)


@pytest.mark.parametrize(
    ("wanted", "num_replicas", "room", "missing"),
    [
        (GPU, 1, {"CPU": 8.0}, "1 replica of 1 GPU wants 1 GPU, Ray has 0"),
        (GPU, 2, {"CPU": 8.0, "GPU": 1.0}, "2 replicas of 1 GPU want 2 GPU, Ray has 1"),
        (GPU, 9, {"CPU": 8.0, "GPU": 9.0}, "9 replicas of 1 CPU want 9 CPU, Ray has 8"),
        (GPU, 2, {"CPU": 2.0, "GPU": 2.0}, None),
        (ReplicaResources(num_cpus=0.1), 3, {"CPU": 0.3}, None),
        (ReplicaResources(num_cpus=0.0), 3, {}, None),
    ],
)
def test_what_a_cluster_lacks_is_said(
    wanted: ReplicaResources, num_replicas: int, room: dict[str, float], missing: str | None
) -> None:
    assert shortage(wanted, num_replicas, room) == missing
