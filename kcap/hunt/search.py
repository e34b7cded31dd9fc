"""The search of batches: each distinct text is looked into once, whatever rows have it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
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

_LITERAL: Final = re.compile(r'"((?:[^"\\]++|\\.)*+)(?:"|\\?\Z)', re.DOTALL)
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
        self._in_json = matcher.in_json()
        self._known: dict[str, tuple[Match, ...]] = {}

    def findings(self, batch: Batch) -> list[Finding]:
        """Look into a batch.

        Args:
            batch: Events.

        Returns:
            What was found, by column.
        """
        columns = [
            _texts(name, column, self._in_json)
            for name, column in sorted(batch.columns.items())
            if is_searched(name, column.cls)
        ]
        held = self._find({text for column in columns for text in column.texts})
        return [found for column in columns for found in column.findings(held)] if held else []

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
        known = {text: self._known[text] for text in texts if text in self._known}
        fresh = sorted(texts.difference(known))
        held = self.matcher.find(fresh)
        if len(self._known) + len(fresh) > _KNOWN_TEXTS:
            self._known.clear()
        for text in fresh[:_KNOWN_TEXTS]:
            if len(text) <= _KNOWN_CHARACTERS:
                self._known[text] = held.get(text, ())
        held.update((text, matches) for text, matches in known.items() if matches)
        return held


class _Texts(NamedTuple):
    """The distinct texts of a column, and where they stand."""

    name: str
    texts: list[str]
    places: Callable[[npt.NDArray[np.bool_]], tuple[Codes, Rows]]
    """Gives for some of the texts each place where one stands: which text, and the row."""

    def findings(self, held: Mapping[str, tuple[Match, ...]]) -> Iterator[Finding]:
        """Where texts that hold something stand."""
        wanted = np.array([text in held for text in self.texts], np.bool_)
        if not wanted.any():
            return
        codes, rows = self.places(wanted)
        order = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        for part in np.split(order, starts[1:]):
            text = self.texts[int(codes[part[0]])]
            # A list may have an item twice.
            yield Finding(self.name, text, held[text], np.unique(rows[part]))


def _texts(name: str, column: Column, in_json: str | None) -> _Texts:
    if column.cls is TypeClass.JSON:
        return _texts_in_json(name, column, in_json)
    if column.cls is TypeClass.LIST:
        coded = column.values.flatten().dictionary_encode()
        rows = np.asarray(pc.list_parent_indices(column.values)).astype(np.int32)
        rows = rows if column.rows is None else column.rows[rows]
    else:
        coded, rows = column.compact().values, _rows(column)
    codes = _codes(coded)

    def places(wanted: npt.NDArray[np.bool_]) -> tuple[Codes, Rows]:
        found = wanted[codes]
        return codes[found], rows[found]

    return _Texts(name, coded.dictionary.to_pylist(), places)


def _texts_in_json(name: str, column: Column, in_json: str | None) -> _Texts:
    """The texts within JSON, names of members among them.

    A column may have another value in every row, and all of them the same few texts: Arrow finds
    the values that may hold something, and cuts them at their quotes. Only what is escaped is
    decoded one by one.
    """
    values = column.compact().values
    entries, rows = values.dictionary, _rows(column)
    if in_json is not None:
        chosen = np.asarray(pc.match_substring_regex(entries, rf"{in_json}|\\[u/]"))
    else:
        chosen = np.ones(len(entries), np.bool_)
    escaped = chosen & np.asarray(pc.match_substring(entries, "\\"))
    simple = np.flatnonzero(chosen & ~escaped)
    cut = pc.split_pattern(entries.take(pa.array(simple)), '"')
    offsets = np.asarray(cut.offsets)
    owners = np.asarray(pc.list_parent_indices(cut)).astype(np.int64)
    between = (np.arange(len(owners)) - (offsets[:-1] - offsets[0])[owners]) % 2 == 1
    parts, owners = cut.flatten().filter(pa.array(between)), simple[owners[between]]
    decoded = [
        (i, text) for i in np.flatnonzero(escaped).tolist() for text in _decoded(entries[i].as_py())
    ]
    if decoded:
        parts = pa.concat_arrays([parts, pa.array([text for _, text in decoded], pa.utf8())])
        owners = np.concatenate([owners, np.array([i for i, _ in decoded], np.int64)])
    coded = parts.dictionary_encode()
    codes, entry_of = _codes(coded), _codes(values)

    def places(wanted: npt.NDArray[np.bool_]) -> tuple[Codes, Rows]:
        found = wanted[codes]
        owned = owners[found]
        order = np.argsort(entry_of, kind="stable")
        first, last = (np.searchsorted(entry_of[order], owned, side) for side in ("left", "right"))
        counts = last - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(codes[found], counts), rows[order[np.repeat(first, counts) + within]]

    return _Texts(name, coded.dictionary.to_pylist(), places)


def _rows(column: Column) -> Rows:
    return np.arange(len(column), dtype=np.int32) if column.rows is None else column.rows


def _codes(values: pa.DictionaryArray) -> Codes:
    return np.asarray(values.indices).astype(np.int64)


def _decoded(text: str) -> Iterator[str]:
    """The texts within JSON, decoded; of what is none after all, what is between quotes."""
    for inner in _LITERAL.findall(text):
        yield _unescaped(inner) if "\\" in inner else inner


def _unescaped(inner: str) -> str:
    try:
        # JSON may hold a lone surrogate, which is no text.
        return clean(json.loads(f'"{inner}"'))[0]
    except ValueError:
        return inner
