"""What a repair found: the places where something was damaged, and what was lost there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from kcap.format.chunk import Bounds
from kcap.format.record import Kind, kind_name
from kcap.format.recovery import Range, Recovery, left_out

UNKNOWN: Final = "unknown"
"""The kind of lost records whose headers are lost, too."""

_REASONS: Final = 3


class Facts(NamedTuple):
    """What is known of a chunk, lost or not."""

    rows: int
    ts: Bounds
    ord: Bounds
    origin: str | None = None
    """Where all rows are of one origin."""


@dataclass
class Region:
    """One place where the input is damaged."""

    first: int
    """The number of the record that should be here."""
    last: int
    """The greatest number known to be concerned."""
    places: list[Range] = field(default_factory=list)
    """Offset and end of what was passed over."""
    reasons: list[str] = field(default_factory=list)
    kinds: dict[int, int] = field(default_factory=dict)
    """Record number to kind, where a header holds."""
    chunks: dict[int, Facts | None] = field(default_factory=dict)
    """The chunks lost, by chunk number; None where nothing is known of one."""
    told: Counter[int] = field(default_factory=Counter)
    """Kinds of records that a FOOTER had in this place."""
    indexes: int = 0
    """Lost chunks whose CHUNK_INDEX is there."""
    tails: list[Facts] = field(default_factory=list)
    """Lost TAILs whose rows are in no chunk."""
    complete: bool = False
    """`chunks` and `tails` have all of them."""
    missing: list[Range] = field(default_factory=list)
    """Record numbers that nothing could be made for."""
    rebuilt: list[int] = field(default_factory=list)
    """Kinds of records that were made anew."""
    guessed: int = 0
    """Records made anew under a number that may have been another's."""
    dropped: set[int] = field(default_factory=set)
    """Numbers of intact records that no longer hold: CHECKPOINTs."""
    waiting: int = 0
    """Rows in TAILs before it that no chunk superseded."""
    rescued: int = 0
    """Rows of lost chunks that are in TAIL records."""
    torn: bool = False
    """The input ends here."""
    floor: int = 0
    """The least number that a chunk lost here can have."""
    after: Facts | None = None
    before: Facts | None = None
    """The nearest intact chunks."""

    def add(self, reason: str, number: int, place: Range) -> None:
        """Take in a damage that nothing intact parts from the others.

        Args:
            reason: What is wrong.
            number: The record number concerned.
            place: Offset and end of what was passed over.
        """
        if reason not in self.reasons and len(self.reasons) < _REASONS:
            self.reasons.append(reason)
        self.first, self.last = min(self.first, number), max(self.last, number)
        if place[0] < place[1]:
            self.places.append(place)

    def lacks(self, number: int) -> bool:
        """Whether a record number is missing.

        Args:
            number: The number.

        Returns:
            True where nothing has it yet.
        """
        return any(a <= number <= b for a, b in self.missing)

    def is_free(self, number: int, kind: Kind) -> bool:
        """Whether a missing number may have been that of a record of some kind.

        Args:
            number: The number.
            kind: The kind.

        Returns:
            True where it is missing and nothing says otherwise; it is that kind's from now on.
        """
        return self.lacks(number) and self.kinds.setdefault(number, kind) == kind

    def taken(self, number: int) -> int:
        """Give a missing number to a record that is made anew.

        Args:
            number: The number.

        Returns:
            The same.
        """
        parts = [p for a, b in self.missing for p in _without(a, b, number)]
        self.missing = parts
        return number

    def free(self, kind: Kind, *, guess: bool) -> int | None:
        """A missing number for a record of some kind.

        Args:
            kind: The kind.
            guess: Also take the number of a record of which nothing is known.

        Returns:
            The number; None where there is none.
        """
        for number, known in sorted(self.kinds.items()):
            if known == kind and self.lacks(number):
                return number
        if not guess or not self.records().get(UNKNOWN):
            return None
        for first, last in self.missing:
            for number in range(first, last + 1):
                if number not in self.kinds:
                    return number
        return None

    @property
    def all_known(self) -> bool:
        """The kind of every missing record is known, and none of them is a TAIL."""
        return not self.records().keys() & {UNKNOWN, Kind.TAIL.name}

    @property
    def is_damage(self) -> bool:
        """Something was wrong with the input: more than a CHECKPOINT that no longer holds."""
        return bool(self.reasons)

    @property
    def is_loss(self) -> bool:
        """Something is missing in the output."""
        return bool(self.records() or self.rows)

    def records(self) -> dict[str, int]:
        """Records lost, by kind."""
        numbers = sum(b - a + 1 for a, b in self.missing)
        gone = {n: k for n, k in self.kinds.items() if self.lacks(n)}
        found = Counter(kind_name(k) for n, k in gone.items() if n not in self.dropped)
        dropped = sum(self.lacks(n) for n in self.dropped)
        rest = numbers - found.total() - dropped
        told = Counter(self.told)
        if self.complete:
            # A writer puts a CHUNK_INDEX behind every chunk.
            indexes = len(self.chunks) - self.indexes
            told[Kind.CHUNK_INDEX] = max(told[Kind.CHUNK_INDEX], indexes)
            told[Kind.CHUNK] = len(self.chunks)
        told[Kind.TAIL] += len(self.tails)
        for kind, count in sorted(told.items()):
            more = max(0, min(count - found[kind_name(kind)], rest))
            found[kind_name(kind)] += more
            rest -= more
        found[UNKNOWN] = max(0, rest) + self.guessed
        return {name: count for name, count in sorted(found.items()) if count}

    @property
    def rows(self) -> int | None:
        """Rows lost; None where that is not known."""
        known = [facts for facts in self.chunks.values() if facts is not None]
        if not self.complete or len(known) < len(self.chunks):
            return None
        return max(0, sum(f.rows for f in [*known, *self.tails]) - self.rescued)

    @property
    def rows_at_most(self) -> int | None:
        """An upper bound of the rows lost, by the ords of the neighbours."""
        a, b = self.after, self.before
        if self.rows is not None or a is None or b is None or a.origin is None:
            return None
        gap = b.ord.low - a.ord.high - 1
        return gap if a.origin == b.origin and gap >= 0 else None

    def bounds(self, name: str) -> Bounds | None:
        """The range of ts or ord of the lost rows.

        Args:
            name: ``ts`` or ``ord``.

        Returns:
            The range, None where it is not known.
        """
        if not self.rows:
            return None
        found = Bounds()
        for facts in [*self.chunks.values(), *self.tails]:
            if facts is not None:
                found = found.union(getattr(facts, name))
        return None if found.low > found.high else found

    def lost(self) -> dict[str, Any]:
        """What was lost, as plain JSON values (clause 4.6)."""
        found: dict[str, Any] = {
            "bytes": _merged(self.places),
            "records": self.records(),
            "rows": self.rows,
            "rows_at_most": self.rows_at_most,
            "chunks": [min(self.chunks), max(self.chunks)] if self.chunks else None,
            "ts": _pair(self.bounds("ts")),
            "ord": _pair(self.bounds("ord")),
            "after": _edge(self.after, high=True),
            "before": _edge(self.before, high=False),
            "rescued": self.rescued or None,
            "torn": self.torn or None,
        }
        kept = ("bytes", "records", "rows")
        return {n: v for n, v in found.items() if n in kept or v is not None}

    def recovery(self) -> Recovery:
        """The content of the RECOVERY record that fills the place."""
        reason = "; ".join(self.reasons) or "a CHECKPOINT no longer fits what is before it"
        made = Recovery(tuple(self.missing), reason, self.lost())
        if made.loss() is None:
            return made
        # The places may be cut away where a reason is very long, but never the reason's own start.
        return replace(made, reason=left_out(self.missing, reason))

    def to_json(self) -> dict[str, Any]:
        """The region as plain JSON values."""
        return {
            "first_record": self.first,
            "last_record": self.last,
            "lost": self.lost(),
            "missing": [list(r) for r in self.missing],
            "reasons": self.reasons,
            "rebuilt": [kind_name(k) for k in self.rebuilt],
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a repair."""

    state: str
    """The input was ``closed``, ``open`` or ``torn``."""
    regions: tuple[Region, ...]
    """Places of damage, the first ones where they are very many."""
    damaged: int
    """Number of places of damage."""
    rest: tuple[Mapping[str, int], int | None]
    """Records by kind, and rows, that were lost in the others."""
    kept: Mapping[str, int]
    """Records of the input that are in the output, by kind."""
    rows: int
    """Rows in the output."""
    header: str
    """``intact``, ``one copy`` or ``rebuilt``: what was left of the FILE_HEADER."""
    identical: bool
    """The output is the input, byte for byte."""
    restored: bool
    """The hash chain proves that the output is what was written, bit for bit."""
    bytes_read: int
    bytes_written: int
    file_hash: str
    """SHA-256 of the output in hex."""
    known: tuple[Recovery, ...]
    """What an earlier repair left out."""
    lacking_blobs: tuple[str, ...]
    """Blobs of which blocks are lost, now or earlier; the first ones where they are many."""
    unnamed_blocks: int
    """Blocks that no manifest names."""

    @property
    def lossless(self) -> bool:
        """Nothing that was in the capture is missing in the output."""
        return self.header != "rebuilt" and not self.lost()[0]

    @property
    def clean(self) -> bool:
        """The input was not damaged."""
        return not self.damaged

    def lost(self) -> tuple[dict[str, int], int | None]:
        """Records lost by kind, and rows lost; None where that is not known."""
        records, rows = lost_together(self.regions)
        more, more_rows = self.rest
        total = Counter(records) + Counter(dict(more))
        unknown = rows is None or more_rows is None
        return dict(total), None if unknown else (rows or 0) + (more_rows or 0)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        records, rows = self.lost()
        return {
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "damaged_places": self.damaged,
            "file_hash": self.file_hash,
            "file_header": self.header,
            "identical": self.identical,
            "lacking_blobs": list(self.lacking_blobs),
            "kept_records": dict(sorted(self.kept.items())),
            "known_losses": [
                {"lost": dict(r.lost), "missing": r.missing, "reason": r.reason} for r in self.known
            ],
            "lossless": self.lossless,
            "lost_records": records,
            "lost_rows": rows,
            "regions": [r.to_json() for r in self.regions],
            "restored": self.restored,
            "rows": self.rows,
            "state": self.state,
            "unnamed_blocks": self.unnamed_blocks,
        }


def lost_together(regions: Iterable[Region]) -> tuple[dict[str, int], int | None]:
    """What was lost in several places.

    Args:
        regions: The places.

    Returns:
        Records lost by kind, and rows lost; None where that is not known.
    """
    records: Counter[str] = Counter()
    rows: int | None = 0
    for region in regions:
        records.update(region.records())
        rows = None if rows is None or region.rows is None else rows + region.rows
    return dict(sorted(records.items())), rows


def _without(first: int, last: int, number: int) -> list[Range]:
    """A range without one of its numbers."""
    if not first <= number <= last:
        return [(first, last)]
    return [(a, b) for a, b in ((first, number - 1), (number + 1, last)) if a <= b]


def _merged(places: list[Range]) -> list[list[int]]:
    """Places of which none touches the next."""
    found: list[list[int]] = []
    for start, end in places:
        if found and found[-1][1] == start:
            found[-1][1] = end
        else:
            found.append([start, end])
    return found


def _pair(bounds: Bounds | None) -> list[int] | None:
    return None if bounds is None else bounds.pair()


def _edge(facts: Facts | None, *, high: bool) -> dict[str, int] | None:
    """The side of a neighbour that is turned to the damage."""
    if facts is None:
        return None
    pairs = {"ts": facts.ts.pair(), "ord": facts.ord.pair()}
    return {name: pair[high] for name, pair in pairs.items() if pair is not None}
