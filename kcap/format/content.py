"""content_hash: a digest of the rows, however they are stored (spec/kcap.md, clause 12)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.format import frames
from kcap.format.bloom import is_searched
from kcap.model.batch import Batch, Column, concat
from kcap.model.classes import TypeClass
from kcap.model.entries import unified

BLOCK_ROWS: Final = 65_536
BLOCK_BYTES: Final = 24 << 20
BLOCK_TEXT_BYTES: Final = 8 << 20
"""Where a block ends; part of the definition: limits of the format may change, these may not."""

_ENTRY: Final = struct.Struct("<BBBxQII")
_ROWS: Final = struct.Struct("<I")
_NUMBER_BYTES: Final = 8
_CODE_BYTES: Final = 4
Digests = dict[str, bytes]
"""Column name to its digest."""

_BEGIN: Final = b"kcap content 1\n"

IDENTITY: Final = frozenset({"ord", "origin", "shape", "source"})
"""Columns that `content_hash_values` leaves out."""


class ContentHash:
    """Takes rows in file order, in any division."""

    def __init__(self) -> None:
        self._all = hashlib.sha256(_BEGIN)
        self._values = hashlib.sha256(_BEGIN)
        self._pending: list[Batch] = []
        self._rows = 0
        self._most = _Size()
        self._digests: Digests | None = None

    def add(self, batch: Batch, digests: Digests | None = None) -> None:
        """Take in the next rows.

        Args:
            batch: The rows; every value as the file has it.
            digests: `column_digest` of each column, where they are known already.
        """
        if self._rows or batch.rows > BLOCK_ROWS:
            digests = None
        while batch.rows:
            self._digests = digests  # good for as long as these rows are all of the block
            room = BLOCK_ROWS - self._rows
            self._take(batch.slice(0, room).with_before(()))
            batch = batch.slice(min(room, batch.rows), batch.rows)

    def _take(self, part: Batch) -> None:
        """Add rows to the block, which has room for that many, and end it where it is full."""
        self._set([*self._pending, part], self._most.plus(_most(part)))
        while not self._most.fits:
            fitting, size = _fitting(self._pending, self._rows)
            if fitting == self._rows:
                self._set([concat(self._pending).compact()], size)
                break
            head, rest = _divided(self._pending, fitting)
            self._set(head, _Size())
            self._digests = None
            self._end()
            self._set(rest, _total(rest))
            pa.default_memory_pool().release_unused()  # a block is given up, and as large as any
        if self._rows == BLOCK_ROWS:
            self._end()

    def _set(self, parts: list[Batch], most: _Size) -> None:
        self._pending, self._most = parts, most
        self._rows = sum(part.rows for part in parts)

    def _end(self) -> None:
        self._update(self._all, self._values)
        self._pending, self._rows, self._most, self._digests = [], 0, _Size(), None

    def digests(self) -> dict[str, str]:
        """``content_hash`` and ``content_hash_values`` of all rows so far, in hex."""
        every, values = self._all.copy(), self._values.copy()
        if self._rows:
            self._update(every, values)
        return {"content_hash": every.hexdigest(), "content_hash_values": values.hexdigest()}

    def _update(self, every: Any, values: Any) -> None:  # noqa: ANN401  (hashlib's type is private)
        """Add the current block's digest to both hashes."""
        digests = self._digests
        if digests is None:
            # One column at a time: joined, all of them would be in memory twice.
            digests = {}
            for name in _names(self._pending):
                column = _column(self._pending, name)
                form = frames.encode_column(column, self._rows, deltas=False)
                digests[name] = column_digest(name, column.cls, form)
        whole = hashlib.sha256(_ROWS.pack(self._rows))
        without = whole.copy()
        for name in sorted(digests):
            whole.update(digests[name])
            if name not in IDENTITY:
                without.update(digests[name])
        every.update(whole.digest())
        values.update(without.digest())


def column_digest(name: str, cls: TypeClass, form: frames.Form) -> bytes:
    """The digest of a column of a block.

    Args:
        name: Its name.
        cls: Its class.
        form: The bytes that a chunk of these rows has.

    Returns:
        SHA-256 over name, encoding and decoded bytes, with every integer plain.
    """
    encoded = form.encoded.plain or form.encoded
    entry = _ENTRY.pack(
        cls.code, form.presence, encoded.encoding, encoded.base, encoded.distinct, len(form.rows)
    )
    raw = name.encode()
    digest = hashlib.sha256(_ROWS.pack(len(raw)) + raw + entry)
    digest.update(form.rows)
    digest.update(encoded.data)
    return digest.digest()


