"""Reading captures: closed, open and torn files, and streams (spec/kcap.md)."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Final

from kcap import limits
from kcap.errors import DamagedError, KcapError, LimitError, VersionError
from kcap.format import body, payloads, record, scan, schema
from kcap.format.chunk import Chunk, directory_length
from kcap.format.record import ANCILLARY, HEADER_BYTES, MAGIC, Header, Kind
from kcap.format.window import FileWindow, StreamWindow
from kcap.model.batch import EMPTY, Batch, concat
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.model.stream import StreamInfo

_READ: Final = frozenset(Kind) - {Kind.TAIL, Kind.SEGMENT}
"""Kinds that this version knows."""

_ROWLESS: Final = frozenset(Kind) - {Kind.CHUNK, Kind.SCHEMA, Kind.TAIL, Kind.SEGMENT}
"""Kinds whose damage costs no row."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a capture's events is wanted; lets chunks, columns and all side records be unread.

    For whoever needs events alone: losses and snapshots between the chunks are not delivered.
    """

    columns: tuple[str, ...] | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    """Half open. Chunks without any event in the interval are left out, rows are not filtered."""


class CaptureReader:
    """A source that reads a ``.kcap`` capture.

    Damaged records are passed over: their rows are missing from `batches`, which says so by a
    `Loss` in `Batch.before`. No row of a damaged record is ever returned.
    """

    name: ClassVar[str] = "kcap"
    reads: ClassVar[str] = "kcap captures: closed, open and torn files, and streams"

    def __init__(
        self,
        stream: BinaryIO,
        file: str,
        *,
        lenient: bool = False,
        checks: bool = True,
    ) -> None:
        """Read the FILE_HEADER, and the FOOTER of a closed file.

        Args:
            stream: The capture; a pipe will do.
            file: Its name, for errors.
            lenient: Accepted as by every reader: damage never ends the reading of a capture.
            checks: Compare payload CRCs. Only a test has a reason not to.

        Raises:
            NotACaptureError: There is no intact FILE_HEADER.
            VersionError: The capture needs a newer kcap.
        """
        self._stream = stream
        self.file = file
        self._checks = checks
        self.window = FileWindow(stream) if stream.seekable() else StreamWindow(stream)
        self.schema = schema.Schema()
        self.footer: payloads.Footer | None = None
        self.footer_offset: int | None = None
        self.state: str | None = None
        """``closed``, ``open`` or ``torn``; None until an end without a footer was reached."""
        self.selection = Selection()
        with _naming(file):
            self.header = scan.read_file_header(self.window, file)
            self.header.check()
            found = scan.read_footer(self.window, self.header.file_id)
            if found is not None:
                self._take_footer(*found)

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether a file starts like a capture.

        Args:
            head: Its first bytes.

        Returns:
            True for a capture, also one whose first record is damaged.
        """
        if len(head) >= len(MAGIC) and head.startswith(MAGIC):
            return True
        return any(
            record.unchecked(head[at:]).kind == Kind.FILE_HEADER
            for at in range(0, min(len(head) - HEADER_BYTES, 4096), record.ALIGNMENT)
            if head.startswith(MAGIC, at)
        )

    @property
    def info(self) -> StreamInfo:
        """Name, format, and of a closed file the sources."""
        entries = self.footer.totals.get("sources", ()) if self.footer else ()
        sources = tuple(SourceInfo.from_json(e) for e in entries)
        return StreamInfo(self.file, self.name, sources)

    def columns(self) -> dict[str, TypeClass]:
        """The event columns known so far; of a closed file all.

        Returns:
            Name to class, by name.
        """
        return self.schema.columns()

    def select(self, selection: Selection) -> None:
        """Limit what `batches` reads, where a FOOTER makes that possible.

        Args:
            selection: What is wanted.
        """
        self.selection = selection

    def batches(self) -> Iterator[Batch]:
        """The events in file order.

        Yields:
            A batch a chunk; a last empty one where side records follow the last event.
        """
        if self.footer is not None and self.selection != Selection():
            return self._selected(self.footer)
        return _Sequential(self).batches()

    def scanner(self) -> scan.Scanner:
        """A fresh pass over the records."""
        solid = scan.solid_ranges(self.footer) if self.footer else None
        return scan.Scanner(self.window, self.header.file_id, solid=solid, checks=self._checks)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def chunk_rows(self, offset: int, end: int) -> int | None:
        """Rows of the chunks in a range of the file, as the FOOTER says.

        Args:
            offset: First byte.
            end: Byte behind the last.

        Returns:
            Their number, None without a footer.
        """
        if self.footer is None:
            return None
        starts = self.footer.chunks["offset"]
        low, high = bisect.bisect_left(starts, offset), bisect.bisect_left(starts, end)
        return int(self.footer.chunks["rows"][low:high].sum())

    def chunk(self, number: int, columns: Iterable[str] | None = None) -> Batch:
        """One chunk of a closed file, reading only the frames wanted.

        Args:
            number: Position in the footer's table.
            columns: The columns wanted, all where None.

        Returns:
            Its rows.

        Raises:
            DamagedError: The chunk is damaged.
        """
        if self.footer is None:
            raise KcapError(
                "an open capture has no table of chunks",
                file=self.file,
                hint="read it from the start with batches()",
            )
        entry = self.footer.chunks[number]
        offset, length = int(entry["offset"]), int(entry["length"])
        with _naming(self.file, offset=offset, chunk=int(entry["number"])):
            if columns is None:
                return self._whole_chunk(offset, length)
            return self._part_of_chunk(offset, columns)

    def _whole_chunk(self, offset: int, length: int) -> Batch:
        raw = self.window.read_at(offset, length)
        header = record.unpack(raw, self.header.file_id)
        payload = memoryview(raw)[HEADER_BYTES:]
        if header is None or header.kind != Kind.CHUNK or header.size != length:
            raise DamagedError("the CHUNK record's header is damaged")
        # The frames are checked one by one; what else the payload CRC covers is the directory.
        return Chunk(payload[: header.length], self.schema).batch()

    def _part_of_chunk(self, offset: int, columns: Iterable[str]) -> Batch:
        start = offset + HEADER_BYTES
        head = self.window.read_at(start, 4)
        if len(head) < 4:  # noqa: PLR2004
            raise DamagedError("the chunk is not there")
        found = Chunk(self.window.read_at(start, directory_length(head)), self.schema)
        known = set(found.columns())
        made = {}
        for name in columns:
            if name in known:
                first, last = found.frame_range(name)
                made[name] = found.column(name, self.window.read_at(start + first, last - first))
        return Batch(found.rows, made)

    def _selected(self, footer: payloads.Footer) -> Iterator[Batch]:
        """The chunks that can hold what is wanted, by the footer's table."""
        before: list[Side] = list(self.info.sources)
        wanted = self.selection
        for number, entry in enumerate(footer.chunks):
            timed = entry["ts_min"] <= entry["ts_max"]
            if wanted.start_ns is not None and (not timed or entry["ts_max"] < wanted.start_ns):
                continue
            if wanted.end_ns is not None and (not timed or entry["ts_min"] >= wanted.end_ns):
                continue
            try:
                batch = self.chunk(number, wanted.columns)
            except KcapError as e:
                before.append(Loss("damaged", int(entry["rows"]), _reason(e)))
                continue
            yield batch.with_before(before)
            before = []
        if before:
            yield EMPTY.with_before(before)

    def _take_footer(self, footer: payloads.Footer, offset: int) -> None:
        # A footer that can't be true is treated as none: the records decide.
        if not footer.fits(offset):
            return
        try:
            self.schema.read(footer.totals["schema"])
            _ = [SourceInfo.from_json(s) for s in footer.totals["sources"]]
            _ = [Loss.from_json(e) for e in footer.totals["loss"]]
        except KcapError:
            self.schema = schema.Schema()
            return
        self.footer, self.footer_offset, self.state = footer, offset, "closed"


