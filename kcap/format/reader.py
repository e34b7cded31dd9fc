"""Reading captures: closed, open and torn files, and streams (spec/kcap.md)."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, ClassVar

from kcap import limits
from kcap.errors import DamagedError, KcapError, LimitError
from kcap.format import payloads, record, scan, schema, tail
from kcap.format.blob_reader import BlobReader
from kcap.format.blobs import Manifest
from kcap.format.chunk import Chunk
from kcap.format.chunk_index import ChunkIndex
from kcap.format.chunk_view import ChunkView
from kcap.format.index import Index, indexed
from kcap.format.record import HEADER_BYTES, MAGIC, Kind
from kcap.format.sequential import Sequential
from kcap.format.window import FileWindow, StreamWindow
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, SourceInfo
from kcap.model.stream import StreamInfo


@dataclass
class Work:
    """What reading cost so far."""

    chunks: int = 0
    """Chunks and tails of which something was decoded."""
    frames: int = 0
    """Columns decoded."""

    def note_frame(self) -> None:
        """Count a column that was decoded."""
        self.frames += 1

    def note(self, batch: Batch) -> None:
        """Count a chunk that was decoded.

        Args:
            batch: What was decoded of it.
        """
        self.chunks += 1
        self.frames += len(batch.columns)


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
        self.projection: tuple[str, ...] | None = None
        """The columns that `batches` decodes; all where None. Losses and snapshots come anyway."""
        self.work = Work()
        self._index: Index | None = None
        self.blobs = BlobReader(self)
        """Artifacts; see also `manifests` and `blob`."""
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

    def batches(self, offset: int = 0) -> Iterator[Batch]:
        """The events in file order.

        Args:
            offset: Where to begin: a record of a file, to which no TAIL before it belongs. What
                is said of sources and losses before it is not repeated.

        Yields:
            A batch a chunk; a last empty one where side records follow the last event.

        Raises:
            DamagedError: There is no record at that place.
        """
        if not offset:
            return Sequential(self).batches()
        self.index()  # of an open file it tells the columns
        header = record.unpack(self.window.read_at(offset, HEADER_BYTES), self.header.file_id)
        if header is None:
            raise DamagedError("there is no record", file=self.file, offset=offset)
        return Sequential(self, offset, header.number - 1).batches()

    def index(self) -> Index | None:
        """Where the rows are: from the FOOTER, or of an open file from its CHECKPOINTs and end.

        Returns:
            The index; None for a stream.

        Raises:
            VersionError: An open capture needs a newer kcap.
        """
        if self._index is None and isinstance(self.window, FileWindow):
            with _naming(self.file):
                self._index = indexed(self)
        return self._index

    def scanner(
        self,
        start: int = 0,
        last: int = -1,
        end: int | None = None,
        kinds: Collection[int] | None = None,
    ) -> scan.Scanner:
        """A pass over the records.

        Args:
            start: Offset of the first one.
            last: Number of the record before it.
            end: Where to stop; None at the end of the input.
            kinds: Whose payloads are wanted, all where None; see `scan.Scanner`.

        Returns:
            The scanner.
        """
        solid = scan.solid_ranges(self.footer) if self.footer else None
        return scan.Scanner(
            self.window,
            self.header.file_id,
            solid=solid,
            checks=self._checks,
            start=start,
            last=last,
            end=end,
            kinds=kinds,
        )

    def manifests(self) -> Iterator[Manifest]:
        """The blobs of the capture; what is damaged of them is in ``blobs.losses``.

        Yields:
            The manifest of each one, in file order; of a stream as they come, in place of events.
        """
        return self.blobs.manifests()

    def blob(self, manifest: Manifest, *, lenient: bool = False) -> Iterator[bytes]:
        """The content of a blob of a file.

        Args:
            manifest: Which one.
            lenient: Give zeros for what is damaged, and add it to ``blobs.losses``.

        Yields:
            Its bytes, at most 1 MiB at a time, each block compared with its hash. Zeros stand for
            holes, and for what the manifest says is missing.

        Raises:
            DamagedError: A block is damaged or gone.
            KcapError: The capture is a stream: ``blobs.records()`` gives what passes by.
        """
        return self.blobs.read(manifest, lenient=lenient)

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
        """The rows of one chunk, or live tail, of a file; reads only the frames wanted.

        Args:
            number: Position in the index's table.
            columns: The columns wanted, all where None.

        Returns:
            Its rows.

        Raises:
            DamagedError: The chunk is damaged.
        """
        index = self.index()
        if index is None:
            raise KcapError(
                "a stream has no table of chunks",
                file=self.file,
                hint="read it from the start with batches()",
            )
        entry = index.table[number]
        offset, length = int(entry["offset"]), int(entry["length"])
        with _naming(self.file, offset=offset, chunk=int(entry["number"])):
            if not entry["index"] and self._kind_at(offset) == Kind.TAIL:
                batch = self._tail_at(offset, length, columns)
            elif columns is None:
                batch = self._whole_chunk(offset, length)
            else:
                batch = self._part_of_chunk(offset, columns)
        self.work.note(batch)
        return batch

    def view(self, number: int) -> ChunkView | Batch:
        """The rows of one chunk, or live tail, of a file; frames are read when asked for.

        Args:
            number: Position in the index's table.

        Returns:
            What gives its columns.

        Raises:
            DamagedError: The chunk's directory is damaged; asking for a column may raise it, too.
        """
        index = self.index()
        assert index is not None
        entry = index.table[number]
        offset = int(entry["offset"])
        naming = partial(_naming, self.file, offset=offset, chunk=int(entry["number"]))
        with naming():
            if not entry["index"] and self._kind_at(offset) == Kind.TAIL:
                return self.chunk(number)
        self.work.chunks += 1
        return ChunkView(
            self.window, offset, self.header.file_id, self.schema, naming, self.work.note_frame
        )

    def chunk_index(self, number: int) -> ChunkIndex | None:
        """What a chunk holds, without reading it.

        Args:
            number: Position in the index's table.

        Returns:
            Its CHUNK_INDEX; None where it has none, or a damaged one: then anything may be in it.
        """
        index = self.index()
        offset = 0 if index is None else int(index.table[number]["index"])
        if not offset:
            return None
        try:
            return ChunkIndex.unpack(self.payload_at(offset, Kind.CHUNK_INDEX))
        except KcapError:
            return None  # kcap verify reports it; without it the chunk itself is read

    def last_ts_at(self, offset: int, length: int) -> int | None:
        """The time of the last row that has one, in a chunk or tail.

        Args:
            offset: Of its record.
            length: Of its record.

        Returns:
            The time; None where no row has one, or the record is damaged.
        """
        try:
            if self._kind_at(offset) == Kind.TAIL:
                times = self._tail_at(offset, length, ("ts",)).get("ts")
            else:
                times = self._part_of_chunk(offset, ("ts",)).get("ts")
        except KcapError:
            return None
        return None if times is None else times.values[-1].as_py()

    def _kind_at(self, offset: int) -> int | None:
        header = record.unpack(self.window.read_at(offset, HEADER_BYTES), self.header.file_id)
        return None if header is None else header.kind

    def payload_at(self, offset: int, kind: Kind, most: int = limits.RECORD_PAYLOAD_BYTES) -> bytes:
        """The payload of a record at a place that is known.

        Args:
            offset: The place.
            kind: What the record must be.
            most: Its longest payload.

        Returns:
            The payload.

        Raises:
            DamagedError: There is no such record, or it is damaged.
            LimitError: It is longer.
        """
        header = record.unpack(self.window.read_at(offset, HEADER_BYTES), self.header.file_id)
        if header is None or header.kind != kind:
            raise DamagedError(f"there is no {kind.name} record")
        if header.length > most:
            raise LimitError(f"a {kind.name} of {header.length} bytes", expected=f"at most {most}")
        payload = self.window.read_at(offset + HEADER_BYTES, header.length)
        if len(payload) != header.length or (
            self._checks and zlib.crc32(payload) != header.payload_crc
        ):
            raise DamagedError(f"the {kind.name} record fails its CRC")
        return payload

    def _tail_at(self, offset: int, length: int, columns: Iterable[str] | None) -> Batch:
        payload = self.payload_at(offset, Kind.TAIL)
        if HEADER_BYTES + record.padded(len(payload)) != length:
            raise DamagedError("the TAIL record is not as long as the index says")
        batch = tail.decode(payload, self.schema)
        return batch if columns is None else batch.select(columns)

    def _whole_chunk(self, offset: int, length: int) -> Batch:
        raw = self.window.read_at(offset, length)
        header = record.unpack(raw, self.header.file_id)
        payload = memoryview(raw)[HEADER_BYTES:]
        if header is None or header.kind != Kind.CHUNK or header.size != length:
            raise DamagedError("the CHUNK record's header is damaged")
        # The frames are checked one by one; what else the payload CRC covers is the directory.
        return Chunk(payload[: header.length], self.schema).batch()

    def _part_of_chunk(self, offset: int, columns: Iterable[str]) -> Batch:
        view = ChunkView(self.window, offset, self.header.file_id, self.schema)
        made = {name: column for name in columns if (column := view.get(name)) is not None}
        return Batch(view.rows, made)

    def rescued(
        self, number: int, columns: Iterable[str] | None = None
    ) -> Iterator[tuple[Batch, Loss | None]]:
        """The rows of a chunk; of a damaged one what the tails before it hold.

        Args:
            number: Position in the index's table.
            columns: The columns wanted, all where None.

        Yields:
            Rows, or an empty batch and what was lost.
        """
        columns = None if columns is None else tuple(columns)
        try:
            batch = self.chunk(number, columns)
        except KcapError as e:
            reason = _reason(e)
        else:
            yield batch, None
            return
        index = self.index()
        assert index is not None
        rows = int(index.table[number]["rows"])
        for batch in self._tails_before(index, number):
            rows -= batch.rows
            yield batch if columns is None else batch.select(columns), None
        yield EMPTY, Loss("damaged", max(0, rows), reason)

    def _tails_before(self, index: Index, number: int) -> Iterator[Batch]:
        """The tails that a damaged chunk was to supersede."""
        entry = index.table[number]
        if entry["number"] == payloads.NO_CHUNK:
            return
        before = index.table[number - 1] if number else None
        start = 0 if before is None else int(before["offset"] + before["length"])
        for item in self.scanner(start, end=int(entry["offset"])).records():
            if not isinstance(item, scan.Record) or item.header.kind != Kind.TAIL:
                continue
            try:
                batch = tail.decode(item.payload, self.schema)
            except KcapError:
                continue  # its rows are among those that the chunk has lost
            self.work.note(batch)
            yield batch

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


class _naming(AbstractContextManager[None]):  # noqa: N801
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
