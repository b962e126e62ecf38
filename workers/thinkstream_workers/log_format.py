"""How every process of a service writes its log, so that one that reads it knows what is for a person."""

from __future__ import annotations

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
