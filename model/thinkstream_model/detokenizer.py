"""Ids to text as they come, never showing what a later id could still change.

Text is held back while it ends inside a character or could be the beginning of a stop string. What has
been released after n ids depends on these ids and the stop strings alone, not on when it was asked for.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .tokenizer import Tokenizer


class Detokenizer:
    """The text of one result.

    Args:
        tokenizer: Where the bytes of an id are looked up.
        stop: Strings that end the text and are not part of it. The one that is complete first counts,
            the longest of those that are complete at the same character.
    """

    __slots__ = ("_decoder", "_held", "_matchers", "_tokenizer", "stopped")

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matchers = [_Matcher(text) for text in sorted(set(stop), key=len, reverse=True) if text]
        self._held = ""
        self.stopped = False
        """Whether a stop string is complete; nothing more is released then."""

    def push(self, token_id: int) -> str:
        """Take the next id, return the text that became certain with it."""
        if self.stopped:
            return ""
        return self._take(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """The rest of the text when no more ids come; bytes of an unfinished character are U+FFFD."""
        if self.stopped:
            return ""
        released = self._take(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return released + rest

    def _take(self, text: str) -> str:
        if not self._matchers:
            return text
        length_before = len(self._held)
        self._held += text
        for place, character in enumerate(text, length_before + 1):
            for matcher in self._matchers:
                if matcher.advance(character):
                    self.stopped = True
                    released, self._held = self._held[: place - matcher.length], ""
                    return released
        num_open = max(matcher.matched for matcher in self._matchers)
        cut = len(self._held) - num_open
        released, self._held = self._held[:cut], self._held[cut:]
        return released


class _Matcher:
    """Knuth, Morris and Pratt's search for one string in text that comes character by character."""

    __slots__ = ("_fallbacks", "_pattern", "length", "matched")

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.length = len(pattern)
        self.matched = 0  # the longest beginning of the pattern that the text ends with
        self._fallbacks = [0] * len(pattern)  # the same for the pattern's own beginnings
        for end in range(1, len(pattern)):
            length = self._fallbacks[end - 1]
            while length and pattern[end] != pattern[length]:
                length = self._fallbacks[length - 1]
            self._fallbacks[end] = length + (pattern[end] == pattern[length])

    def advance(self, character: str) -> bool:
        """Take one character; whether the text now ends with the pattern."""
        while self.matched and self._pattern[self.matched] != character:
            self.matched = self._fallbacks[self.matched - 1]
        self.matched += self._pattern[self.matched] == character
        return self.matched == self.length
