"""Recovering a capture: every intact record bit for bit, the rest accounted for (clause 2.7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, Final

import kcap
from kcap import limits
from kcap.errors import KcapError, NotACaptureError, OutputError, TruncatedError, VersionError
from kcap.format import body, headerless, payloads, peek, scan
from kcap.format.appender import Appender
from kcap.format.chunk import Superseded, directory_length
from kcap.format.original import Original
from kcap.format.payloads import END_BYTES, FileHeader, Footer
from kcap.format.rebuild import Rebuilt
from kcap.format.record import HEADER_BYTES, VERSION, Kind, padded
from kcap.format.recovery import RANGES, Missing
from kcap.format.regions import UNKNOWN, Facts, Region, Report, lost_together
from kcap.format.window import FileWindow, StreamWindow, Window

_REGIONS: Final = 1000
"""Places of damage that a report describes one by one."""

_AHEAD: Final = 1024
"""Records behind a damage that are looked at for what was lost."""

_HEADERS: Final = ("rebuilt", "one copy", "intact")


def recover(stream: BinaryIO, output: BinaryIO, *, file: str = "-", target: str = "-") -> Report:
    """Copy what is intact of a capture, and make anew what can be made.

    Args:
        stream: The capture; a pipe will do.
        output: Where the recovered capture goes; it is never sought.
        file: The input's name, for errors.
        target: The output's name, for errors.

    Returns:
        What was found and what was lost.

    Raises:
        NotACaptureError: Nothing in the input tells that it is a capture, and which.
        VersionError: It needs a newer kcap.
        OutputError: The output can't be written.
    """
    window = FileWindow(stream) if stream.seekable() else StreamWindow(stream)
    try:
        header, payload, found = _header(window, file)
        header.check()
        out = Appender(output, header.file_id, file=target)
        report = _Pass(window, Rebuilt(out, header, payload), found).run()
        out.flush()
    except KcapError as e:
        e.file = e.file or file
        raise
    return report


def _header(window: Window, file: str) -> tuple[FileHeader, bytes, str]:
    """The FILE_HEADER, its payload, and whether it was found or made anew."""
    try:
        return *scan.find_file_header(window, file), "intact"
    except (NotACaptureError, TruncatedError) as error:
        file_id = headerless.find_id(window)
        if file_id is None:
            if error.hint:
                error.what += ", and no FOOTER or CHECKPOINT that tells the capture's id"
                error.hint = "without the id, records can't be told from what they hold"
            raise
    meta = {"canonical": False, "kcap": kcap.__version__, "rebuilt": True, "requires": []}
    header = FileHeader(file_id, 0, meta)
    return header, header.pack(), "rebuilt"


class _Pass:
    """One pass over the input."""

    def __init__(self, window: Window, rebuilt: Rebuilt, found: str) -> None:
        self._window = window
        self._rebuilt = rebuilt
        self._out = rebuilt.out
        self._header_found = found
        self._file_id = rebuilt.header.file_id
        self._original = Original.of(window, self._file_id)
        self._scanner = self._scan()
        self._missing = Missing()
        self._region: Region | None = None
        self._open: list[Region] = []
        """Regions that wait for the next chunk, which tells more of them."""
        self._rescued = 0
        """Rows in TAILs that wait which were already told to be rescued."""
        self._seen = -1
        """Number of the last chunk that is known to be lost."""
        self._regions: list[Region] = []
        self._rest: Counter[str] = Counter()
        self._rest_rows: int | None = 0
        self._damaged = 0
        self._made = found == "rebuilt"
        """Records were made anew; they may or may not be what was written."""
        self._changed = False
        """Something is not as it was written, for certain."""
        self._footer: scan.Record | None = None
        self._behind: list[scan.Damage] = []
        self._kept: Counter[str] = Counter()
        self._read = 0

    def run(self) -> Report:
        """Go through the input to its end."""
        for item in self._scanner.records():
            if isinstance(item, scan.Damage):
                self._read = max(self._read, item.end)
                if self._footer is None:
                    self._damage(item)
                else:
                    self._behind.append(item)
            else:
                self._read = item.offset + item.header.size
                self._take(item)
        copied = self._end_at(self._footer) if self._footer is not None else self._end()
        self._settle_all()
        return Report(
            state="torn" if self._scanner.torn else "open" if self._footer is None else "closed",
            regions=tuple(self._regions),
            damaged=self._damaged,
            rest=(dict(self._rest), self._rest_rows),
            kept=self._kept,
            rows=self._rebuilt.rows,
            header=self._header_found,
            identical=copied and not self._damaged,
            restored=copied and self._damaged > 0,
            bytes_read=self._read,
            bytes_written=self._out.offset,
            file_hash=self._out.file_hash,
            known=tuple(self._rebuilt.known),
            lacking_blobs=tuple(self._rebuilt.blobs.lacking),
            unnamed_blocks=self._rebuilt.blobs.unnamed,
        )

    def _scan(self, start: int = 0, last: int = -1) -> scan.Scanner:
        solid = self._original.solid
        return scan.Scanner(self._window, self._file_id, solid=solid, start=start, last=last)

    # What comes from the input

    def _take(self, item: scan.Record) -> None:
        """An intact record."""
        if self._footer is not None:
            self._not_the_end(self._footer)
        header = item.header
        if header.kind == Kind.FOOTER:
            self._footer = item
            return
        if header.kind == Kind.FILE_HEADER and header.number < 2:  # noqa: PLR2004
            if bytes(item.payload) == self._rebuilt.payload:
                self._kept[header.name] += 1
            else:
                self._drop(item, "the two FILE_HEADER records differ")
            return
        try:
            if header.kind == Kind.CHECKPOINT and not self._still_holds(item):
                return
            self._close(item)
            self._rebuilt.copy(item)
        except (VersionError, OutputError):
            raise
        except KcapError as e:
            self._drop(item, str(e))
            return
        self._kept[header.name] += 1
        if header.version != VERSION:
            return
        if header.kind == Kind.RECOVERY:
            known = self._rebuilt.known[-1]
            self._missing.add(known.missing, header.number)
            self._seen = max(self._seen, (known.lost.get("chunks") or (0, -1))[1])
        elif header.kind == Kind.CHUNK:
            for region in self._open:
                region.before = self._rebuilt.last
            self._settle(self._rebuilt.chunk)
            self._rescued = 0

    def _still_holds(self, point: scan.Record) -> bool:
        """Whether a CHECKPOINT may stay; what replaces it is decided with the next record."""
        if not self._changed:
            self._close(point)
            if self._rebuilt.holds(point):
                return True
        if not self._changed and not self._made:
            what = "the hash chain does not lead to the CHECKPOINT: records were changed"
            self._drop(point, what)
            return False
        number, end = point.header.number, point.offset + point.header.size
        region = self._region_at(number)
        region.last = max(region.last, number)
        region.kinds[number] = Kind.CHECKPOINT
        region.dropped.add(number)
        region.places.append((point.offset, end))
        self._changed = True
        return False

    def _damage(self, damage: scan.Damage) -> None:
        region = self._region_at(damage.number)
        region.add(damage.reason, damage.number, (damage.offset, damage.end))
        region.torn = region.torn or damage.torn
        if damage.harmless:
            return
        if damage.kind is not None:
            region.kinds[damage.number] = damage.kind
        if damage.kind == Kind.CHUNK:
            start = damage.offset + HEADER_BYTES
            head = self._window.read_at(start, 4)
            if len(head) == 4:  # noqa: PLR2004
                _note_chunk(region, self._window.read_at(start, directory_length(head)))

    def _drop(self, item: scan.Record, reason: str) -> None:
        """An intact record that makes no sense."""
        number, end = item.header.number, item.offset + item.header.size
        region = self._region_at(number)
        region.add(reason, number, (item.offset, end))
        region.kinds[number] = item.header.kind
        if item.header.kind == Kind.CHUNK:
            _note_chunk(region, item.payload)
        self._changed = True

    def _not_the_end(self, footer: scan.Record) -> None:
        """A FOOTER that records follow."""
        self._footer = None
        self._close(footer)
        self._drop(footer, "records follow the FOOTER")
        for damage in self._behind:
            self._damage(damage)
        self._behind = []

    def _region_at(self, number: int) -> Region:
        if self._region is None:
            self._region = Region(number, number, after=self._rebuilt.last)
        return self._region

    # What goes into its place

    def _close(self, item: scan.Record | None, last: int = -1) -> None:
        """Fill the record numbers up to the next record, or up to the last one at the end."""
        region, self._region = self._region, None
        if region is None:
            return
        last = last if item is None else item.header.number - 1
        region.missing = self._missing.unexplained(self._out.number, last)[:RANGES]
        if item is not None and item.header.kind == Kind.CHUNK_INDEX and region.lacks(last):
            region.kinds.setdefault(last, Kind.CHUNK)
        made: dict[int, tuple[Kind, bytes]] = {}
        due = self._rebuilt.due
        if due and region.is_free(due.number, Kind.CHUNK_INDEX):
            made[region.taken(due.number)] = Kind.CHUNK_INDEX, due.payload()
        self._measure(region, item)
        self._describe(region, item, made)
        if region.first < 2:  # noqa: PLR2004
            region.rebuilt.append(Kind.FILE_HEADER)
            self._header_found = min(self._header_found, "one copy", key=_HEADERS.index)
        region.rebuilt += [kind for kind, _ in made.values()]
        if region.missing:
            first = region.missing[0][0]
            made[first] = Kind.RECOVERY, region.recovery().pack()
            self._missing.add(region.missing, first)
            self._changed = True
        self._made = self._made or bool(made)
        for number in sorted(made):
            self._rebuilt.make(*made[number], number)
        self._add(region)

    def _describe(
        self, region: Region, item: scan.Record | None, made: dict[int, tuple[Kind, bytes]]
    ) -> None:
        """Make SCHEMA and SOURCE records anew from what the FOOTER says."""
        needed, certain = self._columns(item) if region.missing else ([], False)
        number = region.free(Kind.SCHEMA, guess=bool(needed)) if needed else None
        if number is not None:
            if region.kinds.get(number) != Kind.SCHEMA:
                region.kinds[number] = Kind.SCHEMA
                # The SCHEMA may have stood in the next gap; without it the rows are lost for sure.
                region.guessed += not certain and not region.records().get(UNKNOWN)
            made[region.taken(number)] = Kind.SCHEMA, body.pack(needed, limits.SCHEMA_BYTES)
        for name, entry in sorted(self._original.sources.items()):
            number = region.free(Kind.SOURCE, guess=self._rebuilt.last is None)
            if name not in self._rebuilt.sources and number is not None:
                region.kinds[number] = Kind.SOURCE
                made[region.taken(number)] = Kind.SOURCE, body.pack(entry)

    def _columns(self, item: scan.Record | None) -> tuple[list[dict[str, Any]], bool]:
        """Descriptions that records ahead need, and whether one before the next damage does."""
        known: set[object] = {spec.id for spec in self._rebuilt.schema.specs()}
        columns = self._original.columns
        certain = needed = damaged = False
        for found in self._ahead(item) if columns else ():
            if isinstance(found, scan.Damage):
                damaged = True
            elif found.header.kind == Kind.SCHEMA:
                known |= {c["id"] for c in peek.described(found) if isinstance(c.get("id"), int)}
            elif found.header.kind == Kind.TAIL:
                needed = needed or bool(peek.tail_columns(found) - known)
                certain = certain or (needed and not damaged)
            elif found.header.kind in (Kind.CHUNK, Kind.STATE):
                count = peek.columns_before(found)
                columns = [c for c in columns if c["id"] < count and c["id"] not in known]
                return columns, certain or (bool(columns) and not damaged)
        return [c for c in columns if needed and c["id"] not in known], certain

    def _ahead(self, item: scan.Record | None) -> Iterator[scan.Record | scan.Damage]:
        """The records from one on, of a stream that one alone."""
        if item is None:
            return
        yield item
        if isinstance(self._window, FileWindow):
            following = self._scan(item.offset, item.header.number - 1).records()
            yield from islice(following, 1, _AHEAD)

    def _add(self, region: Region) -> None:
        """Keep a region for the report; of very many only what was lost in them."""
        self._damaged += region.is_damage
        if not region.is_damage and not region.is_loss:
            return
        if len(self._regions) < _REGIONS:
            self._regions.append(region)
            return
        records, rows = lost_together([region])
        self._rest.update(records)
        unknown = rows is None or self._rest_rows is None
        self._rest_rows = None if unknown else (self._rest_rows or 0) + (rows or 0)

    # What was lost

    def _measure(self, region: Region, item: scan.Record | None) -> None:
        """Find out which chunks were lost in a region, and what was in them."""
        region.floor = max(self._seen, self._rebuilt.chunk) + 1
        named = Superseded()
        region.told = self._original.records(region.places)
        region.tails = self._original.live_tails(region.places)
        following = None
        for found in self._ahead(item):
            if isinstance(found, scan.Damage):
                break
            if found.header.kind == Kind.CHUNK_INDEX and following is None:
                index = peek.index(found)
                if index is not None and index.number >= region.floor:
                    region.chunks[index.number] = Facts(index.rows, index.ts, index.ord)
                    following, region.indexes = index.number + 1, 1
            elif found.header.kind == Kind.CHUNK:
                directory = peek.directory(found.payload)
                if directory is not None:
                    region.before, named = directory.facts, directory.tails
                    following = directory.number if following is None else following
                break
        region.waiting = self._rebuilt.live_rows(named)
        if following is None and item is None:
            following = self._original.end
        if following is None and region.places:
            following = self._original.next_chunk(region.places[-1][1])
        lost = region.records().get(Kind.CHUNK.name, 0)
        if region.all_known and not lost:
            region.chunks, region.complete = {}, True
        elif following is not None:
            self._lost_until(region, following)
        elif region.all_known:
            self._lost_until(region, max([region.floor + lost - 1, *region.chunks]) + 1)
        else:
            self._open.append(region)

    def _lost_until(self, region: Region, following: int) -> None:
        """All chunks behind the last one and before another were lost.

        Where that may have been in one of several places, it is told at the last of them.
        """
        first = max(region.floor, self._seen + 1)
        numbers = range(first, min(following, first + limits.CHUNKS))
        facts = self._original.facts
        region.chunks = {n: region.chunks.get(n) or facts(n) for n in numbers}
        region.complete = True
        self._seen = max([self._seen, *region.chunks])
        if region.chunks:
            region.rescued = max(0, region.waiting - self._rescued)
            self._rescued += region.rescued

    def _settle(self, following: int) -> None:
        """A chunk, or the end, tells what was lost before it, where that was not known yet."""
        for region in reversed(self._open):
            self._lost_until(region, following)
        self._open = []

    def _settle_all(self) -> None:
        """What a stream's FOOTER tells comes at the end, for the report."""
        late = self._original
        if self._footer is not None and not late.closed:
            late = Original.told(self._footer)
        if late.end is not None:
            self._settle(late.end)
        for region in self._regions:
            for number in [n for n, facts in region.chunks.items() if facts is None]:
                region.chunks[number] = late.facts(number)

    # The end

    def _end_at(self, footer: scan.Record) -> bool:
        """The input has a FOOTER as its last record; whether it could be copied."""
        self._close(footer)
        number = footer.header.number
        try:
            found = Footer.unpack(footer.payload)
            if self._rebuilt.agrees(found, footer):
                self._out.copy(footer.raw)
                self._kept[footer.header.name] += 1
                self._trailing()
                return True
            what = "the FOOTER does not say what the records hold"
            if found.chain != self._out.chain:
                what = "the hash chain does not lead to the FOOTER: records were changed"
        except KcapError as e:
            what = str(e)
        if not self._changed and not self._made:
            # That something is wrong stays in the capture: the new FOOTER will fit it.
            self._drop(footer, what)
            self._close(None, number)
        self._write_footer(max(number, self._out.number))
        self._trailing()
        return False

    def _trailing(self) -> None:
        """Bytes behind the FOOTER."""
        for damage in self._behind:
            region = self._region_at(damage.number)
            region.add("bytes follow the FOOTER", damage.number, (damage.offset, damage.end))
        if self._region is not None:
            self._region.complete = True
            self._add(self._region)

    def _end(self) -> bool:
        """The input has no FOOTER behind the last record."""
        region, due = self._region, self._rebuilt.due
        if region is None:
            if due is not None:
                self._rebuilt.make(Kind.CHUNK_INDEX, due.payload(), due.number)
            self._write_footer(self._out.number)
            return False
        last = max(region.last, self._out.number)
        if self._is_footer(region):
            region.kinds[last] = Kind.FOOTER
            region.rebuilt.append(Kind.FOOTER)
            self._close(None, last - 1)
            self._write_footer(last)
            return False
        if due is not None and region.kinds.get(due.number) is None and last == due.number:
            size = HEADER_BYTES + padded(len(due.payload()))
            last += sum(b - a for a, b in region.places) > size
        self._close(None, last)
        self._write_footer(max(last + 1, self._out.number))
        return False

    def _is_footer(self, region: Region) -> bool:
        """Whether the last damaged record is known to be the FOOTER."""
        if region.kinds.get(region.last) == Kind.FOOTER:
            return True
        if not isinstance(self._window, FileWindow) or not region.places:
            return False
        end = self._window.read_at(max(0, self._window.size - END_BYTES), END_BYTES)
        place = payloads.footer_place(end)
        return place is not None and place[0] == region.places[-1][0]

    def _write_footer(self, number: int) -> None:
        footer = self._rebuilt.footer()
        self._out.number = number
        self._out.append(Kind.FOOTER, footer.pack(self._out.offset))


def _note_chunk(region: Region, payload: bytes | memoryview) -> None:
    """What the directory of a damaged chunk says, where it is intact."""
    found = peek.directory(payload)
    if found is not None:
        region.chunks[found.number] = found.facts
