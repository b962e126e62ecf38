"""Who takes part in the next step, and what a step's tokens mean to them.

Continuous batching: waiting sequences are admitted as blocks allow, prompts are prefilled in chunks
beside the running decodes, and when blocks run out the sequence with the most left to do gives its own
back and is computed again later. Knows no torch, no clock and no Redis, and decides by numbers of
arrival alone, never by ``hash()`` or the order of a set: every rank of a replica must decide the same.

A step is chosen (``next_batch``), counts as done once the device has been told (``advance``), and is
entered when its ids are read (``commit``). Between the last two at most one other step is chosen.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from thinkstream_client.errors import InvalidRequest, PromptTooLong
from thinkstream_client.outcome import FinishReason, JobFailure, TokenLogprobs

from .batch import Batch, EngineLoad, SampledTokens
from .block_manager import BlockManager
from .failures import failure_of
from .orders import JobKey, Order, SequenceEnd, StepOutput, Submit, TokenOut
from .sequence import Sequence, SequenceStatus

_NOT_NUMBERS = JobFailure(code="StepFailed", message="the model's logits are not numbers")
MAX_HEADROOM_TOKENS = 256
"""Tokens to come for which an admitted sequence gets blocks at once, so that it is not soon preempted."""


class Batcher:
    """Holds all sequences of the engine and chooses among them.

    Args:
        blocks: The blocks of the KV cache.
        max_num_seqs: Sequences that hold blocks at once.
        max_num_batched_tokens: Tokens of one step; at least ``max_num_seqs``, so that no decode waits.
        max_context: Tokens of prompt and result of one sequence. It is cut at what the whole pool holds,
            so a sequence that has the pool to itself always ends.
    """

    def __init__(
        self, blocks: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int, max_context: int
    ) -> None:
        assert max_num_batched_tokens >= max_num_seqs
        self.max_context = min(max_context, blocks.num_blocks * blocks.block_size)
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._sequences: dict[JobKey, Sequence] = {}
        self._waiting: list[Sequence] = []  # by number
        self._running: dict[int, Sequence] = {}  # by number; in the order of admission
        self._num_arrived = 0
        self._num_steps = 0
        self._num_tokens = 0
        self._num_preemptions = 0
        self._suspect_is_next = False

    def limit_step(self, num_tokens: int) -> int:
        """Has later steps take so many tokens at most; one per sequence is the least. Any thread may call it.

        Returns:
            The limit from now on.
        """
        self._max_num_batched_tokens = max(self._max_num_seqs, num_tokens)
        return self._max_num_batched_tokens

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._sequences)

    @property
    def load(self) -> EngineLoad:
        """What it has in hand and has done; any thread may read it, between two changes or during one."""
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            free_blocks=self._blocks.num_free_blocks,
            num_blocks=self._blocks.num_blocks,
            steps=self._num_steps,
            tokens=self._num_tokens,
            preemptions=self._num_preemptions,
        )

    def admit(self, orders: Iterable[Order]) -> StepOutput:
        """Takes in sequences and forgets those that are to stop.

        An order for a sequence that is here already changes nothing, nor does stopping one that is not.

        Returns:
            The ends of those that need no step: complete as they came, or impossible.
        """
        output = StepOutput()
        for order in orders:
            if isinstance(order, Submit):
                end = self._submit(order)
                if end is not None:
                    output.ends.append(end)
            elif order.key in self._sequences:
                self._remove(self._sequences[order.key])
        return output

    def next_batch(self) -> Batch | None:
        """Chooses the next step; a suspect's own steps alternate with those of all others.

        However many suspects there are, the others have every second step; the suspects take turns in
        theirs, so that with n of them each has one step in 2n.

        Returns:
            None when there is nothing to do, or when making room has sent back all it would have been
            for: then the next call finds the room.
        """
        self._admit_waiting()
        # Whose last token by length is still on the device takes part in no further step.
        ready = [s for s in self._running.values() if len(s.token_ids) < s.max_num_tokens]
        suspects = [sequence for sequence in ready if sequence.alone]
        if not suspects:
            return self._schedule(ready)
        others = [sequence for sequence in ready if not sequence.alone]
        is_suspects_turn = self._suspect_is_next or not others
        self._suspect_is_next = not is_suspects_turn
        if not is_suspects_turn:
            return self._schedule(others)
        self._running[suspects[0].number] = self._running.pop(suspects[0].number)  # they take turns
        return self._schedule(suspects[:1])

    def advance(self, batch: Batch) -> None:
        """Counts a step as done that the device has been told to do; placeholders stand for its tokens.

        Args:
            batch: The step, as ``next_batch``, ``Batch.halves`` or ``Batch.living`` gave it.
        """
        for sequence, context_len in zip(batch.sequences, batch.context_lens, strict=True):
            sequence.num_computed_tokens = context_len
        for row, sequence in enumerate(batch.sampled):
            sequence.token_ids.append(~row)

    def commit(self, batch: Batch, sampled: SampledTokens) -> StepOutput:
        """Puts a step's tokens into their places and ends the sequences that are complete or got none.

        Who has ended or was stopped meanwhile gets nothing any more.

        Args:
            batch: The step; steps are committed in the order in which they were told.
            sampled: One token for each of ``batch.sampled``.
        """
        self._num_steps += 1
        for sequence, place, token_id in zip(batch.sampled, batch.places, sampled.token_ids, strict=True):
            sequence.token_ids[place] = token_id
        for sequence in batch.sequences:
            self._blocks.share(sequence)  # before any of them gives its blocks back
        output = StepOutput()
        logprobs = sampled.logprobs or [None] * len(sampled.token_ids)
        for sequence, place, logprob in zip(batch.sampled, batch.places, logprobs, strict=True):
            if sequence.status is not SequenceStatus.ENDED:
                self._enter(sequence, place, logprob, output)
        self._num_tokens += len(output.tokens)
        return output

    def fail(self, batch: Batch, failure: JobFailure) -> StepOutput:
        """Ends all sequences of a step that could not be done."""
        ends = [self._end(sequence, FinishReason.FAILED, failure) for sequence in batch.sequences]
        return StepOutput(ends=ends)

    def _enter(
        self, sequence: Sequence, place: int, logprob: TokenLogprobs | None, output: StepOutput
    ) -> None:
        token_id = sequence.token_ids[place]
        if token_id < 0:
            self._blocks.disown(sequence)
            output.ends.append(self._end(sequence, FinishReason.FAILED, _NOT_NUMBERS))
            return
        index = place + 1 - sequence.num_prompt_tokens
        output.tokens.append(TokenOut(sequence.key, index, token_id, logprob))
        reason = sequence.end_reason(place + 1)
        if reason is not None:
            output.ends.append(self._end(sequence, reason))

    def _submit(self, order: Submit) -> SequenceEnd | None:
        if order.key in self._sequences:
            return None
        self._num_arrived += 1
        sequence = Sequence.of(order, self._num_arrived, self.max_context)
        if order.published_ids:
            reason = sequence.end_reason(sequence.num_tokens)
            if reason is not None:
                return SequenceEnd(key=order.key, reason=reason)
        failure = self._refusal(sequence)
        if failure is not None:
            return SequenceEnd(key=order.key, reason=FinishReason.FAILED, error=failure)
        self._sequences[order.key] = sequence
        self._waiting.append(sequence)
        return None

    def _refusal(self, sequence: Sequence) -> JobFailure | None:
        """Why a sequence can never be stepped. Intake has checked all this against the same limits."""
        if not sequence.token_ids:
            return failure_of(InvalidRequest("prompt", "no tokens", "at least one token"))
        if min(sequence.token_ids) < 0:  # it would be taken for a placeholder
            return failure_of(InvalidRequest("token_ids", min(sequence.token_ids), "at least 0"))
        limit = self.max_context - 1
        if sequence.num_tokens > limit:
            return failure_of(PromptTooLong(sequence.num_tokens, limit))
        return None

    def _admit_waiting(self) -> None:
        """Admits in the order of arrival: who does not fit yet is not overtaken."""
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting[0]
            assert sequence.token_ids[-1] >= 0, "the step is not committed that brings its newest token"
            headroom = min(sequence.num_left_tokens, MAX_HEADROOM_TOKENS)
            if not self._blocks.allocate(sequence, sequence.num_tokens + headroom):
                return
            if not sequence.was_admitted:
                sequence.was_admitted = True
                sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
            sequence.status = SequenceStatus.RUNNING
            self._running[sequence.number] = self._waiting.pop(0)

    def _schedule(self, candidates: list[Sequence]) -> Batch | None:
        block_size = self._blocks.block_size
        for sequence in candidates:
            if len(sequence.token_ids) > len(sequence.block_table) * block_size:
                self._make_room(sequence)
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        for sequence in candidates:
            if sequence.status is SequenceStatus.RUNNING:
                is_decode = sequence.num_computed_tokens == len(sequence.token_ids) - 1
                (decodes if is_decode else prefills).append(sequence)
        query_lens = [1] * len(decodes)
        budget = self._max_num_batched_tokens - len(decodes)
        for sequence in prefills:
            query_lens.append(min(len(sequence.token_ids) - sequence.num_computed_tokens, budget))
            budget -= query_lens[-1]
            if not budget:
                break
        sequences = (decodes + prefills)[: len(query_lens)]
        if not sequences:
            return None
        started = [sequence for sequence in sequences if not sequence.was_stepped]
        for sequence in started:
            sequence.was_stepped = True
        return Batch.of(sequences, query_lens, started)

    def _make_room(self, sequence: Sequence) -> None:
        """Gives a sequence the block its next token needs, preempting until there is one.

        The sequence may be preempted itself, here or for another before its turn came.
        """
        while (
            sequence.status is SequenceStatus.RUNNING
            and len(sequence.token_ids) > len(sequence.block_table) * self._blocks.block_size
            and not self._blocks.extend(sequence)
        ):
            self._preempt(max(self._running.values(), key=lambda s: (s.num_left_tokens, s.number)))

    def _preempt(self, sequence: Sequence) -> None:
        self._num_preemptions += 1
        self._release(sequence)
        sequence.status = SequenceStatus.WAITING
        insort(self._waiting, sequence, key=lambda s: s.number)

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence.number]
        self._blocks.release(sequence)

    def _remove(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.status = SequenceStatus.ENDED
        del self._sequences[sequence.key]

    def _end(
        self, sequence: Sequence, reason: FinishReason, failure: JobFailure | None = None
    ) -> SequenceEnd:
        self._remove(sequence)
        return SequenceEnd(key=sequence.key, reason=reason, error=failure)
