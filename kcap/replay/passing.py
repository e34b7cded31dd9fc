"""A stream of which a part is wanted: what is passed over is followed, and stands before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.replay.span import Mask, Span, Within
from kcap.replay.tap import Tap
from kcap.state import State
from kcap.state.state import FOLLOWED


class Passed:
    """Cuts batches into what is wanted and what is passed over.

    Where rows were passed over, a snapshot of the state stands before the rows that follow, so
    that whoever follows the events goes on as if he had seen all of them.

    Args:
        state: Follows the rows that are passed over; the others are for whoever gets them.
        all_sides: Nothing is passed over before the first wanted row, so that a batch without rows
            is wanted as well.
    """

    def __init__(self, state: State, *, all_sides: bool = False) -> None:
        self._state = state
        self._all_sides = all_sides
        self._sources: dict[str, SourceInfo] = {}
        self._losses: list[Side] = []
        self._tables: dict[str, Batch] = {}
        self._some = False
        """Rows were passed over since the last ones that were given."""

    def add_tables(self, tables: Mapping[str, Batch]) -> None:
        """Let tables that no event changes stand in the next snapshot.

        Args:
            tables: The tables, by name.
        """
        self._tables.update(tables)

    def follow(self, batch: Batch) -> None:
        """Pass over rows that nobody wants, and keep what stands before them.

        Args:
            batch: The rows.
        """
        self._some |= batch.rows > 0
        for side in self._state.update(batch).before:
            if isinstance(side, SourceInfo):
                self._sources[side.id] = side
            elif isinstance(side, Loss):
                self._losses.append(side)
            elif isinstance(side, Snapshot):
                self._some = True
                self.add_tables({n: t for n, t in side.tables.items() if n not in FOLLOWED})

    def wanted(self, batch: Batch, mask: Mask) -> Iterator[tuple[int, Batch]]:
        """Give the runs of rows that are wanted, and follow the others.

        Args:
            batch: The next rows of the stream.
            mask: Which of them are wanted.

        Yields:
            Where in the batch a run begins, and the run. The state has followed it when the next
            one is asked for.
        """
        if not batch.rows:
            if self._some or not self._all_sides:
                self.follow(batch)
            else:
                yield 0, batch
            return
        edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), batch.rows]
        for start, stop in pairwise(edges):
            part = batch.slice(start, stop)
            if not mask[start]:
                self.follow(part)
                continue
            if self._some or self._sources or self._losses:
                self.follow(part.slice(0, 0))
                part = part.with_before(self._sides(told=True))
            yield start, part

    def rest(self) -> Batch | None:
        """What was passed over at the end.

        Returns:
            Sources and losses before no rows; None where there are none.
        """
        if not (self._sources or self._losses):
            return None
        return EMPTY.with_before(self._sides(told=False))

    def _sides(self, *, told: bool) -> list[Side]:
        """What stands before the next rows; with the state where they follow passed ones."""
        sides: list[Side] = list(self._sources.values())
        if told and self._some:
            sides.append(Snapshot({**self._tables, **self._state.snapshot().tables}))
            self._tables = {}
            self._some = False
        sides += self._losses
        self._sources, self._losses = {}, []
        return sides


class Partly:
    """A tap that sees a part of a stream, as where the others are not there at all.

    For a run in which somebody else, as rules do, looks at everything.

    Args:
        tap: The tap.
        span: What it is to see.
    """

    def __init__(self, tap: Tap, span: Span) -> None:
        self._tap = tap
        self._within = Within(span)
        self._state = State()
        self._passed = Passed(self._state, all_sides=span.start is None and not span.behind)

    def see(self, batch: Batch) -> list[tuple[int, Batch]]:
        """See `kcap.replay.tap.Tap`."""
        found: list[tuple[int, Batch]] = []
        for start, part in self._passed.wanted(batch, self._within.mask(batch)):
            seen = self._tap.see(self._state.update(part))
            found += [(start + row, alerts) for row, alerts in seen]
        return found

    def end(self) -> list[Batch]:
        """See `kcap.replay.tap.Tap`."""
        return list(self._tap.end())

    def close(self) -> None:
        """See `kcap.replay.tap.Tap`."""
        self._tap.close()
