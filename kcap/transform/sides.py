"""What travels beside the events, when what it tells of them has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np

from kcap.model.artifact import Artifact
from kcap.model.batch import Batch, Column, Rows, concat
from kcap.model.classes import TypeClass
from kcap.model.side import Heartbeat, Loss, Side, Snapshot, SourceInfo
from kcap.state import State
from kcap.transform.texts import mapped


class Change(Protocol):
    """What becomes of side records."""

    def source(self, info: SourceInfo) -> SourceInfo:
        """What becomes of a source.

        Args:
            info: The source.

        Returns:
            The source; its id may be another.
        """

    def loss(self, loss: Loss) -> Loss:
        """What becomes of a loss.

        Args:
            loss: The loss.

        Returns:
            The loss; the id of its source is changed elsewhere.
        """

    def table(self, name: str, rows: Batch) -> tuple[str, Batch]:
        """What becomes of a table of a state.

        Args:
            name: Its name.
            rows: Its rows.

        Returns:
            Both; the machines in it are changed elsewhere.
        """

    def heartbeat(self, beat: Heartbeat) -> Heartbeat:
        """What becomes of a heartbeat.

        Args:
            beat: The heartbeat.

        Returns:
            The heartbeat; the id of its source is changed elsewhere.
        """


class Untouched:
    """Leaves side records as they are: a base for what changes some of them."""

    def source(self, info: SourceInfo) -> SourceInfo:
        """See `Change.source`."""
        return info

    def loss(self, loss: Loss) -> Loss:
        """See `Change.loss`."""
        return loss

    def table(self, name: str, rows: Batch) -> tuple[str, Batch]:
        """See `Change.table`."""
        return name, rows

    def heartbeat(self, beat: Heartbeat) -> Heartbeat:
        """See `Change.heartbeat`."""
        return beat


class Sides:
    """Changes the side records of a stream, and the ids by which events refer to them.

    Args:
        change: What becomes of them.
    """

    def __init__(self, change: Change) -> None:
        self._change = change
        self.ids: dict[str, str] = {}
        """Sources that have another id now."""
        self.machines: dict[str, str] = {}
        """Machines that have another name now (`kcap.state.State.machine`)."""
        self.moved: set[str] = set()
        """Former ids of the sources of those machines."""

    def changed(self, sides: Iterable[Side]) -> tuple[Side, ...]:
        """Change side records.

        Args:
            sides: Those before a batch.

        Returns:
            As many.
        """
        # What is in a file nobody has looked through: it does not go where secrets may not.
        return tuple(self._side(side) for side in sides if not isinstance(side, Artifact))

    def events(self, batch: Batch) -> Batch:
        """Let events refer to their sources by the new ids.

        Args:
            batch: Events.

        Returns:
            The events.
        """
        return self._renamed(batch, "source", self.ids)

    def rows_of_moved(self, batch: Batch) -> Rows:
        """The events whose machine has another name now.

        Args:
            batch: Events, with the former ids.

        Returns:
            Their rows, ascending.
        """
        column = batch.get("source")
        if not self.moved or column is None or column.cls is not TypeClass.STR:
            return np.zeros(0, np.int32)
        entries = column.values.dictionary.to_pylist()
        chosen = np.array([e in self.moved for e in entries], np.bool_)
        at = np.flatnonzero(chosen[column.codes()]).astype(np.int32)
        return at if column.rows is None else column.rows[at]

    def _side(self, side: SourceInfo | Snapshot | Loss | Heartbeat) -> Side:
        if isinstance(side, SourceInfo):
            return self._source(side)
        if isinstance(side, Snapshot):
            tables = [self._change.table(n, rows) for n, rows in side.tables.items()]
            return Snapshot({n: self._renamed(t, "machine", self.machines) for n, t in tables})
        if isinstance(side, Loss):
            made = self._change.loss(side)
            return replace(made, source=self.ids.get(made.source or "", made.source))
        beat = self._change.heartbeat(side)
        return replace(beat, source=self.ids.get(beat.source or "", beat.source))

    def _source(self, info: SourceInfo) -> SourceInfo:
        made = self._change.source(info)
        if made.id != info.id:
            self.ids[info.id] = made.id
        before, after = State.machine(info), State.machine(made)
        if before != after:
            self.machines[before] = after
            self.moved.add(info.id)
        return made

    @staticmethod
    def _renamed(batch: Batch, name: str, names: dict[str, str]) -> Batch:
        column = batch.get(name)
        if not names or column is None or column.cls is not TypeClass.STR:
            return batch
        change = mapped(column, lambda found: [names.get(v, v) for v in found])
        return batch.adding({name: change.column})


def each_column(batch: Batch, change: Callable[[str, Column], Column | None]) -> Batch:
    """Change columns one by one.

    Args:
        batch: Rows.
        change: Gives a column's new values, None where none are left.

    Returns:
        The rows.
    """
    columns = {n: change(n, c) for n, c in batch.columns.items()}
    kept = {n: c for n, c in columns.items() if c is not None}
    return Batch(batch.rows, kept, batch.before)


def on_rows(
    batch: Batch,
    rows: Rows,
    change: Callable[[Batch], Batch],
) -> Batch:
    """Change some rows of a batch.

    Args:
        batch: Events.
        rows: Ascending numbers of those to change.
        change: What becomes of them; as many rows.

    Returns:
        All rows, in their order.
    """
    if len(rows) == batch.rows:
        return change(batch)
    if not len(rows):
        return batch
    others = np.setdiff1d(np.arange(batch.rows, dtype=np.int32), rows)
    parts = change(batch.take(rows).with_before(())), batch.take(others).with_before(())
    both = concat(parts)
    order = np.empty(batch.rows, np.int32)
    order[rows] = np.arange(len(rows), dtype=np.int32)
    order[others] = np.arange(len(rows), batch.rows, dtype=np.int32)
    return both.take(order).with_before(batch.before)
