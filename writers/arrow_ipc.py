"""Arrow IPC: the events as a file or stream that any Arrow library reads, and kcap again.

Text is plain, not dictionary-coded: a file may give a column one dictionary only, which would have
to be known first. Losses, sources and states travel as metadata of the batch they stand before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa

from kcap.model import arrow_sides
from kcap.model.arrow import CLASS_KEY
from kcap.model.batch import Batch
from kcap.model.side import Side
from kcap.writers import fragments, groups
from kcap.writers.about import About, describe
from kcap.writers.arrow_stream import Appended, check_columns, errors
from kcap.writers.layout import Layout, plain


class ArrowIpc:
    """A sink that writes an Arrow IPC file or stream, compressed by zstd.

    Args:
        stream: Where the bytes go; need not be seekable, stays open.
        layout: Which columns there are.
        about: Gives the metadata.
        file: Write the file format, which ends with a table of its batches, not the stream.
        prompt: Write what comes as it comes, for whoever reads along; else in larger batches.

    Example:
        >>> layout = Layout(reader.columns(), Profile.FULL)
        >>> sink = ArrowIpc(stream, layout, About("wide", "full", {}), file=True)
        >>> sink.write(batch)
        >>> sink.close()
    """

    def __init__(
        self,
        stream: BinaryIO,
        layout: Layout,
        about: About,
        *,
        file: bool = False,
        prompt: bool = False,
    ) -> None:
        check_columns(layout)
        self._layout = layout
        self._groups = groups.Groups(weigh=layout.weigh, width=len(layout.schema))
        self._schema = _described(layout).with_metadata(about.opening(layout.columns))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        make = pa.ipc.new_file if file else pa.ipc.new_stream
        self._stream = stream
        self._prompt = prompt
        self._closed = False
        with errors():
            self._writer = make(Appended(stream), self._schema, options=options)

    def write(self, batch: Batch) -> None:
        """Take events and side records.

        Args:
            batch: The events.

        Raises:
            OutputError: The stream takes no more.
        """
        for group in self._groups.add(batch):
            self._write_group(group)
        if self._prompt:
            for group in self._groups.end():
                self._write_group(group)
            fragments.flush(self._stream)

    def close(self) -> None:
        """Write what is left, and the end.

        Raises:
            OutputError: The stream takes no more.
        """
        if self._closed:
            return
        self._closed = True
        with errors():
            try:
                for group in self._groups.end():
                    self._write_group(group)
            finally:
                self._writer.close()

    def _write_group(self, group: Batch) -> None:
        before: Sequence[Side] = group.before
        for rows in self._layout.rows(group):
            for piece, _ in groups.cut(rows, rows.rows):
                self._put(piece, before)
                before = ()
        if before:
            self._put(Batch(0, {}), before)

    def _put(self, rows: Batch, before: Sequence[Side]) -> None:
        table = self._layout.table(rows)
        arrays = [_plain(column.chunk(0)) for column in table.columns]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        metadata = {arrow_sides.KEY: arrow_sides.pack(before)} if before else None
        with errors():
            self._writer.write_batch(batch, custom_metadata=metadata)


def _described(layout: Layout) -> pa.Schema:
    """The schema, each field with what is known of it."""
    fields = []
    for field in plain(layout.schema):
        cls = layout.columns.get(field.name)
        known = {} if cls is None else describe(field.name, cls)
        said = {f"kcap.{key}".encode(): value.encode() for key, value in known.items()}
        assert cls is None or said[CLASS_KEY] == str(cls).encode()
        fields.append(field.with_metadata(said))
    return pa.schema(fields)


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
