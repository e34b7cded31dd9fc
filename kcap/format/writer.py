"""Writing captures (spec/kcap.md): append only, to a file, a pipe or stdout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

import kcap
from kcap import limits
from kcap.errors import LimitError, OutputError
from kcap.format import bloom, body, chunk, heartbeat, payloads, record, schema, tail
from kcap.format.appender import Appender
from kcap.format.blob_writer import BlobStore
from kcap.format.blobs import Gap, Manifest
from kcap.format.bloom import Bloom
from kcap.format.chunk import Superseded
from kcap.format.chunk_index import Indexer
from kcap.format.content import ByProducts, ContentHash
from kcap.format.pending import Pending
from kcap.format.record import Kind
from kcap.format.totals import Running
from kcap.model.batch import Batch
from kcap.model.side import Heartbeat, Loss, Side, Snapshot, SourceInfo

TAIL_ROWS: Final = 2048
"""New rows from which `CaptureWriter.commit` closes the chunk: a TAIL of them takes as much time
and makes the file larger (docs/decisions.md)."""

_TAILS_BYTES: Final = limits.CHUNK_BYTES // 2
"""Size of the TAILs for one chunk. Together their rows may take up to twice what they took one by
one, as codes get wider and columns sparse; so one chunk can always hold them."""

CHECKPOINT_CHUNKS: Final = 64
CHECKPOINT_BYTES: Final = 16 << 20
"""Chunks, or bytes, after which a CHECKPOINT says what is new."""

BLOOM_SHARE: Final = 40
"""A chunk's bloom filter takes at most this part of it: 1/40."""

_LOSSES_A_RECORD: Final = 150
_REASON_CHARS: Final = 800
"""So that a LOSS record stays below 1 MiB, and the footer's 1,000 losses have room in it, even
where JSON spells every character with six."""

