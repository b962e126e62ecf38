"""The byte-level spelling of byte-pair vocabularies: every byte is one printable character."""

from __future__ import annotations


def _spelling() -> dict[int, str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


CHARACTER_OF_BYTE = _spelling()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def spelled_bytes(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for.

    A token with a character outside the spelling stands for its own UTF-8 text.
    """
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode()
