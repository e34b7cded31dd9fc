"""What a damaged capture still says of itself at its end."""

from __future__ import annotations

import bisect
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.format import payloads, record, scan, schema
from kcap.format.chunk import Bounds
from kcap.format.index import checkpoint_at, newest_checkpoint
from kcap.format.payloads import END_BYTES, NO_CHUNK, TABLE, Checkpoint, Footer
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.recovery import Range
from kcap.format.regions import Facts
from kcap.format.window import FileWindow, Window
from kcap.model.side import SourceInfo


class Original:
    """What the capture held before it was damaged: its FOOTER tells, or CHECKPOINTs tell a part.

    Args:
        table: The chunk table.
        totals: The body of a FOOTER, or of CHECKPOINTs together.
        in_place: Records stand where the table says; if not, bytes are gone before them.
        closed: The table is of the whole capture.
        solid: Places of records that hold captured values.
    """

    def __init__(
        self,
        table: npt.NDArray[np.void] | None = None,
        totals: Mapping[str, Any] | None = None,
        *,
        in_place: bool = False,
        closed: bool = False,
        solid: list[tuple[int, int]] | None = None,
    ) -> None:
        self.closed = closed
        self._in_place = in_place
        self._table = np.zeros(0, TABLE) if table is None else table
        self._totals: Mapping[str, Any] = {} if totals is None else totals
        self._starts = self._table["offset"].tolist()
        numbers = enumerate(self._table["number"].tolist())
        self._numbers = {n: i for i, n in numbers if n != NO_CHUNK}
        self.solid = solid or []

    @classmethod
    def of(cls, window: Window, file_id: bytes) -> Self:
        """Look at the end of a file.

        Args:
            window: The capture.
            file_id: Its id.

        Returns:
            What is known of it; nothing of a stream.
        """
        if not isinstance(window, FileWindow):
            return cls()
        found = _footer(window, file_id)
        if found is not None:
            return cls._of_footer(*found)
        parts = _checkpoints(window, file_id)
        if not parts:
            return cls()
        table = np.concatenate([p.chunks for p in parts])
        totals = {
            n: [e for p in parts for e in p.totals[n]] for n in ("schema", "sources", "states")
        }
        return cls(table, totals, in_place=_stands(window, file_id, table))

    @classmethod
    def told(cls, item: scan.Record) -> Self:
        """Read a FOOTER that was met at the end of a stream.

        Args:
            item: Its record.

        Returns:
            What it says, but for places; nothing where it makes no sense.
        """
        place = payloads.footer_place(bytes(item.payload[-END_BYTES:]))
        footer = None if place is None else _believed(bytes(item.payload), place[0])
        return cls() if footer is None else cls._of_footer(footer, in_place=False)

    @classmethod
    def _of_footer(cls, footer: Footer, in_place: bool) -> Self:
        solid = scan.solid_ranges(footer) if in_place else []
        return cls(footer.chunks, footer.totals, in_place=in_place, closed=True, solid=solid)

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """The SOURCE table by id."""
        return {SourceInfo.from_json(s).id: s for s in self._totals.get("sources", ())}

    @property
    def columns(self) -> list[dict[str, Any]]:
        """The columns, by id."""
        return sorted(self._totals.get("schema", ()), key=lambda entry: int(entry["id"]))

    @property
    def end(self) -> int | None:
        """One more than the last chunk's number; None where it is not known."""
        return max(self._numbers, default=-1) + 1 if self.closed else None

    def facts(self, number: int) -> Facts | None:
        """What is known of a chunk.

        Args:
            number: The chunk's number.

        Returns:
            Its rows and bounds; None where they are not known.
        """
        at = self._numbers.get(number)
        return None if at is None else _facts(self._table[at])

    def next_chunk(self, offset: int) -> int | None:
        """The number of the first chunk that begins at a place or behind it.

        Args:
            offset: The place.

        Returns:
            Its number, behind the last chunk one more than that has; None where places are not
            known.
        """
        if not self._in_place:
            return None
        behind = self._table["number"][bisect.bisect_left(self._starts, offset) :]
        numbers = behind[behind != NO_CHUNK]
        return int(numbers[0]) if len(numbers) else self.end

    def live_tails(self, places: Iterable[Range]) -> list[Facts]:
        """TAILs that no chunk supersedes.

        Args:
            places: Offset and end of where to look.

        Returns:
            What is known of each.
        """
        found = [e for e in self._table[self._table["number"] == NO_CHUNK] if self._in_place]
        return [_facts(e) for e in found if any(a <= e["offset"] < b for a, b in places)]

    def records(self, places: Iterable[Range]) -> Counter[int]:
        """Records that began within some places.

        Args:
            places: Offset and end of each.

        Returns:
            How many CHUNK_INDEX and STATE records.
        """
        found: Counter[int] = Counter()
        if self._in_place:
            index = self._table["index"]
            states = [int(s[0]) for s in self._totals.get("states", ())]
            for a, b in places:
                found[Kind.CHUNK_INDEX] += int(((index >= a) & (index < b) & (index > 0)).sum())
                found[Kind.STATE] += sum(a <= s < b for s in states)
        return found


