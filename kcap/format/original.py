"""What a damaged capture still says of itself at its end."""

from __future__ import annotations

import bisect
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from kcap.errors import KcapError
from kcap.format import payloads, record, scan, schema
from kcap.format.chunk import Bounds
from kcap.format.payloads import END_BYTES, NO_CHUNK, TABLE, Footer
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.recovery import Range
from kcap.format.regions import Facts
from kcap.format.window import FileWindow, Window
from kcap.model.side import SourceInfo


class Original:
    """What the capture held before it was damaged: the content of its FOOTER, if that is intact.

    Args:
        footer: The FOOTER.
        in_place: It stands where it says; if not, bytes are gone before it, and what it says of
            places does not hold.
    """

    def __init__(self, footer: Footer | None = None, *, in_place: bool = False) -> None:
        self.closed = footer is not None
        self._in_place = in_place
        self._table = np.zeros(0, TABLE) if footer is None else footer.chunks
        self._totals: Mapping[str, Any] = {} if footer is None else footer.totals
        self._starts = self._table["offset"].tolist()
        numbers = enumerate(self._table["number"].tolist())
        self._numbers = {n: i for i, n in numbers if n != NO_CHUNK}
        self.solid = scan.solid_ranges(footer) if footer is not None and in_place else []
        """Places of records that hold captured values."""

    @classmethod
    def of(cls, window: Window, file_id: bytes) -> Self:
        """Look at the end of a file.

        Args:
            window: The capture.
            file_id: Its id.

        Returns:
            What is known of it; nothing of a stream.
        """
        found = _footer(window, file_id) if isinstance(window, FileWindow) else None
        return cls() if found is None else cls(found[0], in_place=found[1])

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
        return cls(footer)

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
        if not footer.fits(offset):
            return None
        schema.Schema().read(footer.totals["schema"])
        for entry in footer.totals["sources"]:
            SourceInfo.from_json(entry)
        _ = [(int(a), int(b)) for a, b in footer.totals["states"]]
    except (KcapError, TypeError, ValueError):
        return None
    return footer
