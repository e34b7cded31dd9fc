"""What events are counted by: columns, and words for what several columns tell."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from kcap.errors import KcapError
from kcap.model import catalogue, naming
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.distinct import Codes, distinct, grouped
from kcap.model.text import printable

Value = Any
"""None, bool, int, float, str, bytes, or a tuple of them."""

Exact = Any
"""See `exact`."""

INTERVALS_NS: Final = {
    "second": 10**9,
    "minute": 60 * 10**9,
    "hour": 3600 * 10**9,
    "day": 86_400 * 10**9,
}
"""Words for the interval of time that an event is in."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Coded(NamedTuple):
    """What some rows have."""

    values: list[Value]
    """Each value once; None for none."""
    codes: Codes
    """The value of each row."""


class Key(Protocol):
    """What events are counted by."""

    @property
    def name(self) -> str:
        """The column or word, as the user gave it."""

    def columns(self, known: Iterable[str]) -> list[str]:
        """Those that it is worked out from.

        Args:
            known: The columns of a capture.

        Returns:
            Names among them.
        """

    def of(self, batch: Batch) -> Coded:
        """What the rows of a batch have.

        Args:
            batch: Events.

        Returns:
            Their values.
        """


class _Part(NamedTuple):
    """Columns that tell a value together."""

    columns: tuple[str, ...]
    value: Callable[..., Value]
    """Makes it of theirs; None where they tell none. Called once for each combination of them."""


@dataclass(frozen=True, slots=True)
class InColumn:
    """A column's values; a name without a class stands for the columns of any class."""

    name: str

    def columns(self, known: Iterable[str]) -> list[str]:
        """See `Key.columns`."""
        return sorted(name for name in known if self._means(name))

    def of(self, batch: Batch) -> Coded:
        """See `Key.of`."""
        parts = [_Part((name,), _same) for name in self.columns(batch.columns)]
        return _first(batch, parts)

    def _means(self, column: str) -> bool:
        base, suffixes = naming.parts(column)
        beside = naming.RAW in suffixes or naming.SIZE in suffixes
        return column == self.name or (base == self.name and not beside)


@dataclass(frozen=True, slots=True)
class Told:
    """What the first of several columns, or pairs of them, tells of an event."""

    name: str
    parts: tuple[_Part, ...]

    def columns(self, known: Iterable[str]) -> list[str]:
        """See `Key.columns`."""
        return sorted({c for part in self.parts for c in part.columns} & set(known))

    def of(self, batch: Batch) -> Coded:
        """See `Key.of`."""
        return _first(batch, self.parts)


