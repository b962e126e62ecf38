"""Text to ids and ids to bytes, as the checkpoint's own tokenizer has it.

Only byte-level byte-pair tokenizers: all of the family are. A special token (``<|im_end|>``) is never
read out of a text: it gets into a prompt through a chat template or as an id, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from .byte_level import CHARACTER_OF_BYTE, spelled_bytes
from .chat import encode_chat
from .chat_template import ChatTemplate, token_text
from .errors import TokenizerError
from .json_files import read_object

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts text before merging; ``vocab.json`` and ``merges.txt`` do not say it."""

_ENDS_OF_TEXT = ("<|im_end|>", "<|endoftext|>")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""Every file that a tokenizer or its chat template may be read from."""


class Tokenizer:
    """One checkpoint's tokenizer and chat template. Safe to use from several threads.

    Args:
        backend: The byte-level tokenizer proper.
        template: The chat template; the built-in one where the checkpoint has none.
        end_token: The checkpoint's own end of text, beside those that the family shares.
        num_ids: Number of ids, where it is to be more than the backend has; the surplus ones stand for
            their own number in decimal.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        template: ChatTemplate | None = None,
        end_token: str | None = None,
        num_ids: int = 0,
    ) -> None:
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = template or ChatTemplate.built_in()
        added = backend.get_added_tokens_decoder()
        self._added_texts = {i: token.content for i, token in added.items() if not token.special}
        self._special_ids = {token.content: i for i, token in added.items() if token.special}
        self._bytes: dict[int, bytes] = dict.fromkeys(self._special_ids.values(), b"")
        self._num_known = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self._num_ids = max(num_ids, self._num_known)
        ends = (*_ENDS_OF_TEXT, end_token)
        self._eos_token_ids = tuple(self._special_ids[end] for end in ends if end in self._special_ids)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint's folder.

        Takes ``tokenizer.json``, or else ``vocab.json`` with ``merges.txt`` and Qwen's rules. Tokens that
        ``tokenizer_config.json`` adds are added in either case.

        Raises:
            TokenizerError: The files are missing, broken, or not of a byte-level tokenizer.
            ConfigError: A JSON file beside them is broken.
        """
        folder = Path(path)
        config_file = folder / "tokenizer_config.json"
        config = read_object(config_file)
        backend = _read_backend(folder)
        _add_tokens(backend, config_file, config.get("added_tokens_decoder"))
        return cls(
            backend, template=ChatTemplate.find(folder, config), end_token=token_text(config, "eos_token")
        )

    @classmethod
    def of_bytes(cls, num_ids: int = 0, template: ChatTemplate | None = None) -> Tokenizer:
        """A tokenizer without files, for models of random weights: one id per byte, then three specials.

        Args:
            num_ids: Number of ids, usually the model's vocabulary; at least 259.
            template: The chat template, where it is not the built-in one.
        """
        backend = Backend(models.BPE({CHARACTER_OF_BYTE[byte]: byte for byte in range(256)}, []))
        _set_byte_level(backend)
        specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
        return cls(backend, template=template, num_ids=num_ids)

    @property
    def num_ids(self) -> int:
        """Ids that mean something: 0 up to here. Rows of the model's vocabulary beyond are padding."""
        return self._num_ids

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text; the one that ends a turn comes first."""
        return tuple(dict.fromkeys(self._eos_token_ids))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that have a meaning and no text."""
        return frozenset(self._special_ids.values())

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands: no special token is read out of it, none is put around it.

        Halves of surrogate pairs become U+FFFD.
        """
        return self._backend.encode(_whole_characters(text), add_special_tokens=False).ids

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a chat, up to where the assistant's next turn begins.

        Args:
            messages: Role (``system``, ``user`` or ``assistant``) and content of each turn.

        Raises:
            TemplateError: The chat template refuses the messages, fails or takes too long.
        """
        return encode_chat(messages, self._template, self._special_ids, self.encode)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text: bytes that need not be whole characters.

        Empty for special tokens and for ids without meaning.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added_texts:
            return self._added_texts[token_id].encode()
        if not 0 <= token_id < self._num_ids:
            return b""
        if token_id >= self._num_known:
            return b" %d" % token_id
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else spelled_bytes(token)


def _read_backend(folder: Path) -> Backend:
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        try:
            backend = Backend.from_file(str(whole))
        except Exception as error:  # the library raises bare exceptions
            raise TokenizerError(whole, "a tokenizer", error) from error
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise TokenizerError(whole, "a byte-level decoder", type(backend.decoder).__name__)
        return backend
    for file in (vocab, merges):
        if not file.is_file():
            raise TokenizerError(file, "this file, or tokenizer.json", "no such file")
    try:
        backend = Backend(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises bare exceptions
        raise TokenizerError(vocab, f"a vocabulary that fits {merges.name}", error) from error
    _set_byte_level(backend)
    return backend


def _set_byte_level(backend: Backend) -> None:
    """Qwen's way: composed characters, its words, bytes as characters."""
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), "isolated")
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, spelling])  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]


def _add_tokens(backend: Backend, file: Path, listed: object) -> None:
    """Add the tokens of ``added_tokens_decoder`` that the tokenizer lacks, and check every id."""
    if listed is None:
        return
    try:
        entries = sorted((int(i), dict(e)) for i, e in cast("dict[str, dict[str, object]]", listed).items())
        tokens = [(i, _added_token(entry)) for i, entry in entries]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(file, "added_tokens_decoder: tokens by their ids", repr(error)) from error
    for token_id, token in tokens:
        if backend.token_to_id(token.content) is None or token_id not in backend.get_added_tokens_decoder():
            backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != token_id:
            raise TokenizerError(file, f"added_tokens_decoder: {token.content!r} as id {token_id}", found)


def _added_token(entry: dict[str, object]) -> AddedToken:
    flags = {name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip")}
    special = bool(entry.get("special", False))
    return AddedToken(
        str(entry["content"]), special=special, normalized=bool(entry.get("normalized", not special)), **flags
    )


def _whole_characters(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
