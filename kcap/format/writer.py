"""Writing captures (spec/kcap.md): append only, to a file, a pipe or stdout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np

import kcap
from kcap import limits
from kcap.errors import LimitError, OutputError
from kcap.format import body, chunk, payloads, record, schema
from kcap.format.record import Kind
from kcap.format.totals import Totals
from kcap.model.batch import Batch, concat
from kcap.model.side import Loss, Snapshot, SourceInfo

_TEXT_BYTES = 8 << 20
"""Bytes of text and lists after which the writer closes a chunk, to stay small in memory."""

_LOSSES_A_RECORD = 150
_REASON_CHARS = 800
"""So that a LOSS record stays below 1 MiB, and the footer's 1,000 losses have room in it, even
where JSON spells every character with six."""

_WAITING_BYTES = 32
"""What an event that waits for its chunk is taken to cost in the file."""


class CaptureWriter:
    """A sink that writes a capture.

    The stream gets whole records and is never sought. `close` writes the footer; a writer that is
    not closed leaves an open capture, which is readable.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        file: str = "-",
        snapshot: Callable[[], Snapshot] | None = None,
        chunk_rows: int = limits.CHUNK_ROWS,
        created_ns: int = 0,
        file_id: bytes | None = None,
        level: int = 3,
    ) -> None:
        """Write the FILE_HEADER.

        Args:
            stream: Where the bytes go; stays open.
            file: Its name, for errors.
            snapshot: Gives the state after all events written so far, for STATE records at
                intervals; None to write only those that come with the events.
            chunk_rows: Rows of a chunk, at most 65,536.
            created_ns: Wall time for the header, ns UTC; 0 for none.
            file_id: 16 random bytes; made where None.
            level: zstd's level.
        """
        # The file's id must be unknown to what is recorded (clause 2.2): the one random thing here.
        self._file_id = os.urandom(payloads.FILE_ID_BYTES) if file_id is None else file_id
        self._stream = stream
        self._file = file
        self._snapshot = snapshot
        self._rows = chunk_rows
        self._level = level
        self._schema = schema.Schema()
        self._chain = record.Chain(self._file_id)
        self._number = 0
        self._pending: list[Batch] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._pending_text_bytes = 0
        self._losses: list[Loss] = []
        self._totals = Totals()
        self.losses: list[Loss] = []
        """Events that could not be written."""
        self._states = _StateCadence()
        self._closed = False
        self.bytes_written = 0
        meta = {"canonical": False, "kcap": kcap.__version__, "requires": []}
        header = payloads.FileHeader(self._file_id, created_ns, meta).pack()
        self._record(Kind.FILE_HEADER, header)
        self._record(Kind.FILE_HEADER, header)
        self._flush_stream()

    def write(self, batch: Batch) -> None:
        """Take events and side records.

        Args:
            batch: The events.
        """
        for side in batch.before:
            self._side(side)
        for part in _portions(batch):
            self._append(part)
        if self._snapshot and self._states.due(self.bytes_written, self._totals.ts.high):
            self.flush()
            self._state(self._snapshot())

    @property
    def expected_bytes(self) -> int:
        """Length of the file were it closed now, roughly: events still waiting are estimated."""
        return self.bytes_written + self._pending_rows * _WAITING_BYTES

    def flush(self) -> None:
        """Close the current chunk, so that everything taken so far is in the file."""
        if self._pending_rows:
            batch = concat(self._pending)
            self._pending, self._pending_rows = [], 0
            self._pending_bytes = self._pending_text_bytes = 0
            self._chunk(batch)
        self._write_losses()
        self._flush_stream()

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        offset = self.bytes_written
        totals = self._totals.to_json(self._schema)
        footer = payloads.Footer(self._file_id, self._chain.value, self._totals.table(), totals)
        self._record(Kind.FOOTER, footer.pack(offset))
        self._flush_stream()

    def _append(self, batch: Batch) -> None:
        """Add rows to the chunk being filled, closing it where it is full."""
        batch = _without_strays(batch)
        while batch.rows:
            size, text_size = batch.nbytes, _text_bytes(batch)
            if self._pending_rows and (
                self._pending_bytes + size > limits.CHUNK_BYTES
                or self._pending_text_bytes + text_size > _TEXT_BYTES
            ):
                self.flush()
            room = self._rows - self._pending_rows
            head, batch = batch.slice(0, room), batch.slice(min(room, batch.rows), batch.rows)
            self._pending.append(head.with_before(()))
            self._pending_rows += head.rows
            self._pending_bytes += size
            self._pending_text_bytes += text_size
            if self._pending_rows == self._rows:
                self.flush()

    def _chunk(self, batch: Batch) -> None:
        """Write events as a chunk, as several where they are more than one may hold."""
        batch = self._describable(schema.EVENTS, batch)
        for part, payload in self._encoded(schema.EVENTS, batch, len(self._totals.chunks)):
            if len(self._totals.chunks) >= limits.CHUNKS:
                what = f"the capture has {limits.CHUNKS:,} chunks, the most it can"
                raise OutputError(what, file=self._file, hint="begin another file")
            offset = self._record(Kind.CHUNK, payload)
            index = self._totals.add(part)
            length = self.bytes_written - offset
            index_offset = self._record(Kind.CHUNK_INDEX, index.pack())
            self._totals.place(offset, length, index_offset, index)
            self._states.chunks += 1

    def _encoded(self, table: str, batch: Batch, number: int) -> Iterator[tuple[Batch, bytes]]:
        """Rows and their chunk payloads; rows that no chunk can hold are left out and counted."""
        todo = [batch] if batch.rows else []
        while todo:
            part = todo.pop()
            try:
                payload = chunk.encode(part, self._schema, number, table, self._level)
            except LimitError as e:
                if part.rows == 1:
                    self._leave_out(1, str(e))
                    continue
                middle = part.rows // 2
                todo.append(part.slice(middle, part.rows).compact())
                todo.append(part.slice(0, middle).compact())
                continue
            yield part, payload
            number += 1

    def _describable(self, table: str, batch: Batch) -> Batch:
        """Describe the columns that none describes yet; leave out rows that would need too many."""
        # Columns of many rows first: where there is no room for all, few rows have to go.
        dense = sorted(batch.columns.items(), key=lambda item: (-len(item[1]), item[0]))
        columns = [(n, c.cls) for n, c in dense if len(c)]
        refused = self._schema.refused(table, columns)
        if refused:
            kept = ~np.logical_or.reduce([batch.mask(n) for n in refused])
            self._leave_out(
                batch.rows - int(kept.sum()),
                f"more than {limits.COLUMNS} columns, or names too long to describe",
            )
            batch = batch.take(np.flatnonzero(kept).astype(np.int32))
            columns = [(n, c.cls) for n, c in batch.columns.items() if len(c)]
        new = self._schema.learn(table, columns)
        if new:
            self._record(Kind.SCHEMA, schema.pack(new))
        return batch

    def _leave_out(self, rows: int, reason: str) -> None:
        loss = Loss("skipped", rows, f"what the format can't hold: {reason}")
        self.losses.append(loss)
        self._losses.append(loss)

    def _side(self, side: SourceInfo | Loss | Snapshot) -> None:
        if isinstance(side, Loss):
            # Inside a chunk it waits for the chunk's end, so that losses never make chunks small.
            self._losses.append(side)
            if not self._pending_rows:
                self._write_losses()
        elif isinstance(side, SourceInfo):
            entry = {**side.to_json(), "id": side.id}
            if self._totals.sources.get(side.id) != entry:
                self._totals.sources[side.id] = entry
                self._record(Kind.SOURCE, body.pack(entry))
        else:
            self.flush()
            self._state(side)
            self._flush_stream()

    def _state(self, snapshot: Snapshot) -> None:
        """Write a STATE record."""
        tables: list[tuple[str, bytes]] = []
        room = limits.STATE_BYTES
        for name in sorted(snapshot.tables):
            table = self._describable(name, snapshot.tables[name])
            for start in range(0, table.rows, limits.CHUNK_ROWS):
                rows = table.slice(start, start + limits.CHUNK_ROWS).compact()
                for part, payload in self._encoded(name, rows, 0):
                    room -= chunk.Chunk(payload, self._schema, name).size
                    if room < 0:
                        self._leave_out(
                            part.rows, f"a state of more than {limits.STATE_BYTES} bytes"
                        )
                        continue
                    tables.append((name, payload))
        offset = self._record(Kind.STATE, payloads.pack_state(tables))
        length = self.bytes_written - offset
        self._totals.states.append([offset, length])
        self._states.written(length, self._totals.ts.high)

    def _write_losses(self) -> None:
        while self._losses:
            losses = [_brief(loss) for loss in self._losses[:_LOSSES_A_RECORD]]
            self._record(Kind.LOSS, body.pack([loss.to_json() for loss in losses]))
            self._totals.lose(losses)
            del self._losses[: len(losses)]

    def _record(self, kind: Kind, payload: bytes) -> int:
        """Append a record and give its offset."""
        assert len(payload) <= limits.RECORD_PAYLOAD_BYTES, kind
        header = record.pack(kind, self._number, payload, self._file_id)
        padding = bytes(record.padded(len(payload)) - len(payload))
        offset = self.bytes_written
        try:
            for part in (header, payload, padding):
                self._stream.write(part)
        except OSError as e:
            raise self._failed(e) from e
        if kind != Kind.FOOTER:
            self._chain.add(header, payload, padding)
        self._number += 1
        self.bytes_written += len(header) + len(payload) + len(padding)
        self._totals.records[kind.name] += 1
        return offset

    def _flush_stream(self) -> None:
        try:
            self._stream.flush()
        except OSError as e:
            raise self._failed(e) from e

    def _failed(self, error: OSError) -> OutputError:
        # No footer behind a record that may be half written: what is before it stays readable.
        self._closed = True
        # A reader that went away is no success either: the capture was what was wanted.
        hint = "the complete records before are readable: the capture is torn, not lost"
        return OutputError(
            f"writing failed: {error.strerror}",
            file=self._file,
            offset=self.bytes_written,
            hint=hint,
        )


def _brief(loss: Loss) -> Loss:
    """A loss whose texts fit a LOSS record."""
    event = loss.event and loss.event[:_REASON_CHARS]
    return replace(loss, reason=loss.reason[:_REASON_CHARS], event=event)


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


class _StateCadence:
    """When the next STATE record is due (clause 4.5)."""

    def __init__(self) -> None:
        self.chunks = 0
        self._last_ns: int | None = None
        self._bytes = 0
        self._last_bytes = 0

    def due(self, file_bytes: int, now_ns: int) -> bool:
        """Whether one is due.

        Args:
            file_bytes: Length of the file so far.
            now_ns: Greatest event time so far.
        """
        if not self.chunks:
            return False
        late = self._last_ns is not None and now_ns - self._last_ns >= limits.STATE_NS
        if self.chunks < limits.STATE_CHUNKS and not late:
            return False
        return self._bytes + self._last_bytes <= limits.STATE_SHARE * file_bytes

    def written(self, length: int, now_ns: int) -> None:
        """Take note of a STATE record.

        Args:
            length: Its length.
            now_ns: Greatest event time so far.
        """
        self._bytes += length
        self._last_bytes = length
        self._last_ns = now_ns if now_ns > 0 else None
        self.chunks = 0
