"""Parquet: the events as a table for DuckDB, Spark, Polars and the rest (docs/export.md).

Each page has a checksum. Text that comes again is written from its dictionary as it is, so that
no text is made once for each event.
"""

from __future__ import annotations

from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.replay.rebatch import row_bytes
from kcap.writers import groups
from kcap.writers.about import About
from kcap.writers.arrow_stream import Appended, check_columns, errors
from kcap.writers.layout import Layout, Profile

LEVEL: Final = 3
"""zstd's level."""

COUNTERS: Final = ("ts", "ts_ns", "seq", "ord")
"""Columns that mostly count up: a dictionary of them would hold each value once."""

DICTIONARY_BYTES: Final = 1 << 20
"""Largest dictionary of a column in a row group; with more, text is written as it stands."""

_FLOATS: Final = frozenset({TypeClass.F64, TypeClass.LIST_F64})


class Parquet:
    """A sink that writes one Parquet file.

    A batch becomes a row group, small ones together. The file says at its end what it holds, so it
    can be read only after `close`.

    Args:
        stream: Where the bytes go; need not be seekable, stays open.
        layout: Which columns there are.
        about: Collects the file's metadata.
        checksums: Give each page a checksum. Only a test has a reason not to.

    Example:
        >>> layout = Layout({"pid": TypeClass.I64}, Profile.PORTABLE)
        >>> sink = Parquet(stream, layout, About("wide", "portable", {}))
        >>> sink.write(batch)
        >>> sink.close()
    """

    def __init__(
        self, stream: BinaryIO, layout: Layout, about: About, *, checksums: bool = True
    ) -> None:
        check_columns(layout)
        self._layout = layout
        self._about = about
        # Only the wide layout leaves text to its dictionaries.
        weigh = _spelled_bytes if layout.name == Layout.name else layout.weigh
        self._groups = groups.Groups(weigh=weigh)
        self._closed = False
        full = layout.profile is Profile.FULL
        counters = [name for name in COUNTERS if name in layout.schema.names]
        self._writer = pq.ParquetWriter(
            Appended(stream),
            layout.schema,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=coded_leaves(layout),
            column_encoding=dict.fromkeys(counters, "DELTA_BINARY_PACKED") if full else None,
            write_page_checksum=checksums,
            # Without Arrow's own schema in the file, text is text for whoever reads it.
            store_schema=full,
        )

    def write(self, batch: Batch) -> None:
        """Take events and side records; these go into the metadata.

        Args:
            batch: The events.

        Raises:
            OutputError: The stream takes no more.
        """
        self._about.take(batch)
        for group in self._groups.add(batch):
            self._write_group(group)

    def flush(self) -> None:
        """Write what waits as a row group."""
        for group in self._groups.end():
            self._write_group(group)

    def close(self) -> None:
        """Write what is left, the metadata and the footer.

        Raises:
            OutputError: The stream takes no more.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
            described = self._about.opening(self._layout.columns) | self._about.closing()
            self._writer.add_key_value_metadata(described)
        finally:
            with errors():
                self._writer.close()

    def _write_group(self, group: Batch) -> None:
        if not group.rows:
            return
        for rows in self._layout.rows(group):
            table = self._layout.table(rows)
            with errors():
                self._writer.write_table(_writable(table), table.num_rows)


def coded_leaves(layout: Layout) -> list[str]:
    """The leaves that get dictionaries.

    Args:
        layout: The layout of the table.

    Returns:
        Their paths, as Parquet spells them.
    """
    leaves = []
    for field in layout.schema:
        if field.name in COUNTERS or layout.columns.get(field.name) in _FLOATS:
            continue  # of floats Arrow takes one NaN for another
        if pa.types.is_list(field.type):
            leaves.append(f"{field.name}.list.element")
        elif pa.types.is_map(field.type):
            leaves += [f"{field.name}.key_value.key", f"{field.name}.key_value.value"]
        else:
            leaves.append(field.name)
    return leaves


def _writable(table: pa.Table) -> pa.Table:
    """A table whose dictionaries Arrow writes as they should be.

    Of a dictionary with an entry twice it writes a page that ends with what was in memory. A large
    one it writes, and all values behind it; but it spells out a column whose dictionary changes, so
    there the first row gets one of its own.
    """
    for at, column in enumerate(table.columns):
        if not pa.types.is_dictionary(column.type):
            continue
        values = column.chunk(0)
        if values.dictionary.nbytes > DICTIONARY_BYTES:
            first = values.slice(0, 1).dictionary_decode().dictionary_encode()
            parts = pa.chunked_array([first, values.slice(1)], column.type)
            table = table.set_column(at, table.field(at), parts)
            continue
        entries = pc.dictionary_encode(values.dictionary)
        if len(entries.dictionary) < len(values.dictionary):
            codes = entries.indices.take(values.indices)
            once = pa.DictionaryArray.from_arrays(codes, entries.dictionary)
            table = table.set_column(at, table.field(at), once)
    return table


def _spelled_bytes(batch: Batch) -> npt.NDArray[np.int64] | None:
    """What the text of each row takes that `_writable` may spell out."""
    large = {
        name: column
        for name, column in batch.columns.items()
        if pa.types.is_dictionary(column.values.type)
        and column.values.dictionary.nbytes > DICTIONARY_BYTES
    }
    return row_bytes(Batch(batch.rows, large)) if large else None
