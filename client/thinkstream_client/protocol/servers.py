"""redis-py's clients for each way in which Redis is run: one server, behind Sentinels, in a Cluster.

Each sends calls and returns raw replies, a refusal as the exception that redis-py makes of it. What routes
is redis-py's: ``Sentinel`` looks for the primary at each new connection, ``RedisCluster`` follows MOVED, ASK
and TRYAGAIN, and learns the slots again after a lost connection. Nothing else is sent twice, except that
``RedisCluster`` sends once more what it lost of a pipeline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from thinkstream_client.address import Topology
from thinkstream_client.settings import RedisSettings

from .call import Call
from .url_options import naming_the_url, options_of_url, own_options


@dataclass(frozen=True, slots=True)
class FromEach:
    """The replies of all primaries to a call that names no key."""

    replies: Sequence[Any]


class Servers(Protocol):
    """Sends calls from threads. A lost connection and, for a single call, a refusal is raised."""

    def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Sends calls, several in one pipeline, and returns a reply per call."""
        ...

    def close(self) -> None:
        """Closes the sockets."""
        ...


class AsyncServers(Protocol):
    """Sends calls from an event loop; see ``Servers``."""

    async def send(self, calls: Sequence[Call[Any]]) -> list[Any]:  # noqa: D102
        ...

    async def close(self) -> None:  # noqa: D102
        ...


def connect(settings: RedisSettings, timeout_s: float) -> Servers:
    """Returns what sends calls to where the settings say; opens no connection yet.

    Args:
        settings: Where Redis is.
        timeout_s: How long a reply may take.

    Raises:
        ConfigError: An option in the URL is none, or a file that it names is not there.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
    from redis.sentinel import Sentinel

    options = own_options(settings, timeout_s, Retry(NoBackoff(), 0))
    with naming_the_url(settings):
        if settings.address.topology is Topology.CLUSTER:
            return _Cluster(settings, options)
        return _Primary(_primary(redis.Redis, Sentinel, settings, options))


def connect_async(settings: RedisSettings, timeout_s: float) -> AsyncServers:
    """Returns what sends calls from an event loop; see ``connect``."""
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff

    options = own_options(settings, timeout_s, Retry(NoBackoff(), 0))
    with naming_the_url(settings):
        if settings.address.topology is Topology.CLUSTER:
            return _AsyncCluster(settings, options)
        return _AsyncPrimary(_primary(redis.asyncio.Redis, Sentinel, settings, options))


class _Primary:
    """One server, or whichever the Sentinels name."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        if len(calls) == 1:
            return [self._client.execute_command(*calls[0].args)]
        with self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.execute_command(*call.args)
            return list(pipeline.execute(raise_on_error=False))

    def close(self) -> None:
        self._client.close()


class _AsyncPrimary:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        if len(calls) == 1:
            return [await self._client.execute_command(*calls[0].args)]
        async with self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.execute_command(*call.args)
            return list(await pipeline.execute(raise_on_error=False))

    async def close(self) -> None:
        await self._client.aclose()


