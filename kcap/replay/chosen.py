"""Some events of a source: read no more of it than they need, and keep just them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, cast

from kcap.capture import Capture
from kcap.format.reader import CaptureReader
from kcap.model.batch import Batch
from kcap.model.stream import Source, StreamInfo
from kcap.replay.derived import derivation
from kcap.replay.stages import Matching, TimeRange
from kcap.selection import Pass, Wanted

if TYPE_CHECKING:
    from kcap.filter.filter import Filter
    from kcap.replay.pipeline import Stage


class Narrowed:
    """The wanted events of a capture in a file; chunks that can have none stay unread.

    Losses and sources come with them; state records between them do not.

    Args:
        reader: The capture.
        wanted: What is wanted.
    """

    def __init__(self, reader: CaptureReader, wanted: Wanted) -> None:
        self._reader = reader
        self._pass = Pass(Capture(reader), wanted)

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._reader.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        return self._pass.batches()

    def close(self) -> None:
        """See `Source.close`."""
        self._reader.close()


def chosen(
    source: Source,
    *,
    columns: Iterable[str] | None = None,
    start_ns: int | None = None,
    end_ns: int | None = None,
    where: Filter | None = None,
    everything: bool = False,
    derived: Collection[str] = (),
    storing: bool = False,
) -> tuple[Source, list[Stage]]:
    """Prepare a run over some events of a source.

    Args:
        source: Where events come from.
        columns: All columns that anybody downstream looks at; None for all there are. More may
            come.
        start_ns: Only events at or after this time.
        end_ns: Only events before this time.
        where: Only events for which this is true.
        everything: State records, and events that are not wanted, must be read all the same:
            somebody follows the state, or keeps the records.
        derived: Derived events that are wanted beside those that the filter names.
        storing: What is chosen is stored, so not derived events but those they are views of.

    Returns:
        What to read, and the stages that keep what is wanted of it.
    """
    viewing = derivation([where] if where else [], derived)
    timed = start_ns is not None or end_ns is not None
    follows = where is not None and where.follows
    if where is not None:
        where.bind([source])
    restricted = timed or columns is not None or where is not None or viewing is not None
    if isinstance(source, CaptureReader) and restricted and not everything and not follows:
        names = None if columns is None else tuple(columns)
        if source.index() is not None:
            wanted = Wanted(source.columns(), names, None, start_ns, end_ns, where, viewing)
            return cast("Source", Narrowed(source, wanted)), []
        if names is not None:  # a stream
            names = (*names, *(where.columns if where else ()), "ts")
            source.projection = (*names, *(viewing.columns(names) if viewing else ()))
    stages: list[Stage] = [TimeRange(start_ns, end_ns)] if timed else []
    if where is not None:
        # A filter that asks for the state has to see all events before it.
        matching = Matching(where, state=everything, derived=derived, storing=storing)
        stages.insert(0 if follows else len(stages), matching)
    elif viewing is not None and not storing:
        stages.append(viewing)
    return source, stages
