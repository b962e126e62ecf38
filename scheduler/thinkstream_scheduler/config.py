"""The settings of one scheduler."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from thinkstream_client.errors import ConfigError
from thinkstream_client.settings import RedisSettings

MAX_WAIT_S = 86_400.0
"""The longest that a user may have something waited for: a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What a scheduler is told once, at its start.

    Attributes:
        redis: The server and the namespace that it serves.
        service_id: Tells its replicas from those of other services on the same namespace; empty where there
            is no other. All schedulers of one service have the same.
        num_replicas: Replicas to hold alive.
        wake_ms: Longest wait for an event; deaths and ended leases are seen at least this often.
        sweep_ms: Time between sweeps.
        max_claim: Jobs per claim at most.
        restart_min_ms: Wait before a replica that died before it was ready is started again; doubled at
            each further failure.
        restart_max_ms: Longest such wait.
        report_ms: Time between two lines of load in the log.

    Raises:
        ConfigError: A value outside its range.
    """

    redis: RedisSettings
    service_id: str = ""
    num_replicas: int = 1
    wake_ms: int = 100
    sweep_ms: int = 1_000
    max_claim: int = 256
    restart_min_ms: int = 1_000
    restart_max_ms: int = 30_000
    report_ms: int = 60_000

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_replicas", 0, 1024),
            ("wake_ms", 1, 1_000),
            ("sweep_ms", 1, 60_000),
            ("max_claim", 1, 4096),
            ("restart_min_ms", 1, 600_000),
            ("restart_max_ms", 1, 600_000),
            ("report_ms", 1, 3_600_000),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"{name}: got {value!r}, allowed: an integer in [{low}, {high}]")
        if self.restart_min_ms > self.restart_max_ms:
            raise ConfigError(
                f"restart_min_ms: got {self.restart_min_ms}, allowed: at most restart_max_ms "
                f"({self.restart_max_ms})"
            )

    @property
    def replica_names(self) -> tuple[str, ...]:
        """Names of the replicas to hold. Every scheduler of a service holds the same ones."""
        suffix = f"-{self.service_id}" if self.service_id else ""
        return tuple(f"replica-{i}{suffix}" for i in range(self.num_replicas))


def ray_namespace(redis: RedisSettings, service_id: str = "") -> str:
    """The Ray namespace in which the actors of one service have their names, and nobody else's.

    Several services may share a Ray cluster, each with a server of its own or all with one, so server and
    service are both part of it.
    """
    suffix = f"-{service_id}" if service_id else ""
    return f"thinkstream-{redis.namespace}-{zlib.crc32(redis.masked_url.encode()):08x}{suffix}"
