"""Captures as a `pyarrow.dataset.Dataset`, which reads what a query needs and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from kcap.capture import Capture
from kcap.errors import KcapError, LossWarning
from kcap.expression import fields, program
from kcap.filter.filter import Filter
from kcap.model import logical
from kcap.model.classes import TypeClass
from kcap.model.text import printable
from kcap.replay.derived import derivation
from kcap.selection import Pass, Wanted
from kcap.where import Where, evaluated

_CELLS: Final = 1 << 22
"""Values of a record batch at full length; events have many columns, most of them null."""


class CaptureDataset(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """The events of captures as one table: columns united by name, one capture after another.

    DuckDB, Polars and pyarrow ask `scanner` for columns and rows; only chunks that can hold such
    rows are read, and of them only these columns. What was lost or damaged is in `Capture.losses`,
    and a `kcap.LossWarning` says so.
    """

    def __init__(
        self,
        captures: Sequence[Capture],
        *,
        start: int | None = None,
        end: int | None = None,
        condition: pc.Expression | None = None,
        chosen: Filter | None = None,
    ) -> None:
        """Unite captures.

        Args:
            captures: They stay open, and are closed by whoever opened them.
            start: Only events at or after this time, ns.
            end: Only events before this time, ns.
            condition: Only events for which this is true.
            chosen: Only events for which this is true, too.
        """
        self._chosen = chosen
        self._captures = tuple(captures)
        if chosen is not None:
            # All before the first is read: what one says must not depend on which was read before.
            chosen.bind([capture.source for capture in captures])
        self._start = start
        self._end = end
        self._condition = condition
        self._columns: dict[str, TypeClass] = {}
        for capture in self._captures:
            self._columns |= capture.columns
        self._derived = derivation([chosen] if chosen else [])
        if self._derived is not None:
            self._columns |= self._derived.types(self._columns)
        self._schema = logical.schema(self._columns)

    @property
    def schema(self) -> pa.Schema:
        """The columns, as `kcap.model.logical` has them."""
        return self._schema

    def scanner(
        self,
        columns: list[str] | dict[str, pc.Expression] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002  (as pyarrow calls it)
        batch_size: int = 131_072,
        **options: Any,  # noqa: ANN401  (how pyarrow reads files)
    ) -> ds.Scanner:
        """Read some columns of some rows.

        Args:
            columns: Names, in the order wanted; or name to expression; all where None.
            filter: Which rows.
            batch_size: Most rows of a record batch.
            options: Others that pyarrow knows; they would change nothing here.

        Returns:
            A scanner of the rows, in order.

        Raises:
            KcapError: There is no such column, or the filter can't be evaluated.
        """
        names = self._schema.names if columns is None else list(columns)
        if isinstance(columns, Mapping):
            names = self._needed(columns)
        condition = _both(self._condition, filter)
        wanted = Wanted(
            self._columns,
            tuple(logical.physical(names)),
            None if condition is None else Where(condition),
            self._start,
            self._end,
            self._chosen,
            self._derived,
        )
        wanted.check()
        schema = pa.schema([(n, logical.arrow_type(n, wanted.class_of(n))) for n in names])
        batches = RecordBatches(self._captures, wanted, schema, batch_size)
        return CaptureScanner(batches, columns if isinstance(columns, Mapping) else None)

    def filter(self, expression: pc.Expression) -> CaptureDataset:
        """The same with fewer rows.

        Args:
            expression: Which rows.

        Returns:
            A dataset of the rows for which this, and what held before, is true.
        """
        condition = _both(self._condition, expression)
        return CaptureDataset(
            self._captures,
            start=self._start,
            end=self._end,
            condition=condition,
            chosen=self._chosen,
        )

    def _needed(self, computed: Mapping[str, pc.Expression]) -> list[str]:
        """The columns that some expressions are computed from."""
        programs = [program(expression) for expression in computed.values()]
        if any(steps is None for steps in programs):
            return list(self._schema.names)
        needed = {name for steps in programs for name in fields(steps or ())}
        return [name for name in self._schema.names if name in needed]

    @property
    def partition_expression(self) -> pc.Expression:
        """True: nothing is known that holds for all events."""
        return pc.scalar(True)

    def get_fragments(self, filter: pc.Expression | None = None) -> NoReturn:  # noqa: A002
        """Not supported: a capture is read by `scanner`.

        Raises:
            KcapError: Always.
        """
        self._refuse("get_fragments")

    def replace_schema(self, schema: pa.Schema) -> NoReturn:
        """Not supported: the columns say what they are.

        Raises:
            KcapError: Always.
        """
        self._refuse("replace_schema")

    def join(self, *_: object, **__: object) -> NoReturn:
        """Not supported: pyarrow would read around `scanner`.

        Raises:
            KcapError: Always.
        """
        self._refuse("join")

    def join_asof(self, *_: object, **__: object) -> NoReturn:
        """Not supported, as `join`.

        Raises:
            KcapError: Always.
        """
        self._refuse("join_asof")

    def sort_by(self, *_: object, **__: object) -> NoReturn:
        """Not supported: it would need all events in memory.

        Raises:
            KcapError: Always.
        """
        self._refuse("sort_by")

    def __reduce__(self) -> NoReturn:
        self._refuse("pickle")

    def _refuse(self, what: str) -> NoReturn:
        raise KcapError(
            f"a capture's dataset has no {what}", hint="to_table() gives a table, which has more"
        )


class CaptureScanner(ds.Scanner):  # type: ignore[misc]
    """Some columns of some rows, read by whoever asks and when they ask.

    pyarrow's own scanner would read ahead in threads of its own, which outlive a reader that was
    left halfway: one in ten queries with a LIMIT then hung or ended in a crash.
    """

    def __init__(
        self, batches: RecordBatches, computed: Mapping[str, pc.Expression] | None = None
    ) -> None:
        """Say what to read.

        Args:
            batches: The events.
            computed: Columns to compute from them; None to give them as they are.
        """
        self._batches = batches
        self._computed = computed

    @property
    def dataset_schema(self) -> pa.Schema:
        """The columns that are read."""
        return self._batches.schema

    @property
    def projected_schema(self) -> pa.Schema:
        """The columns that come out."""
        read = self._batches.schema
        if self._computed is None:
            return read
        return self._compute(pa.RecordBatch.from_pylist([], read)).schema

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """The rows.

        Returns:
            Record batches, in order, none empty.
        """
        if self._computed is None:
            return iter(self._batches)
        return map(self._compute, self._batches)

    def to_reader(self) -> pa.RecordBatchReader:
        """The rows as a stream.

        Returns:
            The stream; a chunk at a time is in memory.
        """
        return pa.RecordBatchReader.from_batches(self.projected_schema, self.to_batches())

    def to_table(self) -> pa.Table:
        """The rows in memory.

        Returns:
            The table.
        """
        return self.to_reader().read_all()

    def head(self, num_rows: int) -> pa.Table:
        """The first rows.

        Args:
            num_rows: How many.

        Returns:
            A table of them.
        """
        found: list[pa.RecordBatch] = []
        for batch in self.to_batches():
            num_rows -= batch.num_rows
            found.append(batch if num_rows >= 0 else batch.slice(0, batch.num_rows + num_rows))
            if num_rows <= 0:
                break
        return pa.Table.from_batches(found, self.projected_schema)

    def take(self, indices: object) -> pa.Table:
        """Rows by number.

        Args:
            indices: The numbers.

        Returns:
            A table of the rows, in that order.
        """
        return self.to_table().take(indices)

    def count_rows(self) -> int:
        """The number of rows."""
        return sum(batch.num_rows for batch in self._batches)

    def scan_batches(self) -> NoReturn:
        """Not supported: a capture has no fragments.

        Raises:
            KcapError: Always.
        """
        raise KcapError("a capture's scanner has no fragments", hint="to_batches() has the rows")

    def _compute(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        computed = self._computed or {}
        found = evaluated(batch, list(computed.values()), list(computed))
        arrays = [column.combine_chunks() for column in found.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=found.schema)


class RecordBatches:
    """The events of captures as record batches of one schema."""

    def __init__(
        self, captures: Sequence[Capture], wanted: Wanted, schema: pa.Schema, batch_rows: int
    ) -> None:
        """Say what to read.

        Args:
            captures: One is read after another.
            wanted: What is wanted of each.
            schema: The record batches' columns.
            batch_rows: Most rows of a record batch.
        """
        self._captures = captures
        self._wanted = wanted
        self.schema = schema
        """The columns of the record batches."""
        self._batch_rows = max(1, min(batch_rows, _CELLS // max(1, len(schema))))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The events.

        Yields:
            Record batches, none empty.
        """
        for capture in self._captures:
            known = len(capture.losses)
            for batch in Pass(capture, self._wanted):
                for start in range(0, batch.rows, self._batch_rows):
                    part = batch.slice(start, start + self._batch_rows)
                    yield logical.table(part, self.schema)
            for loss in capture.losses[known:]:
                count = "" if loss.count is None else f" {loss.count} events"
                text = f"{capture.info.file}: {loss.kind}{count}: {loss.reason}"
                warnings.warn(printable(text), LossWarning, stacklevel=2)

    __iter__ = batches


def _both(one: pc.Expression | None, other: pc.Expression | None) -> pc.Expression | None:
    return other if one is None else one if other is None else one & other
