"""The rows of a query, as text for people and programs or as Arrow and Parquet files.

Text is made a column at a time; only values of rare types (lists, structures, maps, intervals) are
looked at one by one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc

from kcap.errors import OutputError
from kcap.model.classes import TypeClass
from kcap.model.text import json_string, printable
from kcap.writers import fragments
from kcap.writers.jsonl import json_texts

_BLOCK_BYTES: Final = 8 << 20
"""Values that text is made of at a time."""

_CELL: Final = 80
"""Most characters of a table's cell."""

_CSV_QUOTED: Final = '[,"]|^$'
"""What a cell of text has quotes for; one without any is null. Line ends are escaped."""

_FORMULA: Final = "^['=+@-]"
"""How text begins that spreadsheets take for a formula."""

Texts = list[pa.Array]
"""Columns as utf8, null where the result has null."""


class Rows:
    """The rows of a query."""

    def __init__(self, reader: pa.RecordBatchReader, limit: int | None = None) -> None:
        """Take a result.

        Args:
            reader: Its rows.
            limit: How many to give, None for all.
        """
        self.count = 0
        """Rows written so far."""
        self._reader = reader
        self._limit = limit

    def write(self, form: str, stream: BinaryIO) -> None:
        """Write all rows.

        Args:
            form: ``table``, ``csv``, ``jsonl``, ``json``, ``arrow`` or ``parquet``.
            stream: Where they go; stays open.

        Raises:
            KcapError: The query fails on its way, or the format can't hold its types.
        """
        if form in ("arrow", "parquet"):
            self._write_arrow(form, stream)
            return
        makers = {"table": _table, "csv": _csv, "jsonl": _jsonl, "json": _json}
        texts = makers[form](self._reader.schema, self._blocks())
        stream.writelines(text.encode() for text in texts)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """The batches, as far as the limit."""
        while self._limit is None or self.count < self._limit:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as e:
                from kcap.tools.sql import failure

                raise failure(e) from e
            if self._limit is not None:
                batch = batch.slice(0, self._limit - self.count)
            self.count += batch.num_rows
            yield batch

    def _blocks(self) -> Iterator[pa.RecordBatch]:
        """The same in parts that are no larger than text can be made of."""
        for batch in self._batches():
            step = max(1, batch.num_rows * _BLOCK_BYTES // max(1, batch.nbytes))
            for start in range(0, batch.num_rows, step):
                yield batch.slice(start, step)

    def _write_arrow(self, form: str, stream: BinaryIO) -> None:
        import pyarrow.parquet as pq

        schema = self._reader.schema
        try:
            if form == "arrow":
                writer = pa.ipc.new_file(stream, schema)
            else:
                writer = pq.ParquetWriter(
                    stream, schema, compression="zstd", write_page_checksum=True
                )
            with writer:
                for batch in self._batches():
                    writer.write_batch(batch)
        except pa.ArrowException as e:
            hint = "cast the column in the query, as in CAST(x AS VARCHAR)"
            raise OutputError(f"{form} can't hold the result: {e}", hint=hint) from e


def _table(schema: pa.Schema, blocks: Iterator[pa.RecordBatch]) -> Iterator[str]:
    """Aligned columns; as wide as the first rows need, so that the others need not wait."""
    numbers = (pa.types.is_integer, pa.types.is_decimal, pa.types.is_floating)
    right = [any(test(kind) for test in numbers) for kind in schema.types]
    head = [printable(name) for name in schema.names]
    widths: list[int] = []

    def padded(column: pa.Array, place: int) -> pa.Array:
        if right[place]:
            return pc.utf8_lpad(column, widths[place])
        return column if place == len(head) - 1 else pc.utf8_rpad(column, widths[place])

    def lines(columns: Texts) -> str:
        return _joined([padded(c, i) for i, c in enumerate(columns)], "", "  ", "\n", "")

    for block in blocks:
        columns = [_cells(column, _shown).fill_null("-") for column in block.columns]
        columns = [pc.if_else(pc.greater(pc.utf8_length(c), _CELL), _cut(c), c) for c in columns]
        if not widths:
            widths = [
                max(len(name), pc.max(pc.utf8_length(c)).as_py())
                for name, c in zip(head, columns, strict=True)
            ]
            yield _heading(head, lines, widths)
        yield lines(columns)
    if not widths:
        widths = [len(name) for name in head]
        yield _heading(head, lines, widths)


def _heading(head: list[str], lines: Callable[[Texts], str], widths: list[int]) -> str:
    rows = zip(head, ("-" * width for width in widths), strict=True)
    return lines([pa.array(column, pa.utf8()) for column in rows])


def _cut(texts: pa.Array) -> pa.Array:
    return fragments.around("", pc.utf8_slice_codeunits(texts, 0, _CELL - 1), "…")


def _csv(schema: pa.Schema, blocks: Iterator[pa.RecordBatch]) -> Iterator[str]:
    """A heading and a line a row; an empty cell is null, an empty text is quoted."""
    names = [_csv_texts(pa.array([printable(name)])) for name in schema.names]
    yield _joined(names, "", ",", "\r\n", "")
    for block in blocks:
        columns = [_cells(column, _csv_texts) for column in block.columns]
        yield _joined(columns, "", ",", "\r\n", "")


def _jsonl(schema: pa.Schema, blocks: Iterator[pa.RecordBatch]) -> Iterator[str]:
    """An object a row; a second column of one name is left out."""
    places = {name: place for place, name in reversed(list(enumerate(schema.names)))}
    chosen = sorted(places.values())
    for block in blocks:
        columns = [
            fragments.around(f"{json_string(schema.names[i])}:", _json_cells(block.column(i)), "")
            for i in chosen
        ]
        yield _joined(columns, "{", ",", "}\n", "")


def _json(schema: pa.Schema, blocks: Iterator[pa.RecordBatch]) -> Iterator[str]:
    """One document; rows are lists, so that two columns may have one name."""
    columns = [{"name": f.name, "type": str(f.type)} for f in schema]
    yield f'{{"columns":{_json_value(columns)},"rows":['
    before = "\n"
    for block in blocks:
        rows = _joined([_json_cells(column) for column in block.columns], "[", ",", "],\n", "")
        yield before + rows.removesuffix(",\n")
        before = ",\n"
    yield "\n]}\n"


def _joined(columns: Texts, start: str, between: str, end: str, null: str) -> str:
    """Lines of the columns' texts."""
    large = pa.large_utf8()  # a block of long texts may be more than 2 GiB when it is escaped
    parts = [pa.scalar(start, large)]
    for place, column in enumerate(columns):
        parts += [pa.scalar(between, large)] * bool(place) + [column.cast(large)]
    lines = pc.binary_join_element_wise(
        *parts,
        pa.scalar(end, large),
        pa.scalar("", large),
        null_handling="replace",
        null_replacement=null,
    )
    return "".join(lines.to_pylist())


def _filled(array: pa.Array, render: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Render the values there are."""
    if not array.null_count:
        return render(array)
    valid = array.is_valid()
    places = pc.subtract(pc.cumulative_sum(valid.cast(pa.int64())), 1)
    return render(array.drop_null()).take(pc.if_else(valid, places, None))


def _cells(array: pa.Array, text: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """A column as text; ``text`` renders what is text already or was made of other values."""
    return _filled(array, lambda values: _cell_texts(values, text))


def _cell_texts(values: pa.Array, text: Callable[[pa.Array], pa.Array]) -> pa.Array:
    kind = values.type
    if pa.types.is_null(kind):
        return pa.nulls(len(values), pa.utf8())
    simple = _simple_texts(values)
    if simple is not None:
        return simple
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return text(values.cast(pa.utf8()))
    return text(pa.array(map(_cell, plain(values)), pa.utf8()))


def _json_cells(array: pa.Array) -> pa.Array:
    """A column as JSON values."""
    return _filled(array, _json_column).fill_null("null")


def _json_column(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_null(kind):
        return pa.nulls(len(values), pa.utf8())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return json_texts(TypeClass.STR, values.cast(pa.utf8()))
    simple = _simple_texts(values)
    if simple is None:
        return pa.array(map(_json_value, plain(values)), pa.utf8())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_finite(values), simple, fragments.around('"', simple, '"'))
    quoted = not (
        pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    )
    return fragments.around('"', simple, '"') if quoted else simple


def _simple_texts(values: pa.Array) -> pa.Array | None:
    """Numbers and times as text that needs no escape; None for values of other types."""
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        return fragments.number_texts(values)
    if pa.types.is_timestamp(kind):
        return pc.strftime(values, "%Y-%m-%dT%H:%M:%SZ")  # with as many digits as the unit has
    if pa.types.is_decimal(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return values.cast(pa.utf8())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return fragments.base64_texts(values)
    return None


def _shown(texts: pa.Array) -> pa.Array:
    """Text for a terminal."""
    return fragments.escape_unsafe(texts, texts, printable)


def _csv_texts(texts: pa.Array) -> pa.Array:
    """Text for a CSV cell."""
    texts = _shown(texts)
    risky = pc.match_substring_regex(texts, _FORMULA)
    texts = pc.if_else(risky, fragments.around("'", texts, ""), texts)
    doubled = fragments.around('"', pc.replace_substring(texts, '"', '""'), '"')
    return pc.if_else(pc.match_substring_regex(texts, _CSV_QUOTED), doubled, texts)


def plain(array: pa.Array) -> list[Any]:
    """The values of a column as JSON has them; for types that have no faster way.

    Args:
        array: A column of a result.

    Returns:
        None, bool, int, finite float, `Decimal`, str, list or dict. Times are RFC 3339 in UTC,
        bytes are base64, other types are text.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if pa.types.is_floating(kind):
        return [v if v is None or math.isfinite(v) else str(v) for v in array.to_pylist()]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [None if v is None else plain(v) for v in (s.values for s in array)]
    if pa.types.is_map(kind):
        return [None if v is None else _pairs(v) for v in (s.values for s in array)]
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        rows = zip(
            array.is_valid().to_pylist(), *(plain(part) for part in array.flatten()), strict=True
        )
        return [dict(zip(names, row, strict=True)) if valid else None for valid, *row in rows]
    plainly = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    if not plainly:
        texts = None if array.null_count else _simple_texts(array)
        if texts is None and array.null_count:
            return _with_nulls(array)
        array = array if texts is None else texts
    spelled = _interval if pa.types.is_interval(kind) else str
    return [v if _is_plain(v) else spelled(v) for v in array.to_pylist()]


def _interval(value: pa.MonthDayNano) -> str:
    """An interval as DuckDB spells it, but with all digits."""
    seconds, rest = divmod(abs(value.nanoseconds), 10**9)
    minutes, second = divmod(seconds, 60)
    parts = [f"{value.months} months"] * bool(value.months)
    parts += [f"{value.days} days"] * bool(value.days)
    sign = "-" if value.nanoseconds < 0 else ""
    parts.append(f"{sign}{minutes // 60:02}:{minutes % 60:02}:{second:02}.{rest:09}")
    return " ".join(parts)


def _with_nulls(array: pa.Array) -> list[Any]:
    found = iter(plain(array.drop_null()))
    return [next(found) if valid else None for valid in array.is_valid().to_pylist()]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, str, Decimal))


def _pairs(entries: pa.StructArray) -> dict[str, Any]:
    """One value of a map."""
    keys, values = (plain(part) for part in entries.flatten())
    return {_cell(key): value for key, value in zip(keys, values, strict=True)}


def _cell(value: object) -> str:
    """A value of a rare type as text."""
    return value if isinstance(value, str) else _json_value(value)


def _json_value(value: Any) -> str:  # noqa: ANN401
    """A value as JSON, safe on a terminal."""
    if isinstance(value, str):
        return json_string(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, list):
        return f"[{_listed(map(_json_value, value))}]"
    if isinstance(value, dict):
        return f"{{{_listed(f'{json_string(k)}:{_json_value(v)}' for k, v in value.items())}}}"
    return json.dumps(value)


def _listed(texts: Iterable[str]) -> str:
    return ",".join(texts)
