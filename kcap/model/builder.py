"""From many small records to a batch.

Records of one layout (the same fields in the same order) are kept as tuples of values and turned
into columns together, so that a record costs one append and no dict of its own. The class of a
value decides its column: `kcap.model.naming`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model import text
from kcap.model.batch import Batch, Column, Rows, dictionary
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX, TypeClass
from kcap.model.naming import RAW, SIZE, column_name
from kcap.model.side import Loss, Side

_PLAIN = {int: TypeClass.I64, float: TypeClass.F64, bool: TypeClass.BOOL, str: TypeClass.STR}
_LISTS = {
    int: TypeClass.LIST_I64,
    float: TypeClass.LIST_F64,
    bool: TypeClass.LIST_BOOL,
    str: TypeClass.LIST,
}


class RawText(bytes):
    """Text that is not valid UTF-8, as a source gave it: text whatever its field's home is."""


class Field(NamedTuple):
    """Where the values of one field of a layout go."""

    base: str
    """Column base: ``pid``, ``arg_pathname``."""
    home: TypeClass | None = None
    occurrence: int = 1


class Layout:
    """The records of one shape: their fields, and the records collected so far."""

    __slots__ = ("fields", "rows", "shape", "values")

    def __init__(self, fields: Sequence[Field | None], shape: str | None) -> None:
        self.fields = tuple(fields)
        self.shape = shape
        self.rows: list[int] = []
        self.values: list[Sequence[Any]] = []


class RecordBuilder:
    """Collects records and makes batches of them.

    Example:
        >>> builder = RecordBuilder()
        >>> layout = builder.layout([Field("pid", TypeClass.I64)], "pid:int")
        >>> builder.add(layout, [42])
        >>> builder.finish().to_pylist()
        [{'pid': 42, 'shape': 'pid:int'}]
    """

    def __init__(self) -> None:
        self._layouts: list[Layout] = []
        self._count = 0

    def __len__(self) -> int:
        """Records since the last `finish`."""
        return self._count

    def layout(self, fields: Sequence[Field | None], shape: str | None = None) -> Layout:
        """Announce a layout; it stays valid for all batches of this builder.

        Args:
            fields: One entry a value; None for a value that is not stored.
            shape: The text for the ``shape`` column, None for none.

        Returns:
            The layout, for `add`.
        """
        layout = Layout(fields, shape)
        self._layouts.append(layout)
        return layout

    def add(self, layout: Layout, values: Sequence[Any]) -> None:
        """Add one record.

        Args:
            layout: Its layout.
            values: One value a field of the layout; None is no value.
        """
        layout.rows.append(self._count)
        layout.values.append(values)
        self._count += 1

    def finish(
        self, constants: Mapping[str, Column] | None = None, before: Iterable[Side] = ()
    ) -> Batch:
        """Make a batch of what was added, and start again.

        Args:
            constants: Further columns, of as many rows.
            before: Side records for the batch.

        Returns:
            The batch, rows in the order they were added.
        """
        count, self._count = self._count, 0
        found: dict[Field, list[tuple[Rows, Sequence[Any]]]] = defaultdict(list)
        shapes: list[tuple[Rows, str]] = []
        for layout in self._layouts:
            if not layout.rows:
                continue
            rows = np.array(layout.rows, np.int32)
            columns_in = zip(*layout.values, strict=True)
            for field, column in zip(layout.fields, columns_in, strict=True):
                if field is not None:
                    found[field].append((rows, column))
            if layout.shape is not None:
                shapes.append((rows, layout.shape))
            layout.rows, layout.values = [], []
        columns: dict[str, Column] = {}
        cuts = 0
        for field, groups in found.items():
            rows, values = _in_row_order(groups)
            made, cut = columns_of(field, rows, values, count)
            cuts += cut
            columns.update(made)
        if shapes:
            made, cut = _shape_columns(shapes, count)
            cuts += cut
            columns.update(made)
        columns.update(constants or {})
        sides = list(before)
        if cuts:
            reason = f"values over {limits.VALUE_BYTES} bytes are cut, their length in NAME__size"
            sides.append(Loss("cut", cuts, reason))
        return Batch(count, columns, tuple(sides))


def _in_row_order(groups: list[tuple[Rows, Sequence[Any]]]) -> tuple[Rows, Sequence[Any]]:
    """Merge the values that several layouts gave one field."""
    if len(groups) == 1:
        return groups[0]
    rows = np.concatenate([g[0] for g in groups])
    values = list(chain.from_iterable(g[1] for g in groups))
    order = np.argsort(rows, kind="stable")
    return rows[order], itemgetter(*order.tolist())(values)


def _shape_columns(shapes: list[tuple[Rows, str]], count: int) -> tuple[dict[str, Column], int]:
    """The shape of each row, rows of a layout share one dictionary entry; and how many were cut."""
    codes = np.full(count, -1, np.int32)
    sizes = np.zeros(count, np.int64)
    entries: dict[str, int] = {}
    for rows, shape in shapes:
        kept, size = text.cut(shape)
        codes[rows] = entries.setdefault(kept, len(entries))
        sizes[rows] = size or 0
    at = np.flatnonzero(codes >= 0).astype(np.int32)
    values = pa.DictionaryArray.from_arrays(pa.array(codes[at]), pa.array(entries, pa.utf8()))
    columns = {"shape": Column(TypeClass.STR, values, None if len(at) == count else at)}
    cut = np.flatnonzero(sizes).astype(np.int32)
    if len(cut):
        rows_cut = None if len(cut) == count else cut
        columns[f"shape__{SIZE}"] = Column(TypeClass.I64, pa.array(sizes[cut]), rows_cut)
    return columns, len(cut)


