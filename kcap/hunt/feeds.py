"""Files of indicators: lists, CSV and TSV, JSON and JSON lines, among them STIX 2 and MISP."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final, NamedTuple

from kcap.errors import BadInputError, KcapError, LimitError
from kcap.hunt.indicators import KINDS, Indicator, Kind, Meaning, parse

INDICATORS: Final = 1_000_000
"""Most indicators of one search."""

LINE_BYTES: Final = 64 << 10
"""Longest line."""

DOCUMENT_BYTES: Final = 256 << 20
"""Largest file that is one JSON document."""

_LABEL_CHARACTERS: Final = 200
_DEPTH: Final = 16
_GENERAL: Final = (
    *("indicator", "indicators", "ioc", "ioc_value", "indicator_value", "value", "observable"),
    "pattern",
)
_TYPED: Final = ("md5", "sha1", "sha256", "ip", "domain", "hostname", "url", "path", "filename")
"""Columns that hold indicators, and such as say their type, too."""

_TYPES: Final = ("type", "indicator_type", "ioc_type", "kind")
_LABELS: Final = (
    *("label", "comment", "description", "name", "info", "title", "malware_printable"),
    *("threat", "malware", "signature"),
)
_COMMENT: Final = re.compile(r"(?:^|\s+)#\s*(.*)")
_JSON_START: Final = re.compile(rb'\s*(?:\{|\[\s*[\[{"\]])')
_STIX_TOKEN: Final = re.compile(
    r"\s*(?:[\[\]()]|OR\b"
    r"|([a-z0-9-]+:[A-Za-z0-9_.'\" -]+?)\s*(?:=|ISSUBSET)\s*'((?:[^'\\]|\\.)*)')\s*"
)
_STIX: Final = {
    "ipv4-addr:value": "ip",
    "ipv6-addr:value": "ip",
    "domain-name:value": "domain",
    "url:value": "url",
    "file:name": "path",
    "file:hashes.md5": "md5",
    "file:hashes.sha-1": "sha1",
    "file:hashes.sha1": "sha1",
    "file:hashes.sha-256": "sha256",
    "file:hashes.sha256": "sha256",
}


class _Given(NamedTuple):
    """A text that its file calls an indicator."""

    text: str
    kind: str | None = None
    label: str | None = None


class _Stop(NamedTuple):
    """What can't be understood, in place of what it should have been."""

    error: BadInputError


_Item = _Given | _Stop


class Feeds:
    """Indicators out of files, each once.

    Args:
        lenient: Pass over what is none.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.passed_over: list[BadInputError] = []
        """What was bad, where that is no error."""
        self.others: Counter[str] = Counter()
        """Entries of a type that can't be looked for, as e-mail addresses, by that type."""
        self._lenient = lenient
        self._found: dict[tuple[Kind, str], Indicator] = {}

    @property
    def indicators(self) -> list[Indicator]:
        """What was read so far, in that order; of equal ones the first."""
        return list(self._found.values())

    def read(self, stream: BinaryIO, file: str) -> None:
        """Read a file.

        Args:
            stream: Its bytes from the start; seekable.
            file: Its name.

        Raises:
            BadInputError: Something in it is no indicator.
            LimitError: Something is too long, or there are too many.
            KcapError: It can't be read.
        """
        try:
            for item, line in _items(stream):
                try:
                    self._take(item, file, line)
                except BadInputError as error:
                    error.file, error.line = file, line
                    if not self._lenient:
                        error.hint = error.hint or "--lenient passes over what is no indicator"
                        raise
                    self.passed_over.append(error)
        except LimitError as error:
            error.file = file
            raise
        except OSError as error:
            raise KcapError(f"can't be read: {error.strerror}", file=file) from error

    def _take(self, item: _Item, file: str, line: int | None) -> None:
        if isinstance(item, _Stop):
            raise item.error
        kind = item.kind.strip().lower() if item.kind else None
        label = item.label.strip()[:_LABEL_CHARACTERS] if item.label else None
        text = item.text.strip()
        if kind in ("stix", "pattern") or (text.startswith("[") and "'" in text):
            meanings = [m for known, part in _compared(text) for m in self._known(known, part)]
        else:
            meanings = self._known(kind, text)
        for made in meanings:
            indicator = Indicator(made.kind, made.value, made.text, label or None, file, line)
            self._found.setdefault((made.kind, made.value), indicator)
        if len(self._found) > INDICATORS:
            raise LimitError("too many indicators", expected=f"at most {INDICATORS:,}")

    def _known(self, kind: str | None, text: str) -> list[Meaning]:
        """What is to be looked for; nothing, but counted, of a type for which that can't be."""
        if kind is not None and kind not in KINDS:
            self.others[kind] += 1
            return []
        return parse(text, kind)


