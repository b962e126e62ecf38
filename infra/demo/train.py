"""Trains the demo checkpoint: `python -m infra.demo.train --out model/thinkstream_model/demo`.

Facts -> conversations -> tokenizer -> packed rows -> network -> checkpoint in the released layout. Runs on
one CUDA device or on a CPU, where fewer rows a step (`--rows 8`) save most of the hours.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from . import checkpoint, vocabulary
from .corpus import Conversation, Corpus
from .network import Network, Shape

logger = logging.getLogger(__name__)

ROW_LENGTH = 512
NUM_TOKENIZER_CONVERSATIONS = 60_000
BALANCE_WEIGHT = 0.01
WARMUP_SHARE = 0.03
SKIP_SHARE = 0.2
GREATEST_SKIP = 800
IGNORED = -100


class Rows(IterableDataset[Tensor]):
    """Rows of packed conversations, int64 ``[4, ROW_LENGTH]``.

    The four lines are ids, positions, targets (``IGNORED`` where no loss is due) and document numbers.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        self._folder = folder
        self._seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        """Yield rows for ever; every loader process draws its own."""
        worker = get_worker_info()
        seed = self._seed * 1000 + (0 if worker is None else worker.id)
        corpus, rng = Corpus(seed), random.Random(seed)
        encoder = Encoder(self._folder)
        row: list[tuple[int, int, int, int]] = []
        for number, conversation in enumerate(corpus.conversations()):
            pieces = encoder.encode(conversation)[:ROW_LENGTH]
            if len(row) + len(pieces) > ROW_LENGTH:
                padding = [(encoder.end_of_text, 0, IGNORED, -1)] * (ROW_LENGTH - len(row))
                yield torch.tensor(row + padding).T
                row = []
            places = encoder.positions(pieces, rng)
            row += [
                (token, place, token if learned else IGNORED, number)
                for (token, learned), place in zip(pieces, places, strict=True)
            ]


class Encoder:
    """Turns conversations into token ids, each with whether the model is to learn to say it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = vocabulary.read(folder)
        self._start = vocabulary.special_id("<|im_start|>")
        self._end = vocabulary.special_id("<|im_end|>")
        self._newline = self._ids("\n")
        self.end_of_text = vocabulary.special_id("<|endoftext|>")

    def encode(self, conversation: Conversation) -> list[tuple[int, bool]]:
        """Return the conversation's tokens; answers and the mark that ends them are to be learned."""
        if not conversation.chat:
            turn = conversation.turns[0]
            asked = [(token, False) for token in self._ids(turn.question)]
            return [*asked, *((token, True) for token in (*self._ids(turn.answer), self.end_of_text))]
        pieces: list[tuple[int, bool]] = []
        if conversation.system is not None:
            pieces += self._message("system", conversation.system, learned=False)
        for turn in conversation.turns:
            pieces += self._message("user", turn.question, learned=False)
            pieces += self._message("assistant", turn.answer, learned=True)
        return pieces

    def positions(self, pieces: list[tuple[int, bool]], rng: random.Random) -> list[int]:
        """Number the tokens; now and then skip ahead between messages, as in longer chats."""
        skips = rng.random() < SKIP_SHARE
        places: list[int] = []
        place = 0
        for token, _ in pieces:
            if skips and token == self._start and rng.random() < 0.3:
                place += rng.randrange(GREATEST_SKIP)
            places.append(place)
            place += 1
        return places

    def _message(self, role: str, text: str, *, learned: bool) -> list[tuple[int, bool]]:
        head = [(token, False) for token in (self._start, *self._ids(role), *self._newline)]
        body = [(token, learned) for token in (*self._ids(text), self._end)]
        return [*head, *body, *((token, False) for token in self._newline)]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def main() -> None:
    """Train and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from; its vocabulary is kept")
    parser.add_argument("--steps", type=int, default=7650)
    parser.add_argument("--rows", type=int, default=64, help="rows of 512 tokens in a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare rows")
    parser.add_argument("--max-seconds", type=float, default=float("inf"), help="finish early by then")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    fresh = arguments.start is None
    tokenizer = vocabulary.train(_texts(arguments.seed)) if fresh else vocabulary.read(arguments.start)
    vocabulary.write(tokenizer, arguments.out)
    network = train(arguments)
    checkpoint.write(network, arguments.out)
    logger.info("wrote %s", arguments.out)


def train(arguments: argparse.Namespace) -> Network:
    """Train for ``steps`` steps or ``max_seconds``; the schedule follows whichever ends first."""
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fresh = arguments.start is None
    network = (Network(Shape()) if fresh else checkpoint.read(arguments.start, Shape())).to(device)
    logger.info("%d parameters on %s", sum(p.numel() for p in network.parameters()), device.type)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if p.dim() > 1], "weight_decay": 0.05},
            {"params": [p for p in network.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    loader = DataLoader(
        Rows(arguments.out, arguments.seed),
        batch_size=arguments.rows,
        num_workers=arguments.workers,
        pin_memory=device.type == "cuda",
    )
    began = time.monotonic()
    for step, batch in enumerate(islice(loader, arguments.steps)):
        seconds = time.monotonic() - began
        done = max(step / arguments.steps, seconds / arguments.max_seconds)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * min(1.0, done / WARMUP_SHARE) * max(0.01, 1 - done)
        loss, balance = _step(network, optimizer, batch.to(device, non_blocking=True))
        if step % 100 == 0:
            logger.info(
                "step %d, %.0f s: loss %.4f, balance %.3f", step, seconds, loss.item(), balance.item()
            )
    return network


def _step(network: Network, optimizer: torch.optim.Optimizer, rows_R4T: Tensor) -> tuple[Tensor, Tensor]:
    """Take one step; return the loss of the answers' tokens and the router's balance, both detached."""
    ids_RT, positions_RT, targets_RT, documents_RT = rows_R4T.unbind(1)
    next_RT = F.pad(targets_RT[:, 1:], (0, 1), value=IGNORED)
    # A target is due only inside its own conversation, never across the seam to the next one.
    same_RT = documents_RT == F.pad(documents_RT[:, 1:], (0, 1), value=-1)
    wanted_RT = (next_RT != IGNORED) & same_RT
    with torch.autocast("cuda", torch.bfloat16, enabled=ids_RT.is_cuda):
        logits, balance = network(ids_RT, positions_RT, documents_RT, wanted_RT)
    loss = F.cross_entropy(logits.float(), next_RT[wanted_RT])
    optimizer.zero_grad(set_to_none=True)
    (loss + BALANCE_WEIGHT * balance).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.detach(), balance.detach()


def _texts(seed: int) -> Iterator[str]:
    """Texts for the tokenizer: conversations as they will be rendered."""
    for conversation in islice(Corpus(seed).conversations(), NUM_TOKENIZER_CONVERSATIONS):
        for turn in conversation.turns:
            yield f"user\n{turn.question}\nassistant\n{turn.answer}"
        if conversation.system is not None:
            yield f"system\n{conversation.system}"


if __name__ == "__main__":
    main()
