"""Going through the records of a capture, past damage (spec/kcap.md, clauses 1.3 and 2.7)."""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from kcap import limits
from kcap.errors import DamagedError, KcapError, NotACaptureError, TruncatedError
from kcap.format import record
from kcap.format.payloads import FILE_ID_BYTES, FileHeader, Footer, footer_place
from kcap.format.record import HEADER_BYTES, MAGIC, Header, Kind
from kcap.format.recovery import Missing, Recovery
from kcap.format.window import FileWindow, Window

VALUES_START: Final = 512
"""Captured values begin behind this offset: a FILE_HEADER up to it is the capture's own."""

_SEARCH_HEADER: Final = VALUES_START + (1 << 20)
_STEP: Final = 1 << 20
TRIED_BYTES: Final = 256 << 20
"""Bytes of records that a search may look at in vain, besides the length of the input: so many
false headers can't make it slow."""


class Record(NamedTuple):
    """An intact record."""

    offset: int
    header: Header
    payload: memoryview
    raw: memoryview
    """All of its bytes."""


class Damage(NamedTuple):
    """Bytes that hold no intact record."""

    offset: int
    end: int
    number: int
    """The number of the record that should be here."""
    kind: int | None
    """Its kind, where the header holds."""
    reason: str
    torn: bool = False
    """The input ends here before the record does."""
    harmless: bool = False
    """The payload is intact all the same, and comes next."""


def read_file_header(window: Window, file: str) -> FileHeader:
    """Find the first intact FILE_HEADER.

    Args:
        window: The capture.
        file: Its name, for errors.

    Returns:
        The header, not yet checked for its version.

    Raises:
        NotACaptureError: There is none.
        TruncatedError: The input ends before the first one does.
    """
    return find_file_header(window, file)[0]


def find_file_header(window: Window, file: str) -> tuple[FileHeader, bytes]:
    """As `read_file_header`, with the bytes that it was read from.

    Args:
        window: The capture.
        file: Its name, for errors.

    Returns:
        The header and the payload of its record.

    Raises:
        NotACaptureError: There is none.
        TruncatedError: The input ends before the first one does.
    """
    # A live stream may hold no more than this record yet, so no more is asked for at first.
    head = window.read_at(0, HEADER_BYTES)
    head = window.read_at(0, min(_announced(head), _SEARCH_HEADER)) if head else head
    found = _file_header_at(head, 0)
    if found is not None:
        return found
    head = window.read_at(0, _SEARCH_HEADER)
    for at in candidates(head[: VALUES_START + HEADER_BYTES], 0):
        found = _file_header_at(head, at)
        if found is not None:
            return found
    if not head:
        raise NotACaptureError("the file is empty", file=file, expected="a capture")
    if head[:4] == MAGIC[: len(head)] and _announced(head) > len(head):
        what = "the file ends before its FILE_HEADER does"
        raise TruncatedError(what, file=file, offset=len(head), record=0)
    hint = "kcap recover may find its events" if MAGIC in head else None
    what = "no intact FILE_HEADER"
    raise NotACaptureError(what, file=file, offset=0, expected="a kcap capture", hint=hint)


def _announced(head: bytes) -> int:
    """Bytes that the record at the start announces."""
    return record.unchecked(head).size if len(head) >= HEADER_BYTES else HEADER_BYTES


def _file_header_at(head: bytes, at: int) -> tuple[FileHeader, bytes] | None:
    """The FILE_HEADER at a place, if it is intact."""
    start = at + HEADER_BYTES
    file_id = head[start : start + FILE_ID_BYTES]
    header = record.unpack(head[at:start], file_id)
    if header is None or header.kind != Kind.FILE_HEADER:
        return None
    if at > VALUES_START or header.number > 1:
        return None  # of a capture that lies inside this one's values
    payload = head[start : start + header.length]
    if len(payload) != header.length or zlib.crc32(payload) != header.payload_crc:
        return None
    try:
        return FileHeader.unpack(payload), payload
    except DamagedError:
        return None


def read_footer(window: Window, file_id: bytes) -> tuple[Footer, int] | None:
    """The FOOTER of a closed capture, by the end of the file.

    Args:
        window: The capture.
        file_id: From its FILE_HEADER.

    Returns:
        The footer and its offset; None for a stream, and for a capture that is open, torn or
        whose footer is damaged.
    """
    if not isinstance(window, FileWindow):
        return None
    size = window.size
    place = footer_place(window.read_at(max(0, size - 24), 24))
    if place is None:
        return None
    offset, length = place
    if length > limits.RECORD_PAYLOAD_BYTES or offset + HEADER_BYTES + length != size:
        return None
    raw = window.read_at(offset, HEADER_BYTES + length)
    header = record.unpack(raw, file_id)
    if header is None or header.kind != Kind.FOOTER or header.length != length:
        return None
    if zlib.crc32(raw[HEADER_BYTES:]) != header.payload_crc:
        return None
    try:
        return Footer.unpack(raw[HEADER_BYTES:]), offset
    except DamagedError:
        return None


