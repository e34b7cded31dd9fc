"""Where the rows of a file are: its FOOTER, or what an open file has instead (clause 8)."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.errors import DamagedError, KcapError
from kcap.format import body, payloads, record, scan, schema, tail
from kcap.format.chunk import Chunk
from kcap.format.chunk_index import ChunkIndex, Indexer
from kcap.format.payloads import Checkpoint
from kcap.format.record import ALIGNMENT, HEADER_BYTES, MAGIC, Header, Kind
from kcap.format.recovery import Recovery
from kcap.format.tail import Tails, Waiting
from kcap.format.totals import Totals
from kcap.format.window import FileWindow
from kcap.model.batch import Batch
from kcap.model.side import Loss

if TYPE_CHECKING:
    from kcap.format.reader import CaptureReader

_STEP: Final = 1 << 20

_SEARCH: Final = 256 << 20
"""How far before the end a CHECKPOINT is searched; writers leave at most a quarter between two."""


@dataclass(frozen=True, slots=True)
class Index:
    """What a file holds."""

    table: npt.NDArray[np.void]
    """One entry of type `payloads.TABLE` for each record with rows, in the order of the rows:
    every CHUNK, and every TAIL that none supersedes."""
    totals: Mapping[str, Any]
    """As the body of a FOOTER."""
    losses: tuple[Loss, ...] = ()
    """What is wrong with the end of an open file."""


def indexed(reader: CaptureReader) -> Index:
    """Find out what a file holds.

    Args:
        reader: A capture in a file; of an open one `schema` and `state` are filled in.

    Returns:
        The index: of a closed file its FOOTER's; of an open one its CHECKPOINTs' and that of the
        records behind them, which are read.
    """
    if reader.footer is not None:
        return Index(reader.footer.chunks, reader.footer.totals)
    assert isinstance(reader.window, FileWindow)
    found = newest_checkpoint(reader.window, reader.header.file_id)
    parts = [] if found is None else _parts(reader, *found)
    return _Rest(reader, parts).index()


def checkpoint_at(window: FileWindow, file_id: bytes, offset: int) -> tuple[Header, bytes] | None:
    """The CHECKPOINT record at a place.

    Args:
        window: The capture.
        file_id: From its FILE_HEADER.
        offset: The place.

    Returns:
        Its header and all of its bytes; None where there is no intact one.
    """
    header = _checkpoint_header(window, file_id, offset)
    if header is None:
        return None
    raw = window.read_at(offset, header.size)
    payload = raw[HEADER_BYTES : HEADER_BYTES + header.length]
    if len(raw) < header.size or zlib.crc32(payload) != header.payload_crc:
        return None
    return header, raw


def _checkpoint_header(window: FileWindow, file_id: bytes, offset: int) -> Header | None:
    """The intact header of a CHECKPOINT that ends within the file."""
    header = record.unpack(window.read_at(offset, HEADER_BYTES), file_id)
    if header is None or header.kind != Kind.CHECKPOINT:
        return None
    if header.length > limits.RECORD_PAYLOAD_BYTES or offset + header.size > window.size:
        return None
    return header


def newest_checkpoint(window: FileWindow, file_id: bytes) -> tuple[int, Header, bytes] | None:
    """Search the last intact CHECKPOINT, from the end of the file.

    Args:
        window: The capture.
        file_id: From its FILE_HEADER.

    Returns:
        Its offset, header and bytes; None where there is none, or where so many false ones stand
        behind it that looking at them all would take too long.
    """
    tried = 0
    end = window.size
    last = max(0, end - _SEARCH)
    while end > last:
        start = max(0, end - _STEP)
        block = window.read_at(start, end - start + HEADER_BYTES)
        at = block.rfind(MAGIC)
        while at >= 0:
            if (start + at) % ALIGNMENT == 0 and block[at + 4 : at + 5] == bytes([Kind.CHECKPOINT]):
                header = _checkpoint_header(window, file_id, start + at)
                tried += 0 if header is None else header.size
                if tried > scan.TRIED_BYTES:
                    return None
                found = header and checkpoint_at(window, file_id, start + at)
                if found:
                    return start + at, *found
            at = block.rfind(MAGIC, 0, at + len(MAGIC) - 1)
        end = start
    return None


def _parts(
    reader: CaptureReader, offset: int, header: Header, raw: bytes
) -> list[tuple[int, Header, Checkpoint]]:
    """A CHECKPOINT and all before it, the first one first; none where one of them is missing."""
    assert isinstance(reader.window, FileWindow)
    parts: list[tuple[int, Header, Checkpoint]] = []
    while True:
        try:
            point = Checkpoint.unpack(raw[HEADER_BYTES : HEADER_BYTES + header.length])
        except KcapError:
            return []
        if point.file_id != reader.header.file_id or not point.fits(offset):
            return []
        parts.append((offset, header, point))
        if not point.previous:
            return parts[::-1]
        found = checkpoint_at(reader.window, reader.header.file_id, point.previous)
        if found is None or hashlib.sha256(found[1]).digest() != point.previous_hash:
            return []
        offset, (header, raw) = point.previous, found


class _Rest:
    """Reads the records behind the last CHECKPOINT."""

    def __init__(self, reader: CaptureReader, parts: list[tuple[int, Header, Checkpoint]]) -> None:
        self._reader = reader
        self._totals = Totals()
        self._indexer = Indexer()
        self._tails = Tails()
        self._chunk: tuple[scan.Record, Chunk] | None = None
        self._losses: list[Loss] = []
        self._unseen: tuple[int, int] | None = None
        self._start, self._last = 0, -1
        try:
            self._take(parts)
        except KcapError:
            # What no reader can believe is treated as none: the records decide.
            reader.schema = schema.Schema()
            self._totals = Totals()
            self._start, self._last, self._unseen = 0, -1, None

    def _take(self, parts: list[tuple[int, Header, Checkpoint]]) -> None:
        for offset, header, point in parts:
            self._reader.schema.read(point.totals["schema"])
            self._totals.add_part(point.totals)
            self._totals.add_table(point.chunks)
            self._start, self._last = offset + header.size, header.number
            self._totals.record(header.name)
            self._unseen_in(point.chunks)

    def _unseen_in(self, entries: npt.NDArray[np.void]) -> None:
        """Remember the last rows with times: were the next ones earlier, that would be counted."""
        timed = np.flatnonzero(entries["ts_min"] <= entries["ts_max"])
        if len(timed):
            self._unseen = int(entries["offset"][timed[-1]]), int(entries["length"][timed[-1]])

    def _indexed(self, batch: Batch, number: int) -> ChunkIndex:
        """The index of rows that have none."""
        if self._unseen is not None:
            place, self._unseen = self._unseen, None
            self._indexer.last_ts = self._reader.last_ts_at(*place)
        return self._indexer.index(batch, number)

    def index(self) -> Index:
        """The index of the whole file."""
        scanner = self._reader.scanner(self._start, self._last)
        end = self._start
        state = "open"
        for item in scanner.records():
            if isinstance(item, scan.Damage):
                self._damage(item)
                continue
            end = item.offset + item.header.size
            state = "open" if item.header.kind != Kind.FOOTER else "closed"
            if record.skipped(item.header, self._reader.file, item.offset):
                self._totals.record(item.header.name)
                continue
            try:
                self._record(item)
            except KcapError as e:
                self._lose(None, str(e), item.offset, item.header.number)
        self._finish_chunk(None)
        self._live(self._tails.rest())
        self._reader.state = "torn" if scanner.torn else state
        if self._reader.state == "open":
            what = "no FOOTER: the recording goes on, or ended without one"
            self._losses.append(Loss("torn", None, f"{what}, at byte {end}"))
        totals = self._totals.to_json(self._reader.schema.specs())
        return Index(self._totals.table(), totals, tuple(self._losses))

    def _damage(self, item: scan.Damage) -> None:
        if item.harmless:
            self._lose(0, item.reason, item.offset, item.number)
            return
        if item.torn:
            self._losses.append(Loss("torn", None, f"{item.reason}, at byte {item.offset}"))
            return
        if item.kind in (None, Kind.CHUNK):
            self._finish_chunk(None)
        if item.kind == Kind.CHUNK:
            self._live(self._tails.rest())
        self._lose(None, item.reason, item.offset, item.number)

    def _lose(self, rows: int | None, reason: str, offset: int, number: int) -> None:
        self._losses.append(Loss("damaged", rows, f"{reason} at byte {offset} (record {number})"))

    def _record(self, item: scan.Record) -> None:
        kind, payload = item.header.kind, item.payload
        if kind != Kind.FOOTER:
            self._totals.record(item.header.name)
        if kind == Kind.CHUNK_INDEX:
            self._finish_chunk(item)
            return
        self._finish_chunk(None)
        if kind == Kind.CHUNK:
            found = Chunk(payload, self._reader.schema)
            self._live(self._tails.chunk(item.header.number, found.tails))
            self._chunk = item, found
        elif kind == Kind.TAIL:
            waiting = Waiting(
                item.header.number,
                item.offset,
                item.header.size,
                tail.rows_in(payload),
                bytes(payload),
            )
            self._live(self._tails.add(waiting))
        elif kind == Kind.SCHEMA:
            self._reader.schema.read(schema.unpack(payload))
        elif kind == Kind.SOURCE:
            entry = body.unpack_object(payload, "SOURCE")
            self._totals.source(entry)
        elif kind == Kind.LOSS:
            entries = body.unpack_objects(payload, "LOSS")
            self._totals.lose(Loss.from_json(e) for e in entries)
        elif kind == Kind.RECOVERY:
            loss = Recovery.unpack(payload).loss()
            self._totals.lose([loss] if loss is not None else [])
        elif kind == Kind.STATE:
            self._totals.state(item.offset, item.header.size)

    def _finish_chunk(self, index: scan.Record | None) -> None:
        """Count the chunk read last, by its CHUNK_INDEX where that follows."""
        if self._chunk is None:
            return
        (item, found), self._chunk = self._chunk, None
        says: ChunkIndex | None = None
        if index is not None:
            try:
                says = ChunkIndex.unpack(index.payload)
            except DamagedError as e:
                self._lose(0, str(e), index.offset, index.header.number)
        if says is None or (says.number, says.rows) != (found.number, found.rows):
            try:
                says = self._indexed(found.batch(), found.number)
            except KcapError as e:
                self._lose(found.rows, str(e), item.offset, item.header.number)
                return
            index = None
        elif says.ts.low <= says.ts.high:
            self._unseen = item.offset, item.header.size
        self._totals.count(says)
        at = 0 if index is None else index.offset
        self._totals.place(item.offset, item.header.size, at, says)

    def _live(self, tails: list[Waiting]) -> None:
        for waiting in tails:
            try:
                batch = tail.decode(waiting.payload, self._reader.schema)
            except KcapError as e:
                self._lose(waiting.rows, str(e), waiting.offset, waiting.number)
                continue
            says = self._indexed(batch, payloads.NO_CHUNK)
            self._totals.count(says)
            self._totals.place(waiting.offset, waiting.length, 0, says)