class _Cluster:
    """All primaries of a Cluster; each call goes to the one that has its key.

    The target is named to redis-py, which would else ask a server about the keys of each FCALL and XREAD.
    """

    def __init__(self, settings: RedisSettings, options: dict[str, Any]) -> None:
        from redis.cluster import ClusterNode, RedisCluster

        kwargs = {**options_of_url(settings), **options}
        nodes = _nodes(ClusterNode, settings)
        make: Any = RedisCluster
        self._make: Callable[[], Any] = lambda: make(startup_nodes=nodes, **kwargs)
        self._cluster: Any = None
        self._making = threading.Lock()  # the constructor asks for the slots

    def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        from redis.exceptions import RedisError

        cluster = self._connected()
        try:
            if len(calls) > 1 and all(call.key for call in calls):
                with cluster.pipeline() as pipeline:
                    for call in calls:
                        pipeline.execute_command(*call.args, target_nodes=cluster.get_node_from_key(call.key))
                    return list(pipeline.execute(raise_on_error=False))
            return [self._send_one(cluster, call) for call in calls]
        except RedisError as error:
            if _is_about_slots(error):
                cluster.nodes_manager.initialize()
            raise

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()

    def _send_one(self, cluster: Any, call: Call[Any]) -> Any:
        if call.key is not None:
            return cluster.execute_command(*call.args, target_nodes=cluster.get_node_from_key(call.key))
        return FromEach(
            [cluster.execute_command(*call.args, target_nodes=node) for node in cluster.get_primaries()]
        )

    def _connected(self) -> Any:
        with self._making:
            if self._cluster is None:
                cluster: Any = self._make()
                create = cluster.nodes_manager.create_redis_node

                def create_raw(*args: Any, **kwargs: Any) -> Any:
                    return _raw(create(*args, **kwargs))

                # Nodes that come later get clients that leave replies alone, as those that are there now.
                cluster.nodes_manager.create_redis_node = create_raw
                for node in cluster.get_nodes():
                    _raw(cluster.get_redis_connection(node))
                cluster.cluster_response_callbacks.clear()
                self._cluster = cluster
            return self._cluster


class _AsyncCluster:
    """See ``_Cluster``."""

    def __init__(self, settings: RedisSettings, options: dict[str, Any]) -> None:
        from redis.asyncio.cluster import ClusterNode, RedisCluster

        kwargs = {**options_of_url(settings), **options}
        nodes = _nodes(ClusterNode, settings)
        del kwargs["retry_on_error"]
        self._cluster: Any = _raw(RedisCluster(startup_nodes=nodes, **kwargs))

    async def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        from redis.exceptions import ConnectionError, RedisError, TimeoutError

        cluster = self._cluster
        await cluster.initialize()
        try:
            if len(calls) == 1 or not all(call.key for call in calls):
                return [await self._send_one(call) for call in calls]
            pipeline = cluster.pipeline()
            for call in calls:
                pipeline.execute_command(*call.args, target_nodes=cluster.get_node_from_key(call.key))
            replies: list[Any] = list(await pipeline.execute(raise_on_error=False))
        except RedisError as error:
            if _is_about_slots(error) or len(calls) > 1:
                await cluster.nodes_manager.initialize()
            raise
        # Unlike the blocking one, this pipeline does not ask for the slots again when it has lost a server.
        if any(isinstance(reply, ConnectionError | TimeoutError) for reply in replies):
            await cluster.nodes_manager.initialize()
        return replies

    async def close(self) -> None:
        await self._cluster.aclose()

    async def _send_one(self, call: Call[Any]) -> Any:
        cluster = self._cluster
        if call.key is not None:
            node = cluster.get_node_from_key(call.key)
            return await cluster.execute_command(*call.args, target_nodes=node)
        return FromEach(
            [await cluster.execute_command(*call.args, target_nodes=node) for node in cluster.get_primaries()]
        )


def _nodes(kind: Any, settings: RedisSettings) -> list[Any]:
    return [kind(host, port) for host, port in settings.address.hosts]


def _is_about_slots(error: Exception) -> bool:
    from redis.exceptions import ReadOnlyError, SlotNotCoveredError

    return isinstance(error, ReadOnlyError | SlotNotCoveredError)


def _primary(kind: Any, sentinel: Any, settings: RedisSettings, options: dict[str, Any]) -> Any:
    address = settings.address
    if address.topology is Topology.SERVER:
        return _raw(kind.from_url(address.url, **options))
    of_url = options_of_url(settings)
    tls = {name: value for name, value in of_url.items() if name.startswith("ssl")}
    sentinels = sentinel(
        address.hosts,
        sentinel_kwargs={**options, **tls, **dict(address.sentinel_options)},
        **of_url,
        **options,
    )
    return _raw(sentinels.master_for(address.service, redis_class=kind))


def _raw(client: Any) -> Any:
    """Lets a client give back replies as they come, for calls read them themselves.

    What a Cluster's client asks for itself it reads as ever.
    """
    for name in [name for name in client.response_callbacks if name != "COMMAND"]:
        del client.response_callbacks[name]
    return client
