"""Counting events by what they have, a batch at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kcap.errors import LimitError
from kcap.keys import Coded, Exact, Key, Value, exact, plain
from kcap.model.batch import Batch
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.distinct import Codes, Groups, grouped

GROUPS_MAX: Final = 1 << 20
"""Groups that are counted."""

VALUES_BYTES: Final = 256 << 20
"""What the texts that the groups are told apart by may take."""

INTERVALS_MAX: Final = 4096
"""Intervals of time that `Rate` counts; beyond, it takes longer ones."""

_DAY_S: Final = 86_400
_LENGTHS_S: Final[tuple[int, ...]] = (
    1,
    10,
    60,
    600,
    3600,
    21_600,
    *(_DAY_S * 10**i for i in range(6)),
)
"""Lengths of intervals, each a multiple of the one before; all of time has few of the last."""

_NO_TIME: Final = (I64_MAX, I64_MIN)


@dataclass(frozen=True, slots=True)
class Group:
    """Events that have the same values."""

    values: tuple[Value, ...]
    count: int
    first_ns: int | None
    last_ns: int | None
    """Time of the earliest and the latest; None where none of them has one."""


@dataclass(frozen=True, slots=True)
class Others:
    """The groups that there is no row for."""

    groups: int
    count: int
    first_ns: int | None
    last_ns: int | None


class Counts:
    """A sink that counts events by keys, and keeps the first and last time of each group.

    Memory is bounded by the groups, which are exact however many events there are.

    Args:
        keys: What to count by; none to count all together.

    Example:
        >>> counts = Counts([key("event")])
        >>> Pipeline(source, [counts]).run()  # doctest: +SKIP
        >>> rows, others = counts.ranked(20)  # doctest: +SKIP
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)
        self._numbers: dict[tuple[Exact, ...], int] = {}
        self._sums = np.zeros((3, 16), np.int64)
        self._bytes = 0

    def write(self, batch: Batch) -> None:
        """Count the events of a batch.

        Args:
            batch: Events.

        Raises:
            LimitError: There are too many groups.
        """
        if not batch.rows:
            return
        if not self._keys:
            self._count_all(batch)
            return
        parts = [key.of(batch) for key in self._keys]
        if len(parts) == 1 and batch.get("ts") is None:
            self._count_one(parts[0])
            return
        groups = grouped([p.codes for p in parts], [len(p.values) for p in parts])
        numbers = self._numbered(parts, groups)
        counts = np.bincount(groups.rows, minlength=groups.number)
        self._sums[0, numbers] += counts
        times = batch.get("ts")
        if times is not None:
            rows = groups.rows if times.rows is None else groups.rows[times.rows]
            stamps = np.asarray(times.values)
            np.minimum.at(self._sums[1], numbers[rows], stamps)
            np.maximum.at(self._sums[2], numbers[rows], stamps)

    def _count_one(self, part: Coded) -> None:
        """Count by one key, without times."""
        counts = np.bincount(part.codes, minlength=len(part.values))
        used = np.flatnonzero(counts).tolist()
        self.add(((part.values[code],), int(counts[code])) for code in used)

    def _count_all(self, batch: Batch) -> None:
        """Count all events together."""
        times = batch.get("ts")
        stamps = None if times is None else np.asarray(times.values)
        span = None if stamps is None else (int(stamps.min()), int(stamps.max()))
        self.add([((None,), batch.rows)], span)

    def close(self) -> None:
        """See `Sink.close`."""

    def add(
        self,
        counts: Iterable[tuple[tuple[Value, ...], int]],
        times: Sequence[int] | None = None,
    ) -> None:
        """Take in what was counted elsewhere.

        Args:
            counts: Values and how many events have them.
            times: First and last time of each of these groups; None where they are not known.

        Raises:
            LimitError: There are too many groups.
        """
        for values, count in counts:
            number = self._number(values)  # may make room in the sums
            self._sums[0, number] += count
            if times is not None:
                self._sums[1, number] = min(self._sums[1, number], times[0])
                self._sums[2, number] = max(self._sums[2, number], times[1])

    @property
    def events(self) -> int:
        """Events so far."""
        return int(self._sums[0].sum())

    @property
    def groups(self) -> int:
        """Groups so far."""
        return len(self._numbers)

    def total(self) -> Others:
        """All groups as one."""
        return self._others(np.arange(len(self._numbers)))

    def ranked(
        self, top: int | None = None, *, by_value: bool = False
    ) -> tuple[list[Group], Others | None]:
        """The groups, those of most events first; among equals the values decide.

        Args:
            top: How many; None for all.
            by_value: Order by the values alone.

        Returns:
            The groups, and the rest of them as one if there is a rest.
        """
        count = len(self._numbers)
        top = count if top is None else min(top, count)
        counts = self._sums[0, :count]
        names = list(self._numbers)

        def order(number: int) -> tuple[int, list[tuple[int, float, str]]]:
            return -int(counts[number]) * (not by_value), [_rank(plain(v)) for v in names[number]]

        likely: Codes = np.arange(count)
        if not by_value and 0 < top < count:
            # Of a million groups few are as frequent as the last one that there is a row for.
            likely = np.flatnonzero(counts >= np.partition(counts, count - top)[count - top])
        first = heapq.nsmallest(top, likely.tolist(), key=order)
        rows = [
            Group(tuple(map(plain, names[i])), int(counts[i]), *self._times(self._sums[1:, [i]]))
            for i in first
        ]
        if top == count:
            return rows, None
        rest = np.ones(count, np.bool_)
        rest[first] = False
        return rows, self._others(np.flatnonzero(rest))

    def _others(self, numbers: Codes) -> Others:
        sums = self._sums[:, numbers]
        return Others(len(numbers), int(sums[0].sum()), *self._times(sums[1:]))

    @staticmethod
    def _times(sums: Codes) -> tuple[int | None, int | None]:
        first, last = sums[0].min(initial=I64_MAX), sums[1].max(initial=I64_MIN)
        return (None, None) if first > last else (int(first), int(last))

    def _numbered(self, parts: Sequence[Coded], groups: Groups) -> Codes:
        """The number of each group of a batch."""
        columns = [
            [part.values[code] for code in codes.tolist()]
            for part, codes in zip(parts, groups.codes, strict=True)
        ]
        # Groups are looked at one by one, never events.
        return np.array([self._number(v) for v in zip(*columns, strict=True)], np.int64)

    def _number(self, values: tuple[Value, ...]) -> int:
        name = tuple(map(exact, values))
        number = self._numbers.get(name)
        if number is not None:
            return number
        number = self._numbers[name] = len(self._numbers)
        self._bytes += sum(_size(value) for value in values)
        if number >= GROUPS_MAX or self._bytes > VALUES_BYTES:
            by = ",".join(key.name for key in self._keys)
            raise LimitError(
                f"there are more than {number:,} groups to count by {by}",
                expected=f"at most {GROUPS_MAX:,} groups and {VALUES_BYTES >> 20} MiB of text",
                hint="choose fewer columns or a shorter interval; "
                "'kcap query' groups any number, on disk where memory ends",
            )
        if number == self._sums.shape[1]:
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)], axis=1)
        self._sums[1:, number] = _NO_TIME
        return number


