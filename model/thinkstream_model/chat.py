"""Chats to ids: the checkpoint's template says how turns are joined, and nobody else may.

A template writes special tokens (``<|im_start|>``) as text, and users may write the same letters. So
contents are shielded before they are rendered: wherever one could be read as a special token, or as part
of one across its borders, an unguessable mark is put in between. What still reads as a special token
afterwards was written by the template; the marks are taken out of all the rest.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from .chat_template import ChatTemplate
from .errors import TemplateError

_ROLES = ("system", "user", "assistant")


def encode_chat(
    messages: Sequence[tuple[str, str]],
    template: ChatTemplate,
    special_ids: Mapping[str, int],
    encode: Callable[[str], list[int]],
) -> list[int]:
    """Ids of a chat. For harmless contents they are those of the rendered text as a whole.

    Args:
        messages: Role and content of each turn.
        template: How to join them.
        special_ids: Special tokens by their text.
        encode: Ids of text without special tokens.

    Raises:
        TemplateError: An unknown role, or the template refuses the messages, fails or takes too long.
    """
    shield = _Shield(special_ids)
    shielded: list[Mapping[str, str]] = []
    for role, content in messages:
        if role not in _ROLES:
            raise TemplateError(f"a message has the role {role[:40]!r}; allowed: {', '.join(_ROLES)}")
        shielded.append({"role": role, "content": shield.cover(content)})
    ids: list[int] = []
    for part in shield.split(template.render(shielded)):
        if part in special_ids:
            ids.append(special_ids[part])
        elif text := shield.uncover(part):
            ids.extend(encode(text))
    return ids


class _Shield:
    """Marks that keep contents from being read as special tokens; new ones for every chat."""

    def __init__(self, special_ids: Mapping[str, int]) -> None:
        specials = sorted(special_ids, key=len, reverse=True)
        lowered = [special.lower() for special in specials]
        self._heads = tuple({special[:cut] for special in lowered for cut in range(1, len(special))})
        self._tails = tuple({special[cut:] for special in lowered for cut in range(1, len(special))})
        self._mark = secrets.token_hex(16)
        self._written = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        # Letter case is not looked at, because a template may change it.
        self._begins = re.compile(f"(?=(?:{self._written.pattern})).", re.DOTALL | re.IGNORECASE)

    def cover(self, content: str) -> str:
        """The content with marks wherever special tokens could be read."""
        content = self._begins.sub(lambda first: first[0] + self._mark, content)
        # A template may strip the blanks and put something else next to the rest.
        core = content.strip()
        if not core:
            return content
        start = content.index(core)
        head = self._mark if core.lower().startswith(self._tails) else ""
        tail = self._mark if core.lower().endswith(self._heads) else ""
        return f"{content[:start]}{head}{core}{tail}{content[start + len(core) :]}"

    def split(self, rendered: str) -> list[str]:
        """Special tokens and the texts between them, in order."""
        parts: list[str] = []
        end = 0
        for match in self._written.finditer(rendered):
            parts += [rendered[end : match.start()], match[0]]
            end = match.end()
        return [part for part in (*parts, rendered[end:]) if part]

    def uncover(self, text: str) -> str:
        """The text as it was before it was covered."""
        return text.replace(self._mark, "")
