"""Writing captures (spec/kcap.md): append only, to a file, a pipe or stdout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final

import kcap
from kcap import limits
from kcap.errors import FullError, LimitError, OutputError
from kcap.format import bloom, body, chunk, heartbeat, payloads, record, schema, tail
from kcap.format.appender import Appender
from kcap.format.blob_writer import BlobStore
from kcap.format.blobs import Manifest
from kcap.format.bloom import Bloom
from kcap.format.cadence import LastCheckpoint, StateCadence, WrittenTails
from kcap.format.chunk_index import Indexer
from kcap.format.content import ContentHash
from kcap.format.encoder import Encoder
from kcap.format.pending import Pending
from kcap.format.record import Kind
from kcap.format.room import REPEATED, End, Room
from kcap.format.totals import Running, brief
from kcap.model.artifact import Artifact, Gap
from kcap.model.batch import Batch, without_state
from kcap.model.side import Heartbeat, Loss, Side, Snapshot, SourceInfo

TAIL_ROWS: Final = 2048
"""New rows from which `commit` closes the chunk: a TAIL takes as much time, more room."""

_TAILS_BYTES: Final = limits.CHUNK_BYTES // 2
"""Size of the TAILs for one chunk: together their rows may take twice what they took one by one."""

CHECKPOINT_CHUNKS, CHECKPOINT_BYTES = 64, 16 << 20
"""Chunks, or bytes, after which a CHECKPOINT says what is new."""

BLOOM_SHARE: Final = 40
"""A chunk's bloom filter takes at most this part of it: 1/40."""