def _size(value: Value) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    return sum(map(_size, value)) if isinstance(value, tuple) else 0


def _rank(value: Value) -> tuple[int, float | int, str]:
    """Where a value stands: numbers by size, then text and all else as text, none at the end."""
    if value is None:
        return 3, 0, ""
    if isinstance(value, (int, float)):
        return (0, value, "") if value == value else (1, 0, "")  # noqa: PLR0124
    return 2, 0, value if isinstance(value, str) else repr(value)


class Rate:
    """A sink that counts events over time, in intervals of a length that is chosen at the end.

    Which length depends on the events alone: the shortest of which there are few enough.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._length = 0

    def write(self, batch: Batch) -> None:
        """Count the events of a batch that have a time.

        Args:
            batch: Events.
        """
        times = batch.get("ts")
        if times is None:
            return
        starts, counts = np.unique(np.asarray(times.values) // self.length_ns, return_counts=True)
        # As many steps as there are intervals, not events; far fewer where a capture is ordered.
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            self._counts[start] = self._counts.get(start, 0) + count
        self._shorten(INTERVALS_MAX)

    def close(self) -> None:
        """See `Sink.close`."""

    @property
    def length_ns(self) -> int:
        """The length of the intervals."""
        return 10**9 * _LENGTHS_S[self._length]

    def intervals(self, most: int) -> dict[int, int]:
        """The events in each interval that has any; intervals become longer where there are more.

        Args:
            most: Intervals at most.

        Returns:
            Begin in ns to count, by time.
        """
        self._shorten(min(most, INTERVALS_MAX))
        return {start * self.length_ns: self._counts[start] for start in sorted(self._counts)}

    def _shorten(self, most: int) -> None:
        while len(self._counts) > most and self._length + 1 < len(_LENGTHS_S):
            times = _LENGTHS_S[self._length + 1] // _LENGTHS_S[self._length]
            self._length += 1
            found: dict[int, int] = {}
            for start, count in self._counts.items():
                found[start // times] = found.get(start // times, 0) + count
            self._counts = found
