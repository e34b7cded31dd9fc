"""Putting tokens in the place of what is to be hidden, wherever it stands in a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
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
        self._long = Literals([v for v in literals if len(v) >= NAME_BYTES])
        self._wide = Literals(_wide(literals))
        self._components = components
        self._named = any(p.name == "assignment" for p in self.patterns)
        self._secret = texts.Secret(patterns.names_secret, self.part) if self._named else None
        self._kept: dict[str, str] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to hide in texts."""
        return bool(self.patterns) or bool(self._literals)

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
        inner = [
            texts.in_json(v, self._inner, self._secret)
            if v.startswith(_JSON_STARTS) and '"' in v
            else v
            for v in values
        ]
        return self._hidden(inner, self._literals)

    def _inner(self, values: Sequence[str]) -> list[str]:
        return self._hidden(values, self._literals)

    def names(self, values: Sequence[str]) -> list[str]:
        """Hide what is in names: of arguments, events, collectors.

        Args:
            values: The names.

        Returns:
            As many; short known values stay in them.
        """
        return self._hidden(values, self._long)

    def json(self, values: Sequence[str]) -> list[str]:
        """Hide what is in JSON texts.

        Args:
            values: The texts.

        Returns:
            As many; one as a whole where what is hidden is not within its strings.
        """
        made = [texts.in_json(value, self._inner, self._secret) for value in values]
        after = self._hidden(made, self._literals)
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
        after = texts.in_json(text, self._inner, self._secret)
        if self._hidden([after], self._literals)[0] != after:
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
        spans: list[list[Span]] = [[] for _ in values]
        for number, span in self._literals.spans(values):
            spans[number].append(span)
        for number, _ in self._wide.spans(values):
            spans[number] = [(0, len(values[number]))]
        for number, value in enumerate(values):
            spans[number] += self._matched(value.decode("latin-1"))
            if b"\0" in value and self._matched(value.decode("utf-16-le", "replace")):
                spans[number] = [(0, len(value))]
        return [
            _replaced(value, found, self._bytes) if found else value
            for value, found in zip(values, spans, strict=True)
        ]

    def _bytes(self, value: bytes) -> bytes:
        try:
            return self.part(value.decode()).encode()
        except UnicodeDecodeError:
            return self.whole_data(value)

    def _hidden(self, values: Sequence[str], literals: Literals) -> list[str]:
        """Texts with what is hidden replaced, each place once."""
        spans = self._spans(values, literals)
        return [
            _replaced(value, _beside_tokens(value, found), self.part) if found else value
            for value, found in zip(values, spans, strict=True)
        ]

    def _spans(self, values: Sequence[str], literals: Literals) -> list[list[Span]]:
        spans = [self._matched(value) for value in values]
        if literals:
            raws = [value.encode("utf-8", "surrogatepass") for value in values]
            for number, span in literals.spans(raws):
                raw = raws[number]
                if len(raw) != len(values[number]):
                    span = _in_characters(raw, span)  # noqa: PLW2901
                spans[number].append(span)
        return spans

    def _matched(self, value: str) -> list[Span]:
        if not self.patterns:
            return []
        small = value.lower()
        found: list[Span] = []
        for pattern in self.patterns:
            if not pattern.hints or any(hint in small for hint in pattern.hints):
                found += pattern.spans(value)
        return found


def _in_characters(raw: bytes, span: Span) -> Span:
    """A place in UTF-8 as a place in its text."""
    start, end = (len(raw[:at].decode("utf-8", "surrogatepass")) for at in span)
    return start, end


def _replaced(value: Any, spans: list[Span], whole: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """A text, or bytes, with tokens in some places; what overlaps gets one together."""
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
    tokens = [m.span() for m in TOKEN.finditer(value)]
    return [s for s in spans if not any(t[0] <= s[0] and s[1] <= t[1] for t in tokens)]


def _wide(literals: Collection[bytes]) -> list[bytes]:
    """The UTF-16 form of texts, as Windows has them in bytes."""
    found = []
    for value in literals:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            continue
        if len(text) >= NAME_BYTES // 2:
            found.append(text.encode("utf-16-le", "surrogatepass"))
    return found