def _items(stream: BinaryIO) -> Iterator[tuple[_Item, int | None]]:
    """What a file holds, each with its line; a document has none."""
    head = stream.read(LINE_BYTES)
    stream.seek(0)
    if not _JSON_START.match(head.removeprefix(codecs.BOM_UTF8)):
        yield from _listed(_lines(stream))
        return
    if _is_lines(head):
        for number, line in _lines(stream):
            if isinstance(line, _Stop):
                yield line, number
            elif line.strip():
                for item in _from_json(line):
                    yield item, number
        return
    raw = stream.read(DOCUMENT_BYTES + 1)
    if len(raw) > DOCUMENT_BYTES:
        raise LimitError("the JSON document is too long", expected=f"at most {DOCUMENT_BYTES:,} B")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield _Stop(BadInputError(f"this is no UTF-8, from byte {error.start}")), None
        return
    for item in _from_json(text):
        yield item, None


def _is_lines(head: bytes) -> bool:
    """Whether the first line is a JSON value by itself, and another line follows."""
    first, _, rest = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(stream: BinaryIO) -> Iterator[tuple[int, str | _Stop]]:
    """The lines of a file, by number."""
    for number in itertools.count(1):
        raw = stream.readline(LINE_BYTES + 1)
        if not raw:
            return
        if len(raw) > LINE_BYTES:
            raise LimitError("the line is too long", line=number, expected="at most 64 KiB")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield number, _Stop(BadInputError("this is no UTF-8", expected="an indicator"))


def _listed(lines: Iterator[tuple[int, str | _Stop]]) -> Iterator[tuple[_Item, int]]:
    """An indicator a line; behind a heading, one a row."""
    begun = False
    for number, line in lines:
        if isinstance(line, _Stop):
            yield line, number
            continue
        delimiter = None if begun else _delimiter(line)
        if delimiter is not None:
            heading = _cells(line.lstrip("# "), delimiter)
            yield from _rows([cell.lower() for cell in heading], delimiter, lines)
            return
        comment = _COMMENT.search(line) if "#" in line else None
        text = line[: comment.start()] if comment else line
        if text.strip():
            begun = True
            yield _Given(text, label=comment[1] if comment else None), number


def _delimiter(line: str) -> str | None:
    """What separates the cells of a heading; None where a line is none."""
    for delimiter in "\t,;":
        # abuse.ch has its heading in the last line of its comment.
        cells = _cells(line.lstrip("# "), delimiter)
        if _is_heading(cells, commented=line.startswith("#")):
            return delimiter
    return None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []
    return [cell.strip() for cell in cells]


def _is_heading(cells: list[str], *, commented: bool) -> bool:
    names = {cell.lower() for cell in cells}
    if len(cells) == 1:
        return not commented and not names.isdisjoint(_GENERAL)
    return not names.isdisjoint((*_GENERAL, *_TYPED))


def _rows(
    heading: list[str], delimiter: str, lines: Iterator[tuple[int, str | _Stop]]
) -> Iterator[tuple[_Item, int]]:
    """The rows below a heading."""
    for number, line in lines:
        if isinstance(line, _Stop):
            yield line, number
        elif line.strip() and not line.startswith("#"):
            cells = _cells(line, delimiter)
            for item in _from_members(dict(zip(heading, cells, strict=False))):
                yield item, number


