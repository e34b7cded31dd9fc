"""What is wrong with a filter, and where: shown with carets under the place."""

from __future__ import annotations

from typing import Final

from kcap.errors import KcapError

_SHOWN: Final = 72
"""Characters of a long filter that are shown."""

_SAID: Final = 240
"""Characters of a message; what it quotes may be as long as the filter."""


class FilterError(KcapError):
    """A filter that can't be understood, or asks for what is not possible.

    Args:
        what: What is wrong.
        text: The filter.
        start: First character of the place.
        end: Character behind it.
        expected: What would have been right.
        hint: What to do.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        text: str,
        start: int,
        end: int,
        *,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(_cut(what), expected=expected, hint=hint and _cut(hint))
        self.text = text
        self.start = start
        self.end = max(end, start + 1)
        for line in self.caret():
            self.add_note(f"  {line}")

    def caret(self) -> tuple[str, str]:
        """The line of the filter that holds the place, and carets to print below it.

        Returns:
            Both, cut to about 72 characters; what can't be shown is a ``?``.
        """
        first = self.text.rfind("\n", 0, self.start) + 1
        last = self.text.find("\n", self.start)
        line = self.text[first : len(self.text) if last < 0 else last]
        at = self.start - first
        left = max(0, at - _SHOWN // 2) if len(line) > _SHOWN else 0
        shown = line[left : left + _SHOWN]
        dots = "..." if left else ""
        rest = "..." if left + len(shown) < len(line) else ""
        width = max(1, min(self.end - self.start, len(shown) - (at - left)))
        clean = "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in shown)
        return f"{dots}{clean}{rest}", " " * (len(dots) + at - left) + "^" * width

    def __str__(self) -> str:
        """One line; the notes below it show the place."""
        return f"the filter: {super().__str__()}"


def _cut(text: str) -> str:
    return text if len(text) <= _SAID else f"{text[: _SAID // 2]} ... {text[-_SAID // 2 :]}"
