"""A client that is paused before or after any of its round trips; see ``test_zombies``."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

import pytest
from tests.support.acts import (
    Act,
    cancelled,
    taken_over,
)
from tests.support.call_sites import CallSites
from tests.support.worker import HandWorker, text_of, tokens_of

from thinkstream_client import Client
from thinkstream_client.errors import JobCancelled, JobNotFound, ResultExpired
from thinkstream_client.records import JobRef

if TYPE_CHECKING:
    from tests.support.world import World


def ended(world: World, worker: HandWorker) -> None:
    worker.assign(world.claim(worker.session.id))
    worker.turn(8)


def result_gone(world: World, worker: HandWorker) -> None:
    ended(world, worker)
    world.raw.delete(*(world.keys.out(ref) for ref in world.refs))


def all_gone(world: World, worker: HandWorker) -> None:
    """Redis lost everything; the replica comes back as another session."""
    world.raw.flushall()
    worker.beat()
    worker.beat()


CLIENT_ACTS: dict[Act, tuple[type[Exception], ...]] = {
    ended: (),
    taken_over: (),
    cancelled: (JobCancelled,),
    result_gone: (ResultExpired,),
    all_gone: (JobNotFound, ResultExpired),
}


@pytest.mark.parametrize("act", CLIENT_ACTS, ids=lambda act: act.__name__)
def test_a_client_wakes_up_anywhere(
    world: World, sites: CallSites, act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkstream_client.core.follow.STATUS_EVERY_S", 0.0)
    monkeypatch.setattr("thinkstream_client.core.chunk_stream._BLOCK_MS", 1)
    allowed = CLIENT_ACTS[act]
    text, num_places, place = text_of(tokens_of("j", 4)), 1, 0
    while place < num_places:
        for when in ("before", "after"):
            world.clear()
            worker = world.worker()
            ref = JobRef("default", "j")
            world.refs[ref] = 4

            def move_on(worker: HandWorker = worker) -> None:
                worker.assign(world.claim(worker.session.id))
                worker.publisher.beat_soon()
                worker.turn()

            sites.on_every = move_on
            sites.arm(place, when, functools.partial(act, world, worker))
            texts: list[str] = []
            with Client(settings=world.settings) as client:
                job = client.submit("a prompt", id="j", max_tokens=4, ignore_eos=True)
                with contextlib.suppress(*allowed):
                    texts.append("".join(chunk.text for chunk in job.stream()))
                with contextlib.suppress(*allowed):
                    texts.append(job.text())
                with contextlib.suppress(*allowed):
                    job.cancel()
            num_places = max(num_places, len(sites.names))
            assert set(texts) <= {text}, (place, when)
            if not allowed:
                assert texts == [text, text]
            if act is not result_gone:
                world.check()
        place += 1
    assert num_places > 8
