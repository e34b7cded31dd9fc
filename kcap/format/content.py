"""content_hash: a digest of the rows, however they are stored (spec/kcap.md, clause 12)."""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final

import pyarrow as pa

from kcap.format import frames
from kcap.model.batch import Batch, concat
from kcap.model.classes import TypeClass

BLOCK_ROWS: Final = 65_536
"""Part of the definition: a limit of the format may change, this may not."""

_ENTRY: Final = struct.Struct("<BBBxQII")
_ROWS: Final = struct.Struct("<I")
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
            self._pending.append(batch.slice(0, room).with_before(()))
            self._rows += self._pending[-1].rows
            batch = batch.slice(min(room, batch.rows), batch.rows)
            if self._rows == BLOCK_ROWS:
                self._update(self._all, self._values)
                self._pending, self._rows, self._digests = [], 0, None

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
            block = concat(self._pending)
            digests = {
                n: column_digest(n, c.cls, frames.encode_column(c, block.rows, deltas=False))
                for n, c in block.columns.items()
                if len(c)
            }
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
        if cls in (TypeClass.STR, TypeClass.LIST) and form.encoded.entries is not None:
            self.entries.append(form.encoded.entries)
        self.digests[name] = column_digest(name, cls, form)
