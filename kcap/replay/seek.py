"""Beginning in the middle: what was known there is restored, nothing before it is delivered.

Of a capture in a file only what lies between the last STATE record before the beginning and the
end of the interval is read. Of anything else all of it is, and followed silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kcap.errors import KcapError
from kcap.format.reader import CaptureReader
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, Snapshot
from kcap.model.stream import Source, StreamInfo
from kcap.replay.passing import Passed
from kcap.replay.restoring import (
    BEYOND,
    followed,
    host_tables,
    planned,
    sources_at,
)
from kcap.replay.span import Span, Within
from kcap.state import State


class _Begin(NamedTuple):
    """Where to read a source."""

    offset: int
    """Of a capture the record to begin with."""
    within: Within
    stop: int


class _Of:
    """A source that is another one, or a part of it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()


class Seeking(_Of):
    """The wanted events of a source, with what was known before them.

    Where rows were passed over, a snapshot of the state stands before the rows that follow, so
    that whoever follows the events goes on as if he had seen all of them. A whole span is given
    as it is.

    Args:
        source: The source; closed with this one.
        span: What is wanted of it.
        state: The state of the pipeline that asks for the batches: it has followed each one when it
            asks for the next. Rows that are passed over are followed here.
        host: Give what a capture says of its host at its start, too.

    Example:
        >>> state = State()
        >>> source = Seeking(reader, Span(AtRow(1000)), state)  # doctest: +SKIP
        >>> Pipeline(source, [sink], state=state).run()  # doctest: +SKIP
    """

    def __init__(self, source: Source, span: Span, state: State, *, host: bool = False) -> None:
        super().__init__(source)
        self._span = span
        self._state = state
        self._host = host
        self._delivered = 0
        self._run = (0, span.behind)
        """Of the rows given last: how many were before them, and the number of the first."""
        self._passed = Passed(state, all_sides=span.start is None and not span.behind)

    def row_behind(self, delivered: int) -> int:
        """How far the input was dealt with.

        Args:
            delivered: Rows of it that were dealt with: all but some of the batch given last.

        Returns:
            The number of the row behind the last of them.
        """
        before, row = self._run
        return row + delivered - before

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`.

        Raises:
            KcapError: An event at which it was to begin or end is not there.
        """
        source = self._source
        if self._span.whole:
            for batch in source.batches():
                self._run = self._delivered, self._delivered
                self._delivered += batch.rows
                yield batch
            return
        begin = self._begun()
        if isinstance(source, CaptureReader) and begin.offset:
            batches = source.batches(begin.offset)
        else:
            batches = source.batches()
        yield from self._pieces(batches, begin.within, begin.stop)

    def _begun(self) -> _Begin:
        """Find out where to begin, and follow what must be known there."""
        reader = self._source
        index = reader.index() if isinstance(reader, CaptureReader) else None
        if not isinstance(reader, CaptureReader) or index is None:
            return _Begin(0, Within(self._span), BEYOND)
        plan = planned(reader, index, self._span)
        if plan.state is None:
            return _Begin(0, Within(plan.span), plan.stop)
        self._passed.follow(EMPTY.with_before(sources_at(reader, index, plan.state)))
        if self._host:
            self._passed.add_tables(host_tables(reader, index))
        offset, row = plan.state, plan.state_row
        if plan.follow is not None:
            try:
                for batch in followed(reader, plan.state, plan.follow.chunks):
                    self._passed.follow(batch)
                offset, row = plan.follow.offset, plan.follow.row
            except KcapError:
                # What is damaged may be whole in tails: whoever reads everything finds that out.
                self._state.restore(Snapshot({}))
        return _Begin(offset, Within(plan.span, row), plan.stop)

    def _pieces(self, batches: Iterator[Batch], within: Within, stop: int) -> Iterator[Batch]:
        closed = isinstance(self._source, CaptureReader) and self._source.footer is not None
        for batch in batches if within.row < stop else ():
            if closed:
                within.row += _lost_rows(batch)  # the index counts them, too
            row = within.row
            for start, part in self._passed.wanted(batch, within.mask(batch)):
                if part.rows:
                    self._run = self._delivered, row + start
                    self._delivered += part.rows
                yield part
            if within.ended or within.row >= stop:
                break
        else:
            within.check()
        if (rest := self._passed.rest()) is not None:
            yield rest


class Whole(_Of):
    """All of a source, for who must see what comes before the part that is wanted.

    Args:
        source: The source; closed with this one.
        span: The part.
    """

    def __init__(self, source: Source, span: Span) -> None:
        super().__init__(source)
        self._within = Within(span)

    def row_behind(self, delivered: int) -> int:
        """How far the input was dealt with.

        Args:
            delivered: Rows of it that were dealt with.

        Returns:
            The number of the row behind the last of them.
        """
        return delivered

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`.

        Raises:
            KcapError: An event at which the part was to begin or end is not there.
        """
        for batch in self._source.batches():
            self._within.mask(batch)
            yield batch
        self._within.check()


def _lost_rows(batch: Batch) -> int:
    """The rows of damaged records before a batch."""
    return sum(
        side.count or 0
        for side in batch.before
        if isinstance(side, Loss) and side.kind == "damaged" and not side.recorded
    )
