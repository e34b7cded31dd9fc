"""A source that ends after a number of events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kcap.model.batch import Batch, state_rows
from kcap.model.stream import Source, StreamInfo
from kcap.replay.span import Span, Within


class Limited:
    """The first events of a source; records that only describe what was there don't count.

    Args:
        source: The source.
        count: How many events.
        span: The part whose events count: others come before, and are no events that are wanted.
    """

    def __init__(self, source: Source, count: int, span: Span | None = None) -> None:
        self._source = source
        self._count = count
        self._span = span or Span()

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        room = self._count
        within = Within(self._span)
        for batch in self._source.batches():
            counts = within.mask(batch).astype(np.int64)
            counts[state_rows(batch)] = 0
            reached = np.cumsum(counts)
            if batch.rows and reached[-1] >= room:
                yield batch.slice(0, int(np.searchsorted(reached, room)) + 1 if room else 0)
                return
            room -= int(reached[-1]) if batch.rows else 0
            yield batch

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()
