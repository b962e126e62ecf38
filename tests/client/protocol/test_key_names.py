"""The functions spell the names of most keys a second time: both spellings must be one."""

from __future__ import annotations

from tests.support.queue import KEYS, Queue

from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions
from thinkstream_client.records import JobRef, Request, SamplingParams, SessionId

TENANT, BATCH, TAG = "a", "b", "night"
GOOD, BAD = JobRef(TENANT, "good"), JobRef(TENANT, "bad")
SESSION = SessionId("w.1")


def names(keys: Keys) -> set[str]:
    """Every name that Python has for what happens below."""
    found = {keys.meta, *(make(ref) for make in (keys.job, keys.out) for ref in (GOOD, BAD))}
    found |= {keys.queue(0, 1, TENANT), keys.again(0, 1), keys.ready(0, 1), keys.wfq(0, 1)}
    found |= {keys.session(0, SESSION), keys.own(0, SESSION), keys.jobs(0, TENANT), keys.tag(0, TENANT, TAG)}
    found |= {make(0, TENANT, BATCH) for make in (keys.batch, keys.batch_left, keys.batch_end)}
    found.add(keys.pace(0, TENANT))
    plain = (keys.tenants, keys.leases, keys.running, keys.usage, keys.batches, keys.due, keys.ended)
    return found | {make(0) for make in (*plain, keys.dead, keys.events)}


def test_lua_and_python_name_the_same_keys(queue: Queue) -> None:
    seen: set[str] = set()

    def look() -> None:
        seen.update(name.decode() for name in queue.raw.scan_iter())

    request = Request(prompt="hi", sampling=SamplingParams(max_tokens=9), tags=(TAG,))
    queue.run(functions.meta_claim(KEYS))
    queue.run(functions.tenant_set(KEYS, 0, TENANT, max_jobs=5))
    for ref in (GOOD, BAD):
        queue.run(functions.submit(KEYS, ref, request, deadline_ms=60_000, batch=BATCH))
    look()
    session = queue.hello()
    assert session == SESSION
    queue.claim(session)
    look()
    queue.run(functions.release(KEYS, 0, session, "n", [GOOD, BAD]))
    look()
    marks = {one.ref: one.mk for one in queue.claim(session)}
    queue.finish(session, GOOD, marks[GOOD], 1, [5])
    queue.fail(session, BAD, retry=False)
    queue.run(functions.batch_close(KEYS, 0, TENANT, BATCH))
    look()
    counters = {KEYS.wfq(0, 0), KEYS.wfq(0, 2)}  # of classes that nobody used, and of all together
    assert seen - counters == names(KEYS)
