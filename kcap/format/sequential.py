"""One pass over the records of a capture, past damage (spec/kcap.md, clauses 2.7 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from kcap import limits
from kcap.errors import KcapError
from kcap.format import body, record, scan, schema, tail
from kcap.format.blobs import Manifest
from kcap.format.chunk import Chunk, Superseded
from kcap.format.record import Kind
from kcap.format.recovery import Recovery
from kcap.format.state_tables import read_state
from kcap.format.tail import Tails, Waiting
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, Side, SourceInfo

if TYPE_CHECKING:
    from kcap.format.reader import CaptureReader

_ROWLESS: Final = frozenset(Kind) - {Kind.CHUNK, Kind.SCHEMA, Kind.TAIL, Kind.SEGMENT}
"""Kinds whose damage costs no row."""


class Sequential:
    """Reads events and side records in file order.

    Rows of a TAIL are delivered once: of a stream at once, and then not again with the chunk that
    supersedes it; of a file only where no intact chunk does.
    """

    def __init__(self, reader: CaptureReader, start: int = 0, last: int = -1) -> None:
        """Prepare a pass.

        Args:
            reader: The capture.
            start: Offset of the first record; of one behind the start all columns must be known.
            last: Number of the record before it.
        """
        self._reader = reader
        self._schema = reader.schema
        self._scanner = reader.scanner(start, last)
        self._before: list[Side] = []
        self._end: str | None = "no FOOTER: the recording goes on, or ended without one"
        self._end_offset = 0
        self._tails = Tails()
        self._eager = not reader.window.seekable
        self._shown: list[tuple[int, int]] = []
        self._handlers: dict[int, Callable[[scan.Record], None]] = {
            Kind.SOURCE: self._source,
            Kind.SCHEMA: self._read_schema,
            Kind.LOSS: self._loss,
            Kind.BLOB_MANIFEST: self._blob,
            Kind.STATE: self._state,
            Kind.RECOVERY: self._recovery,
        }
        if reader.blobs.passing is not None:
            self._handlers[Kind.BLOB_MANIFEST] = self._manifest

    def batches(self) -> Iterator[Batch]:
        """See `CaptureReader.batches`."""
        for batch in self._all():
            before, self._before = self._before, []
            yield batch.with_before(before)

    def _all(self) -> Iterator[Batch]:
        """The batches, without the side records that wait for one."""
        for item in self._scanner.records():
            if isinstance(item, scan.Damage):
                yield from self._damage(item)
                continue
            header = item.header
            self._end_offset = item.offset + header.size
            if record.skipped(header, self._reader.file, item.offset):
                pass
            elif header.kind == Kind.CHUNK:
                yield from self._chunk(item)
            elif header.kind == Kind.TAIL:
                yield from self._tail(item)
            elif header.kind == Kind.FOOTER:
                self._end = None
                continue
            elif header.kind in self._handlers:
                self._try(item, self._handlers[header.kind])
            if self._end is None:
                self._end = "records follow the FOOTER"
        yield from self._live(self._tails.rest())
        self._reader.state = "torn" if self._scanner.torn else "open" if self._end else "closed"
        if self._end is not None:
            reason = f"{self._end}, at byte {self._end_offset}"
            self._before.append(Loss("torn", None, reason))
        if self._before:
            yield EMPTY

    def _damage(self, damage: scan.Damage) -> Iterator[Batch]:
        if damage.torn:
            self._end, self._end_offset = damage.reason, damage.offset
            return
        if damage.harmless:
            self._lose(0, damage)
            return
        rows = 0 if damage.kind in _ROWLESS else None
        counted = self._reader.chunk_rows(damage.offset, damage.end)
        if counted is not None and damage.kind != Kind.SCHEMA:
            rows = counted
        if damage.kind == Kind.CHUNK or counted:
            # What the lost chunk was to supersede is all that is left of it.
            self._lose(self._without_tails(rows), damage)
            yield from self._live(self._tails.rest())
        else:
            self._eager = False  # what is behind a lost TAIL would come before its rows
            self._lose(rows, damage)
        self._end_offset = damage.end

    def _lose(self, rows: int | None, damage: scan.Damage) -> None:
        text = f"{damage.reason} at byte {damage.offset} (record {damage.number})"
        self._before.append(Loss("damaged", rows, text))

    def _try(self, item: scan.Record, handler: Callable[[scan.Record], None]) -> None:
        """Read a record that is no chunk; one that makes no sense is damage."""
        try:
            handler(item)
        except KcapError as e:
            self._lose(0, _as_damage(item, e))

    def _blob(self, _: scan.Record) -> None:
        """A blob is read by itself; of a stream it has passed by then."""
        self._reader.blobs.passed += self._eager

    def _chunk(self, item: scan.Record) -> Iterator[Batch]:
        found: Chunk | None = None
        try:
            found = Chunk(item.payload, self._schema)
            batch = found.batch(self._reader.projection)
        except KcapError as e:
            rows = self._reader.chunk_rows(item.offset, item.offset + 1)
            rows = found.rows if rows is None and found is not None else rows
            self._lose(self._without_tails(rows), _as_damage(item, e))
            yield from self._live(self._tails.rest())
            return
        self._reader.work.note(batch)
        yield from self._live(self._tails.chunk(item.header.number, found.tails))
        known = self._take_shown(found.tails, batch.rows)
        if known < batch.rows:
            yield batch.slice(known, batch.rows)
        self._eager = not self._reader.window.seekable

    def _tail(self, item: scan.Record) -> Iterator[Batch]:
        try:
            waiting = Waiting(
                item.header.number,
                item.offset,
                item.header.size,
                tail.rows_in(item.payload),
                bytes(item.payload),
            )
            if self._eager:
                for batch in self._live([waiting]):
                    self._shown.append((waiting.number, waiting.rows))
                    yield batch
                if sum(rows for _, rows in self._shown) > limits.CHUNK_ROWS:
                    del self._shown[0]  # no chunk can hold so many rows
            else:
                yield from self._live(self._tails.add(waiting))
        except KcapError as e:
            self._eager = False
            self._lose(None, _as_damage(item, e))

    def _live(self, tails: list[Waiting]) -> Iterator[Batch]:
        """The rows of tails that no intact chunk supersedes."""
        for waiting in tails:
            try:
                batch = tail.decode(waiting.payload, self._schema)
            except KcapError as e:
                reason = f"{e} at byte {waiting.offset} (record {waiting.number})"
                self._before.append(Loss("damaged", waiting.rows, reason))
                self._eager = False
                continue
            columns = self._reader.projection
            yield batch if columns is None else batch.select(columns)

    def _without_tails(self, rows: int | None) -> int | None:
        """Rows of a lost chunk less those that tails have given, or will give."""
        shown, self._shown = self._shown, []
        if rows is None:
            return None
        # Tails in the FOOTER's table are in no chunk.
        listed = self._reader.chunk_rows
        waiting = [t for t in self._tails.peek() if not listed(t.offset, t.offset + 1)]
        return max(0, rows - sum(r for _, r in shown) - sum(t.rows for t in waiting))

    def _take_shown(self, named: Superseded, rows: int) -> int:
        """How many rows at a chunk's start were delivered as tails; they count no more."""
        shown, self._shown = self._shown, []
        known = sum(r for n, r in shown if named.records and n >= named.first)
        return min(rows, known)

    def _source(self, item: scan.Record) -> None:
        self._before.append(SourceInfo.from_json(body.unpack_object(item.payload, "SOURCE")))

    def _read_schema(self, item: scan.Record) -> None:
        self._schema.read(schema.unpack(item.payload))

    def _loss(self, item: scan.Record) -> None:
        entries = body.unpack_objects(item.payload, "LOSS")
        self._before.extend(Loss.from_json(e) for e in entries)

    def _recovery(self, item: scan.Record) -> None:
        loss = Recovery.unpack(item.payload).loss()
        if loss is not None:
            self._before.append(loss)

    def _manifest(self, item: scan.Record) -> None:
        assert self._reader.blobs.passing is not None
        self._reader.blobs.passing(Manifest.unpack(item.payload))

    def _state(self, item: scan.Record) -> None:
        self._before.append(read_state(item.payload, self._schema))


def _as_damage(item: scan.Record, error: KcapError) -> scan.Damage:
    """An intact record whose payload makes no sense, as damage."""
    end = item.offset + item.header.size
    return scan.Damage(item.offset, end, item.header.number, item.header.kind, str(error))
