"""A capture's chunks, as far as something can be found in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from kcap.errors import KcapError
from kcap.format.bloom import hashes
from kcap.format.index import Index
from kcap.format.reader import CaptureReader
from kcap.format.record import Kind
from kcap.format.state_tables import read_state
from kcap.hunt.search import Searcher, is_searched
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.selection import ChunkScan, Wanted

IDENTITY: Final = ("ts", "ord", "event", "kind", "pid", "process_name", "user")
"""What is said of an event in which something is found."""


class Searched:
    """A capture in a file, of which only what can matter is read.

    The index tells which chunks have events in the interval and, where whole texts are all that
    is looked for, which of them may hold one. Of a chunk the columns of text come first; others
    only of one in which something is found, and only its rows.

    Args:
        reader: The capture.
        searcher: Looks for the indicators.
        start_ns: Only chunks with events at or after this time.
        end_ns: Only chunks with events before this time.
        prune: Let the filters of strings in the index tell chunks apart; False is for tests.
    """

    def __init__(
        self,
        reader: CaptureReader,
        searcher: Searcher,
        start_ns: int | None = None,
        end_ns: int | None = None,
        *,
        prune: bool = True,
    ) -> None:
        self._reader = reader
        self._searcher = searcher
        self._start, self._end = start_ns, end_ns
        self.pruned = 0
        """Chunks in which the index says that no text of a column is looked for."""
        texts = searcher.matcher.whole_texts() if prune else None
        self._wanted = None if texts is None else hashes(pa.array(texts, pa.utf8()))

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._reader.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`; rows in which nothing is found may be missing."""
        index = self._reader.index()
        if index is None:
            return self._reader.batches()
        return self._chunks(index)

    def close(self) -> None:
        """See `Source.close`."""
        self._reader.close()

    def _chunks(self, index: Index) -> Iterator[Batch]:
        types = self._reader.columns()
        scan = ChunkScan(self._reader, index, Wanted(types, start_ns=self._start, end_ns=self._end))
        before: list[Side] = [SourceInfo.from_json(e) for e in index.totals["sources"]]
        before += scan.losses
        states = [] if self._timed else [(int(at), int(n)) for at, n in index.totals["states"]]
        for number in scan.in_time():
            while states and states[0][0] < index.table[number]["offset"]:
                before.append(self._state(*states.pop(0)))
            columns = self._columns(number, types)
            if not columns:
                continue
            for batch, loss in self._read(number, columns):
                if loss is not None:
                    before.append(loss)
                if batch.rows:
                    yield batch.with_before(before)
                    before = []
        before += [self._state(*state) for state in states]
        if before:
            yield EMPTY.with_before(before)

    @property
    def _timed(self) -> bool:
        return self._start is not None or self._end is not None

    def _state(self, offset: int, length: int) -> Side:
        """What was known at a place; it has no time, so that no interval asks for it."""
        try:
            return read_state(self._reader.payload_at(offset, Kind.STATE), self._reader.schema)
        except KcapError as error:
            place = f"{error.what} at byte {offset}, {length} bytes"
            return Loss("damaged", None, f"what was known before: {place}")

    def _columns(self, number: int, types: dict[str, TypeClass]) -> list[str]:
        """The columns of a chunk in which something may be found."""
        found = [name for name, cls in types.items() if is_searched(name, cls)]
        if self._wanted is None:
            return found
        index = self._reader.chunk_index(number)
        if index is None or index.strings is None or index.strings.may_hold_any(self._wanted):
            return found
        self.pruned += 1
        # The filter knows whole values: those of text, not the texts within JSON.
        return [name for name in found if types[name] is TypeClass.JSON]

    def _read(self, number: int, columns: list[str]) -> Iterator[tuple[Batch, Loss | None]]:
        """The rows of a chunk in which something is found; of a damaged one what can be had."""
        parts = list(self._reader.rescued(number, columns))
        hits = [self._searcher.rows(batch) for batch, _ in parts]
        if not any(map(len, hits)):
            yield from ((EMPTY, loss) for _, loss in parts)
            return
        # All in one reading, so that damage of any of it has one outcome.
        for batch, loss in self._reader.rescued(number, dict.fromkeys((*columns, *IDENTITY))):
            yield batch.take(self._searcher.rows(batch)), loss