class _naming:  # noqa: N801
    """Gives the errors that pass through the file and the place they lack."""

    def __init__(self, file: str, *, offset: int | None = None, chunk: int | None = None) -> None:
        self._file, self._offset, self._chunk = file, offset, chunk

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KcapError):
            error.file = error.file or self._file
            error.offset = self._offset if error.offset is None else error.offset
            error.chunk = self._chunk if error.chunk is None else error.chunk


def _reason(error: KcapError) -> str:
    """An error as the reason of a loss: what and where, without the file's name."""
    place = f" at {error.place}" if error.place else ""
    return f"{error.what}{place}"


class _Sequential:
    """One pass over the records of a capture."""

    def __init__(self, reader: CaptureReader) -> None:
        self._reader = reader
        self._schema = reader.schema
        self._scanner = reader.scanner()
        self._before: list[Side] = []
        self._end: str | None = "no FOOTER: the recording goes on, or ended without one"
        self._end_offset = 0
        self._handlers: dict[int, Callable[[scan.Record], None]] = {
            Kind.SOURCE: self._source,
            Kind.SCHEMA: self._read_schema,
            Kind.LOSS: self._loss,
            Kind.STATE: self._state,
        }

    def batches(self) -> Iterator[Batch]:
        """See `CaptureReader.batches`."""
        for item in self._scanner.records():
            if isinstance(item, scan.Damage):
                self._damage(item)
                continue
            header = item.header
            self._end_offset = item.offset + header.size
            if self._refuse_unknown(header, item.offset):
                pass
            elif header.kind == Kind.CHUNK:
                batch = self._chunk(item)
                if batch is not None:
                    before, self._before = self._before, []
                    yield batch.with_before(before)
            elif header.kind == Kind.FOOTER:
                self._end = None
                continue
            elif header.kind in self._handlers:
                self._try(item, self._handlers[header.kind])
            if self._end is None:
                self._end = "records follow the FOOTER"
        self._reader.state = "torn" if self._scanner.torn else "open" if self._end else "closed"
        if self._end is not None:
            reason = f"{self._end}, at byte {self._end_offset}"
            self._before.append(Loss("torn", None, reason))
        if self._before:
            yield EMPTY.with_before(self._before)

    def _refuse_unknown(self, header: Header, offset: int) -> bool:
        """Whether to pass over a record that this kcap does not know but need not know."""
        unknown = header.version != record.VERSION or header.kind not in _READ
        if header.flags & ~ANCILLARY or (unknown and not header.flags & ANCILLARY):
            raise VersionError(
                f"this kcap can't read {header.name} records of version {header.version}"
                f" (flags {header.flags})",
                file=self._reader.file,
                offset=offset,
                record=header.number,
                hint="use a newer kcap",
            )
        return unknown

    def _damage(self, damage: scan.Damage) -> None:
        if damage.torn:
            self._end, self._end_offset = damage.reason, damage.offset
            return
        rows = 0 if damage.harmless or damage.kind in _ROWLESS else None
        counted = self._reader.chunk_rows(damage.offset, damage.end)
        if not damage.harmless and counted is not None and damage.kind != Kind.SCHEMA:
            rows = counted
        self._lose(rows, damage.reason, damage.offset, damage.number)
        self._end_offset = damage.end

    def _lose(self, rows: int | None, reason: str, offset: int, number: int) -> None:
        text = f"{reason} at byte {offset} (record {number})"
        self._before.append(Loss("damaged", rows, text))

    def _try(self, item: scan.Record, handler: Callable[[scan.Record], None]) -> None:
        """Read a record that is no chunk; one that makes no sense is damage."""
        try:
            handler(item)
        except KcapError as e:
            self._lose(0, str(e), item.offset, item.header.number)

    def _chunk(self, item: scan.Record) -> Batch | None:
        found: Chunk | None = None
        try:
            found = Chunk(item.payload, self._schema)
            return found.batch(self._reader.selection.columns)
        except KcapError as e:
            rows = self._reader.chunk_rows(item.offset, item.offset + 1)
            rows = rows if found is None else found.rows
            self._lose(rows, str(e), item.offset, item.header.number)
            return None

    def _source(self, item: scan.Record) -> None:
        self._before.append(SourceInfo.from_json(body.unpack_object(item.payload, "SOURCE")))

    def _read_schema(self, item: scan.Record) -> None:
        self._schema.read(schema.unpack(item.payload))

    def _loss(self, item: scan.Record) -> None:
        entries = body.unpack_objects(item.payload, "LOSS")
        self._before.extend(Loss.from_json(e) for e in entries)

    def _state(self, item: scan.Record) -> None:
        self._before.append(read_state(item.payload, self._schema))


def read_state(payload: bytes | memoryview, known: schema.Schema) -> Snapshot:
    """Read a STATE record.

    Args:
        payload: Its payload.
        known: The columns.

    Returns:
        The snapshot; a table in several parts as one.

    Raises:
        DamagedError: It is not well formed.
    """
    parts: dict[str, list[Batch]] = {}
    room = limits.STATE_BYTES
    for name, raw in payloads.unpack_state(payload):
        part = Chunk(raw, known, name)
        room -= part.size
        if room < 0:
            raise LimitError(f"a state of more than {limits.STATE_BYTES} bytes in memory")
        parts.setdefault(name, []).append(part.batch())
    return Snapshot({name: concat(found) for name, found in parts.items()})