class _Size(NamedTuple):
    """What counts towards the size of a block."""

    total: int = 0
    texts: int = 0

    def plus(self, other: _Size) -> _Size:
        return _Size(self.total + other.total, self.texts + other.texts)

    @property
    def fits(self) -> bool:
        return self.total <= BLOCK_BYTES and self.texts <= BLOCK_TEXT_BYTES


def _most(batch: Batch) -> _Size:
    """At least what the rows count."""
    total = texts = 0
    for column in batch.columns.values():
        total += column.values.nbytes  # a dictionary included
        if column.cls is TypeClass.LIST:
            texts += column.values.nbytes
        elif pa.types.is_dictionary(column.values.type):
            texts += column.values.dictionary.nbytes
        elif column.cls is TypeClass.BOOL:
            total += len(column)
        elif column.cls is TypeClass.LIST_BOOL:
            total += len(column.values.flatten())
    return _Size(total, texts)


def _total(parts: Sequence[Batch]) -> _Size:
    """At least what the rows of several parts count."""
    sizes = [_most(part) for part in parts]
    return _Size(sum(s.total for s in sizes), sum(s.texts for s in sizes))


def _names(parts: Sequence[Batch]) -> list[str]:
    """The columns that have a value in one of the parts."""
    return sorted({n for part in parts for n, c in part.columns.items() if len(c)})


def _column(parts: Sequence[Batch], name: str) -> Column:
    """A column over all parts."""
    return concat([part.select([name]) for part in parts]).columns[name]


def _divided(parts: Sequence[Batch], rows: int) -> tuple[list[Batch], list[Batch]]:
    """The first rows, and those behind them."""
    head: list[Batch] = []
    for at, part in enumerate(parts):
        if part.rows >= rows:
            rest = part.slice(rows, part.rows)
            if 2 * rest.rows < part.rows:  # a slice keeps the whole part in memory
                rest = part.take(np.arange(rows, part.rows, dtype=np.int32))
            rest = rest.compact()
            behind = [rest] if rest.rows else []
            return [*head, part.slice(0, rows)], [*behind, *parts[at + 1 :]]
        head.append(part)
        rows -= part.rows
    raise AssertionError(rows)


def _fitting(parts: Sequence[Batch], count: int) -> tuple[int, _Size]:
    """How many of the rows are in one block by their size (clause 12.1), and what all count."""
    sizes, texts = np.zeros((2, count), np.int64)
    for name in _names(parts):
        column = _column(parts, name).compact()
        rows = np.arange(count) if column.rows is None else column.rows
        values = column.values
        if column.cls.child:
            ends = np.asarray(values.offsets).astype(np.int64)
            if column.cls is TypeClass.LIST:
                each = np.asarray(pc.binary_length(values.values)).astype(np.int64)
                texts[rows] += np.diff(np.concatenate([[0], np.cumsum(each)])[ends])
            width = {TypeClass.LIST_BOOL: 1, TypeClass.LIST: _CODE_BYTES}
            sizes[rows] += np.diff(ends) * width.get(column.cls, _NUMBER_BYTES) + _CODE_BYTES
        elif pa.types.is_dictionary(values.type):
            entries, number = unified(values.dictionary)  # a foreign one may hold one twice
            codes = number[column.codes()]
            first = np.zeros(len(entries), np.int64)
            first[codes[::-1]] = rows[::-1]
            lengths = np.asarray(pc.binary_length(entries)).astype(np.int64)
            np.add.at(texts, first, lengths)
            sizes[rows] += _CODE_BYTES
        else:
            sizes[rows] += 1 if column.cls is TypeClass.BOOL else _NUMBER_BYTES
    within = [
        int(np.searchsorted(np.cumsum(s), most, "right"))
        for s, most in ((sizes + texts, BLOCK_BYTES), (texts, BLOCK_TEXT_BYTES))
    ]
    return max(1, min(within)), _Size(int((sizes + texts).sum()), int(texts.sum()))


class ByProducts:
    """What encoding a chunk works out that its index and the content hash can use."""

    def __init__(self) -> None:
        self.digests: Digests = {}
        self.entries: list[pa.Array] = []
        """The distinct values of text columns and lists of text."""

    def column(self, name: str, cls: TypeClass, form: frames.Form) -> None:
        """Take in a column.

        Args:
            name: Its name.
            cls: Its class.
            form: Its bytes.
        """
        if is_searched(name, cls) and form.encoded.entries is not None:
            self.entries.append(form.encoded.entries)
        self.digests[name] = column_digest(name, cls, form)
