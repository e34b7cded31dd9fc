"""The output of a repair: records are checked, copied and counted, others made anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kcap.errors import DamagedError
from kcap.format import body, heartbeat, payloads, record, scan, schema, tail
from kcap.format.appender import Appender
from kcap.format.blob_reader import BlobCheck
from kcap.format.bloom import Bloom, strings_of
from kcap.format.chunk import Chunk, Superseded, bounds
from kcap.format.chunk_index import ChunkIndex, Indexer, counts, pids_of
from kcap.format.content import ContentHash
from kcap.format.payloads import Checkpoint, Footer
from kcap.format.record import ANCILLARY, HEADER_BYTES, NEEDED, Kind
from kcap.format.recovery import Recovery
from kcap.format.regions import Facts
from kcap.format.state_tables import read_state
from kcap.format.tail import Tails, Waiting
from kcap.format.totals import Running, differing
from kcap.format.writer import BLOOM_SHARE
from kcap.model.batch import Batch
from kcap.model.side import Loss, SourceInfo


class Due(NamedTuple):
    """The CHUNK_INDEX that has to follow a chunk."""

    number: int
    """Its record number."""
    content: ChunkIndex
    """What it says, without the strings."""
    after_gap: bool
    """Records are missing in front of its chunk."""
    batch: Batch
    """The rows of its chunk."""
    length: int
    """The length of the chunk's payload."""

    def may_hold(self, found: ChunkIndex) -> bool:
        """Whether the sets of an index have all that they must.

        Args:
            found: The index.

        Returns:
            False where a search by it would miss a row.
        """
        if found.pids is not None and not np.array_equal(found.pids, pids_of(self.batch)):
            return False
        return found.strings is None or found.strings.may_hold_all(strings_of(self.batch))

    def payload(self) -> bytes:
        """The record's payload, as a writer makes it."""
        strings = Bloom.of(strings_of(self.batch), self.length // BLOOM_SHARE)
        return replace(self.content, strings=strings).pack()


class Rebuilt:
    """Writes the recovered capture.

    Args:
        out: Where the records go.
        header: The FILE_HEADER.
        payload: Its payload.
    """

    def __init__(self, out: Appender, header: payloads.FileHeader, payload: bytes) -> None:
        self.out = out
        self.header = header
        self.schema = schema.Schema()
        self.sources: dict[str, dict[str, object]] = {}
        self.due: Due | None = None
        self.chunk = -1
        """Number of the last chunk, lost or not."""
        self.last: Facts | None = None
        """The last intact chunk."""
        self.known: list[Recovery] = []
        """What an earlier repair left out."""
        self.rows = 0
        self._totals = Running()
        self._new_columns = 0
        self._checkpoint = (0, bytes(32))
        self._content = ContentHash()
        self._indexer = Indexer()
        self._tails = Tails()
        self._blobs = BlobCheck()
        self.payload = payload
        """Of both FILE_HEADER records."""
        self._previous = -1
        self._gap = False
        self._copies: dict[int, Callable[[scan.Record], None]] = {
            Kind.SOURCE: self._source,
            Kind.SCHEMA: self._read_schema,
            Kind.CHUNK: self._copy_chunk,
            Kind.CHUNK_INDEX: self._copy_index,
            Kind.TAIL: self._copy_tail,
            Kind.STATE: self._state,
            Kind.LOSS: self._loss,
            Kind.HEARTBEAT: self._heartbeat,
            Kind.NOTE: self._note,
            Kind.BLOB_BLOCK: self._blob,
            Kind.BLOB_MANIFEST: self._blob,
            Kind.CHECKPOINT: self._copy_checkpoint,
            Kind.RECOVERY: self._recovery,
        }
        for number in range(2):
            self.make(Kind.FILE_HEADER, payload, number)

    @property
    def blobs(self) -> BlobCheck:
        """What blocks and manifests there are."""
        return self._blobs

    def live_rows(self, named: Superseded) -> int:
        """Rows in TAILs that no chunk will supersede.

        Args:
            named: The TAILs that the next chunk supersedes.

        Returns:
            The rows of the others that wait.
        """
        waiting = self._tails.peek()
        return sum(t.rows for t in waiting if not named.records or t.number < named.first)

    def copy(self, item: scan.Record) -> None:
        """Copy an intact record bit for bit.

        Args:
            item: The record; its number is greater than that of the last one.

        Raises:
            DamagedError: Its checksums hold, but it makes no sense; nothing was written.
            VersionError: It needs a newer kcap.
        """
        header = item.header
        unknown = record.skipped(header, offset=item.offset)
        if not unknown and header.flags != (0 if header.kind in NEEDED else ANCILLARY):
            raise DamagedError(f"flags {header.flags}, which this kind does not have")
        if header.number > self._previous + 1:
            self._gap = True
        if header.kind != Kind.CHUNK_INDEX:
            self.due = None
        handler = None if unknown else self._copies.get(header.kind)
        if handler is None:
            self._write(item)
        else:
            handler(item)
        if header.kind != Kind.RECOVERY:
            self._previous = header.number

    def make(self, kind: Kind, payload: bytes, number: int) -> None:
        """Write a record that the input no longer has.

        Args:
            kind: What it holds.
            payload: Its payload.
            number: Its record number.
        """
        self.out.number = number
        if kind == Kind.RECOVERY:
            self._lose(Recovery.unpack(payload))
            self._gap = True
        else:
            self._previous = number
        if kind == Kind.CHUNK_INDEX:
            self.due = None
        elif kind == Kind.SCHEMA:
            self.schema.read(schema.unpack(payload))
        elif kind == Kind.SOURCE:
            self._add_source(payload)
        self.out.append(kind, payload)
        self._totals.record(kind.name)

    def holds(self, point: scan.Record) -> bool:
        """Whether a CHECKPOINT still fits what is before it.

        Args:
            point: The CHECKPOINT.

        Returns:
            True where its chain value shows that all before it is as it was written.
        """
        found = Checkpoint.unpack(point.payload)
        return (found.file_id, found.chain) == (self.header.file_id, self.out.chain)

    def footer(self) -> Footer:
        """The FOOTER that belongs behind what was written."""
        self._place(self._tails.rest())
        totals = self._totals.to_json(self.schema.specs()) | self._content.digests()
        return Footer(self.header.file_id, self.out.chain, self._totals.table(), totals)

    def agrees(self, found: Footer, item: scan.Record) -> bool:
        """Whether a FOOTER says of the output what is true.

        Args:
            found: What it says.
            item: Its record.

        Returns:
            True where it may be copied; what a newer or older minor version adds is not compared.
        """
        true = self.footer()
        place = payloads.footer_place(bytes(item.payload[-payloads.END_BYTES :]))
        named = found.totals if self.header.minor == 0 else true.totals  # 1.0 has no hashes
        return (
            (found.file_id, found.chain) == (true.file_id, true.chain)
            and place == (self.out.offset, item.header.length)
            and np.array_equal(found.chunks, true.chunks)
            and not differing(found.totals, {n: v for n, v in true.totals.items() if n in named})
        )

    def _write(self, item: scan.Record) -> int:
        """Write a record; padding that was not zero is."""
        end = HEADER_BYTES + item.header.length
        raw = item.raw
        if any(raw[end:]):
            raw = memoryview(bytes(raw[:end]).ljust(len(raw), b"\0"))
        self._totals.record(item.header.name)
        return self.out.copy(raw)

    def _copy_chunk(self, item: scan.Record) -> None:
        found = Chunk(item.payload, self.schema)
        batch = found.batch()
        facts = facts_of(batch)
        says = tuple(int(found.head[n]) for n in ("ts_min", "ts_max", "ord_min", "ord_max"))
        if says != (*facts.ts, *facts.ord):
            raise DamagedError("the chunk's times or ords are not those of its rows")
        place = self.chunk + 1
        if found.number < place or (found.number > place and not self._gap):
            raise DamagedError(f"chunk {found.number} stands in place {place}")
        self._place(self._tails.chunk(item.header.number, found.tails))
        offset = self._write(item)
        index = self._indexer.index(batch, found.number)
        self._count(index, batch, offset, item.header.size, self.out.offset)
        self.due = Due(item.header.number + 1, index, self._gap, batch, item.header.length)
        self.chunk, self.last, self._gap = found.number, facts, False

    def _copy_index(self, item: scan.Record) -> None:
        found = ChunkIndex.unpack(item.payload)
        due = self.due
        if due is None and item.header.number != self._previous + 1 and found.number > self.chunk:
            self.chunk = found.number  # all that is left of a chunk
        elif due is None or due.number != item.header.number:
            raise DamagedError("a CHUNK_INDEX that follows no chunk")
        elif not index_agrees(found, due.content, self.header.minor, after_gap=due.after_gap):
            raise DamagedError("the CHUNK_INDEX does not say what its chunk holds")
        elif not due.may_hold(found):
            raise DamagedError("the CHUNK_INDEX denies a pid or string of its chunk")
        self.due = None
        self._write(item)

    def _copy_tail(self, item: scan.Record) -> None:
        rows = tail.decode(item.payload, self.schema).rows
        number, size = item.header.number, item.header.size
        waiting = Waiting(number, self.out.offset, size, rows, bytes(item.payload))
        self._place(self._tails.add(waiting))
        self._write(item)

    def _copy_checkpoint(self, item: scan.Record) -> None:
        found = Checkpoint.unpack(item.payload)
        if self._tails.rows:
            raise DamagedError("the CHECKPOINT stands where TAILs wait for their chunk")
        since = self._totals.since
        true = since.to_json(self.schema.specs(self._new_columns))
        if (
            (found.previous, found.previous_hash) != self._checkpoint
            or not np.array_equal(found.chunks, since.table())
            or differing(found.totals, true)
        ):
            raise DamagedError("the CHECKPOINT does not say what the records hold")
        self._checkpoint = self._write(item), hashlib.sha256(item.raw).digest()
        self._totals.checkpoint()
        self._new_columns = len(self.schema)

    def _place(self, tails: list[Waiting]) -> None:
        """Count the rows of tails that no chunk supersedes."""
        for waiting in tails:
            batch = tail.decode(waiting.payload, self.schema)
            index = self._indexer.index(batch, payloads.NO_CHUNK)
            self._count(index, batch, waiting.offset, waiting.length, 0)

    def _count(
        self, index: ChunkIndex, batch: Batch, offset: int, length: int, index_offset: int
    ) -> None:
        self._totals.count(index)
        self._totals.place(offset, length, index_offset, index)
        self._content.add(batch)
        self.rows += batch.rows

    def _source(self, item: scan.Record) -> None:
        self._add_source(item.payload)
        self._write(item)

    def _add_source(self, payload: bytes | memoryview) -> None:
        entry = body.unpack_object(payload, "SOURCE")
        self.sources[SourceInfo.from_json(entry).id] = entry
        self._totals.source(entry)

    def _read_schema(self, item: scan.Record) -> None:
        self.schema.read(schema.unpack(item.payload))
        self._write(item)

    def _state(self, item: scan.Record) -> None:
        read_state(item.payload, self.schema)
        self._totals.state(self._write(item), item.header.size)

    def _loss(self, item: scan.Record) -> None:
        self._totals.lose(Loss.from_json(e) for e in body.unpack_objects(item.payload, "LOSS"))
        self._write(item)

    def _heartbeat(self, item: scan.Record) -> None:
        heartbeat.unpack(item.payload)
        self._write(item)

    def _note(self, item: scan.Record) -> None:
        body.unpack_object(item.payload, "NOTE")
        self._write(item)

    def _blob(self, item: scan.Record) -> None:
        is_block = item.header.kind == Kind.BLOB_BLOCK
        for what in (self._blobs.block if is_block else self._blobs.manifest)(item):
            raise DamagedError(what)
        self._write(item)

    def _recovery(self, item: scan.Record) -> None:
        found = Recovery.unpack(item.payload)
        self._lose(found)
        self.known.append(found)
        self._gap = True
        self._write(item)

    def _lose(self, found: Recovery) -> None:
        self._blobs.recovered = True
        loss = found.loss()
        self._totals.lose([] if loss is None else [loss])


def index_agrees(found: ChunkIndex, true: ChunkIndex, minor: int, *, after_gap: bool) -> bool:
    """Whether a CHUNK_INDEX says what its chunk holds.

    Args:
        found: What it says.
        true: What the chunk holds.
        minor: The file's minor version.
        after_gap: Records are missing in front of the chunk.

    Returns:
        True where it does; its sets of pids and strings are not compared.
    """
    if minor == 0:
        found = replace(found, state_rows=true.state_rows)  # 1.0 does not say
    if after_gap and abs(found.backward - true.backward) <= 1:
        # The first row may be earlier than one that is gone, or than the one that is there now.
        found = replace(found, backward=true.backward)
    return found == true


def facts_of(batch: Batch) -> Facts:
    """What is known of an intact chunk.

    Args:
        batch: Its rows.

    Returns:
        Their number and bounds.
    """
    origins = list(counts(batch, "origin"))
    origin = origins[0] if len(origins) == 1 else None
    return Facts(batch.rows, bounds(batch, "ts"), bounds(batch, "ord"), origin)
