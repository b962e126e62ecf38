"""A device on paper: its cache holds the token ids themselves, and it looks at what the engine does."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import cast

from thinkstream_workers.batch import Batch, SampledTokens
from thinkstream_workers.batcher import Batcher
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.buckets import Bucket
from thinkstream_workers.engine import Engine
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, Order, SequenceEnd, Started, TokenOut
from thinkstream_workers.pacing import Pace
from thinkstream_workers.rehearsal import Rehearsal
from thinkstream_workers.runner import ModelRunner
from thinkstream_workers.step_arrays import Array, input_arrays

POISON, NO_NUMBERS = 50, 51
"""Never sampled: a step with the first fails, a long enough text with the second has no token."""


def next_token(token_ids: Sequence[int]) -> int:
    """Stands for the model: depends on all tokens and on nothing else; 0 to 9."""
    if NO_NUMBERS in token_ids and len(token_ids) >= 9:
        return -1
    token = 0
    for token_id in token_ids:
        token = (token * 31 + token_id + 7) % 1009
    return token % 10


@dataclass(eq=False)
class Told:
    batch: Batch
    ids: list[int]
    read: bool = False
    kind: None = None


@dataclass
class PaperDevice:
    """Does what ``ModelRunner`` does, and holds the engine to the rules of what may be in flight."""

    block_size: int = 4
    announced: list[JobKey | None] = field(default_factory=list[JobKey | None])
    told: list[Told] = field(default_factory=list[Told])
    ended: list[Told] = field(default_factory=list[Told])
    num_ahead: int = 0
    num_launches: int = 0
    rehearsed: list[tuple[int, Bucket]] = field(default_factory=list[tuple[int, Bucket]])
    on_launch: Callable[[Batch], None] = lambda batch: None
    _slots: dict[int, int] = field(default_factory=dict[int, int])

    def launch(self, batch: Batch, before: Told | None = None) -> Told:
        self.num_launches += 1
        self.on_launch(batch)
        assert (self.announced[-1] if self.announced else None) == batch.alone
        assert [told for told in self.told if not told.read] == ([] if before is None else [before])
        arrays = input_arrays(batch, self.block_size)
        ids: list[int] = arrays["input_ids_T"].tolist()
        for place, token_id in enumerate(ids):
            if token_id < 0:
                assert before is not None
                ids[place] = max(0, before.ids[~token_id])
        if POISON in ids:
            raise RuntimeError("no such row")
        slots = arrays["slot_mapping_T"].tolist()
        assert len(set(slots)) == len(slots), "two tokens for one place"
        self._slots.update(zip(slots, ids, strict=True))
        told = Told(batch, [next_token(self._text(batch, arrays, row)) for row in self._rows(batch)])
        self.num_ahead += before is not None
        self.told.append(told)
        return told

    def has_ended(self, told: Told) -> bool:
        return told in self.ended

    def collect(self, told: Told) -> SampledTokens:
        assert next(other for other in self.told if not other.read) is told
        told.read = True
        return SampledTokens(list(told.ids))

    def rehearse(self, batch: Batch, bucket: Bucket) -> bool:
        if any(bucket == rehearsed for _, rehearsed in self.rehearsed):
            return False
        self.rehearsed.append((self.num_launches, bucket))
        return True

    def announce(self, suspect: JobKey | None) -> None:
        assert all(told.read for told in self.told), "its own step is still in flight"
        self.announced.append(suspect)

    def is_fatal(self, error: Exception) -> bool:
        return not isinstance(error, RuntimeError)

    def _rows(self, batch: Batch) -> list[int]:
        return [row for row, sequence in enumerate(batch.sequences) if sequence in batch.sampled]

    def _text(self, batch: Batch, arrays: dict[str, Array], row: int) -> list[int]:
        """What the cache holds of a sequence, looked up as attention would."""
        blocks: list[int] = arrays["block_tables_BM"][row].tolist()
        size = self.block_size
        places = range(batch.context_lens[row])
        return [self._slots[blocks[place // size] * size + place % size] for place in places]


class PaperPace(Pace):
    """Has something happen wherever the engine may wait; it may return for how many seconds more.

    Attributes:
        was_late: Of each step that was launched, whether it was late.
    """

    def __init__(self, meanwhile: Callable[[], float | None]) -> None:
        super().__init__()
        self._meanwhile = meanwhile
        self.was_late: list[bool] = []

    @property
    def spare_s(self) -> float:
        return self._meanwhile() or 0.0

    def launched(self, kind: Hashable, *, is_late: bool) -> None:
        self.was_late.append(is_late)
        super().launched(kind, is_late=is_late)


class EagerInbox(Inbox):
    """Never waits: the test knows what comes when."""

    def drain(self, block: bool) -> list[Order]:
        return super().drain(False)


@dataclass
class Heard:
    """What came out of an engine, by job."""

    device: PaperDevice
    engine: Engine
    pace: PaperPace
    tokens: dict[JobKey, list[TokenOut]] = field(default_factory=dict[JobKey, list[TokenOut]])
    ends: dict[JobKey, SequenceEnd] = field(default_factory=dict[JobKey, SequenceEnd])
    started: list[Started] = field(default_factory=list[Started])

    def ids(self, key: JobKey) -> list[int]:
        return [token.token_id for token in self.tokens.get(key, [])]


def play(
    turns: Sequence[Sequence[Order]],
    *,
    run_ahead: bool,
    num_blocks: int = 64,
    budget: int = 16,
    max_num_seqs: int = 4,
    max_context: int = 1000,
    on_launch: Callable[[Batch], None] = lambda batch: None,
    meanwhile: Callable[[PaperDevice, Inbox, Outbox], None] = lambda device, inbox, outbox: None,
    buckets: Sequence[Bucket] = (),
) -> Heard:
    """Runs an engine until nothing is left to do; ``turns[n]`` are the orders that come at its n-th turn.

    ``meanwhile`` is what happens when the engine has launched all it can and may wait for orders.
    """
    device = PaperDevice(on_launch=on_launch)
    batcher = Batcher(
        BlockManager(num_blocks, device.block_size),
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_context=max_context,
    )  # fmt: skip
    inbox, outbox = EagerInbox(), Outbox(max_outputs=1_000_000)
    turn = 0

    def on_turn() -> None:
        nonlocal turn
        assert turn < 5_000
        for order in turns[turn] if turn < len(turns) else ():
            inbox.put(order)
        turn += 1
        if turn > len(turns) and not batcher.has_work:
            engine.stop()

    runner, pace = cast("ModelRunner", device), PaperPace(lambda: meanwhile(device, inbox, outbox))
    engine = Engine(
        batcher=batcher, runner=runner, inbox=inbox, outbox=outbox, pace=pace, announce=device.announce,
        on_turn=on_turn, run_ahead=run_ahead, rehearsal=Rehearsal(runner, buckets),
    )  # fmt: skip
    engine.run()
    return _listen(Heard(device, engine, pace), outbox)


def _listen(heard: Heard, outbox: Outbox) -> Heard:
    while (output := outbox.get(0.0)) is not None:
        heard.started += output.started
        for token in output.tokens:
            assert token.key not in heard.ends
            heard.tokens.setdefault(token.key, []).append(token)
        for end in output.ends:
            assert end.key not in heard.ends
            heard.ends[end.key] = end
    return heard
