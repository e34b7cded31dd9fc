"""Whose descendants events are of: the part of a scope that no event tells by itself.

A process belongs to a family from its birth on, if its parent did; or from the first event on that
makes it one of those who are followed. Only births, deaths and such first events are gone through
one by one (1 µs each, 6 µs where descendants are followed and every process makes itself a member
anew); which of the others are kept is looked up for all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model import catalogue
from kcap.model.batch import EMPTY, Batch, Column, Rows, state_rows
from kcap.model.classes import TypeClass
from kcap.model.naming import argument, column_name
from kcap.model.side import Snapshot
from kcap.readers.live.selection import Selection
from kcap.readers.live.subjects import descendants
from kcap.replay.pipeline import Stage
from kcap.replay.stages import Matching
from kcap.state.follow import rows_of, values_at
from kcap.state.state import PROCESSES

FORK: Final = "process_fork"
STOP: Final = "process_stop"

Mask = npt.NDArray[np.bool_]
_NOBODY: Final = -1
_ROW: Final = "\0selected"
"""The column in which rows know their number while other stages have them."""


class Change(NamedTuple):
    """What a row does to families: of its process, or of the child that it has."""

    row: int
    pid: int
    child: int | None = None
    """Who is born; None where the process ends."""


class Family:
    """Processes with all that descend from them.

    Args:
        members: The first of them.
        everybody: Whoever is born is one.
    """

    def __init__(self, members: Iterable[int] = (), *, everybody: bool = False) -> None:
        self._members = set(members)
        self._everybody = everybody

    def begin(self, roots: Iterable[int], parents: Mapping[int, int]) -> None:
        """Take notice of who is there.

        Args:
            roots: Whose descendants belong to it.
            parents: The parent of each process.
        """
        self._members |= descendants(roots, parents)

    def of(
        self,
        pids: npt.NDArray[np.int64],
        changes: Iterable[Change],
        joins: Iterable[tuple[int, int]],
    ) -> Mask:
        """Which rows are of members, and who is one after them.

        Args:
            pids: The process of each row, -1 for none.
            changes: Births and deaths, in order.
            joins: Rows by which a process becomes a member, with its id, in order.

        Returns:
            One a row.
        """
        first = np.array(sorted(self._members), np.int64)
        found = np.isin(pids, first)
        noted: list[tuple[int, int, bool]] = []
        for row, pid, child in _merged(changes, joins):
            if child is None:
                if pid in self._members:
                    self._members.discard(pid)
                    noted.append((pid, row + 1, False))  # its last event is still its own
                continue
            # An id may be used again without the death of who had it being seen.
            belongs = self._everybody or child == pid or pid in self._members
            if belongs != (child in self._members):
                (self._members.add if belongs else self._members.discard)(child)
                noted.append((child, row, belongs))
        if noted:
            # By process and row, so that each row finds the last change of its process before it.
            noted.sort(key=lambda each: each[:2])
            who, rows, states = (np.array(part) for part in zip(*noted, strict=True))
            width = len(pids) + 2
            keys = pids * width + np.arange(len(pids))
            at = np.searchsorted(who * width + rows, keys, side="right") - 1
            changed = (at >= 0) & (who[at] == pids)
            found[changed] = states[at[changed]]
        return found


class Tracked:
    """Keeps the events of processes that a scope means by descent.

    A stage (`kcap.replay.pipeline.Stage`); it must see all events, before any filter.

    Args:
        selection: What is recorded, with what was there when the recording began.
    """

    def __init__(self, selection: Selection) -> None:
        scope, subjects = selection.scope, selection.subjects
        self._matching = selection.matching
        self._scope = scope
        self._roots = Family(subjects.members) if scope.roots else None
        self._others = Family(subjects.others) if scope.others else None
        self._new = Family(everybody=True) if scope.new else None
        self._followed = Family() if scope.follow else None

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        rows = self.rows(batch)
        return batch if len(rows) == batch.rows else batch.take(rows)

    def rows(self, batch: Batch) -> Rows:
        """The events that are kept, and the records that only describe what was there.

        Args:
            batch: The next events of the stream.

        Returns:
            Their row numbers, ascending.
        """
        for side in batch.before:
            if isinstance(side, Snapshot):
                self._begin(side)
        pids = batch.numpy("pid", _NOBODY)
        changes = list(_changes(batch))
        kept = np.ones(batch.rows, np.bool_)
        for family, wanted in ((self._roots, True), (self._new, True), (self._others, False)):
            if family is not None:
                kept &= family.of(pids, changes, ()) == wanted
        if self._followed is not None:
            kept &= self._followed.of(pids, changes, self._joins(batch, pids, kept, changes))
        kept[state_rows(batch)] = True
        return np.flatnonzero(kept).astype(np.int32)

    def _begin(self, snapshot: Snapshot) -> None:
        """Who was there when events began to come, so that none is missed before that."""
        table = snapshot.tables.get(PROCESSES, EMPTY)
        pids, parents = (table.numpy(name, _NOBODY).tolist() for name in ("pid", "ppid"))
        by_pid = dict(zip(pids, parents, strict=True))
        for family, roots in ((self._roots, self._scope.roots), (self._others, self._scope.others)):
            if family is not None:
                family.begin(roots, by_pid)

    def _joins(
        self, batch: Batch, pids: npt.NDArray[np.int64], kept: Mask, changes: list[Change]
    ) -> list[tuple[int, int]]:
        """The first rows of a process that make it one to be followed."""
        matching = kept.copy()
        if self._matching is not None:
            self._matching.note(batch.before)
            found = np.zeros(batch.rows, np.bool_)
            found[self._matching.rows(batch)] = True
            matching &= found
        rows = np.flatnonzero(matching & (pids != _NOBODY))
        # Of each process only the first one; ids are used again, with or without a death seen.
        width = batch.rows + 1
        ends = [(c.pid if c.child is None else c.child) * width + c.row for c in changes]
        lives = np.searchsorted(np.sort(np.array(ends, np.int64)), pids[rows] * width + rows)
        _, first = np.unique(np.stack([pids[rows], lives]), axis=1, return_index=True)
        return [(row, int(pids[row])) for row in rows[np.sort(first)].tolist()]


class Selected:
    """Keeps the events of a selection that other stages keep, too: a filter, mostly.

    Both must see every event, so that neither knows less of processes than happened.

    Args:
        selection: The selection, with what was there when the recording began; its filter is for
            the other stages.
        others: These stages; what they add stays with the event that it stands for.
    """

    def __init__(self, selection: Selection, others: Sequence[Stage]) -> None:
        self._own: list[Tracked | Matching] = []
        if selection.scope.tracks:
            self._own.append(Tracked(selection))
        if selection.filter is not None:
            self._own.append(Matching(selection.filter, state=True))
        self._others = others

    @classmethod
    def around(cls, selection: Selection, others: Sequence[Stage]) -> list[Stage]:
        """Put a selection and other stages together.

        Args:
            selection: As for the class.
            others: As for the class.

        Returns:
            The stages; none where all events are kept.
        """
        found = cls(selection, others)
        return [found] if found._own else list(others)

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        kept = np.ones(batch.rows, np.bool_)
        for own in self._own:
            found = np.zeros(batch.rows, np.bool_)
            found[own.rows(batch)] = True
            kept &= found
        marked = batch.adding({_ROW: Column(TypeClass.I64, pa.array(np.arange(batch.rows)))})
        for stage in self._others:
            marked = stage.process(marked)
        rows = np.flatnonzero(kept[marked.numpy(_ROW, 0)]).astype(np.int32)
        left = marked if len(rows) == marked.rows else marked.take(rows)
        return left.select([name for name in left.names if name != _ROW])


def _merged(changes: Iterable[Change], joins: Iterable[tuple[int, int]]) -> Iterator[Change]:
    """All in order; who joins by a row is a member before the row does anything else."""
    both = [(c.row, 1, c) for c in changes] + [
        (row, 0, Change(row, pid, pid)) for row, pid in joins
    ]
    both.sort(key=lambda each: each[:2])
    for _, _, change in both:
        yield change


def _changes(batch: Batch) -> Iterator[Change]:
    """The births and deaths of processes in a batch."""
    rows, actions = rows_of(batch, (FORK, STOP))
    if not len(rows):
        return
    pids, tids = values_at(batch, "pid", rows), values_at(batch, "tid", rows)
    children = _argument(batch, "child_pid", TypeClass.I64, rows)
    threads = _argument(batch, "child_tid", TypeClass.I64, rows)
    last = _argument(batch, "process_group_exit", TypeClass.BOOL, rows)
    for i, row in enumerate(rows.tolist()):
        pid = pids[i]
        if pid is None:
            continue
        if actions[i] == FORK:
            if children[i] is not None and threads[i] in {None, children[i]}:
                yield Change(row, pid, children[i])
        elif last[i] or (last[i] is None and tids[i] in {None, pid}):
            yield Change(row, pid)


def _argument(batch: Batch, name: str, cls: TypeClass, rows: Rows) -> Sequence[Any]:
    base = argument(name)
    return values_at(batch, column_name(base, cls, catalogue.home(base)), rows)
