"""The Ray shell: a replica in a process of its own, and its death as its holder sees it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
import ray
from ray.exceptions import ActorDiedError

from thinkstream_client.protocol import functions
from thinkstream_workers.actor import ReplicaActor

if TYPE_CHECKING:
    from tests.workers.conftest import Service

    Start = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def start(service: Service) -> Iterator[Start]:
    actors: list[Any] = []

    def start(name: str, **settings: str) -> Any:
        config = service.config(name, num_threads=1, **settings)
        actors.append(cast("Any", ReplicaActor).options(num_cpus=0.1).remote(config))
        return actors[-1]

    yield start
    for actor in actors:
        ray.kill(actor)


def test_a_killed_actor_is_noticed_and_another_goes_on(
    service: Service, start: Start, wait_until: Callable[..., None]
) -> None:
    first, second = start("first"), start("second")
    info: Any = ray.get(first.ready.remote())
    assert info.pid != os.getpid()
    assert ray.get(first.next_session.remote(None)) == info.session
    dead = first.next_session.remote(info.session)
    ref = service.submit("job", max_tokens=200, ignore_eos=True)
    first.assign.remote(service.claim(info.session))
    wait_until(lambda: len(service.result(ref).ids) >= 3)
    os.kill(info.pid, signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        ray.get(dead, timeout=5)
    service.connection.run(functions.reap(service.keys, 0, info.session))
    heir: Any = ray.get(second.ready.remote())
    second.assign.remote(service.claim(heir.session))
    assert len(service.wait_finish(ref).ids) == 200
    ray.get(second.drain.remote(5.0))
    assert [s.session for s in service.connection.run(functions.sessions(service.keys, 0))] == []


def test_a_model_that_is_not_there_is_named(start: Start) -> None:
    with pytest.raises(ActorDiedError, match="ConfigError: /no/such/model"):
        ray.get(start("r", model="/no/such/model").ready.remote())
