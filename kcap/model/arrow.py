"""From an Arrow table to a batch: how other programs' columns become events.

The columns carry kcap's names, and a name says the class (`kcap.model.catalogue.class_of`), so
`from_arrow` undoes `Batch.to_arrow`. Nothing is guessed: a value that its class cannot hold
exactly is refused, with the name of the column that could.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.errors import BadInputError, LimitError
from kcap.model import catalogue
from kcap.model.batch import Batch, Column
from kcap.model.classes import I64_MAX, TypeClass
from kcap.model.side import Side

_KINDS = {
    TypeClass.I64: lambda t: pa.types.is_integer(t) or pa.types.is_timestamp(t),
    TypeClass.U64: pa.types.is_unsigned_integer,
    TypeClass.F64: pa.types.is_floating,
    TypeClass.BOOL: pa.types.is_boolean,
    TypeClass.STR: lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
    TypeClass.JSON: lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
    TypeClass.BIN: lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
}
"""Arrow types that each class takes; a dictionary counts as what it holds."""

CLASS_KEY: Final = b"kcap.class"
"""Key of a field's metadata that gives the class of a name that says none."""

_CLASSES: Final = {str(cls): cls for cls in TypeClass}


def from_arrow(table: pa.Table | pa.RecordBatch, before: Sequence[Side] = ()) -> Batch:
    """Make a batch of a table; a null is a value that is not there.

    Args:
        table: Columns under kcap's names. Text may be plain or dictionary-coded, integers of any
            width, ``ts`` also an Arrow timestamp. A long table is best given in slices of 65,536
            rows: each becomes a chunk as it is.
        before: Side records for the batch.

    Returns:
        The batch; a column of nulls only is left out.

    Raises:
        BadInputError: A name is none that kcap gives, or is there twice, or a value is not of the
            class that the name says.
        LimitError: A value or a list is longer than the format allows.

    Example:
        >>> from_arrow(pa.table({"pid": [1, None], "event": ["open", "close"]})).to_pylist()
        [{'pid': 1, 'event': 'open'}, {'event': 'close'}]
    """
    names = table.schema.names
    if len(set(names)) < len(names):
        twice = min(name for name in names if names.count(name) > 1)
        raise BadInputError(f"the table has two columns {twice}")
    columns = {}
    for field, values in zip(table.schema, table.columns, strict=True):
        if isinstance(values, pa.ChunkedArray):
            values = values.unify_dictionaries().combine_chunks()  # noqa: PLW2901
        if values.null_count < len(values):
            columns[field.name] = _column(field, values)
    return Batch(table.num_rows, columns, tuple(before))


def _column(field: pa.Field, values: pa.Array) -> Column:
    """One column, of at least one value."""
    name = field.name
    cls = catalogue.class_of(name) or _said_class(field)
    if cls is None:
        hint = f"an argument without a home class says its class: {name}__str, {name}__i64"
        raise BadInputError(f"{name} is no column's name", hint=hint)
    if pa.types.is_dictionary(values.type) and values.dictionary.null_count:
        values = values.dictionary_decode()
    mostly = values.null_count * 2 < len(values)
    if mostly and pa.types.is_dictionary(cls.arrow) and _KINDS[cls](values.type):
        values = pc.dictionary_encode(values)  # here, as dropping a null copies the other texts
    rows = None
    if values.null_count:
        rows = np.flatnonzero(np.asarray(pc.is_valid(values))).astype(np.int32)
        values = values.take(pa.array(rows))
    try:
        return Column(cls, _exact(cls, values), rows)
    except pa.ArrowException as e:
        raise BadInputError(f"column {name}: {e}", expected=f"values of class {cls}") from e
    except (BadInputError, LimitError) as e:
        e.what = f"column {name}: {e.what}"
        raise


def _said_class(field: pa.Field) -> TypeClass | None:
    """The class that kcap wrote beside a name which a later kcap made, or a table of a state."""
    said = (field.metadata or {}).get(CLASS_KEY, b"").decode("utf-8", "replace")
    return _CLASSES.get(said)


def _exact(cls: TypeClass, values: pa.Array) -> pa.Array:
    """Values as the Arrow type of their class; refused where that would change them."""
    coded = pa.types.is_dictionary(values.type)
    kind = values.type.value_type if coded else values.type
    if cls.child:
        return _lists(cls, cls.child, values)
    if not _KINDS[cls](kind):
        raise BadInputError(f"it is of Arrow type {kind}", expected=f"what class {cls} can hold")
    if pa.types.is_dictionary(cls.arrow):
        return _texts(cls, values if coded else pc.dictionary_encode(values))
    if coded:
        values = values.dictionary_decode()
    if pa.types.is_timestamp(kind):
        values = values.cast(pa.timestamp("ns", kind.tz))
    values = values.cast(cls.arrow)
    if cls is TypeClass.U64 and pc.min(values).as_py() <= I64_MAX:
        raise BadInputError("an integer that fits 63 bits", expected="it in the i64 column")
    return values


def _texts(cls: TypeClass, values: pa.DictionaryArray) -> pa.DictionaryArray:
    """Text or bytes with int32 codes."""
    entries = values.dictionary.cast(cls.arrow.value_type)
    entries.validate(full=True)  # Arrow takes it on trust that text is UTF-8
    _check_length(pc.max(pc.binary_length(entries)).as_py())
    return pa.DictionaryArray.from_arrays(values.indices.cast(pa.int32()), entries)


def _lists(cls: TypeClass, child: TypeClass, values: pa.Array) -> pa.Array:
    """Lists without a missing item."""
    kind = values.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise BadInputError(f"it is of Arrow type {kind}", expected="lists")
    if not _KINDS[child](kind.value_type):
        raise BadInputError(f"its items are {kind.value_type}", expected=f"class {child}")
    values = values.cast(cls.arrow)
    values.validate(full=True)
    longest = pc.max(pc.list_value_length(values)).as_py()
    if longest > limits.LIST_VALUE_ITEMS:
        raise LimitError(f"a list of {longest} items", expected=f"{limits.LIST_VALUE_ITEMS}")
    items = values.flatten()
    if items.null_count:
        raise BadInputError("a list has a missing item", expected="the json column for it")
    if child is TypeClass.STR:
        sizes = _ends(pc.binary_length(items))
        ends = _ends(pc.list_value_length(values))
        _check_length(int(np.diff(sizes[ends]).max()))
    return values


def _ends(lengths: pa.Array) -> npt.NDArray[np.int64]:
    """Where each of some stretches begins, and the last ends."""
    return np.concatenate([[0], np.cumsum(lengths.to_numpy(), dtype=np.int64)])


def _check_length(longest: int) -> None:
    if longest > limits.VALUE_BYTES:
        raise LimitError(f"a value of {longest} bytes", expected=f"at most {limits.VALUE_BYTES}")
