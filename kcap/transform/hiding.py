"""Putting tokens in the place of what is to be hidden, wherever it stands in a text."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Final

from kcap.model.text import json_string, json_text
from kcap.transform import patterns, texts
from kcap.transform.literals import Literals, Span
from kcap.transform.patterns import Pattern
from kcap.transform.tokens import PREFIX, TOKEN, Key

NAME_BYTES: Final = 8
"""A value must be so long that it is looked for in names, as those of arguments and events: a
process may be called ``open``."""

_KEPT: Final = 1 << 16
_KEPT_CHARS: Final = 512
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ODD_ESCAPE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\[^\\\"/]")
_JSON_STARTS: Final = ("{", "[")


class Hider:
    """Hides what patterns match, and known values.

    Args:
        key: Makes the tokens.
        found: What secrets look like.
        literals: Known values, as bytes.
        components: Of what is a path, hide each part and keep the structure.
    """

    def __init__(
        self,
        key: Key,
        found: Sequence[Pattern] = (),
        literals: Collection[bytes] = (),
        *,
        components: bool = False,
    ) -> None:
        self.key = key
        self.patterns = tuple(found)
        self._literals = Literals(literals)
        self._components = components
        self._named = any(p.name == "assignment" for p in self.patterns)
        self._secret = texts.Secret(patterns.names_secret, self.part) if self._named else None
        self._kept: dict[str, str] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to hide in texts."""
        return bool(self.patterns) or bool(self._literals)

    @cached_property
    def _wide(self) -> Literals:
        """The UTF-16 form of the known texts, as Windows has them in bytes."""
        return Literals(_wide(self._literals.whole))

    def whole(self, value: str) -> str:
        """What stands in place of a text that is hidden.

        Args:
            value: The text.

        Returns:
            Its token; the tokens of its parts where that was asked for and it is a path.
        """
        return self.key.path(value) if self._components else self.key.token(value)

    def part(self, value: str) -> str:
        """What stands in place of a part of a text, or of a text that is hidden for its place.

        Args:
            value: The part.

        Returns:
            What `whole` gives.
        """
        return self.whole(value)

    def whole_data(self, value: bytes) -> bytes:
        """What stands in place of bytes that are hidden.

        Args:
            value: The bytes.

        Returns:
            Their token.
        """
        return self.key.data(value)

    def number(self, value: int) -> int:
        """What stands in place of an integer.

        Args:
            value: The integer.

        Returns:
            Another of its class.
        """
        return self.key.number(value)

    def real(self, value: float) -> float:
        """What stands in place of a float.

        Args:
            value: The float.

        Returns:
            Another.
        """
        return self.key.real(value)

    def whole_json(self, value: str) -> str:
        """What stands in place of JSON text that is hidden.

        Args:
            value: JSON text.

        Returns:
            A JSON string.
        """
        return json_string(self.key.token(value))

    def texts(self, values: Sequence[str]) -> list[str]:
        """Hide what is in texts.

        Args:
            values: The texts.

        Returns:
            As many.
        """
        out = [self._kept.get(v) for v in values]
        todo = [i for i, v in enumerate(out) if v is None]
        if todo:
            fresh = [values[i] for i in todo]
            if len(self._kept) + len(fresh) > _KEPT:
                self._kept.clear()
            for i, before, after in zip(todo, fresh, self._texts(fresh), strict=True):
                out[i] = after
                if len(before) <= _KEPT_CHARS and len(self._kept) < _KEPT:
                    self._kept[before] = after
        return out  # type: ignore[return-value]

    def _texts(self, values: Sequence[str]) -> list[str]:
        # What is escaped in JSON, as details of handles are, is found in what it says.
        json_like = [i for i, v in enumerate(values) if v.startswith(_JSON_STARTS) and '"' in v]
        return self._inner(self._said(values, json_like))

    def _said(self, values: Sequence[str], numbers: Sequence[int]) -> list[str]:
        """Texts of which these are JSON, with what is in their strings hidden."""
        out = list(values)
        suspects = self._suspects([values[i] for i in numbers])
        at = [numbers[i] for i in suspects]
        made = texts.in_json([values[i] for i in at], self._inner, self._secret)
        for i, value in zip(at, made, strict=True):
            out[i] = value
        return out

    def _suspects(self, values: Sequence[str]) -> Iterable[int]:
        """The JSON texts in which something may have to be hidden; most are not worth parsing."""
        if not all(pattern.hints for pattern in self.patterns):
            return range(len(values))
        # Without their usual escapes they show all that their strings say.
        found = {i for i, value in enumerate(values) if _ODD_ESCAPE.search(value)}
        plain = [_ESCAPE.sub(r"\1", value) for value in values]
        small = [value.lower() for value in plain]
        hints = [hint for pattern in self.patterns for hint in pattern.hints]
        found.update(_with_some(dict.fromkeys(hints), small) if hints else ())
        raws = [value.encode("utf-8", "surrogatepass") for value in plain]
        found.update(number for number, _ in self._literals.spans(raws))
        return sorted(found)

    def _inner(self, values: Sequence[str]) -> list[str]:
        return self._hidden(values)

    def names(self, values: Sequence[str]) -> list[str]:
        """Hide what is in names: of arguments, events, collectors.

        Args:
            values: The names.

        Returns:
            As many; short known values stay in them.
        """
        return self._hidden(values, NAME_BYTES)

    def json(self, values: Sequence[str]) -> list[str]:
        """Hide what is in JSON texts.

        Args:
            values: The texts.

        Returns:
            As many; one as a whole where what is hidden is not within its strings.
        """
        made = self._said(values, range(len(values)))
        after = self._inner(made)
        return [
            m if m == a else self.whole_json(v) for v, m, a in zip(values, made, after, strict=True)
        ]

    def details(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Hide what is in free details.

        Args:
            value: A JSON object.

        Returns:
            The object; its names are hidden as values are.
        """
        text = json_text(value)
        (after,) = texts.in_json([text], self._inner, self._secret)
        if self._inner([after]) != [after]:
            return {"redacted": self.key.token(text)}
        found: dict[str, Any] = json.loads(after)
        return found

    def data(self, values: Sequence[bytes]) -> list[bytes]:
        """Hide what is in bytes, as UTF-8 and as UTF-16.

        Args:
            values: The bytes.

        Returns:
            As many.
        """
        spans = self.matched([value.decode("latin-1") for value in values])
        for number, span in self._literals.spans(values):
            spans[number].append(span)
        wide = [v.decode("utf-16-le", "replace") if b"\0" in v else "" for v in values]
        found = {number for number, _ in self._wide.spans(values)}
        found |= {number for number, places in enumerate(self.matched(wide)) if places}
        for number in found:
            spans[number] = [(0, len(values[number]))]
        return [
            replaced(value, places, self._bytes) if places else value
            for value, places in zip(values, spans, strict=True)
        ]

    def _bytes(self, value: bytes) -> bytes:
        try:
            return self.part(value.decode()).encode()
        except UnicodeDecodeError:
            return self.whole_data(value)

    def _hidden(self, values: Sequence[str], least: int = 1) -> list[str]:
        """Texts with what is hidden replaced, each place once; known values from a length on."""
        spans = self._spans(values, least)
        return [
            replaced(value, _beside_tokens(value, found), self.part) if found else value
            for value, found in zip(values, spans, strict=True)
        ]

    def _spans(self, values: Sequence[str], least: int) -> list[list[Span]]:
        spans = self.matched(values)
        if self._literals:
            raws = [value.encode("utf-8", "surrogatepass") for value in values]
            for number, raw in enumerate(raws):
                if raw in self._literals.whole and len(raw) >= least:
                    spans[number], raws[number] = [(0, len(values[number]))], b""
            for number, span in self._literals.spans(raws):
                raw = raws[number]
                if span[1] - span[0] < least:
                    continue
                if len(raw) != len(values[number]):
                    span = _in_characters(raw, span)  # noqa: PLW2901
                spans[number].append(span)
        return spans

    def matched(self, values: Sequence[str]) -> list[list[Span]]:
        """Where the patterns match in texts.

        Args:
            values: The texts.

        Returns:
            Of each its places, but for tokens.
        """
        found: list[list[Span]] = [[] for _ in values]
        if not self.patterns:
            return found
        small = [value.lower() for value in values]
        for pattern in self.patterns:
            numbers = _with_some(pattern.hints, small) if pattern.hints else range(len(values))
            for number in numbers:
                found[number] += pattern.spans(values[number])
        return [_beside_tokens(v, spans) for v, spans in zip(values, found, strict=True)]


def _with_some(hints: Iterable[str], values: Sequence[str]) -> list[int]:
    """Which texts have one of some words."""
    whole = "\0".join(values)
    starts = list(accumulate((len(value) + 1 for value in values), initial=0))
    found = set()
    for hint in hints:
        at = whole.find(hint)
        while at >= 0:
            number = bisect_right(starts, at) - 1
            found.add(number)
            at = whole.find(hint, starts[number + 1])
    return sorted(found)


def _in_characters(raw: bytes, span: Span) -> Span:
    """A place in UTF-8 as a place in its text."""
    start, end = (len(raw[:at].decode("utf-8", "surrogatepass")) for at in span)
    return start, end


def replaced(value: Any, spans: list[Span], whole: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """Put tokens in the place of parts of a text, or of bytes.

    Args:
        value: The text.
        spans: The parts; what overlaps gets one together.
        whole: Gives a part its token.

    Returns:
        The text.
    """
    out, at = [], 0
    spans.sort()
    while spans:
        start, end = spans[0]
        count = 1
        while count < len(spans) and spans[count][0] < end:
            end = max(end, spans[count][1])
            count += 1
        out += [value[at:start], whole(value[start:end])]
        at = end
        del spans[:count]
    return value[:0].join([*out, value[at:]])


def _beside_tokens(value: str, spans: list[Span]) -> list[Span]:
    """The places that are not within a token."""
    if PREFIX not in value:
        return spans
    tokens = [(-1, -1), *(m.span() for m in TOKEN.finditer(value))]
    begins = [start for start, _ in tokens]
    return [s for s in spans if tokens[bisect_right(begins, s[0]) - 1][1] < s[1]]


def _wide(literals: Collection[bytes]) -> list[bytes]:
    """The UTF-16 form of those bytes that are text, and not too short."""
    found = []
    for value in literals:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            continue
        if len(text) >= NAME_BYTES // 2:
            found.append(text.encode("utf-16-le", "surrogatepass"))
    return found