@dataclass(frozen=True, slots=True)
class Interval:
    """The interval of time that an event is in, by when it begins."""

    name: str
    length_ns: int

    def columns(self, known: Iterable[str]) -> list[str]:
        """See `Key.columns`."""
        return [name for name in known if name == "ts"]

    def of(self, batch: Batch) -> Coded:
        """See `Key.of`."""
        codes = np.zeros(batch.rows, np.int64)
        times = batch.get("ts")
        if times is None:
            return Coded([None], codes)
        starts, which = np.unique(np.asarray(times.values) // self.length_ns, return_inverse=True)
        codes[slice(None) if times.rows is None else times.rows] = which + 1
        return Coded([None, *(_moment(int(s) * self.length_ns) for s in starts)], codes)


def _moment(ns: int) -> str:
    return f"{_EPOCH + timedelta(seconds=ns // 10**9):%Y-%m-%dT%H:%M:%SZ}"


def _first(batch: Batch, parts: Iterable[_Part]) -> Coded:
    """What the first part tells that tells something."""
    found: dict[Exact, int] = {None: 0}
    codes = np.zeros(batch.rows, np.int64)
    for part in parts:
        missing = codes == 0
        for name in part.columns:
            missing &= batch.mask(name)
        chosen = batch.select(part.columns)
        if missing.all():
            codes = _told(chosen, part, found)
        elif missing.any():
            codes[missing] = _told(
                chosen.take(np.flatnonzero(missing).astype(np.int32)), part, found
            )
    return Coded([plain(value) for value in found], codes)


def _told(batch: Batch, part: _Part, found: dict[Exact, int]) -> Codes:
    """The codes of what a part tells of rows that have all of its columns."""
    first = batch.columns[part.columns[0]]
    if len(part.columns) == 1 and first.cls is TypeClass.STR:
        return _coded(first, part, found)
    values = [distinct(batch.columns[name]) for name in part.columns]
    groups = grouped([v.codes for v in values], [len(v.entries) for v in values])
    lists = [v.entries.to_pylist() for v in values]
    columns = [
        [entries[code] for code in codes.tolist()]
        for entries, codes in zip(lists, groups.codes, strict=True)
    ]
    made = [exact(part.value(*row)) for row in zip(*columns, strict=True)]
    numbers = [found.setdefault(value, len(found)) for value in made]
    return np.array(numbers, np.int64)[groups.rows]


def _coded(column: Column, part: _Part, found: dict[Exact, int]) -> Codes:
    """The same of one column of text: its dictionary has the different ones."""
    codes = column.codes()
    used = np.flatnonzero(np.bincount(codes, minlength=len(column.values.dictionary)))
    entries = column.values.dictionary.take(pa.array(used)).to_pylist()
    numbers = np.zeros(len(column.values.dictionary), np.int64)
    made = [exact(part.value(entry)) for entry in entries]
    numbers[used] = [found.setdefault(value, len(found)) for value in made]
    return np.asarray(numbers[codes])


_NAN: Final = (float, float("nan"))


def exact(value: Value) -> Exact:
    """What a value is told apart by in a dict, for Python calls 1, 1.0 and True equal.

    Args:
        value: The value; a list or tuple for a list.

    Returns:
        Text, bytes, integers and None as they are, all else with its type; any NaN is one and
        the same, -0.0 is 0.0.
    """
    kind = type(value)
    if kind is str or kind is int or value is None or kind is bytes:
        return value
    if kind is list or kind is tuple:
        return tuple, tuple(map(exact, value))
    if kind is float:
        return _NAN if value != value else (kind, value + 0.0)  # noqa: PLR0124
    return kind, value


def plain(name: Exact) -> Value:
    """The value that `exact` made this of.

    Args:
        name: What it is told apart by.

    Returns:
        The value.
    """
    if not isinstance(name, tuple):
        return name
    kind, value = name
    return tuple(map(plain, value)) if kind is tuple else value


def _same(value: Value) -> Value:
    return value


def _filled(value: str) -> str | None:
    """A text that says something: sources write an empty one for what is not known."""
    return value or None


def _uid(value: int) -> str:
    return f"uid {value}"


def _file(kind: str, name: str) -> str | None:
    return name or None if kind in ("file", "directory") else None


def _server(kind: str, name: str) -> str | None:
    """The far end of a connection as sysdig writes it: ``10.0.0.1:4711->10.0.0.2:53``."""
    if kind not in ("ipv4", "ipv6"):
        return None
    host, colon, port = (name.partition("->")[2] or name).rpartition(":")
    return _endpoint(host, int(port)) if colon and port.isdecimal() else name or None


def _endpoint(address: str, port: int | None = None) -> str | None:
    if not address:
        return None
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _socket(text: str) -> str | None:
    """The address in Tracee's JSON of a socket address."""
    found = _parsed(text)
    if not isinstance(found, dict):
        return None
    for address, port in (("sin_addr", "sin_port"), ("sin6_addr", "sin6_port")):
        if isinstance(found.get(address), str):
            number = str(found.get(port, ""))
            return _endpoint(found[address], int(number) if number.isdecimal() else None)
    path = found.get("sun_path")
    return path or None if isinstance(path, str) else None


def _connected(event: str, text: str) -> str | None:
    """The address given to ``connect``; that given to ``bind`` is of this end."""
    return _socket(text) if event == "connect" else None


def _question(text: str) -> str | None:
    """The name that is asked for in Tracee's JSON of a DNS message or of its questions."""
    found = _parsed(text)
    questions = found.get("questions") if isinstance(found, dict) else found
    first = questions[0] if isinstance(questions, list) and questions else None
    if not isinstance(first, dict):
        return None
    name = first.get("name", first.get("query"))
    return name or None if isinstance(name, str) else None


def _queried(event: str, name: str) -> str | None:
    """The name that Fibratus' DNS events are about."""
    return name or None if event in ("QueryDns", "ReplyDns") else None


def _parsed(text: str) -> Any:  # noqa: ANN401  (whatever JSON says)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # no text that tells an address or a name


_WORDS: Final = {
    "process": (_Part(("process_name",), _filled),),
    "user": (_Part(("user",), _filled), _Part(("uid",), _uid)),
    "container": (_Part(("container_name",), _filled), _Part(("container_id",), _filled)),
    "path": (
        _Part(("fd_type", "fd_name"), _file),
        *(
            _Part((name,), _filled)
            for name in ("arg_pathname", "arg_file_name", "arg_file_path", "arg_path")
        ),
        _Part(("arg_filename",), _filled),
    ),
    "destination": (
        _Part(("arg_dip", "arg_dport"), _endpoint),
        _Part(("arg_dip",), _endpoint),
        _Part(("arg_dst", "arg_dst_port"), _endpoint),
        _Part(("arg_dst",), _endpoint),
        _Part(("arg_remote_ip", "arg_remote_port"), _endpoint),
        _Part(("arg_remote_addr",), _socket),
        _Part(("arg_dest_addr",), _socket),
        _Part(("event", "arg_addr__json"), _connected),
        _Part(("fd_type", "fd_name"), _server),
    ),
    "dns": (
        _Part(("arg_proto_dns",), _question),
        _Part(("arg_dns_questions",), _question),
        _Part(("event", "arg_name"), _queried),
    ),
}

WORDS: Final = (*_WORDS, *INTERVALS_NS)
"""What `key` knows besides the columns."""


def key(name: str) -> Key:
    """What a name stands for.

    Args:
        name: A word, or a column as `column` takes it.

    Returns:
        The key.

    Raises:
        KcapError: It is neither.
    """
    if name in _WORDS:
        return Told(name, _WORDS[name])
    if name in INTERVALS_NS:
        return Interval(name, INTERVALS_NS[name])
    return column(name, WORDS)


def column(name: str, words: Sequence[str] = ()) -> InColumn:
    """A column that events may have.

    Args:
        name: Its name; without the suffix of a class, the columns of any class.
        words: What else could have been meant.

    Returns:
        The key.

    Raises:
        KcapError: There can't be such a column.
    """
    base, _ = naming.parts(name)
    known = base in catalogue.envelope() or base.partition("_")[0] in (
        naming.ARGUMENT,
        naming.EXTENSION,
    )
    if known and naming.class_of(name, TypeClass.STR) is not None:
        return InColumn(name)
    arguments = [f"{naming.ARGUMENT}_{argument}" for argument in catalogue.arguments()]
    if f"{naming.ARGUMENT}_{name}" in arguments:
        near = [f"{naming.ARGUMENT}_{name}"]
    else:
        near = difflib.get_close_matches(name, [*words, *catalogue.envelope(), *arguments], 1)
    raise KcapError(
        f"no column is called {printable(name)!r}",
        expected=", ".join(("a column", *words)),
        hint=f"Did you mean {near[0]!r}?" if near else "'kcap docs columns' lists the columns.",
    )
