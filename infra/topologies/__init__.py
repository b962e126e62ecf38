"""Servers as people run them, on free ports of the loopback: one, with TLS, behind Sentinels, in a Cluster.

For tests and for chaos. Each class starts its processes in a folder of its own, says under which URL it is
reached, and ends what it started. Faults are given to single nodes.
"""

from __future__ import annotations

from .cluster import ClusterSetup
from .node import HOST, Node, free_ports, wait_until
from .sentinel import SentinelSetup
from .tls import TlsServer

__all__ = ["HOST", "ClusterSetup", "Node", "SentinelSetup", "TlsServer", "free_ports", "wait_until"]
