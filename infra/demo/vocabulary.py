"""The demo's own byte-level BPE, shaped like Qwen's: its pre-tokenizer, its special tokens, its files.

The ids follow the release: base vocabulary first, then the special tokens in the release's order, then
padding rows that no token uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

NUM_BASE_IDS = 3032
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In the order of the released ids; False marks the ones that are plain added tokens there.
SPECIAL_TOKENS = {
    "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True,
    "<|object_ref_start|>": True, "<|object_ref_end|>": True, "<|box_start|>": True, "<|box_end|>": True,
    "<|quad_start|>": True, "<|quad_end|>": True, "<|vision_start|>": True, "<|vision_end|>": True,
    "<|vision_pad|>": True, "<|image_pad|>": True, "<|video_pad|>": True,
    "<tool_call>": False, "</tool_call>": False,
    "<|fim_prefix|>": False, "<|fim_middle|>": False, "<|fim_suffix|>": False, "<|fim_pad|>": False,
    "<|repo_name|>": False, "<|file_sep|>": False, "<tool_response>": False, "</tool_response>": False,
    "<think>": False, "</think>": False,
    "<|audio_start|>": True, "<|audio_end|>": True, "<tts_pad>": True, "<tts_text_bos>": True,
    "<tts_text_eod>": True, "<tts_text_bos_single>": True, "<|audio_pad|>": True,
}  # fmt: skip
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
)


def train(texts: Iterable[str]) -> Tokenizer:
    """Train the base vocabulary on ``texts`` and return the tokenizer without its special tokens."""
    tokenizer = _bare(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BASE_IDS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != NUM_BASE_IDS:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} ids, not {NUM_BASE_IDS}")
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `vocab.json`, `merges.txt`, `tokenizer_config.json` and `chat_template.json`."""
    tokenizer.model.save(str(folder))
    added = {
        str(NUM_BASE_IDS + place): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": special,
        }
        for place, (token, special) in enumerate(SPECIAL_TOKENS.items())
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def read(folder: Path) -> Tokenizer:
    """Read the base vocabulary of ``folder`` and add the special tokens."""
    vocab, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = _bare(models.BPE.from_file(vocab, merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def special_id(token: str) -> int:
    """Return the id of a special token."""
    return NUM_BASE_IDS + list(SPECIAL_TOKENS).index(token)


def _bare(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