_WAITING_BYTES: Final = 32
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
        canonical: bool = False,
        sync: Callable[[], None] | None = None,
    ) -> None:
        """Write the FILE_HEADER; in canonical mode it waits for the first batch.

        Args:
            stream: Where the bytes go; stays open.
            file: Its name, for errors.
            snapshot: Gives the state after all events written so far, for STATE records at
                intervals; None to write only those that come with the events.
            chunk_rows: Rows of a chunk, at most 65,536.
            created_ns: Wall time for the header, ns UTC; 0 for none.
            file_id: 16 random bytes; made where None.
            level: zstd's level.
            canonical: The same batches and options give the same bytes: the file's id comes from
                them, and no time is written. Each batch becomes a chunk, so that the bytes depend
                on the events alone where `kcap.replay.rebatch` has cut them.
            sync: Makes durable what was written; called behind every chunk and `commit`.
        """
        self._stream = stream
        self._file = file
        self._snapshot = snapshot
        self._level = level
        self._canonical = canonical
        self._created_ns = 0 if canonical else created_ns
        self._sync = sync
        self._schema = schema.Schema()
        self._pending = Pending(chunk_rows)
        self._options = {"chunk_rows": chunk_rows, "level": level}
        self._tails = _Tails()
        self._indexer = Indexer()
        self._content = ContentHash()
        self._losses: list[Loss] = []
        self._totals = Running()
        self._last = _Checkpoint()
        self.losses: list[Loss] = []
        """Events that could not be written."""
        self._states = _StateCadence()
        self.blobs = BlobStore(self._blob_record, level)
        self._closed = False
        self._out: Appender | None = None
        if not canonical:
            # The file's id must be unknown to what is recorded (clause 2.2): the one random thing.
            self._begin(os.urandom(payloads.FILE_ID_BYTES) if file_id is None else file_id)

    def write(self, batch: Batch) -> None:
        """Take events and side records.

        Args:
            batch: The events.
        """
        if self._out is None:
            self._begin(self._derived_id(batch.before))
        for side in batch.before:
            self._side(side)
        for _ in self._pending.add(batch.with_before(())):
            self.flush()
        if self._canonical:
            self.flush()
        if self._snapshot and self._states.due(self.bytes_written, self._totals.ts.high):
            self.flush()
            self._state(self._snapshot())

    @property
    def bytes_written(self) -> int:
        """Length of the file so far."""
        return 0 if self._out is None else self._out.offset

    @property
    def file_hash(self) -> str:
        """SHA-256 of the file so far, in hex; of the whole file when it is closed."""
        return hashlib.sha256().hexdigest() if self._out is None else self._out.file_hash

    @property
    def chunks(self) -> int:
        """Chunks written so far."""
        return self._totals.chunks

    @property
    def waiting_rows(self) -> int:
        """Events that wait for their chunk."""
        return self._pending.rows

    @property
    def expected_bytes(self) -> int:
        """Length of the file were it closed now, roughly: events still waiting are estimated."""
        return self.bytes_written + self._pending.rows * _WAITING_BYTES

    def blob(
        self,
        parts: Iterable[bytes | Gap],
        *,
        path: str | None = None,
        origin: str | None = None,
        ord: int | None = None,  # noqa: A002
        details: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write a blob as its bytes come; at most 1 MiB of them wait in memory.

        Args:
            parts: Its bytes in any division, with a `Gap` for each range that has none.
            path: Where the artifact was.
            origin: With ``ord`` the event for which it is taken.
            ord: See ``origin``.
            details: Anything else worth keeping, as plain JSON values.

        Returns:
            What is in the capture now; see `BlobStore.write`, and `BlobStore.begin` where events
            are to be written in between.
        """
        return self.blobs.write(parts, path=path, origin=origin, ord=ord, details=details)

    def flush(self) -> None:
        """Close the current chunk, so that everything taken so far is in the file."""
        if self._out is None:
            return  # nothing was taken yet
        if self._pending.rows:
            self._chunk(self._pending.take())
        self._write_losses()
        self._appender.flush()

    def commit(self) -> None:
        """Make everything taken so far durable.

        Events that came since the last time go into a TAIL; where they are many, a chunk is closed.
        """
        if self._out is None or not self._tail():
            self.flush()
        else:
            self._write_losses()
            self._appender.flush()

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._closed or (self._out is not None and self._out.failed):
            return
        if self._out is None:
            self._begin(self._derived_id(()))
        self.blobs.close()
        self.flush()
        self._closed = True
        out = self._appender
        totals = self._totals.to_json(self._schema.specs()) | self._content.digests()
        footer = payloads.Footer(self._file_id, out.chain, self._totals.table(), totals)
        self._record(Kind.FOOTER, footer.pack(out.offset))
        out.flush()

    def _begin(self, file_id: bytes) -> None:
        self._file_id = file_id
        self._out = Appender(self._stream, file_id, file=self._file, sync=self._sync)
        meta = {
            "canonical": self._canonical,
            "kcap": kcap.__version__,
            "requires": list(payloads.FEATURES),
        }
        header = payloads.FileHeader(file_id, self._created_ns, meta).pack()
        self._record(Kind.FILE_HEADER, header)
        self._record(Kind.FILE_HEADER, header)
        self._out.flush()

    def _derived_id(self, sides: Sequence[object]) -> bytes:
        """The file's id in canonical mode: from the options and the first sources."""
        sources = sorted(side.id for side in sides if isinstance(side, SourceInfo))
        key = json.dumps(["kcap canonical", self._options, sources], sort_keys=True)
        return hashlib.sha256(key.encode()).digest()[: payloads.FILE_ID_BYTES]

    @property
    def _appender(self) -> Appender:
        assert self._out is not None, "write comes first"
        return self._out

    def _tail(self) -> bool:
        """Write a TAIL of the rows that are in none yet; False where only a chunk can hold them."""
        fresh = self._pending.fresh()
        if not fresh.rows:
            return True
        if fresh.rows >= TAIL_ROWS:
            return False
        fresh = self._describable(schema.EVENTS, fresh)
        self._pending.saved(fresh)
        if not fresh.rows:
            return True
        try:
            payload, size = tail.encode(fresh, self._schema)
        except LimitError:
            return False
        if self._tails.size + size > _TAILS_BYTES:
            return False
        number = self._appender.number
        self._record(Kind.TAIL, payload)
        self._tails = self._tails.with_one(number, fresh.rows, size)
        return True

    def _chunk(self, batch: Batch) -> None:
        """Write events as a chunk, as several where they are more than one may hold."""
        batch = self._describable(schema.EVENTS, batch)
        tails, self._tails = self._tails, _Tails()
        for part, payload, made in self._encoded(schema.EVENTS, batch, self._totals.chunks, tails):
            if self._totals.chunks >= limits.CHUNKS:
                what = f"the capture has {limits.CHUNKS:,} chunks, the most it can"
                raise OutputError(what, file=self._file, hint="begin another file")
            offset = self._record(Kind.CHUNK, payload)
            strings = Bloom.of(bloom.distinct(made.entries), len(payload) // BLOOM_SHARE)
            index = self._indexer.index(part, self._totals.chunks, strings)
            length = self.bytes_written - offset
            del payload  # up to 32 MiB, and what follows needs as much
            index_offset = self._record(Kind.CHUNK_INDEX, index.pack())
            self._totals.count(index)
            self._totals.place(offset, length, index_offset, index)
            self._content.add(part, made.digests)
            self._states.chunks += 1
        if self._checkpoint_due():
            self._checkpoint()

    def _checkpoint_due(self) -> bool:
        """Whether there is enough for a CHECKPOINT."""
        many = self._totals.since.chunks >= CHECKPOINT_CHUNKS
        return many or self.bytes_written - self._last.end >= CHECKPOINT_BYTES

    def _checkpoint(self) -> None:
        since, last = self._totals.since, self._last
        payload = payloads.Checkpoint(
            self._file_id,
            self._appender.chain,
            last.offset,
            last.digest,
            since.table(),
            since.to_json(self._schema.specs(last.columns)),
        ).pack()
        number = self._appender.number
        offset = self._record(Kind.CHECKPOINT, payload)
        raw = record.whole(Kind.CHECKPOINT, number, payload, self._file_id)
        digest = hashlib.sha256(raw).digest()
        self._last = _Checkpoint(offset, digest, len(self._schema), self.bytes_written)
        self._totals.checkpoint()

    def _encoded(
        self,
        table: str,
        batch: Batch,
        number: int,
        tails: _Tails | None = None,
    ) -> Iterator[tuple[Batch, bytearray, ByProducts]]:
        """Rows and their chunk payloads; rows that no chunk can hold are left out and counted."""
        todo = [batch] if batch.rows else []
        done: list[tuple[Batch, bytearray, ByProducts]] = []
        tails = tails or _Tails()
        while todo:
            part = todo.pop()
            try:
                made = ByProducts()
                payload = chunk.encode(
                    part, self._schema, number, table, self._level, tails.names, made.column
                )
            except LimitError as e:
                if part.rows == 1:
                    self._leave_out(1, str(e))
                    continue
                assert tails.rows < part.rows, "rows of tails fit one chunk"
                middle = tails.rows or part.rows // 2
                todo.append(part.slice(middle, part.rows).compact())
                todo.append(part.slice(0, middle).compact())
                continue
            done.append((part, payload, made))
            del part, payload, made  # whoever takes them says how long they live
            yield done.pop()
            number += 1
            tails = _Tails()

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

    def _side(self, side: Side) -> None:
        if isinstance(side, Loss):
            # Inside a chunk it waits for the chunk's end, so that losses never make chunks small.
            self._losses.append(side)
            if not self._pending.rows:
                self._write_losses()
        elif isinstance(side, SourceInfo):
            entry = {**side.to_json(), "id": side.id}
            if self._totals.sources.get(side.id) != entry:
                self._totals.source(entry)
                self._record(Kind.SOURCE, body.pack(entry))
        elif isinstance(side, Heartbeat):
            # At once, and not behind its events: it is to outlive a recorder that is killed.
            self._record(Kind.HEARTBEAT, heartbeat.pack(side))
        else:
            self.flush()
            self._state(side)
            self._appender.flush()

    def _state(self, snapshot: Snapshot) -> None:
        """Write a STATE record."""
        tables: list[tuple[str, bytes]] = []
        room = limits.STATE_BYTES
        for name in sorted(snapshot.tables):
            table = self._describable(name, snapshot.tables[name])
            for start in range(0, table.rows, limits.CHUNK_ROWS):
                rows = table.slice(start, start + limits.CHUNK_ROWS).compact()
                for part, payload, _ in self._encoded(name, rows, 0):
                    room -= chunk.Chunk(memoryview(payload), self._schema, name).size
                    if room < 0:
                        self._leave_out(
                            part.rows, f"a state of more than {limits.STATE_BYTES} bytes"
                        )
                        continue
                    tables.append((name, bytes(payload)))
        offset = self._record(Kind.STATE, payloads.pack_state(tables))
        length = self.bytes_written - offset
        self._totals.state(offset, length)
        self._states.written(length, self._totals.ts.high)

    def _write_losses(self) -> None:
        while self._losses:
            losses = [_brief(loss) for loss in self._losses[:_LOSSES_A_RECORD]]
            self._record(Kind.LOSS, body.pack([loss.to_json() for loss in losses]))
            self._totals.lose(losses)
            del self._losses[: len(losses)]

    def _blob_record(self, kind: Kind, payload: bytes | bytearray) -> None:
        """Append a part of a blob; an open file stays quick to open, however large it is."""
        if self._out is None:
            self._begin(self._derived_id(()))
        self._record(kind, payload)
        # Behind a CHECKPOINT nobody looks for TAILs before it that are in no chunk yet.
        if not self._tails.rows and self._checkpoint_due():
            self._checkpoint()

    def _record(self, kind: Kind, payload: bytes | bytearray) -> int:
        """Append a record and give its offset."""
        offset = self._appender.append(kind, payload)
        self._totals.record(kind.name)
        return offset


def _brief(loss: Loss) -> Loss:
    """A loss whose texts fit a LOSS record."""
    event = loss.event and loss.event[:_REASON_CHARS]
    return replace(loss, reason=loss.reason[:_REASON_CHARS], event=event)


class _Tails(NamedTuple):
    """The TAILs of rows that wait for their chunk."""

    names: Superseded = Superseded()
    rows: int = 0
    size: int = 0
    """What the rows take in memory (clause 3.3)."""

    def with_one(self, number: int, rows: int, size: int) -> _Tails:
        """These and one more."""
        first, count = self.names
        names = Superseded(first if count else number, count + 1)
        return _Tails(names, self.rows + rows, self.size + size)


class _Checkpoint(NamedTuple):
    """The last CHECKPOINT, or the start of the file."""

    offset: int = 0
    digest: bytes = bytes(32)
    columns: int = 0
    """Columns described by then."""
    end: int = 0


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
