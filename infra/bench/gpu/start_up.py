"""From the start of a process to its first token, with a checkpoint of the released layout to be read.

    python -m infra.bench.gpu.start_up --folder /dev/shm/checkpoint
    python -m infra.bench.gpu.start_up --folder /tmp/checkpoint --tiny --layers 2 --device cpu

Writes a checkpoint of noise where the folder holds none: 61 GB for all layers, which stay there. Then, each
in a process of its own: the weights are loaded and compared with their files; a replica's engine is started
with an empty cache of kernels; and once more with the cache that this has filled. One line of JSON each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time whoever is measured imports torch and all else for itself
    from thinkstream_model.parameters import ThinkerWeights
    from thinkstream_workers.mailboxes import Inbox, Outbox

_NUM_PROMPT = 128
_MAX_CONTEXT = 32_768
_NUM_COMPARED = 200
_POLL_S = 0.02
_TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "rope_scaling": None,
}


def main() -> None:
    """Write the checkpoint and measure, or be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is, or is to be")
    parser.add_argument("--layers", type=int, default=48, help="layers of a checkpoint that is written")
    parser.add_argument("--tiny", action="store_true", help="write a small one, to try this without a GPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--measure", choices=["load", "start"], help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is None:
        _write(args.folder, args.layers, is_tiny=args.tiny)
        with tempfile.TemporaryDirectory(prefix="thinkstream-kernels-") as kernels:
            for measure, cache in (("load", "-"), ("start", "cold"), ("start", "warm")):
                _measure_apart(measure, {"kernel_cache": cache}, kernels)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    row = measure_load(args) if args.measure == "load" else measure_start(args)
    print(json.dumps(row), flush=True)


def measure_load(args: argparse.Namespace) -> dict[str, float]:
    """Load the weights alone, and then compare some of the tensors with their files."""
    import torch

    from thinkstream_model.loader import load_weights

    torch.empty(0, device=args.device)
    began_s = time.perf_counter()
    weights = load_weights(args.folder, device=args.device)
    load_s = time.perf_counter() - began_s
    num_bytes = sum(tensor.nbytes for tensor in weights.named_destinations().values())
    return {
        "load_s": load_s,
        "GB": num_bytes / 1e9,
        "GB_per_s": num_bytes / load_s / 1e9,
        **_compare(weights, args.folder),
    }


def measure_start(args: argparse.Namespace) -> dict[str, float]:
    """Do what a replica does before it takes jobs, without Redis, and then a job."""
    from thinkstream_client.settings import RedisSettings
    from thinkstream_workers.build import build_engine
    from thinkstream_workers.config import ReplicaConfig
    from thinkstream_workers.loading import load_model
    from thinkstream_workers.mailboxes import Inbox, Outbox
    from thinkstream_workers.warm_up import WarmUp

    moments_s = {"process": args.began, "import": time.monotonic()}
    config = ReplicaConfig(
        redis=RedisSettings(url="redis://nowhere"),
        model=str(args.folder),
        device=args.device,
        slots=args.slots,
        max_context=_MAX_CONTEXT,
    )
    model = load_model(config)
    moments_s["load"] = time.monotonic()
    inbox, outbox = Inbox(), Outbox()
    engine = build_engine(
        model.thinker,
        config.engine,
        num_valid_ids=model.num_ids,
        inbox=inbox,
        outbox=outbox,
        announce=lambda suspect: None,
        on_turn=lambda: None,
    )
    moments_s["build"] = time.monotonic()
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    warm_up = WarmUp(engine, inbox, outbox, is_stopping=lambda: not thread.is_alive())
    warm_up.run()
    moments_s["first_step"] = time.monotonic()
    _await_token(inbox, outbox)
    moments_s["first_token"] = time.monotonic()
    while not engine.is_rehearsed:
        time.sleep(_POLL_S)
    rehearsed_s = time.monotonic() - moments_s["first_token"]
    engine.stop()
    thread.join()
    return {**_parts(moments_s), "rehearsed_after_s": rehearsed_s}


def _write(folder: Path, num_layers: int, *, is_tiny: bool) -> None:
    if (folder / "config.json").is_file():
        return
    from .random_checkpoint import write_checkpoint
    from .shape import RELEASED_SHAPE

    folder.mkdir(parents=True, exist_ok=True)
    began_s = time.perf_counter()
    shape = {**RELEASED_SHAPE, **(_TINY if is_tiny else {}), "num_hidden_layers": num_layers}
    num_bytes = write_checkpoint(folder, shape)
    row = {"measure": "write", "write_s": time.perf_counter() - began_s, "GB": num_bytes / 1e9}
    print(json.dumps(_rounded(row)), flush=True)


def _measure_apart(measure: str, labels: dict[str, str], kernels: str) -> None:
    """Have a fresh process measure; Triton's cache is where it is told."""
    command = [sys.executable, "-m", "infra.bench.gpu.start_up", *sys.argv[1:]]
    command += ["--measure", measure, "--began", str(time.monotonic())]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_CACHE_DIR": kernels},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    row = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"measure": measure, **labels, **_rounded(row)}), flush=True)


def _compare(weights: ThinkerWeights, folder: Path) -> dict[str, float]:
    """How many tensors were compared with their files, and how many are not the same."""
    import torch

    from thinkstream_model.checkpoint_files import find_tensors, read_bytes
    from thinkstream_model.layouts import text_tensors

    destinations = weights.named_destinations()
    copies = text_tensors(find_tensors(folder))
    compared = copies[:: -(-len(copies) // _NUM_COMPARED)]
    num_wrong = 0
    for stored, place in compared:
        loaded = place.within(destinations)
        assert loaded is not None
        expected = torch.frombuffer(bytearray(read_bytes(stored, 0, stored.num_bytes)), dtype=torch.bfloat16)
        num_wrong += not torch.equal(loaded.cpu().view(-1), expected)
    return {"compared": len(compared), "wrong": num_wrong}


def _await_token(inbox: Inbox, outbox: Outbox) -> None:
    from thinkstream_client.records import JobRef
    from thinkstream_workers.orders import JobKey, Submit
    from thinkstream_workers.sampling import ResolvedSampling

    key = JobKey(JobRef("-", "first"), 0)
    prompt_ids = tuple(range(_NUM_PROMPT))
    inbox.put(Submit(key=key, prompt_ids=prompt_ids, sampling=ResolvedSampling(max_tokens=1)))
    while True:
        output = outbox.get(1.0)
        if output is not None and any(token.key == key for token in output.tokens):
            return


def _parts(moments_s: dict[str, float]) -> dict[str, float]:
    """The time up to each moment since the one before, and all of it."""
    parts = {
        f"{name}_s": moment_s - before_s
        for (_, before_s), (name, moment_s) in itertools.pairwise(moments_s.items())
    }
    return {**parts, "all_s": sum(parts.values())}


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    main()