def columns_of(
    field: Field, rows: Rows, values: Sequence[Any], count: int
) -> tuple[dict[str, Column], int]:
    """The columns that the values of one field need.

    Args:
        field: The field.
        rows: Ascending rows of the values.
        values: The values; None is no value.
        count: Rows of the batch.

    Returns:
        The columns by name, and how many values were cut.
    """
    kinds = set(map(type, values))
    if len(kinds) == 1:
        cls = _PLAIN.get(kinds.pop())
        array = None if cls is None else _array(cls, values)
        if cls is not None and array is not None:
            name = column_name(field.base, cls, field.home, field.occurrence)
            return {name: Column(cls, array, None if len(rows) == count else rows)}, 0
    return _mixed(field, rows, values, count)


def _array(cls: TypeClass, values: Sequence[Any]) -> pa.Array | None:
    """The values as an array, None where one of them needs a closer look."""
    try:
        if cls is not TypeClass.STR:
            return pa.array(values, cls.arrow)
        array = dictionary(pa.array(values, pa.utf8()))
    except (OverflowError, UnicodeEncodeError, pa.ArrowException):
        return None
    lengths = pc.binary_length(array.dictionary)
    longest = pc.max(lengths).as_py() if len(lengths) else 0
    return array if longest <= limits.VALUE_BYTES else None


def _mixed(
    field: Field, rows: Rows, values: Sequence[Any], count: int
) -> tuple[dict[str, Column], int]:
    """`columns_of`, value by value: for mixed classes and for what needs care."""
    found: dict[str, tuple[TypeClass, list[int], list[Any]]] = {}
    cuts = 0

    def put(name: str, cls: TypeClass, row: int, value: Any) -> None:  # noqa: ANN401
        _, at, kept = found.setdefault(name, (cls, [], []))
        at.append(row)
        kept.append(value)

    for row, value in zip(rows.tolist(), values, strict=True):
        if value is None:
            continue
        cls, stored, raw, size = classify(value, field.home)
        name = column_name(field.base, cls, field.home, field.occurrence)
        put(name, cls, row, stored)
        if raw is not None:
            put(f"{name}__{RAW}", TypeClass.BIN, row, raw)
        if size is not None:
            cuts += 1
            put(f"{name}__{SIZE}", TypeClass.I64, row, size)
    columns = {}
    for name, (cls, at, kept) in found.items():
        if pa.types.is_dictionary(cls.arrow):
            array = dictionary(pa.array(kept, cls.arrow.value_type))
        else:
            array = pa.array(kept, cls.arrow)
        columns[name] = Column(cls, array, None if len(at) == count else np.array(at, np.int32))
    return columns, cuts


def classify(value: Any, home: TypeClass | None) -> tuple[TypeClass, Any, bytes | None, int | None]:  # noqa: ANN401
    """Class one value.

    Args:
        value: What a source gave: int, float, bool, str, bytes, list or dict.
        home: The home class of its field; decides what bytes and an empty list are.

    Returns:
        The class, the value to store, the exact bytes of text that is not valid UTF-8, and the
        true length of a value that was cut.
    """
    if isinstance(value, bool):
        return TypeClass.BOOL, value, None, None
    if isinstance(value, int):
        return (*_integer(value), None, None)
    if isinstance(value, float):
        return TypeClass.F64, value, None, None
    in_bytes = isinstance(value, RawText) or (isinstance(value, bytes) and home is TypeClass.STR)
    if in_bytes or isinstance(value, str):
        kept, raw = text.clean(value)
        kept, size = text.cut(kept)
        if raw is not None and (size is not None or len(raw) > limits.VALUE_BYTES):
            raw, size = raw[: limits.VALUE_BYTES], len(raw)
        return TypeClass.STR, kept, raw, size
    if isinstance(value, bytes):
        size = len(value) if len(value) > limits.VALUE_BYTES else None
        return TypeClass.BIN, value[: limits.VALUE_BYTES], None, size
    if isinstance(value, (list, tuple)):
        cls = _list_class(value, home)
        if cls is not None:
            return cls, value, None, None
    whole = text.json_text(value)
    kept, size = text.cut(whole)
    levels = whole.count("[") + whole.count("{")  # at most so many, and cheap to count
    deep = levels > limits.JSON_DEPTH and text.depth(value) > limits.JSON_DEPTH
    return TypeClass.STR if deep else TypeClass.JSON, kept, None, size


def _integer(value: int) -> tuple[TypeClass, int | str]:
    if I64_MIN <= value <= I64_MAX:
        return TypeClass.I64, value
    return (TypeClass.U64, value) if 0 < value <= U64_MAX else (TypeClass.JSON, str(value))


def _list_class(value: Sequence[Any], home: TypeClass | None) -> TypeClass | None:
    """The class of a flat list, None where only json holds it."""
    kinds = set(map(type, value))
    if not kinds:
        return home if home is not None and home.child else TypeClass.LIST
    cls = _LISTS.get(kinds.pop()) if len(kinds) == 1 else None
    if cls is None or len(value) > limits.LIST_VALUE_ITEMS:
        return None
    if cls is TypeClass.LIST:
        if any(text.clean(v)[1] for v in value):
            return None
        if sum(len(v.encode()) for v in value) > limits.VALUE_BYTES:
            return None
    if cls is TypeClass.LIST_I64 and (min(value) < I64_MIN or max(value) > I64_MAX):
        return TypeClass.LIST_U64 if min(value) >= 0 and max(value) <= U64_MAX else None
    return cls
