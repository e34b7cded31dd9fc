"""Counting what a stream holds, for inputs without a footer."""

from __future__ import annotations

from typing import Any

from kcap.format.chunk_index import Indexer
from kcap.format.totals import Totals
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, SourceInfo


class Tally:
    """A sink that keeps numbers only."""

    def __init__(self) -> None:
        self._totals = Totals()
        self._indexer = Indexer()
        self._columns: dict[str, TypeClass] = {}

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        for side in batch.before:
            if isinstance(side, SourceInfo):
                self._totals.sources[side.id] = {**side.to_json(), "id": side.id}
            elif isinstance(side, Loss):
                self._totals.lose([side])
        if batch.rows:
            self._totals.count(self._indexer.index(batch, 0))
            self._columns.update((n, c.cls) for n, c in batch.columns.items())

    def close(self) -> None:
        """See `Sink.close`."""

    def to_json(self) -> dict[str, Any]:
        """What `kcap info` says of the stream."""
        found = self._totals.counted()
        found["columns"] = {n: str(c) for n, c in sorted(self._columns.items())}
        return found
