"""RECOVERY: what a repair left out, and which record numbers are missing (clauses 2.3 and 4.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from kcap.errors import DamagedError
from kcap.format import body
from kcap.format.record import LAST_NUMBER
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.side import Loss

RANGES: Final = 1024
"""Ranges of missing numbers that one record lists at most."""

_KEPT: Final = 65_536
"""Ranges that a reader keeps in mind; a writer has one, or as many as gaps lie in one place."""

_REASON_CHARS: Final = 800

Range = tuple[int, int]
"""First and last of some record numbers."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """The content of a RECOVERY record."""

    missing: tuple[Range, ...]
    """The record numbers that are not there, ascending; the record itself has the first one."""
    reason: str
    lost: Mapping[str, Any] = field(default_factory=dict)
    """What was lost with them, as far as it is known (clause 4.6)."""

    def pack(self) -> bytes:
        """The payload."""
        return body.pack_object(
            missing=[list(r) for r in self.missing],
            reason=self.reason[:_REASON_CHARS],
            lost=dict(self.lost),
        )

    @classmethod
    def unpack(cls, payload: bytes | memoryview) -> Recovery:
        """Read the payload.

        Args:
            payload: The payload of a RECOVERY record.

        Returns:
            Its content.

        Raises:
            DamagedError: It is not well formed.
        """
        value = body.unpack_object(payload, "RECOVERY")
        missing, lost = value.get("missing"), value.get("lost", {})
        if not isinstance(missing, list) or not all(map(_is_range, missing)):
            raise DamagedError("a RECOVERY does not say which record numbers are missing")
        if len(missing) > RANGES or any(a[1] >= b[0] for a, b in pairwise(missing)):
            raise DamagedError("a RECOVERY's record numbers are too many, or not ascending")
        if not isinstance(lost, dict) or not _is_count(lost.get("rows")):
            raise DamagedError("a RECOVERY does not say what was lost")
        if not isinstance(lost.get("records", {}), dict):
            raise DamagedError("a RECOVERY does not say which records were lost")
        if not all(_is_bounds(lost.get(name)) for name in ("ts", "ord", "chunks")):
            raise DamagedError("a RECOVERY's bounds are no pairs of integers")
        return cls(tuple((a, b) for a, b in missing), str(value.get("reason", "")), lost)

    def loss(self) -> Loss | None:
        """The loss that it tells of; None where nothing was lost but what is made anew."""
        records = self.lost.get("records", {"unknown": None})
        if not records and not self.lost.get("rows"):
            return None
        start_ns, end_ns = self.lost.get("ts") or (None, None)
        return Loss(
            "torn" if self.lost.get("torn") else "damaged",
            self.lost.get("rows"),
            self.reason,
            start_ns=start_ns,
            end_ns=end_ns,
            recorded=True,
        )


def left_out(missing: Sequence[Range], reason: str) -> str:
    """The reason of a RECOVERY that stands for something lost.

    It is in the record, not worked out from it: whoever reads it later counts the same loss.

    Args:
        missing: The record numbers that are not there.
        reason: Why.

    Returns:
        Both as text.
    """
    places = " and ".join(f"{a} to {b}" if a < b else str(a) for a, b in missing[:3])
    one = len(missing) == 1 and missing[0][0] == missing[0][1]
    more = " …" if len(missing) > 3 else ""  # noqa: PLR2004
    return f"{reason}; left out by recover: record{'' if one else 's'} {places}{more}"


class Missing:
    """The record numbers that RECOVERY records read so far explain."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []

    def add(self, ranges: Iterable[Range], number: int) -> None:
        """Take in what a RECOVERY record lists.

        Args:
            ranges: The missing numbers.
            number: Of the record itself; what is before it is never asked for again.
        """
        merged: list[Range] = []
        for first, last in sorted([*self._ranges, *ranges]):
            if last < number:
                continue
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(merged[-1][1], last)
            else:
                merged.append((first, last))
        self._ranges = merged[:_KEPT]

    def unexplained(self, first: int, last: int) -> list[Range]:
        """The numbers of a gap that no RECOVERY record lists.

        Args:
            first: The first number that is not there.
            last: The last one.

        Returns:
            Ranges, ascending; none where nothing is missing without a word.
        """
        found: list[Range] = []
        if first > last:
            return found
        for a, b in self._ranges:
            if b < first or a > last:
                continue
            if a > first:
                found.append((first, a - 1))
            first = b + 1
        if first <= last:
            found.append((first, last))
        return found

    def next(self, number: int) -> int:
        """The least number not before a given one that no RECOVERY record lists.

        Args:
            number: Where to begin.

        Returns:
            The number that the next record should have.
        """
        for a, b in self._ranges:
            if a <= number <= b:
                number = b + 1
        return number


def _is_range(value: object) -> bool:
    return (
        isinstance(value, list)
        and [type(v) for v in value] == [int, int]
        and 0 <= value[0] <= value[1] <= LAST_NUMBER
    )


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value <= I64_MAX)


def _is_bounds(value: object) -> bool:
    return value is None or (
        isinstance(value, list)
        and [type(v) for v in value] == [int, int]
        and I64_MIN <= value[0] <= value[1] <= I64_MAX
    )