_LOSSES_A_RECORD: Final = 150  # so that a LOSS record stays below 1 MiB
_SPARE_BYTES: Final = 8 << 10  # room for a heartbeat or two beside what the end needs
_WAITING_BYTES: Final = 32  # what an event that waits for its chunk is taken to cost


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
        room: Room | None = None,
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
            room: The room that the file has: where there is no more, nothing but its end is
                written, and `full` says so. None where a full disk is an error like others.
        """
        self._stream = stream
        self._file = file
        self._snapshot = snapshot
        self._canonical = canonical
        self._created_ns = 0 if canonical else created_ns
        self._sync = sync
        self._room = room
        self._schema = schema.Schema()
        self._encoder = Encoder(self._schema, level, self._leave_out)
        self._pending = Pending(chunk_rows)
        self._options = {"chunk_rows": chunk_rows, "level": level}
        self._tails = WrittenTails()
        self._indexer = Indexer()
        self._content = ContentHash()
        self._losses: list[Loss] = []
        self._totals = Running()
        self._last = LastCheckpoint()
        self.losses: list[Loss] = []
        """Events that could not be written."""
        self._states = StateCadence()
        self.blobs = BlobStore(self._blob_record, level)
        self.full = False
        """There is no room left: events that come now are counted, and lost."""
        self._end = End()
        self._refused = 0
        """Events that came when there was no room left."""
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
        if self.full:
            self._refuse(batch)
            return
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
        self._settle()

    def fileno(self) -> int:
        """The descriptor of the stream.

        Raises:
            OSError: It has none, as one in memory.
        """
        return self._stream.fileno()

    @property
    def bytes_written(self) -> int:
        """Length of the file so far."""
        return 0 if self._out is None else self._out.offset

    @property
    def failed(self) -> bool:
        """The stream took no more: nothing can be written any more."""
        return self._out is not None and self._out.failed

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
            parts: Its bytes in any division, a `Gap` for what has none.
            path: Where the artifact was.
            origin: With ``ord`` the event for which it is taken.
            ord: See ``origin``.
            details: Anything else worth keeping, as plain JSON values.

        Returns:
            What is in the capture now; `BlobStore.begin` lets events be written in between.
        """
        return self.blobs.write(parts, path=path, origin=origin, ord=ord, details=details)

    def flush(self) -> None:
        """Close the current chunk, so that everything taken so far is in the file."""
        if self._out is None or self.full:
            return  # nothing was taken yet, or can be
        self._write_all()
        self._settle()

    def commit(self) -> None:
        """Make everything taken so far durable.

        Events that came since the last time go into a TAIL; where they are many, a chunk is closed.
        """
        if self._out is None or self.full or not self._tail():
            self.flush()
        else:
            self._write_losses()
            self._appender.flush()
            self._settle()

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._closed or self.failed:
            return
        if self._out is None:
            self._begin(self._derived_id(()))
        self.blobs.close()
        self.flush()
        self._closed = True
        if self.full:
            self._lose(self._refused + without_state(self._pending.take()).rows)
            self._write_losses()
        out = self._appender
        totals = self._totals.to_json(self._schema.specs()) | self._content.digests()
        footer = payloads.Footer(self._file_id, out.chain, self._totals.table(), totals)
        try:
            self._record(Kind.FOOTER, footer.pack(out.offset))
        except FullError as e:
            self.losses.append(Loss("torn", None, f"the capture has no end: {e.what}"))
        out.flush()
        out.release()

    # A disk that is full

    def _settle(self) -> None:
        """Make sure of the room for the end; where there is none, write what still can be."""
        if self._room is None or self.full or self._closed:
            return
        if not self._end.short and not self._appender.claim(_SPARE_BYTES + self._needed()):
            # What the rows that wait need was an estimate: in the file they may need less.
            self._write_all()
            self._end.short |= not self._appender.claim(_SPARE_BYTES + self._needed())
        if self._end.short:
            self.full = True
            self._write_all()

    def _needed(self) -> int:
        """What the end takes: the rows that wait, and the footer."""
        if self._room is None:
            return 0
        return self._end.size(self._pending.nbytes if self._pending.rows else 0)

    def _measure(self, memory: int, size: int) -> None:
        """Take note of what a chunk took, and of what the footer would."""
        if self._room is not None:
            says = json.dumps(self._totals.to_json(self._schema.specs()))
            table = payloads.TABLE.itemsize * self._totals.chunks
            self._end.chunk(memory, size, table + len(says))

    def _try(
        self, kind: Kind, payload: bytes | bytearray, *, reserve: int | None = None
    ) -> int | None:
        """Append a record that the end can do without; None where there is no room for it."""
        room = self._needed() if reserve is None else reserve
        try:
            return self._record(kind, payload, reserve=room)
        except FullError:
            self._end.short = True
            return None

    def _lose(self, events: int) -> None:
        self._leave_out(Loss("lost", events, "the disk was full"))

    def _refuse(self, batch: Batch) -> None:
        """Count events for which there is no room, and remember what was lost before them."""
        self._refused += without_state(batch).rows
        for side in batch.before:
            if isinstance(side, Artifact):
                self._artifact(side)
            elif isinstance(side, Loss) and len(self._losses) < _LOSSES_A_RECORD:
                self._losses.append(side)

    def _begin(self, file_id: bytes) -> None:
        self._file_id = file_id
        self._out = Appender(
            self._stream, file_id, file=self._file, sync=self._sync, room=self._room
        )
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
        if not self._appender.claim(len(payload) + self._needed()):
            return False
        number = self._appender.number
        if self._try(Kind.TAIL, payload) is not None:
            self._tails = self._tails.with_one(number, fresh.rows, size)
            self._end.tail(len(payload))
        return True

    def _write_all(self) -> None:
        """Write what was taken so far, and hand it to the system."""
        if self._pending.rows:
            self._chunk(self._pending.take())
        self._write_losses()
        self._appender.flush()

    def _chunk(self, batch: Batch) -> None:
        """Write events as a chunk, as several where they are more than one may hold."""
        batch = self._describable(schema.EVENTS, batch)
        tails, self._tails = self._tails, WrittenTails()
        written, skipped = 0, self._encoder.skipped
        chunks = self._encoder.encoded(schema.EVENTS, batch, self._totals.chunks, tails)
        for part, payload, made in chunks:
            if self._totals.chunks >= limits.CHUNKS:
                what = f"the capture has {limits.CHUNKS:,} chunks, the most it can"
                raise OutputError(what, file=self._file, hint="begin another file")
            offset = self._try(Kind.CHUNK, payload)
            if offset is None:
                # As much of it as there is room for; the parts behind it are lost.
                rest = batch.rows - written - part.rows - (self._encoder.skipped - skipped)
                self._shorter(part, rest, WrittenTails() if written else tails)
                return
            size = len(payload)
            strings = Bloom.of(bloom.distinct(made.entries), size // BLOOM_SHARE)
            index = self._indexer.index(part, self._totals.chunks, strings)
            length = self.bytes_written - offset
            del payload  # up to 32 MiB, and what follows needs as much
            index_offset = self._try(Kind.CHUNK_INDEX, index.pack(), reserve=0)
            self._totals.count(index)
            self._totals.place(offset, length, index_offset or 0, index)
            self._content.add(part, made.digests)
            self._states.chunks += 1
            self._measure(part.nbytes, size)
            written += part.rows
        if self._checkpoint_due():
            self._checkpoint()

    def _shorter(self, part: Batch, lost: int, tails: WrittenTails) -> None:
        """Write half of a chunk for which there was no room; the other half is lost, too."""
        half = part.rows // 2
        self._lose(lost + without_state(part.slice(half, part.rows)).rows)
        self._tails = tails
        if half:
            self._chunk(part.slice(0, half).compact())

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
        offset = self._try(Kind.CHECKPOINT, payload)
        if offset is None:
            return
        raw = record.whole(Kind.CHECKPOINT, number, payload, self._file_id)
        digest = hashlib.sha256(raw).digest()
        self._last = LastCheckpoint(offset, digest, len(self._schema), self.bytes_written)
        self._totals.checkpoint()

    def _describable(self, table: str, batch: Batch) -> Batch:
        """Describe the columns that none describes yet; leave out rows that would need too many."""
        batch, new = self._encoder.describable(table, batch)
        if new:
            self._record(Kind.SCHEMA, schema.pack(new))
        return batch

    def _leave_out(self, loss: Loss) -> None:
        for held in (self.losses, self._losses):
            if held and held[-1].like == loss.like:
                held[-1] = held[-1].plus(loss)
            else:
                held.append(loss)

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
            self._settle()
            self._try(Kind.HEARTBEAT, heartbeat.pack(side))
        elif isinstance(side, Artifact):
            self._artifact(side)
        else:
            self.flush()
            self._state(side)
            self._appender.flush()

    def _artifact(self, side: Artifact) -> None:
        if (why := self.blobs.artifact(side)) is not None:
            self._leave_out(Loss("lost", 1, f"an artifact ({side.kind}): {why}"))

    def _state(self, snapshot: Snapshot) -> None:
        """Write a STATE record."""
        tables: list[tuple[str, bytes]] = []
        room = limits.STATE_BYTES
        for name in sorted(snapshot.tables):
            table = self._describable(name, snapshot.tables[name])
            for start in range(0, table.rows, limits.CHUNK_ROWS):
                rows = table.slice(start, start + limits.CHUNK_ROWS).compact()
                for part, payload, _ in self._encoder.encoded(name, rows, 0):
                    room -= chunk.Chunk(memoryview(payload), self._schema, name).size
                    if room < 0:
                        self._encoder.leave_out(
                            part.rows, f"a state of more than {limits.STATE_BYTES} bytes"
                        )
                        continue
                    tables.append((name, bytes(payload)))
        offset = self._try(Kind.STATE, payloads.pack_state(tables))
        if offset is None:
            return
        length = self.bytes_written - offset
        self._totals.state(offset, length)
        self._states.written(length, self._totals.ts.high)

    def _write_losses(self) -> None:
        while self._losses:
            losses = [brief(loss) for loss in self._losses[:_LOSSES_A_RECORD]]
            self._record(Kind.LOSS, body.pack([loss.to_json() for loss in losses]))
            self._totals.lose(losses)
            del self._losses[: len(losses)]

    def _blob_record(self, kind: Kind, payload: bytes | bytearray) -> None:
        """Append a part of a blob; an open file stays quick to open, however large it is."""
        if self._out is None:
            self._begin(self._derived_id(()))
        self._record(kind, payload, reserve=self._needed())
        # Behind a CHECKPOINT nobody looks for TAILs before it that are in no chunk yet.
        if not self._tails.rows and self._checkpoint_due():
            self._checkpoint()

    def _record(self, kind: Kind, payload: bytes | bytearray, *, reserve: int = 0) -> int:
        """Append a record and give its offset."""
        offset = self._appender.append(kind, payload, reserve=reserve)
        self._totals.record(kind.name)
        if kind in REPEATED:
            self._end.repeats(len(payload))
        return offset
