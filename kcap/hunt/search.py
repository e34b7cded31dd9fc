"""The search of batches: each distinct text is looked into once, whatever rows have it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from kcap.hunt.matcher import Match, Matcher
from kcap.model import naming
from kcap.model.batch import Batch, Column, Rows
from kcap.model.classes import TypeClass
from kcap.model.text import clean

_TEXTS: Final = frozenset({TypeClass.STR, TypeClass.LIST, TypeClass.JSON})
_UNSEARCHED: Final = frozenset(
    {
        *("action", "category", "direction", "event", "fd_type", "kind", "policies", "status"),
        *("origin", "process_key", "provenance", "shape", "source", "syscall", "ts_raw"),
    }
)
"""Columns of words that kcap or the source made up: no indicator can mean them."""

_KNOWN_TEXTS: Final = 1 << 18
_KNOWN_CHARACTERS: Final = 1024

Codes = npt.NDArray[np.int64]


class Finding(NamedTuple):
    """A text that holds indicators, and where it stands."""

    column: str
    value: str
    """The text: of a list its item, of JSON the text in it."""
    matches: tuple[Match, ...]
    rows: Rows


def is_searched(name: str, cls: TypeClass) -> bool:
    """Whether a column can hold an indicator.

    Args:
        name: The column.
        cls: Its class.

    Returns:
        True for text, lists of text and JSON that come from the host.
    """
    return cls in _TEXTS and naming.parts(name)[0] not in _UNSEARCHED


class Searcher:
    """Looks for indicators in batches.

    Args:
        matcher: Finds them in texts.
    """

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._known: dict[str, tuple[Match, ...]] = {}

    def findings(self, batch: Batch) -> list[Finding]:
        """Look into a batch.

        Args:
            batch: Events.

        Returns:
            What was found, by column.
        """
        found: list[Finding] = []
        columns = [_texts(n, c) for n, c in sorted(batch.columns.items()) if is_searched(n, c.cls)]
        held = self._find({text for column in columns for text in column.texts()})
        for column in columns if held else ():
            found += column.findings(held)
        return found

    def rows(self, batch: Batch) -> Rows:
        """The rows in which something is found.

        Args:
            batch: Events.

        Returns:
            Their numbers, ascending.
        """
        found = [finding.rows for finding in self.findings(batch)]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int32)

    def _find(self, texts: set[str]) -> dict[str, tuple[Match, ...]]:
        """What texts hold; those that other chunks and captures had, too, are remembered."""
        fresh = sorted(texts.difference(self._known))
        held = self.matcher.find(fresh)
        if len(self._known) + len(fresh) > _KNOWN_TEXTS:
            self._known.clear()
        for text in fresh[:_KNOWN_TEXTS]:
            if len(text) <= _KNOWN_CHARACTERS:
                self._known[text] = held.get(text, ())
        for text in texts:
            matches = self._known.get(text)
            if matches:
                held[text] = matches
        return held


class _Texts(NamedTuple):
    """The distinct texts of a column, and where they stand."""

    name: str
    entries: Sequence[Sequence[str]]
    """The texts of each dictionary entry: one, or those within JSON."""
    codes: Codes
    """The entry of each value."""
    rows: Rows
    """The row of each value."""

    def texts(self) -> Iterator[str]:
        for entry in self.entries:
            yield from entry

    def findings(self, held: Mapping[str, tuple[Match, ...]]) -> Iterator[Finding]:
        """Where texts that hold something stand."""
        hits = np.array([any(text in held for text in e) for e in self.entries], np.bool_)
        if not hits.any():
            return
        values = np.flatnonzero(hits[self.codes])
        order = values[np.argsort(self.codes[values], kind="stable")]
        starts = np.flatnonzero(np.diff(self.codes[order], prepend=-1))
        for part in np.split(order, starts[1:]):
            for text in dict.fromkeys(self.entries[int(self.codes[part[0]])]):
                if text in held:
                    # A list may have an item twice.
                    yield Finding(self.name, text, held[text], np.unique(self.rows[part]))


def _texts(name: str, column: Column) -> _Texts:
    if column.cls is TypeClass.LIST:
        coded = column.values.flatten().dictionary_encode()
        rows = np.asarray(pc.list_parent_indices(column.values)).astype(np.int32)
        rows = rows if column.rows is None else column.rows[rows]
    else:
        column = column.compact()
        coded = column.values
        rows = np.arange(len(column), dtype=np.int32) if column.rows is None else column.rows
    entries: Iterable[Any] = coded.dictionary.to_pylist()
    split = _leaves if column.cls is TypeClass.JSON else _alone
    codes = np.asarray(coded.indices).astype(np.int64)
    return _Texts(name, [split(entry) for entry in entries], codes, rows)


def _alone(text: str) -> Sequence[str]:
    return (text,)


def _leaves(text: str) -> Sequence[str]:
    """The texts within JSON; where it is none after all, itself."""
    try:
        layer = [json.loads(text)]
    except (ValueError, RecursionError):
        return (text,)
    found = []
    while layer:
        parts: list[Any] = []
        for value in layer:
            if isinstance(value, str):
                found.append(clean(value)[0])  # JSON may hold a lone surrogate
            elif isinstance(value, dict):
                parts += value.values()
            elif isinstance(value, list):
                parts += value
        layer = parts
    return found