def _from_members(row: Mapping[str, Any]) -> Iterator[_Item]:
    """The indicators of a row or a flat JSON object."""
    texts = {name: value for name, value in row.items() if isinstance(value, str) and value}
    label = next((texts[name] for name in _LABELS if name in texts), None)
    general = next((name for name in _GENERAL if name in texts), None)
    if general is not None:
        kind = next((texts[name] for name in _TYPES if name in texts), None)
        yield _Given(texts[general], kind, label)
        return
    typed = [name for name in _TYPED if name in texts]
    for name in typed:
        yield _Given(texts[name], name, label)
    if not typed:
        what = "a row or an object without an indicator"
        yield _Stop(BadInputError(what, expected=f"one called {_GENERAL[0]}, ioc or value"))


def _from_json(text: str) -> Iterator[_Item]:
    """The indicators of a JSON value."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, ValueError) else "it nests too deeply"
        yield _Stop(BadInputError(f"this is no JSON: {what}", expected="an object or a list"))
        return
    yield from _walk(value, 0)


def _walk(value: Any, depth: int) -> Iterator[_Item]:  # noqa: ANN401
    if isinstance(value, str):
        yield _Given(value)
    elif depth > _DEPTH or not isinstance(value, (dict, list)):
        yield _Stop(BadInputError("no indicator in JSON", expected="an object or a text"))
    elif isinstance(value, list):
        for part in value:
            yield from _walk(part, depth + 1)
    elif value.get("type") == "bundle":
        yield from _stix(value.get("objects"))
    elif value.get("type") == "indicator" and "pattern" in value:
        yield from _stix([value])
    elif "response" in value:
        yield from _walk(value["response"], depth + 1)
    elif "Event" in value:
        yield from _misp(value["Event"])
    elif "Attribute" in value:
        yield from _misp(value)
    else:
        yield from _from_members({name.lower(): part for name, part in value.items()})


def _stix(objects: Any) -> Iterator[_Item]:  # noqa: ANN401
    """The patterns of a STIX bundle; its other objects say what they are about."""
    for one in objects if isinstance(objects, list) else ():
        if not isinstance(one, dict) or one.get("type") != "indicator" or one.get("revoked"):
            continue
        pattern, language = one.get("pattern"), one.get("pattern_type", "stix")
        if not isinstance(pattern, str):
            yield _Stop(BadInputError("a STIX indicator without a pattern", expected="a text"))
        else:
            name = one.get("name") or one.get("description")
            yield _Given(pattern, str(language), name if isinstance(name, str) else None)


def _misp(event: Any) -> Iterator[_Item]:  # noqa: ANN401
    """The attributes of a MISP event and of its objects that are meant for detection."""
    if not isinstance(event, dict):
        return
    info = event.get("info")
    for one in (event, *(o for o in event.get("Object") or () if isinstance(o, dict))):
        for attribute in one.get("Attribute") or ():
            if not isinstance(attribute, dict) or attribute.get("to_ids") is False:
                continue
            value, kind = attribute.get("value"), attribute.get("type")
            if not isinstance(value, str) or not isinstance(kind, str):
                what = "a MISP attribute without type and value"
                yield _Stop(BadInputError(what, expected="two texts"))
                continue
            label = attribute.get("comment") or info
            yield _Given(value, kind, label if isinstance(label, str) else None)


def _compared(pattern: str) -> Iterator[tuple[str, str]]:
    """The comparisons of a STIX pattern, as type and value.

    Several may be joined by OR: each of them is an indicator then. What AND joins is one only
    together, which a search for single values can't say.
    """
    expected = "comparisons as [ipv4-addr:value = '192.0.2.1'], joined by OR at most"
    at = 0
    while at < len(pattern):
        match = _STIX_TOKEN.match(pattern, at)
        if match is None:
            raise BadInputError("this STIX pattern can't be looked for", expected=expected)
        at = match.end()
        if match[1]:
            path = match[1].replace("'", "").replace('"', "").lower()
            yield _STIX.get(path, path), re.sub(r"\\(.)", r"\1", match[2])