def _facts(entry: np.void) -> Facts:
    ts = Bounds(int(entry["ts_min"]), int(entry["ts_max"]))
    return Facts(int(entry["rows"]), ts, Bounds(int(entry["ord_min"]), int(entry["ord_max"])))


def _footer(window: FileWindow, file_id: bytes) -> tuple[Footer, bool] | None:
    """The FOOTER at the end of a file, and whether it stands where it says."""
    size = window.size
    place = payloads.footer_place(window.read_at(max(0, size - END_BYTES), END_BYTES))
    at = -1 if place is None else size - HEADER_BYTES - place[1]
    if place is None or at < 0:
        return None
    header = record.unpack(window.read_at(at, HEADER_BYTES), file_id)
    if header is None or header.kind != Kind.FOOTER or header.length != place[1]:
        return None
    payload = window.read_at(at + HEADER_BYTES, header.length)
    if zlib.crc32(payload) != header.payload_crc:
        return None
    footer = _believed(payload, place[0])
    return None if footer is None else (footer, at == place[0])


def _believed(payload: bytes, offset: int) -> Footer | None:
    """A FOOTER that can be true; what can't be says nothing of the rest."""
    try:
        footer = Footer.unpack(payload)
        return footer if footer.fits(offset) and _is_true(footer.totals) else None
    except KcapError:
        return None


def _is_true(totals: Mapping[str, Any]) -> bool:
    """Whether descriptions and places are what they must be."""
    try:
        schema.Schema().read(totals["schema"])
        for entry in totals["sources"]:
            SourceInfo.from_json(entry)
        _ = [(int(a), int(b)) for a, b in totals["states"]]
    except (KcapError, OverflowError, TypeError, ValueError):
        return False
    return True


def _checkpoints(window: FileWindow, file_id: bytes) -> list[Checkpoint]:
    """The last CHECKPOINT and those that it leads to, up to one that is damaged or moved."""
    parts: list[Checkpoint] = []
    found = newest_checkpoint(window, file_id)
    while found is not None:
        offset, header, raw = found
        try:
            point = Checkpoint.unpack(raw[HEADER_BYTES : HEADER_BYTES + header.length])
        except KcapError:
            break
        if point.file_id != file_id or not point.fits(offset) or not _is_true(point.totals):
            break
        parts.append(point)
        earlier = checkpoint_at(window, file_id, point.previous) if point.previous else None
        if earlier is None or hashlib.sha256(earlier[1]).digest() != point.previous_hash:
            break
        found = point.previous, *earlier
    return parts[::-1]


def _stands(window: FileWindow, file_id: bytes, table: npt.NDArray[np.void]) -> bool:
    """Whether the last record of a table is where it says."""
    if not len(table):
        return False
    header = record.unpack(window.read_at(int(table["offset"][-1]), HEADER_BYTES), file_id)
    return header is not None and header.size == table["length"][-1]