class Scanner:
    """Goes through the records in file order."""

    def __init__(
        self,
        window: Window,
        file_id: bytes,
        *,
        solid: list[tuple[int, int]] | None = None,
        checks: bool = True,
        start: int = 0,
        last: int = -1,
        end: int | None = None,
        kinds: Collection[int] | None = None,
    ) -> None:
        """Prepare a scan.

        Args:
            window: The capture.
            file_id: From its FILE_HEADER.
            solid: Ranges that a footer gives to records: nothing inside them is believed.
            checks: Compare payload CRCs. Only a test has a reason not to.
            start: Offset of the first record.
            last: Number of the record before it; -1 to take the first one's number as it is.
            end: Where to stop; None at the end of the input.
            kinds: Whose payloads are wanted, all where None. Other records of a file may come
                with no payload, unread and unchecked.
        """
        self._window = window
        self._file_id = file_id
        self._solid = sorted(solid or [])
        self._checks = checks
        self._last = last
        self._at = start
        self._end = end
        self._any_first = start > 0 and last < 0
        self._kinds = None if kinds is None else {*kinds, Kind.RECOVERY}
        self._missing = Missing()
        self._tried = 0
        self.torn = False
        """The input ended inside a record."""

    def records(self) -> Iterator[Record | Damage]:
        """The records, and the damage between them.

        Yields:
            In file order; a last `Damage` with ``torn`` where the input ends inside a record.
        """
        while self._end is None or self._at < self._end:
            raw = self._window.read_at(self._at, HEADER_BYTES)
            if not raw:
                return
            if len(raw) < HEADER_BYTES:
                yield self._torn(None, "the input ends inside a record's header", len(raw))
                return
            header = record.unpack(raw, self._file_id)
            problem = self._problem(header)
            if header is None or problem:
                yield self._resynchronise(problem)
                continue
            yield from self._whole(header)
            if self.torn:
                return
            self._window.release(self._at)

    def _problem(self, header: Header | None) -> str:
        """Why a header is not to be believed; empty if it is."""
        if header is None:
            return "the record's header is damaged"
        if header.number <= self._last:
            return f"record number {header.number} comes again"
        if header.number > record.LAST_NUMBER:
            return f"record number {header.number} is greater than any can be"
        if header.length > limits.RECORD_PAYLOAD_BYTES:
            return f"a record announces {header.length} bytes, more than 64 MiB"
        return ""

    def _whole(self, header: Header) -> Iterator[Record | Damage]:
        """The record at the current place, whose header holds."""
        gap = (
            [] if self._any_first else self._missing.unexplained(self._last + 1, header.number - 1)
        )
        if gap:
            numbers = " and ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in gap)
            alone = len(gap) == 1 and gap[0][0] == gap[0][1]
            what = f"record {numbers} is missing" if alone else f"records {numbers} are missing"
            yield Damage(self._at, self._at, gap[0][0], None, what)
        self._any_first = False
        if self._skips(header):
            start, self._at, self._last = self._at, self._at + header.size, header.number
            yield Record(start, header, memoryview(b""), memoryview(b""))
            return
        raw = memoryview(self._window.read_at(self._at, header.size))
        if len(raw) < header.size:
            yield self._shortened(header) or self._torn(
                header, f"the input ends inside a {header.name} record", len(raw)
            )
            return
        payload = raw[HEADER_BYTES : HEADER_BYTES + header.length]
        if self._checks and zlib.crc32(payload) != header.payload_crc:
            yield self._shortened(header) or self._bad(
                header, f"the {header.name} record fails its CRC"
            )
            return
        start, self._at, self._last = self._at, self._at + header.size, header.number
        if self._checks and any(raw[HEADER_BYTES + header.length :]):
            self._at = self._behind_padding(start, header)
            reason = f"the padding of the {header.name} record is not zero"
            yield Damage(start, self._at, header.number, header.kind, reason, harmless=True)
        if header.kind == Kind.RECOVERY:
            self._explained(payload, header.number)
        self._window.release(self._at)  # before whoever takes the record makes more of it
        yield Record(start, header, payload, raw)

    def _behind_padding(self, start: int, header: Header) -> int:
        """The end of a record whose padding is wrong: some of it may be gone."""
        end = start + header.size
        for at in range(end, start + HEADER_BYTES + header.length - 1, -1):
            after = record.unpack(self._window.read_at(at, HEADER_BYTES), self._file_id)
            if after is not None and after.number > header.number:
                return at
        return end

    def _skips(self, header: Header) -> bool:
        """Whether a payload is left unread: nobody wants it, and another record follows it."""
        if self._kinds is None or header.kind in self._kinds or not self._window.seekable:
            return False
        behind = self._window.read_at(self._at + header.size, HEADER_BYTES)
        after = record.unpack(behind, self._file_id)
        return after is not None and after.number > header.number

    def _explained(self, payload: memoryview, number: int) -> None:
        """Take in what a RECOVERY record says is missing."""
        try:
            self._missing.add(Recovery.unpack(payload).missing, number)
        except KcapError:
            return  # it explains nothing; whoever reads the record says what is wrong with it

    def _bad(self, header: Header, reason: str) -> Damage:
        """Pass over a damaged record by its length."""
        start, self._at, self._last = self._at, self._at + header.size, header.number
        return Damage(start, self._at, header.number, header.kind, reason)

    def _shortened(self, header: Header) -> Damage | None:
        """Pass over a record of which bytes are gone, so that others begin within its length.

        Returns:
            The damage; None where the length of the record still holds, or may.
        """
        start = self._at
        self._tried += header.size
        if self._tried > TRIED_BYTES + start:
            return None
        behind = self._window.read_at(start + header.size, HEADER_BYTES)
        after = record.unpack(behind, self._file_id)
        if after is not None and after.number > header.number:
            return None
        at = self._search(start + HEADER_BYTES, start + header.size, header.number)
        found = record.unpack(self._window.read_at(at, HEADER_BYTES), self._file_id)
        if found is None or at >= start + header.size:
            return None
        self._at, self._last = at, found.number - 1
        only = found.number <= header.number + 1
        reason = f"bytes of the {header.name} record are gone"
        return Damage(start, at, header.number, header.kind if only else None, reason)

    def _torn(self, header: Header | None, reason: str, length: int) -> Damage:
        self.torn = True
        kind = None if header is None else header.kind
        number = self._missing.next(self._last + 1) if header is None else header.number
        return Damage(self._at, self._at + length, number, kind, reason, torn=True)

    def _resynchronise(self, reason: str) -> Damage:
        """Find the next header to believe, and say what was passed over."""
        start = self._at
        number = self._missing.next(self._last + 1)
        self._at = self._search(start + 1)
        if found := record.unpack(self._window.read_at(self._at, HEADER_BYTES), self._file_id):
            self._last = found.number - 1  # the gap is part of this damage
        return Damage(start, self._at, number, None, reason)

    def _search(self, at: int, end: int | None = None, least: int = 0) -> int:
        """The place of the next believable header, or the end of the input or of a range."""
        while True:
            block = self._window.read_at(at, _STEP)
            for found in candidates(block, at):
                if self._believable(found, least):
                    return found
            if len(block) < _STEP:
                return at + len(block)
            at += _STEP - HEADER_BYTES
            if end is None:
                self._window.release(at)
            elif at >= end:
                return end

    def _believable(self, at: int, least: int) -> bool:
        """Whether a header found after damage is a record's header (clause 2.7)."""
        before = bisect.bisect_left(self._solid, (at, 0)) - 1
        if before >= 0 and at < sum(self._solid[before]):
            return False
        header = record.unpack(self._window.read_at(at, HEADER_BYTES), self._file_id)
        if header is None or header.number < least or self._problem(header):
            return False
        end = self._window.read_at(at + header.size, HEADER_BYTES)
        if len(end) < HEADER_BYTES:
            return True
        after = record.unpack(end, self._file_id)
        if after is not None and after.number > header.number:
            return True
        # What is behind it may be damaged too: then its own payload has to hold.
        self._tried += header.size
        if self._tried > TRIED_BYTES + at:
            return False
        payload = self._window.read_at(at + HEADER_BYTES, header.length)
        return zlib.crc32(payload) == header.payload_crc


def candidates(block: bytes, base: int) -> Iterator[int]:
    """Where a record may begin: bytes that are gone leave what is behind them at any place.

    Args:
        block: Some bytes of a capture.
        base: Their place in it.

    Yields:
        Places of the magic.
    """
    at = block.find(MAGIC)
    while at >= 0:
        yield base + at
        at = block.find(MAGIC, at + 1)


def solid_ranges(footer: Footer) -> list[tuple[int, int]]:
    """Offset and length of the records that hold captured values.

    Args:
        footer: The capture's footer.

    Returns:
        The ranges.
    """
    chunks = [(int(c["offset"]), int(c["length"])) for c in footer.chunks]
    states = footer.totals.get("states") or []
    try:
        return chunks + [(int(offset), int(length)) for offset, length in states]
    except (OverflowError, TypeError, ValueError):
        return chunks
