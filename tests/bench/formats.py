"""The formats side by side: the same plain columns in, the same columns out, one thread each."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from kcap import limits
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model import catalogue
from kcap.model.arrow import from_arrow
from kcap.model.classes import TypeClass
from kcap.replay.chosen import chosen
from kcap.writers.jsonl import JsonLines

LEVEL = 3
"""zstd's level, everywhere."""

COUNTERS = ("ts", "seq", "ord")
"""Columns that mostly count up."""

_DUCKDB = {
    TypeClass.I64: "BIGINT",
    TypeClass.U64: "UBIGINT",
    TypeClass.F64: "DOUBLE",
    TypeClass.BOOL: "BOOLEAN",
    TypeClass.STR: "VARCHAR",
    TypeClass.BIN: "VARCHAR",
    TypeClass.JSON: "JSON",
    TypeClass.LIST: "VARCHAR[]",
    TypeClass.LIST_I64: "BIGINT[]",
    TypeClass.LIST_U64: "UBIGINT[]",
    TypeClass.LIST_F64: "DOUBLE[]",
    TypeClass.LIST_BOOL: "BOOLEAN[]",
}
"""What DuckDB is told of each class; bytes are base64 in JSON."""


class Format(Protocol):
    """A way to keep events."""

    name: str

    def write(self, table: pa.Table, path: Path) -> None:
        """Plain columns to a closed file.

        Args:
            table: The events.
            path: The file to write.
        """

    def read(self, path: Path, columns: list[str] | None) -> int:
        """A file to Arrow arrays of full length, with nulls.

        Args:
            path: The file.
            columns: The columns wanted, None for all.

        Returns:
            How many rows they have.
        """

    def chunk_bytes(self, path: Path) -> int | None:
        """What of a file holds the events themselves; None where nothing else is in it.

        Args:
            path: The file.

        Returns:
            Bytes.
        """


class Kcap:
    """A capture: with index, checksums and hash chain, and all checksums compared on reading."""

    name = "kcap"

    def write(self, table: pa.Table, path: Path) -> None:
        """See `Format.write`."""
        with path.open("wb") as stream:
            writer = CaptureWriter(stream, level=LEVEL)
            for part in table.to_batches(limits.CHUNK_ROWS):
                writer.write(from_arrow(part))
            writer.close()

    def read(self, path: Path, columns: list[str] | None) -> int:
        """See `Format.read`."""
        rows = 0
        with path.open("rb") as stream:
            reader = CaptureReader(stream, str(path))
            for batch in chosen(reader, columns=columns)[0].batches():
                rows += batch.to_arrow(columns).num_rows
        return rows

    def chunk_bytes(self, path: Path) -> int | None:
        """The CHUNK records, with their headers and padding."""
        with path.open("rb") as stream:
            footer = CaptureReader(stream, str(path)).footer
            assert footer is not None
            return int(footer.chunks["length"].sum())


class Parquet:
    """Parquet by pyarrow.

    Text is read into dictionaries, which is what kcap gives and about twice as fast as plain text.
    """

    def __init__(self, *, tuned: bool) -> None:
        self.name = "Parquet tuned" if tuned else "Parquet default"
        self._tuned = tuned

    def write(self, table: pa.Table, path: Path) -> None:
        """See `Format.write`."""
        if not self._tuned:
            pq.write_table(table, path, compression="zstd", compression_level=LEVEL)
            return
        counters = [name for name in COUNTERS if name in table.column_names]
        pq.write_table(
            table,
            path,
            compression="zstd",
            compression_level=LEVEL,
            row_group_size=limits.CHUNK_ROWS,
            use_dictionary=[name for name in _leaves(table) if name not in counters],
            column_encoding=dict.fromkeys(counters, "DELTA_BINARY_PACKED"),
        )

    def read(self, path: Path, columns: list[str] | None) -> int:
        """See `Format.read`."""
        schema = pq.read_schema(path)
        texts = [f.name for f in schema if pa.types.is_string(f.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            return int(file.read(columns=columns, use_threads=False).num_rows)

    def chunk_bytes(self, path: Path) -> int | None:
        """See `Format.chunk_bytes`."""
        return None


class JsonLinesZstd:
    """One JSON object an event, absent keys left out, as kcap writes it; zstd around it.

    Read by DuckDB, which is told the types and gives Arrow arrays; structures stay JSON text.
    """

    name = "JSON lines zstd"

    def __init__(self) -> None:
        self._schema = pa.schema([])

    def write(self, table: pa.Table, path: Path) -> None:
        """See `Format.write`."""
        self._schema = table.schema
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        with path.open("wb") as file, compressor.stream_writer(file) as stream:
            sink = JsonLines(stream, state=True)
            for part in table.to_batches(limits.CHUNK_ROWS):
                sink.write(from_arrow(part))
            sink.close()

    def read(self, path: Path, columns: list[str] | None) -> int:
        """See `Format.read`."""
        types = {f.name: _DUCKDB[catalogue.class_of(f.name)] for f in self._schema}
        wanted = ", ".join(f'"{name}"' for name in columns or types)
        query = f"SELECT {wanted} FROM read_ndjson(?, columns = ?, compression = 'zstd')"
        with duckdb.connect(config={"threads": 1}) as connection:
            found = connection.sql(query, params=[str(path), types])
            return sum(batch.num_rows for batch in found.to_arrow_reader(limits.CHUNK_ROWS))

    def chunk_bytes(self, path: Path) -> int | None:
        """See `Format.chunk_bytes`."""
        return None


def _leaves(table: pa.Table) -> list[str]:
    """Parquet's own names of the columns: those of a list's items have a path."""
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in table.schema]


def all_formats() -> list[Format]:
    """The formats, kcap first."""
    return [Kcap(), Parquet(tuned=False), Parquet(tuned=True), JsonLinesZstd()]
