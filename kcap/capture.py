"""A capture as analysts use it: whatever the format, as batches, data frames and SQL tables."""

from __future__ import annotations

import contextlib
import html
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self, Union

import pyarrow as pa

from kcap.errors import KcapError, MissingExtraError
from kcap.filter.filter import Filter
from kcap.format.reader import CaptureReader
from kcap.model import logical
from kcap.model.batch import Batch
from kcap.model.side import Loss, SourceInfo
from kcap.model.stream import Source, StreamInfo
from kcap.model.text import printable
from kcap.replay.derived import derivation
from kcap.selection import ChunkScan, Pass, Wanted
from kcap.where import Where as Expression

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow.compute as pc

    from kcap.dataset import CaptureDataset
    from kcap.format.index import Index
    from kcap.model.classes import TypeClass

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Where = Union["pc.Expression", Filter, str]
"""A condition: an expression of pyarrow's, a filter, or the text of one (`kcap.filter`)."""

Time = int | datetime
"""A point in time: ns since 1970 UTC, or a datetime, which without a zone is UTC."""


@dataclass(frozen=True, slots=True)
class CaptureInfo(StreamInfo):
    """What is known of a capture without reading its events.

    Of a foreign file or a stream that is `file`, `format` and `sources`; the rest is None then.
    """

    state: str | None = None
    """``closed``, ``open`` or ``torn``."""
    events: int | None = None
    state_rows: int | None = None
    """Records that only describe what was there; they are not among `events`."""
    first_ns: int | None = None
    last_ns: int | None = None
    """Time of the earliest and of the latest event."""
    types: Mapping[str, int] | None = None
    """Event name to count."""
    columns: Mapping[str, TypeClass] | None = None
    """Column name to class."""
    losses: tuple[Loss, ...] = field(default=())
    """What the capture says was lost when it was made."""


