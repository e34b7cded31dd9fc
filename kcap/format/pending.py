"""Rows that wait for their chunk: when there are enough of them, and which are in a TAIL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from kcap import limits
from kcap.model.batch import EMPTY, Batch, concat

_TEXT_BYTES: Final = 8 << 20
"""Bytes of text and lists after which the writer closes a chunk, to stay small in memory."""


class Pending:
    """Collects rows until they fill a chunk.

    Args:
        rows: Rows of a chunk.
    """

    def __init__(self, rows: int) -> None:
        self._most = rows
        self._parts: list[Batch] = []
        self.nbytes = 0
        """What they take in memory."""
        self._text_bytes = 0
        self._fresh = 0
        self.rows = 0
        """Rows that wait."""

    def add(self, batch: Batch) -> Iterator[None]:
        """Take in rows.

        Args:
            batch: The rows.

        Yields:
            Whenever a chunk is full: `take` it before going on. Where nobody does, because the
            file is full, the rest waits with it.
        """
        for portion in _portions(batch):
            rest = _without_strays(portion)
            while rest.rows:
                size, text_size = rest.nbytes, _text_bytes(rest)
                if self.rows and (
                    self.nbytes + size > limits.CHUNK_BYTES
                    or self._text_bytes + text_size > _TEXT_BYTES
                ):
                    yield
                room = self._most - self.rows if self.rows < self._most else rest.rows
                head, rest = rest.slice(0, room), rest.slice(min(room, rest.rows), rest.rows)
                self._parts.append(head.with_before(()))
                self.rows += head.rows
                self.nbytes += size
                self._text_bytes += text_size
                if self.rows == self._most:
                    yield

    def take(self) -> Batch:
        """All rows that wait; none do afterwards."""
        batch = concat(self._parts) if self._parts else EMPTY
        self._parts, self.rows, self._fresh = [], 0, 0
        self.nbytes = self._text_bytes = 0
        return batch

    def fresh(self) -> Batch:
        """The rows that are in no TAIL yet."""
        parts = self._parts[self._fresh :]
        return concat(parts) if parts else EMPTY

    def saved(self, batch: Batch) -> None:
        """Say that a TAIL holds the fresh rows.

        Args:
            batch: Those of them that it holds; the others no file can hold.
        """
        lost = sum(p.rows for p in self._parts[self._fresh :]) - batch.rows
        self.rows -= lost
        self._parts[self._fresh :] = [batch] if batch.rows else []
        self._fresh = len(self._parts)


def _without_strays(batch: Batch) -> Batch:
    """The batch without most entries that other rows of a larger batch brought along.

    A slice shares its dictionaries; counted whole for each slice they would close chunks early.
    """
    strays = {
        name: column.compact()
        for name, column in batch.columns.items()
        if hasattr(column.values, "dictionary")
        and len(column.values.dictionary) > len(column.values)
    }
    return batch.adding(strays) if strays else batch


def _text_bytes(batch: Batch) -> int:
    """Bytes of text, binary and list values, each dictionary entry once."""
    total = 0
    for column in batch.columns.values():
        if column.cls.child:
            total += column.values.nbytes
        elif hasattr(column.values, "dictionary"):
            total += column.values.dictionary.nbytes
    return total


def _portions(batch: Batch) -> Iterable[Batch]:
    """The rows in parts that each stay below the writer's own limits."""
    if batch.rows <= 1 or _text_bytes(batch) <= _TEXT_BYTES:
        yield batch
        return
    small = batch.compact()
    if _text_bytes(small) <= _TEXT_BYTES:
        yield small
        return
    middle = batch.rows // 2
    yield from _portions(small.slice(0, middle).compact())
    yield from _portions(small.slice(middle, batch.rows).compact())
