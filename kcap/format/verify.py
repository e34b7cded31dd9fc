"""Checking a capture: every byte, every record, and that the parts agree (clause 11)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kcap.errors import KcapError
from kcap.format import bloom, body, heartbeat, payloads, record, scan, schema, tail
from kcap.format.blob_reader import BlobCheck
from kcap.format.chunk import Chunk
from kcap.format.chunk_index import ChunkIndex, Indexer, pids_of
from kcap.format.content import ContentHash
from kcap.format.reader import CaptureReader
from kcap.format.rebuild import index_agrees
from kcap.format.record import ANCILLARY, NEEDED, Kind
from kcap.format.recovery import Recovery
from kcap.format.state_tables import read_state
from kcap.format.tail import Tails, Waiting
from kcap.format.totals import Running, differing
from kcap.model.batch import Batch, concat
from kcap.model.side import Loss


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold."""

    number: int
    """From 1, in file order."""
    offset: int
    record: int
    """The number of the record concerned."""
    kind: str | None
    """The record's kind, where its header holds."""
    what: str

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check."""

    findings: tuple[Finding, ...]
    state: str
    """``closed``, ``open`` or ``torn``."""
    records: int
    """Intact records."""
    chunks: int
    """Intact chunks."""
    rows: int
    """Rows in intact chunks, and in intact tails that no intact chunk supersedes."""
    bytes: int
    """Bytes read."""
    file_hash: str | None
    """SHA-256 of the whole file in hex, None where some of it is damaged."""
    recoveries: tuple[Recovery, ...] = ()
    """What repairs left out of the capture; that is no finding."""
    unnamed_blocks: int = 0
    """Blocks that no intact manifest names, as of a blob whose recording was cut off; no finding
    either."""

    @property
    def good(self) -> bool:
        """Nothing is wrong, and the capture is closed."""
        return not self.findings and self.state == "closed"


def verify(reader: CaptureReader, *, deep: bool = False) -> Report:
    """Check a capture from its first byte to its last.

    Args:
        reader: The capture, freshly opened.
        deep: Also compare the sets of pids and strings in the index with the events, tails with
            the chunks that supersede them, and the whole content of a file's blobs with its hash.

    Returns:
        What was found; the chain is compared where every record before the FOOTER is intact.
    """
    return _Check(reader, deep=deep).run()


class _Check:
    def __init__(self, reader: CaptureReader, *, deep: bool) -> None:
        self._reader = reader
        self._deep = deep
        self._chain = record.Chain(reader.header.file_id)
        self._hash = hashlib.sha256()
        self._schema = schema.Schema()
        self._indexer = Indexer()
        self._totals = Running()
        self._content = ContentHash()
        self._new_columns = 0
        self._checkpoint = (0, bytes(32))
        self._tails = Tails()
        self._blobs = BlobCheck(reader if deep else None)
        self._found: list[tuple[int, int, str | None, str]] = []
        self._records = 0
        self._index: ChunkIndex | None = None
        self._batch: Batch | None = None
        self._chunks = 0
        self._rows = 0
        self._broken = False
        self._previous = -1
        self._gap = False
        self._after_gap = False
        self._chunk_record = -1
        self._chunk_number = -1
        self._recoveries: list[Recovery] = []

    def run(self) -> Report:
        scanner = self._reader.scanner()
        closed = False
        end = 0
        for item in scanner.records():
            if isinstance(item, scan.Damage):
                self._broken = self._broken or not item.torn
                self._damage(item)
                end = max(end, item.end)
                continue
            if closed:
                self._add(item, "a record follows the FOOTER")
            end = item.offset + item.header.size
            closed = item.header.kind == Kind.FOOTER
            self._hash.update(item.raw)
            self._record(item)
        self._live(self._tails.rest())
        state = "torn" if scanner.torn else "closed" if closed else "open"
        if state == "open":
            self._found.append((end, self._previous + 1, None, "the capture has no FOOTER"))
        findings = tuple(Finding(i, *f) for i, f in enumerate(self._found, 1))
        whole = None if self._broken or scanner.torn else self._hash.hexdigest()
        return Report(
            findings=findings,
            state=state,
            records=self._records,
            chunks=self._chunks,
            rows=self._rows,
            bytes=end,
            file_hash=whole,
            recoveries=tuple(self._recoveries),
            unnamed_blocks=self._blobs.unnamed,
        )

    def _damage(self, item: scan.Damage) -> None:
        kind = None if item.kind is None else record.kind_name(item.kind)
        self._found.append((item.offset, item.number, kind, item.reason))

    def _add(self, item: scan.Record, what: str) -> None:
        header = item.header
        self._found.append((item.offset, header.number, header.name, what))

    def _record(self, item: scan.Record) -> None:
        header = item.header
        unknown = record.skipped(header, self._reader.file, item.offset)
        if not unknown and header.flags != (0 if header.kind in NEEDED else ANCILLARY):
            self._add(item, f"flags {header.flags}, which this kind does not have")
        self._records += header.kind != Kind.FOOTER
        self._gap = self._gap or header.number > self._previous + 1
        try:
            for what in () if unknown else self._content_of(item):
                self._add(item, what)
        except KcapError as e:
            self._add(item, str(e))
        if header.kind != Kind.RECOVERY:
            self._previous = header.number
        self._chain.add(item.raw)
        if header.kind != Kind.FOOTER:
            self._totals.record(header.name)

    def _content_of(self, item: scan.Record) -> Iterator[str]:
        """What is wrong with an intact record's payload."""
        kind, payload = item.header.kind, item.payload
        if kind == Kind.FILE_HEADER:
            if payloads.FileHeader.unpack(payload) != self._reader.header:
                yield "the two FILE_HEADER records differ"
        elif kind == Kind.SCHEMA:
            self._schema.read(schema.unpack(payload))
        elif kind == Kind.SOURCE:
            entry = body.unpack_object(payload, "SOURCE")
            self._totals.source(entry)
        elif kind == Kind.NOTE:
            body.unpack_object(payload, "NOTE")
        elif kind == Kind.HEARTBEAT:
            heartbeat.unpack(payload)
        elif kind == Kind.RECOVERY:
            yield from self._recovery(item)
        elif kind == Kind.LOSS:
            self._totals.lose(Loss.from_json(e) for e in body.unpack_objects(payload, "LOSS"))
        elif kind == Kind.STATE:
            self._totals.state(item.offset, item.header.size)
            read_state(payload, self._schema)
        elif kind == Kind.CHUNK:
            yield from self._chunk(item)
        elif kind == Kind.CHUNK_INDEX:
            yield from self._chunk_index(item)
        elif kind == Kind.TAIL:
            self._tail(item)
        elif kind == Kind.BLOB_BLOCK:
            yield from self._blobs.block(item)
        elif kind == Kind.BLOB_MANIFEST:
            yield from self._blobs.manifest(item)
        elif kind == Kind.CHECKPOINT:
            yield from self._check_checkpoint(item)
        elif kind == Kind.FOOTER:
            yield from self._footer(item)

    def _recovery(self, item: scan.Record) -> Iterator[str]:
        found = Recovery.unpack(item.payload)
        if not found.missing or found.missing[0][0] != item.header.number:
            yield "the RECOVERY does not have the first number that it says is missing"
        self._recoveries.append(found)
        self._blobs.recovered = True
        self._gap = True
        loss = found.loss()
        if loss is not None:
            self._totals.lose([loss])

    def _tail(self, item: scan.Record) -> None:
        rows = tail.decode(item.payload, self._schema).rows
        waiting = Waiting(
            item.header.number, item.offset, item.header.size, rows, bytes(item.payload)
        )
        self._live(self._tails.add(waiting))

    def _live(self, tails: list[Waiting]) -> None:
        """Count the rows of tails that no intact chunk supersedes."""
        for waiting in tails:
            batch = tail.decode(waiting.payload, self._schema)
            index = self._indexer.index(batch, payloads.NO_CHUNK)
            self._count(index, batch, waiting.offset, waiting.length, 0)

    def _count(
        self, index: ChunkIndex, batch: Batch, offset: int, length: int, index_offset: int
    ) -> None:
        self._rows += batch.rows
        self._totals.count(index)
        self._totals.place(offset, length, index_offset, index)
        self._content.add(batch)

    def _chunk(self, item: scan.Record) -> Iterator[str]:
        self._index = self._batch = None
        found = Chunk(item.payload, self._schema)
        batch = found.batch()
        self._chunks += 1
        waiting = self._tails.peek()
        live = self._tails.chunk(item.header.number, found.tails)
        self._live(live)
        if self._deep:
            named = [t for t in waiting if t not in live]
            if len(named) == found.tails.records:  # a damaged one says nothing of the chunk
                yield from self._against_tails(batch, named)
        place = self._chunk_number + 1
        if not self._broken and (found.number < place or (found.number > place and not self._gap)):
            yield f"chunk {found.number} stands in place {place}"
        self._chunk_record, self._chunk_number = item.header.number, found.number
        self._after_gap, self._gap = self._gap, False
        self._index = self._indexer.index(batch, found.number)
        self._batch = batch
        says = tuple(int(found.head[n]) for n in ("ts_min", "ts_max", "ord_min", "ord_max"))
        if says != (*self._index.ts, *self._index.ord):
            yield "the chunk's times or ords are not those of its rows"
        end = item.offset + item.header.size
        self._count(self._index, batch, item.offset, item.header.size, end)

    def _against_tails(self, batch: Batch, tails: list[Waiting]) -> Iterator[str]:
        """Whether a chunk holds the rows of the tails that it supersedes, as its first ones."""
        if not tails:
            return
        rows = concat([tail.decode(t.payload, self._schema) for t in tails])
        known, first = ContentHash(), ContentHash()
        known.add(rows)
        first.add(batch.slice(0, rows.rows))
        if known.digests() != first.digests():
            yield "the chunk's rows are not those of the tails that it supersedes"

    def _chunk_index(self, item: scan.Record) -> Iterator[str]:
        found = ChunkIndex.unpack(item.payload)
        number, minor = item.header.number, self._reader.header.minor
        if number != self._chunk_record + 1:
            self._batch = None
            if number == self._previous + 1 or found.number <= self._chunk_number:
                yield "the CHUNK_INDEX follows no chunk"
            self._chunk_number = found.number  # all that is left of a chunk
        elif self._index is None or not index_agrees(
            found, self._index, minor, after_gap=self._after_gap
        ):
            yield "the CHUNK_INDEX does not say what its chunk holds"
        elif self._deep and self._batch is not None:
            if found.pids is not None and not np.array_equal(found.pids, pids_of(self._batch)):
                yield "the CHUNK_INDEX's set of pids is not that of its chunk"
            strings = bloom.strings_of(self._batch)
            if found.strings is not None and not found.strings.may_hold_all(strings):
                yield "the CHUNK_INDEX's bloom filter denies a string of its chunk"

    def _check_checkpoint(self, item: scan.Record) -> Iterator[str]:
        found = payloads.Checkpoint.unpack(item.payload)
        if self._tails.rows and not self._broken:
            yield "the CHECKPOINT stands where TAILs wait for their chunk"
        new = self._totals.since
        self._totals.checkpoint()
        columns = self._schema.specs(self._new_columns)
        previous, self._checkpoint = (
            self._checkpoint,
            (item.offset, hashlib.sha256(item.raw).digest()),
        )
        self._new_columns = len(self._schema)
        if self._broken:
            return  # what it says can't agree with a damaged file
        if (found.file_id, found.chain) != (self._reader.header.file_id, self._chain.value):
            yield "the CHECKPOINT's hash chain does not fit the records before it"
        if (found.previous, found.previous_hash) != previous:
            yield "the CHECKPOINT does not lead to the one before it"
        if not np.array_equal(found.chunks, new.table()):
            yield "the CHECKPOINT's chunk table does not fit the chunks"
        if differing(found.totals, new.to_json(columns)):
            yield "the CHECKPOINT's totals are not what the records say"

    def _footer(self, item: scan.Record) -> Iterator[str]:
        self._live(self._tails.rest())
        footer = payloads.Footer.unpack(item.payload)
        if payloads.footer_place(bytes(item.payload[-payloads.END_BYTES :])) != (
            item.offset,
            item.header.length,
        ):
            yield "the FOOTER's last bytes do not say where it is"
        if self._broken:
            return  # what the footer says can't agree with a damaged file
        if footer.file_id != self._reader.header.file_id:
            yield "the FOOTER is of another file"
        if footer.chain != self._chain.value:
            yield "the hash chain does not lead to the FOOTER: records were changed"
        if not np.array_equal(footer.chunks, self._totals.table()):
            yield "the FOOTER's chunk table does not fit the chunks"
        for name in differing(footer.totals, self._totals.to_json(self._schema.specs())):
            what = "count of records" if name == "records" else name
            yield f"the FOOTER's {what} is not what the records say"
        for name, digest in self._content.digests().items():
            # 1.0 has none.
            if footer.totals.get(name) != digest and self._reader.header.minor > 0:
                yield f"the FOOTER's {name} is not that of the events"
