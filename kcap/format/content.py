"""content_hash: a digest of the rows, however they are stored (spec/kcap.md, clause 12)."""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

from kcap import limits
from kcap.format import frames
from kcap.model.batch import Batch, Column, concat

BLOCK_ROWS: Final = 65_536
"""Part of the definition: a limit of the format may change, this may not."""

_ENTRY: Final = struct.Struct("<BBBxIQII")
_ROWS: Final = struct.Struct("<I")
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

    def add(self, batch: Batch) -> None:
        """Take in the next rows.

        Args:
            batch: The rows; every value as the file has it.
        """
        while batch.rows:
            room = BLOCK_ROWS - self._rows
            self._pending.append(batch.slice(0, room).with_before(()))
            self._rows += self._pending[-1].rows
            batch = batch.slice(min(room, batch.rows), batch.rows)
            if self._rows == BLOCK_ROWS:
                self._end_block()

    def digests(self) -> dict[str, str]:
        """``content_hash`` and ``content_hash_values`` of all rows so far, in hex."""
        every, values = self._all.copy(), self._values.copy()
        if self._rows:
            _update(every, values, concat(self._pending))
        return {"content_hash": every.hexdigest(), "content_hash_values": values.hexdigest()}

    def _end_block(self) -> None:
        _update(self._all, self._values, concat(self._pending))
        self._pending, self._rows = [], 0


def _update(every: Any, values: Any, block: Batch) -> None:  # noqa: ANN401  (hashlib's type is private)
    """Add a block's digest to both hashes."""
    assert block.rows <= limits.CHUNK_ROWS == BLOCK_ROWS
    whole = hashlib.sha256(_ROWS.pack(block.rows))
    without = whole.copy()
    for name in sorted(block.columns):
        if not len(block.columns[name]):
            continue
        digest = column_digest(name, block.columns[name], block.rows)
        whole.update(digest)
        if name not in IDENTITY:
            without.update(digest)
    every.update(whole.digest())
    values.update(without.digest())


def column_digest(name: str, column: Column, rows: int) -> bytes:
    """The digest of a column of a block.

    Args:
        name: Its name.
        column: Its values, at least one.
        rows: Rows of the block.

    Returns:
        SHA-256 over name, encoding and decoded bytes, as a chunk of these rows would have them
        with every integer plain.
    """
    form, encoded, data = frames.encode_column(column, rows, deltas=False)
    entry = _ENTRY.pack(
        column.cls.code,
        form,
        encoded.encoding,
        len(column),
        encoded.base,
        encoded.distinct,
        len(data),
    )
    raw = name.encode()
    digest = hashlib.sha256(_ROWS.pack(len(raw)) + raw + entry)
    digest.update(data)
    return digest.digest()
