"""What each request gives when nothing is disturbed: the engine alone, without Redis, Ray and other replicas.

A process of its own, so that torch's memory is gone before the service starts:

    python -m infra.chaos.undisturbed SEED COUNT FILE
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thinkstream_client.outcome import FinishReason
from thinkstream_client.records import JobRef, Request

from .plan import make_specs

if TYPE_CHECKING:
    from thinkstream_workers.loading import LoadedModel, ModelText

_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """The result of one request.

    Attributes:
        ids: All tokens.
        text: All text.
        reason: Why it ends.
    """

    ids: list[int]
    text: str
    reason: str


def compute_undisturbed(seed: int, count: int, path: Path) -> list[Undisturbed]:
    """Runs the requests of a seed in a child process.

    Args:
        seed: The run's seed.
        count: Requests.
        path: Where the child leaves the results.
    """
    arguments = [sys.executable, "-m", "infra.chaos.undisturbed", str(seed), str(count), str(path)]
    subprocess.run(arguments, check=True)
    return [Undisturbed(**one) for one in json.loads(path.read_text())]


def run_requests(requests: Sequence[Request]) -> list[Undisturbed]:
    """Runs requests through one engine, other ones together than in the service."""
    import torch

    from thinkstream_client.settings import RedisSettings
    from thinkstream_workers.config import ReplicaConfig
    from thinkstream_workers.loading import load_model

    torch.set_num_threads(1)
    model = load_model(ReplicaConfig(redis=RedisSettings(url="redis://nobody")))
    ends = _decode(model, requests)
    return [_with_text(model.text, *end, request) for end, request in zip(ends, requests, strict=True)]


def _decode(model: LoadedModel, requests: Sequence[Request]) -> list[tuple[list[int], FinishReason]]:
    """The tokens of each request, up to where the engine ends it, which knows no stop strings."""
    from thinkstream_workers.build import build_engine
    from thinkstream_workers.engine_config import EngineConfig
    from thinkstream_workers.mailboxes import Inbox, Outbox
    from thinkstream_workers.orders import JobKey, SequenceEnd, Submit
    from thinkstream_workers.resolve import Limits, resolve

    inbox, outbox = Inbox(), Outbox()
    engine = build_engine(
        model.thinker,
        EngineConfig(slots=_BATCH, step_tokens=512),
        num_valid_ids=model.num_ids,
        inbox=inbox,
        outbox=outbox,
        announce=lambda _: None,
        on_turn=lambda: None,
    )
    limits = Limits(max_context=engine.max_context, num_ids=model.num_ids)
    keys = [JobKey(JobRef("-", str(i)), 0) for i in range(len(requests))]
    for key, request in zip(keys, requests, strict=True):
        if request.prompt is None:
            ids = model.text.encode_chat([(one.role, one.content) for one in request.messages or ()])
        else:
            ids = model.text.encode(request.prompt)
        sampling = resolve(
            request.sampling, model.defaults, job_id="-", num_prompt_tokens=len(ids), limits=limits
        )
        inbox.put(Submit(key=key, prompt_ids=tuple(ids), sampling=sampling))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    tokens: dict[JobKey, list[int]] = {key: [] for key in keys}
    ends: dict[JobKey, SequenceEnd] = {}
    while len(ends) < len(keys):
        output = outbox.get(0.1)
        if output is not None:
            for token in output.tokens:
                tokens[token.key].append(token.token_id)
            ends.update((end.key, end) for end in output.ends)
    engine.stop()
    thread.join()
    return [(tokens[key], ends[key].reason) for key in keys]


def _with_text(model_text: ModelText, ids: list[int], reason: FinishReason, request: Request) -> Undisturbed:
    """Adds the text, and ends at a stop string."""
    detokenizer = model_text.detokenizer(request.sampling.stop)
    is_ended_by_id = reason is FinishReason.STOP  # and that id is no text
    text = ""
    for count, token_id in enumerate(ids[:-1] if is_ended_by_id else ids, 1):
        text += detokenizer.push(token_id)
        if detokenizer.stopped:
            return Undisturbed(ids=ids[:count], text=text, reason=FinishReason.STOP.value)
    return Undisturbed(ids=ids, text=text + detokenizer.finish(), reason=reason.value)


if __name__ == "__main__":
    found = run_requests(make_specs(int(sys.argv[1]), int(sys.argv[2])))
    Path(sys.argv[3]).write_text(json.dumps([asdict(one) for one in found]))
