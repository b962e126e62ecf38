"""Serves the full shape of the released Thinker with random weights, through Redis and Ray, on one GPU.

    python -m infra.bench.full_size --batches 1,32 --prompt 128 --tokens 64

Prints tokens per second of the service as clients see them: from the first token that arrives to the last.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from thinkstream_client import Client, SamplingParams
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.embedded import EmbeddedServer
from thinkstream_scheduler.launch import ServiceOptions, start_service
from thinkstream_workers.config import ReplicaConfig

RELEASED_SHAPE: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 65536,
    "rope_theta": 1000000.0,
    "rope_scaling": {"rope_type": "default", "interleaved": True, "mrope_section": [24, 20, 20]},
}
"""``thinker_config.text_config`` of the released checkpoint."""


def main() -> None:
    """Start the service, measure each batch, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", default="1,32", help="streams at one time, by commas")
    parser.add_argument("--prompt", type=int, default=128, help="tokens in")
    parser.add_argument("--tokens", type=int, default=64, help="tokens out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=RELEASED_SHAPE["num_hidden_layers"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="thinkstream-") as name:
        folder = Path(name)
        shape = {**RELEASED_SHAPE, "num_hidden_layers": args.layers}
        (folder / "config.json").write_text(json.dumps({"thinker_config": {"text_config": shape}}))
        server = EmbeddedServer(folder / "redis")
        server.start()
        started_s = time.perf_counter()
        redis = RedisSettings(url=server.url)
        replica = ReplicaConfig(
            redis=redis, model=f"random:{folder}/config.json", device=args.device, slots=32, max_context=4096
        )
        service = start_service(ServiceOptions(redis=redis, replica=replica, show_logs=True))
        try:
            print(f"ready after {time.perf_counter() - started_s:.1f} s", flush=True)
            measure(server.url, 1, args.prompt, 8)  # warm up
            for batch in (int(size) for size in args.batches.split(",")):
                print(json.dumps(measure(server.url, batch, args.prompt, args.tokens)), flush=True)
        finally:
            service.stop()
            server.stop()


def measure(url: str, num_streams: int, num_prompt: int, num_tokens: int) -> dict[str, float]:
    """Follow ``num_streams`` jobs at once, each by a thread of its own.

    Returns:
        Tokens per second from the first token of all to the last, and the median time to a first token.
    """
    sampling = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True)
    arrivals_s: list[list[float]] = [[] for _ in range(num_streams)]
    with Client(url) as client:
        started_s = time.perf_counter()
        jobs = [
            client.submit(
                token_ids=[secrets.randbelow(150_000) for _ in range(num_prompt)], sampling=sampling
            )
            for _ in range(num_streams)
        ]

        def follow(number: int) -> None:
            for chunk in jobs[number].stream():
                arrivals_s[number] += [time.perf_counter()] * len(chunk.token_ids)

        threads = [threading.Thread(target=follow, args=(number,)) for number in range(num_streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(len(times) == num_tokens for times in arrivals_s), "tokens are missing"
    first_s = sorted(times[0] for times in arrivals_s)
    decode_s = max(times[-1] for times in arrivals_s) - first_s[-1]
    return {
        "streams": num_streams,
        "first_token_ms": round((first_s[num_streams // 2] - started_s) * 1000, 1),
        "tokens_per_s": round(num_streams * (num_tokens - 1) / decode_s, 1),
    }


if __name__ == "__main__":
    main()
