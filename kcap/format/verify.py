"""Checking a capture: every byte, every record, and that the parts agree (clause 11)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kcap.errors import KcapError
from kcap.format import body, payloads, record, scan, schema
from kcap.format.chunk import Chunk
from kcap.format.reader import CaptureReader, read_state
from kcap.format.record import ANCILLARY, NEEDED, Kind
from kcap.format.totals import Totals
from kcap.model.side import Loss, SourceInfo


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
    """Rows in intact chunks."""
    bytes: int
    """Bytes read."""

    @property
    def good(self) -> bool:
        """Nothing is wrong, and the capture is closed."""
        return not self.findings and self.state == "closed"


def verify(reader: CaptureReader) -> Report:
    """Check a capture from its first byte to its last.

    Args:
        reader: The capture, freshly opened.

    Returns:
        What was found; the chain is compared where every record before the FOOTER is intact.
    """
    return _Check(reader).run()


class _Check:
    def __init__(self, reader: CaptureReader) -> None:
        self._reader = reader
        self._chain = record.Chain(reader.header.file_id)
        self._schema = schema.Schema()
        self._totals = Totals()
        self._found: list[tuple[int, int, str | None, str]] = []
        self._records: Counter[str] = Counter()
        self._index: payloads.ChunkIndex | None = None
        self._chunks = 0
        self._rows = 0
        self._broken = False

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
            self._record(item)
        state = "torn" if scanner.torn else "closed" if closed else "open"
        if state == "open":
            self._found.append((end, self._records.total(), None, "the capture has no FOOTER"))
        findings = tuple(Finding(i, *f) for i, f in enumerate(self._found, 1))
        return Report(findings, state, self._records.total(), self._chunks, self._rows, end)

    def _damage(self, item: scan.Damage) -> None:
        kind = None if item.kind is None else record.kind_name(item.kind)
        self._found.append((item.offset, item.number, kind, item.reason))

    def _add(self, item: scan.Record, what: str) -> None:
        header = item.header
        self._found.append((item.offset, header.number, header.name, what))

    def _record(self, item: scan.Record) -> None:
        header = item.header
        known = header.kind in frozenset(Kind)
        if header.version != record.VERSION:
            self._add(item, f"version {header.version}, which this kcap does not know")
        flags = 0 if header.kind in NEEDED else ANCILLARY
        if (known and header.flags != flags) or header.flags & ~ANCILLARY:
            self._add(item, f"flags {header.flags}, which this kind does not have")
        if header.kind == Kind.FOOTER:
            self._footer(item)
            return
        self._chain.add(item.raw)
        self._records[header.name] += 1
        try:
            for what in self._content(item):
                self._add(item, what)
        except KcapError as e:
            self._add(item, str(e))

    def _content(self, item: scan.Record) -> Iterator[str]:
        """What is wrong with an intact record's payload."""
        kind, payload = item.header.kind, item.payload
        if kind == Kind.FILE_HEADER:
            if payloads.FileHeader.unpack(payload) != self._reader.header:
                yield "the two FILE_HEADER records differ"
        elif kind == Kind.SCHEMA:
            self._schema.read(schema.unpack(payload))
        elif kind == Kind.SOURCE:
            entry = body.unpack_object(payload, "SOURCE")
            self._totals.sources[SourceInfo.from_json(entry).id] = entry
        elif kind in (Kind.NOTE, Kind.RECOVERY):
            body.unpack_object(payload, item.header.name)
        elif kind == Kind.LOSS:
            entries = body.unpack_objects(payload, "LOSS")
            self._totals.lose(Loss.from_json(e) for e in entries)
        elif kind == Kind.STATE:
            self._totals.states.append([item.offset, item.header.size])
            read_state(payload, self._schema)
        elif kind == Kind.CHUNK:
            yield from self._chunk(item)
        elif kind == Kind.CHUNK_INDEX and payloads.ChunkIndex.unpack(bytes(payload)) != self._index:
            yield "the CHUNK_INDEX does not say what its chunk holds"

    def _chunk(self, item: scan.Record) -> Iterator[str]:
        self._index = None
        found = Chunk(item.payload, self._schema)
        batch = found.batch()
        self._chunks += 1
        self._rows += batch.rows
        self._index = self._totals.add(batch)
        if not self._broken and found.number != self._index.number:
            yield f"chunk {found.number} stands in place {self._index.number}"
        self._index = _renumbered(self._index, found.number)
        says = tuple(int(found.head[n]) for n in ("ts_min", "ts_max", "ord_min", "ord_max"))
        if says != (*self._index.ts, *self._index.ord):
            yield "the chunk's times or ords are not those of its rows"
        self._totals.place(
            item.offset, item.header.size, item.offset + item.header.size, self._index
        )

    def _footer(self, item: scan.Record) -> None:
        try:
            footer = payloads.Footer.unpack(item.payload)
        except KcapError as e:
            self._add(item, str(e))
            return
        if payloads.footer_place(bytes(item.payload[-payloads.TAIL_BYTES :])) != (
            item.offset,
            item.header.length,
        ):
            self._add(item, "the FOOTER's last bytes do not say where it is")
        if self._broken:
            return  # what the footer says can't agree with a damaged file
        if footer.file_id != self._reader.header.file_id:
            self._add(item, "the FOOTER is of another file")
        if footer.chain != self._chain.value:
            self._add(item, "the hash chain does not lead to the FOOTER: records were changed")
        if not np.array_equal(footer.chunks, self._totals.table()):
            self._add(item, "the FOOTER's chunk table does not fit the chunks")
        if footer.totals.get("records") != dict(self._records):
            self._add(item, "the FOOTER's record counts do not fit the records")
        counted = self._totals.to_json(self._schema)
        for name in sorted(counted.keys() - {"records"}):
            if footer.totals.get(name) != counted[name]:
                self._add(item, f"the FOOTER's {name} is not what the records say")


def _renumbered(index: payloads.ChunkIndex, number: int) -> payloads.ChunkIndex:
    """The index under the number that its chunk has, which differs behind damage."""
    return replace(index, number=number)
