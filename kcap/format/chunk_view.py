"""Columns of a chunk, read and decoded when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from kcap.errors import DamagedError
from kcap.format import record
from kcap.format.chunk import ENTRIES, HEAD, Chunk, directory_length
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.schema import Schema
from kcap.format.window import FileWindow, StreamWindow
from kcap.model.batch import Column

_FIRST_BYTES: Final = 1 << 13
"""Most that is read of a chunk at first; a directory with every column of the capture, if less."""


class ChunkView:
    """A chunk of a file; each frame is read at most once, and only if it is wanted.

    Args:
        window: The file.
        offset: Of the CHUNK record.
        file_id: Of the file.
        schema: The columns.
        naming: Made around every reading, to name the place in errors.
        decoded: Called for every column that was decoded.

    Raises:
        DamagedError: The record's header or the directory does not hold.
    """

    def __init__(
        self,
        window: FileWindow | StreamWindow,
        offset: int,
        file_id: bytes,
        schema: Schema,
        naming: Callable[[], AbstractContextManager[None]] = nullcontext,
        decoded: Callable[[], None] | None = None,
    ) -> None:
        self._window = window
        self._start = offset + HEADER_BYTES
        self._naming = naming
        self._decoded = decoded
        self._read: dict[str, Column | None] = {}
        with naming():
            likely = HEADER_BYTES + 8 + HEAD.sizeof() + len(schema.columns()) * ENTRIES.itemsize
            raw = window.read_at(offset, min(likely, _FIRST_BYTES))
            header = record.unpack(raw[:HEADER_BYTES], file_id)
            head = raw[HEADER_BYTES:]
            if header is None or header.kind != Kind.CHUNK or len(head) < 4:  # noqa: PLR2004
                raise DamagedError("the CHUNK record's header is damaged")
            length = directory_length(head[:4])
            if length > len(head):
                head = window.read_at(self._start, length)
            self._chunk = Chunk(head[:length], schema)
        self._names = frozenset(self._chunk.columns())

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._chunk.rows

    @property
    def names(self) -> Collection[str]:
        """The columns that have a value in this chunk."""
        return self._names

    def get(self, name: str) -> Column | None:
        """A column.

        Args:
            name: Its name.

        Returns:
            The column, None where no row has a value.

        Raises:
            DamagedError: Its frame does not hold.
        """
        if name not in self._names:
            return None
        if name not in self._read:
            with self._naming():
                first, last = self._chunk.frame_range(name)
                frame = self._window.read_at(self._start + first, last - first)
                self._read[name] = self._chunk.column(name, frame)
            if self._decoded is not None:
                self._decoded()
        return self._read[name]
