"""Whether anybody serves, as far as the user of the command may ask."""

from __future__ import annotations

from thinkstream_client.client import Client
from thinkstream_client.errors import CommandRefused, ConfigError


def no_replica(client: Client) -> str:
    """Returns the remark that nobody serves, and where that was looked for.

    Empty where somebody does, and where Redis lets this user have jobs but not ask for replicas: a tenant.

    Raises:
        ConfigError: Server or namespace are none that we can work with.
        ServiceUnavailable: Nobody answers.
    """
    client.connect()
    try:
        is_served = bool(client.replicas())
    except (CommandRefused, ConfigError):
        return ""
    settings = client.settings
    return (
        "" if is_served else f"no replica is alive at {settings.masked_url}, namespace {settings.namespace}"
    )
