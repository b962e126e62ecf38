from __future__ import annotations

import pytest

from thinkstream_client.address import Topology
from thinkstream_client.errors import ConfigError, InvalidRequest
from thinkstream_client.settings import RedisSettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://me:secret@host:6379", "rediss://me:***@host:6379"),
        ("rediss://me:se:c/ret@host", None),
        (
            "redis+sentinel://me:secret@a,b:1/main/2?sentinel_password=secret2",
            "redis+sentinel://me:***@a,b:1/main/2?sentinel_password=***",
        ),
        ("rediss+cluster://:secret@a:1,b:2", "rediss+cluster://:***@a:1,b:2"),
        ("unix:///run/redis.sock?password=secret&db=1", "unix:///run/redis.sock?password=***&db=1"),
    ],
)
def test_password_never_shows(url: str, shown: str | None) -> None:
    try:
        settings = RedisSettings(url)
    except ConfigError as error:
        assert shown is None
        assert "ret" not in str(error)
        return
    assert settings.masked_url == shown
    assert settings.url == url
    for text in (repr(settings), str(settings)):
        assert "secret" not in text


def test_a_long_url_is_shown_shortened() -> None:
    with pytest.raises(ConfigError, match=r"Redis URL aaa.*\.\.\.: expected redis://") as caught:
        RedisSettings("a" * 10**6)
    assert len(str(caught.value)) < 300


def test_several_hosts() -> None:
    sentinels = RedisSettings(
        "rediss+sentinel://me:p%40ss@one,[::1]:26380/main/3?sentinel_username=s&ssl_ca_certs=/ca.crt"
    ).address
    assert sentinels.topology is Topology.SENTINEL
    assert sentinels.hosts == (("one", 26379), ("::1", 26380))
    assert (sentinels.service, sentinels.sentinel_options) == ("main", (("username", "s"),))
    assert sentinels.url == "rediss://me:p%40ss@one:26379/3?ssl_ca_certs=%2Fca.crt"
    cluster = RedisSettings("redis+cluster://one,two:7001")
    assert cluster.address.hosts == (("one", 6379), ("two", 7001))
    assert cluster.address.url == "redis://one:6379/0"
    assert cluster.keys.num_partitions == 16
    assert RedisSettings("redis+cluster://one", num_partitions=3).keys.num_partitions == 3
    assert RedisSettings("redis+sentinel://one/main").keys.num_partitions == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://host",
        "redis://",
        "redis://host:port",
        "unix://",
        "host:6379",
        "redis+sentinel://host:1",
        "redis+sentinel://host:1/main/x",
        "redis+cluster://host:1/2",
        "redis+cluster://",
        "redis+cluster://a:1,,b:2",
        "unix+cluster://host:1",
        "redis://a..b:1",
        "redis://\ud800",
        f"redis://{'a' * 64}",
        f"redis+cluster://host:1,{'a' * 64}:1",
        f"redis://host:{'9' * 5000}",
    ],
)
def test_unusable_url(url: str) -> None:
    with pytest.raises(ConfigError, match="expected redis://"):
        RedisSettings(url)


def test_hosts_may_be_of_any_script() -> None:
    for url in ("redis://почта.example:1", "redis://[::1]:1", "redis://127.0.0.1", "unix:///a..b"):
        assert RedisSettings(url).url == url


def test_namespace_and_partitions() -> None:
    keys = RedisSettings("redis://host", "mine", num_partitions=4).keys
    assert keys.prefix(3) == "mine:{3}:"
    assert list(keys.partitions) == [0, 1, 2, 3]
    with pytest.raises(InvalidRequest):
        RedisSettings("redis://host", "a:b")
    with pytest.raises(ConfigError):
        RedisSettings("redis://host", num_partitions=0)
