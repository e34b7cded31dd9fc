"""Rows as chunks: as many as they need, without what no chunk can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kcap import limits
from kcap.errors import LimitError
from kcap.format import chunk
from kcap.format.cadence import WrittenTails
from kcap.format.content import ByProducts
from kcap.format.schema import ColumnSpec, Schema
from kcap.model.batch import Batch
from kcap.model.side import Loss


class Encoder:
    """Encodes the rows of a capture.

    Args:
        schema: The columns of the capture so far.
        level: zstd's level.
        lose: Is told of rows that the format can't hold.
    """

    def __init__(self, schema: Schema, level: int, lose: Callable[[Loss], None]) -> None:
        self._schema = schema
        self._level = level
        self._lose = lose
        self.skipped = 0
        """Rows that the format can't hold, so far."""

    def encoded(
        self,
        table: str,
        batch: Batch,
        number: int,
        tails: WrittenTails | None = None,
    ) -> Iterator[tuple[Batch, bytearray, ByProducts]]:
        """Rows and their chunk payloads; rows that no chunk can hold are left out and counted.

        Args:
            table: The table that they are of.
            batch: The rows, all of whose columns are described.
            number: Of the first chunk.
            tails: The TAILs that hold the first of the rows.

        Yields:
            The rows of a chunk, its payload, and what encoding them told.
        """
        todo = [batch] if batch.rows else []
        done: list[tuple[Batch, bytearray, ByProducts]] = []
        tails = tails or WrittenTails()
        while todo:
            part = todo.pop()
            try:
                made = ByProducts()
                payload = chunk.encode(
                    part, self._schema, number, table, self._level, tails.names, made.column
                )
            except LimitError as e:
                if part.rows == 1:
                    self.leave_out(1, str(e))
                    continue
                assert tails.rows < part.rows, "rows of tails fit one chunk"
                middle = tails.rows or part.rows // 2
                todo.append(part.slice(middle, part.rows).compact())
                todo.append(part.slice(0, middle).compact())
                continue
            done.append((part, payload, made))
            del part, payload, made  # whoever takes them says how long they live
            yield done.pop()
            number += 1
            tails = WrittenTails()

    def describable(self, table: str, batch: Batch) -> tuple[Batch, Sequence[ColumnSpec]]:
        """Describe the columns that none describes yet.

        Args:
            table: The table that the rows are of.
            batch: The rows.

        Returns:
            The rows without those that would need too many columns, and the new columns.
        """
        # Columns of many rows first: where there is no room for all, few rows have to go.
        dense = sorted(batch.columns.items(), key=lambda item: (-len(item[1]), item[0]))
        columns = [(n, c.cls) for n, c in dense if len(c)]
        refused = self._schema.refused(table, columns)
        if refused:
            kept = ~np.logical_or.reduce([batch.mask(n) for n in refused])
            self.leave_out(
                batch.rows - int(kept.sum()),
                f"more than {limits.COLUMNS} columns, or names too long to describe",
            )
            batch = batch.take(np.flatnonzero(kept).astype(np.int32))
            columns = [(n, c.cls) for n, c in batch.columns.items() if len(c)]
        return batch, self._schema.learn(table, columns)

    def leave_out(self, rows: int, reason: str) -> None:
        """Count rows that no capture can hold.

        Args:
            rows: How many.
            reason: What they need.
        """
        self.skipped += rows
        self._lose(Loss("skipped", rows, f"what the format can't hold: {reason}"))
