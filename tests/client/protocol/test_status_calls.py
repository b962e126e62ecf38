"""What the service tells about itself, on both servers."""

from __future__ import annotations

from tests.support.queue import KEYS, Queue

from thinkstream_client.protocol import functions


def test_events_tell_what_happened(queue: Queue) -> None:
    ref, session = queue.submit("j"), queue.hello()
    queue.claim(session)
    queue.run(functions.cancel(KEYS, ref))
    events = queue.run(functions.read_events(KEYS, 0, "0"))
    assert [event.kind for event in events] == ["submit", "hello", "claim", "finish"]
    assert (events[2].ref, events[2].session) == (ref, session)
    assert queue.run(functions.read_events(KEYS, 0, events[-1].entry_id)) == []


def test_a_session_tells_its_load_with_each_beat(queue: Queue) -> None:
    session = queue.hello()
    for waiting in ("3", "2"):
        queue.run(functions.beat(KEYS, 0, session, "n", info={"waiting": waiting, "tokens": "40"}))
    queue.run(functions.beat(KEYS, 0, session, "n"))
    (found,) = queue.run(functions.sessions(KEYS, 0))
    assert found.info == {"pid": "7", "waiting": "2", "tokens": "40"}
    assert (found.draining, found.alone) == (False, None)


def test_a_load_that_is_no_number_is_left_out(queue: Queue) -> None:
    session = queue.hello()
    rubbish = {"waiting": "1" * 5000, "tokens": "٣", "free_blocks": "many", "num_blocks": "7"}
    queue.run(functions.beat(KEYS, 0, session, "n", info=rubbish))
    (found,) = queue.run(functions.sessions(KEYS, 0))
    assert found.load == {"num_blocks": 7}
