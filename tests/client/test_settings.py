from __future__ import annotations

import pytest

from thinkstream_client.errors import ConfigError, InvalidRequest
from thinkstream_client.settings import RedisSettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://me:secret@host:6379", "rediss://me:***@host:6379"),
        ("rediss://me:se:c/ret@host", None),
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


@pytest.mark.parametrize("url", ["", "http://host", "redis://", "redis://host:port", "unix://", "host:6379"])
def test_unusable_url(url: str) -> None:
    with pytest.raises(ConfigError, match="expected redis://"):
        RedisSettings(url)


def test_namespace_and_partitions() -> None:
    keys = RedisSettings("redis://host", "mine", num_partitions=4).keys
    assert keys.prefix(3) == "mine:{3}:"
    assert list(keys.partitions) == [0, 1, 2, 3]
    with pytest.raises(InvalidRequest):
        RedisSettings("redis://host", "a:b")
    with pytest.raises(ConfigError):
        RedisSettings("redis://host", num_partitions=0)
