"""Writing some of the events of a capture, and nothing of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kcap.model.batch import EMPTY, Batch, without_state
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.replay.artifacts import Artifacts, Carrying
from kcap.replay.needed import ROW, numbered
from kcap.replay.pipeline import FILTERED
from kcap.replay.rebatch import Rebatcher, canonical

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.replay.pipeline import Stage


class Selecting:
    """Stages that choose among events, put together as one.

    Args:
        stages: The stages.
        limit: How many events to keep; None for all.
        state: Keep all records that only describe what was there; else none.
        unchanged: The stages give events as they get them: so what they keep of a batch is not
            copied once more.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        limit: int | None,
        state: bool,
        unchanged: bool = False,
    ) -> None:
        self._stages = stages
        self._unchanged = unchanged
        self._room = limit
        self._state = state
        self.dropped: Counter[str | None] = Counter()
        """Events that were left out, by source."""

    @property
    def losses(self) -> list[Loss]:
        """What the stages could not look at."""
        return [loss for stage in self._stages for loss in getattr(stage, "losses", ())]

    @property
    def done(self) -> bool:
        """No more events will be kept."""
        return self._room is not None and self._room <= 0

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        marked = numbered(batch)
        chosen = marked
        for stage in self._stages:
            chosen = stage.process(chosen)
        chosen = without_state(chosen)
        if self._room is not None:
            chosen = chosen.slice(0, self._room)
            self._room -= chosen.rows
        events = without_state(marked)
        self.dropped.update(_by_source(events))
        self.dropped.subtract(_by_source(chosen))
        rows = chosen.numpy(ROW, 0)
        if self._state:
            kept = np.ones(batch.rows, np.bool_)
            kept[events.numpy(ROW, 0)] = False
            kept[rows] = True
            rows = np.flatnonzero(kept)
        if len(rows) == batch.rows:
            return batch
        if self._unchanged and len(rows) == chosen.rows:
            return chosen.select(batch.names).with_before(batch.before)
        return batch.take(rows.astype(np.int32))


def _by_source(batch: Batch) -> dict[str | None, int]:
    column = batch.get("source")
    if column is None or column.cls is not TypeClass.STR:
        return {None: batch.rows}
    counts = np.bincount(column.codes(), minlength=len(column.values.dictionary)).tolist()
    texts = column.values.dictionary.to_pylist()
    return {None: batch.rows - len(column), **dict(zip(texts, counts, strict=True))}


class Survivors(Carrying):
    """A sink before a writer: nothing passes that no event of those it gets refers to.

    Dictionaries keep what is used, columns that no event has go, a source is told when the first
    event of it comes. What is lost or damaged always passes.

    Args:
        writer: The writer; closed with this.
        artifacts: The blobs that go along.
        snapshots: States to put in, each before the event of that number.
        states: The snapshots that come with the events pass.
        rows: Where not None, nothing may show how the events came: rows of the batches that are
            handed on.
        ending: Gives what is to be said when all events have come.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        artifacts: Artifacts,
        *,
        snapshots: Iterable[tuple[int, Snapshot]] = (),
        states: bool = False,
        rows: int | None = None,
        ending: Callable[[], Sequence[Loss]] = tuple,
    ) -> None:
        super().__init__(writer, artifacts)
        self._states = states
        self._snapshots = iter(snapshots)
        self._next = next(self._snapshots, None)
        self._sources: dict[str, SourceInfo] = {}
        self._told: set[str] = set()
        self._count = 0
        self._rebatcher = None if rows is None else Rebatcher(rows)
        self._ending = ending

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        batch = self._artifacts.without(canonical(batch))
        self._artifacts.follow(batch)
        before = [*self._passing(batch.before), *self._referred(batch)]
        # The end of one part is where a snapshot has its place.
        start = 0
        while self._next is not None and self._next[0] < self._count + batch.rows:
            position, snapshot = self._next
            self._next = next(self._snapshots, None)
            stop = position - self._count
            self._hand_on(batch.slice(start, stop), before)
            before, start = [snapshot], stop
        self._hand_on(batch.slice(start, batch.rows), before)
        self._count += batch.rows

    def finish(self) -> None:
        """Say what was left out, then write the blobs."""
        self._hand_on(EMPTY, self._ending())
        for batch in self._rebatcher.end() if self._rebatcher else ():
            self._writer.write(batch)
        super().finish()

    def _hand_on(self, batch: Batch, before: Sequence[Side]) -> None:
        if not batch.rows and not before:
            return
        batch = batch.with_before(before)
        if self._rebatcher is None:
            self._writer.write(canonical(batch))
            return
        for part in self._rebatcher.add(batch):
            self._writer.write(part)

    def _passing(self, sides: Iterable[Side]) -> Iterator[Side]:
        """The side records that go on at once."""
        for side in sides:
            if isinstance(side, SourceInfo):
                self._sources[side.id] = side
                if side.id in self._told:
                    yield side
            elif isinstance(side, Loss) or self._states:
                yield side

    def _referred(self, batch: Batch) -> Iterator[Side]:
        """The sources that the events are the first of."""
        column = batch.get("source")
        if column is None or column.cls is not TypeClass.STR:
            return
        for name in column.values.dictionary.to_pylist():
            if name in self._sources and name not in self._told:
                self._told.add(name)
                yield self._sources[name]


def left_out(dropped: Counter[str | None], *, whole: bool) -> list[Loss]:
    """What a copy says of the events that it does not have.

    Args:
        dropped: Their number by source.
        whole: The input was read to its end.

    Returns:
        One entry for each source; what was looked for is not in it, it may be what the copy must
        not show.
    """
    if not whole:
        return [Loss(FILTERED, None, "left out of this copy, which ends at a number of events")]
    return [
        Loss(FILTERED, count, "left out of this copy", source=source)
        for source, count in sorted(dropped.items(), key=lambda item: item[0] or "")
        if count
    ]