class Capture:
    """Events in a file or stream of any format that kcap reads.

    It is a source for `kcap.replay.pipeline.Pipeline`, a context manager, and an Arrow stream for
    whatever takes one (``pyarrow.table``, ``polars.DataFrame``, DuckDB).

    Example:
        >>> with kcap.open("host.kcap") as capture:  # doctest: +SKIP
        ...     execs = capture.to_polars(where=pc.field("event") == "exec")
    """

    def __init__(self, source: Source, again: Callable[[], Source] | None = None) -> None:
        """Take over a source.

        Args:
            source: Where the events come from; closed with the capture.
            again: Opens the same input once more; None where it can be read only once.
        """
        self.source = source
        self.losses: list[Loss] = []
        """What reading has found lost, skipped or damaged so far, each once."""
        self._again = again
        self._used = False
        self._reader = source if isinstance(source, CaptureReader) else None
        self.lock = threading.Lock()
        """Held while a chunk is read: DuckDB scans one file twice from two threads."""

    @cached_property
    def _index(self) -> Index | None:
        return None if self._reader is None else self._reader.index()

    def scan(self, wanted: Wanted) -> ChunkScan | None:
        """A scan of just the chunks that can hold what is wanted.

        Args:
            wanted: What is wanted.

        Returns:
            The scan; None where the input has no index.
        """
        if self._reader is None or self._index is None:
            return None
        return ChunkScan(self._reader, self._index, wanted)

    @cached_property
    def info(self) -> CaptureInfo:
        """What is known without reading the events."""
        base = {f.name: getattr(self.source.info, f.name) for f in fields(StreamInfo)}
        if self._reader is None or self._index is None:
            return CaptureInfo(**base)
        totals = self._index.totals
        first, last = totals["ts"] or (None, None)
        base["sources"] = tuple(SourceInfo.from_json(s) for s in totals["sources"])
        return CaptureInfo(
            **base,
            state=self._reader.state,
            events=totals["events"],
            state_rows=totals["state_rows"],
            first_ns=first,
            last_ns=last,
            types=dict(totals["types"]),
            columns=self._reader.columns(),
            losses=tuple(Loss.from_json(e) for e in totals["loss"]),
        )

    @cached_property
    def columns(self) -> Mapping[str, TypeClass]:
        """The columns of the events, name to class. A foreign file is read once to know them.

        Raises:
            KcapError: The input is a stream, and only reading it would tell.
        """
        if self._reader is not None and self._index is not None:
            return self._reader.columns()
        self._refuse_once("its columns are known only at its end")
        from kcap.replay.pipeline import Pipeline

        found = _ColumnSink()
        with self.opened() as source:
            Pipeline(source, [found]).run()
        return dict(sorted(found.columns.items()))

    @property
    def schema(self) -> pa.Schema:
        """The columns as tables, data frames and filters see them (`kcap.model.logical`)."""
        return logical.schema(self.columns)

    def batches(
        self,
        columns: Iterable[str] | None = None,
        where: Where | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Iterator[Batch]:
        """The events, in file order.

        Without arguments everything is delivered: all side records, and rows that only describe
        what was there. With any, `Batch.before` holds sources and losses alone, and of a capture
        in a file only the chunks and columns are read that can hold what is wanted.

        Args:
            columns: Columns wanted; all where None.
            where: A filter as ``kcap cat -w`` takes it, or a condition on the columns of
                `schema`; rows for which that is null are left out.
            start: Only events at or after this time.
            end: Only events before this time.

        Returns:
            Batches of the rows for which everything holds.

        Raises:
            KcapError: There is no such column, the filter can't be evaluated, or a stream was to
                be read twice.
        """
        return iter(Pass(self, self.wanted(columns, where, start, end)))

    def wanted(
        self,
        columns: Iterable[str] | None = None,
        where: Where | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> Wanted:
        """Check a choice of columns and rows, as `batches` does.

        Args:
            columns: See `batches`.
            where: See `batches`.
            start: See `batches`.
            end: See `batches`.

        Returns:
            The choice.

        Raises:
            KcapError: There is no such column, or the filter can't be evaluated.
        """
        chosen, expression = split_where(where)
        predicate = None if expression is None else Expression(expression)
        if columns is None and where is None and start is None and end is None:
            return Wanted({})
        # A filter that Arrow does not let us look into may mean columns by their number.
        opaque = predicate is not None and predicate.fields is None
        wanted = Wanted(
            self.columns if opaque or self._index is not None else {},
            None if columns is None else tuple(logical.physical(columns)),
            predicate,
            _ns(start),
            _ns(end),
            chosen,
            derivation([chosen] if chosen else []),
        )
        wanted.check()
        return wanted

    def dataset(
        self,
        *,
        where: Filter | str | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> CaptureDataset:
        """The events as a dataset, for DuckDB, Polars, pyarrow and whatever takes one.

        Args:
            where: Only events for which this filter is true.
            start: Only events at or after this time.
            end: Only events before this time.

        Returns:
            A ``pyarrow.dataset.Dataset`` that reads just the chunks and columns a query needs.
        """
        from kcap.dataset import CaptureDataset

        chosen, _ = split_where(where)
        return CaptureDataset([self], start=_ns(start), end=_ns(end), chosen=chosen)

    def to_arrow(
        self,
        columns: Iterable[str] | None = None,
        where: Where | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> pa.Table:
        """The events as an Arrow table in memory.

        Args:
            columns: Columns of `schema`, in the order wanted; all where None.
            where: See `batches`.
            start: See `batches`.
            end: See `batches`.

        Returns:
            The table; text is dictionary-coded.

        Raises:
            KcapError: As `batches`.
        """
        names = None if columns is None else list(columns)
        chosen, expression = split_where(where)
        found = self.dataset(where=chosen, start=start, end=end)
        return found.to_table(columns=names, filter=expression)

    def to_polars(
        self,
        columns: Iterable[str] | None = None,
        where: Where | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> pl.DataFrame:
        """The events as a Polars data frame; text is ``Categorical``.

        Args:
            columns: See `to_arrow`.
            where: See `batches`.
            start: See `batches`.
            end: See `batches`.

        Returns:
            The frame.

        Raises:
            MissingExtraError: Polars is not installed.
            KcapError: As `batches`.
        """
        polars = _extra("polars", "frames")
        frame: pl.DataFrame = polars.DataFrame(self.to_arrow(columns, where, start, end))
        return frame

    def to_pandas(
        self,
        columns: Iterable[str] | None = None,
        where: Where | None = None,
        start: Time | None = None,
        end: Time | None = None,
    ) -> pd.DataFrame:
        """The events as a pandas data frame; text is ``category``, numbers are pandas' nullable.

        Args:
            columns: See `to_arrow`.
            where: See `batches`.
            start: See `batches`.
            end: See `batches`.

        Returns:
            The frame; no integer becomes a float.

        Raises:
            MissingExtraError: pandas is not installed.
            KcapError: As `batches`.
        """
        pandas = _extra("pandas", "frames")
        types = {
            pa.int64(): pandas.Int64Dtype(),
            pa.uint64(): pandas.UInt64Dtype(),
            pa.float64(): pandas.Float64Dtype(),
            pa.bool_(): pandas.BooleanDtype(),
        }
        table = self.to_arrow(columns, where, start, end)
        frame: pd.DataFrame = table.to_pandas(types_mapper=types.get)
        return frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The events as an Arrow stream of one schema; a chunk at a time is in memory."""
        reader = self.dataset().scanner().to_reader()
        return reader.__arrow_c_stream__(requested_schema)

    def close(self) -> None:
        """Close the input."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kcap.Capture {'; '.join(value for _, value in _summary(self.info))}>"

    def _repr_html_(self) -> str:
        """The capture in a notebook."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in _summary(self.info)
        )
        return f"<table>{rows}</table>"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Source]:
        """A source of all events that nothing was read from yet.

        Yields:
            The source; closed afterwards, unless it is the capture's own.

        Raises:
            KcapError: A stream was to be read twice.
        """
        if self._again is not None and (self._used or self._reader is not None):
            with contextlib.closing(self._again()) as source:
                yield source
            return
        if self._used:
            self._refuse_once("it was read already")
        self._used = True
        yield self.source

    def _refuse_once(self, why: str) -> None:
        if self._again is None and self._index is None:
            raise KcapError(
                f"a stream can be read only once, and {why}",
                file=self.source.info.file,
                hint="save it to a file, or turn it into one with kcap import - -o NEW.kcap",
            )


def split_where(where: Where | None) -> tuple[Filter | None, pc.Expression | None]:
    """A condition as what evaluates it.

    Args:
        where: The condition.

    Returns:
        A filter, or an expression for Arrow.

    Raises:
        TypeError: It is neither.
        FilterError: Its text can't be understood.
    """
    import pyarrow.compute as pc

    if isinstance(where, str):
        found = Filter.of(where)
        found.inspect(binaries=False)
        return found, None
    if where is None or isinstance(where, Filter):
        return where, None
    if not isinstance(where, pc.Expression):
        raise TypeError(f"where is a {type(where).__name__}, not a filter or an Arrow expression")
    return None, where


class _ColumnSink:
    """Keeps the names and classes of the columns."""

    def __init__(self) -> None:
        self.columns: dict[str, TypeClass] = {}

    def write(self, batch: Batch) -> None:
        self.columns.update((name, column.cls) for name, column in batch.columns.items())

    def close(self) -> None:
        """Nothing is open."""


def _ns(time: Time | None) -> int | None:
    """A point in time in ns."""
    if time is None or (isinstance(time, int) and not isinstance(time, bool)):
        return time
    if not isinstance(time, datetime):
        raise TypeError(f"a time is ns since 1970 or a datetime, not a {type(time).__name__}")
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    us = (aware - _EPOCH) // timedelta(microseconds=1)
    rest: int = getattr(time, "nanosecond", 0)  # pandas has more digits than datetime
    return us * 1000 + rest


def _extra(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingExtraError(
            f"{module} is not installed", hint=f"pip install 'kcap[{extra}]'"
        ) from e


def _summary(info: CaptureInfo) -> list[tuple[str, str]]:
    """A capture in a few lines, safe to show."""
    rows: list[tuple[str, Any]] = [
        ("file", info.file),
        ("format", info.format),
        ("state", info.state),
        ("events", None if info.events is None else f"{info.events:,} events"),
        ("first", _utc(info.first_ns)),
        ("last", _utc(info.last_ns)),
        ("columns", info.columns and f"{len(info.columns):,} columns"),
        ("hosts", ", ".join(sorted({s.host for s in info.sources if s.host}))),
        ("losses", f"{len(info.losses):,} losses recorded" if info.losses else None),
    ]
    return [(name, printable(str(value))) for name, value in rows if value]


def _utc(ns: int | None) -> str | None:
    """A time for people; the integer where a datetime can't hold it."""
    if ns is None:
        return None
    seconds, rest = divmod(ns, 10**9)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
