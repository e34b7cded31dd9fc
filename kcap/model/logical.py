"""The logical table: the columns and types that analysts, data frames and SQL see.

As `kcap.model.classes` has them, but for the time: ``ts`` is a timestamp in microseconds, UTC by
contract and without a zone, and ``ts_ns`` the exact time in ns, as in Parquet exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from kcap.model import catalogue
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass

TIME: Final = "ts"
TIME_NS: Final = "ts_ns"
_TIMESTAMP: Final = pa.timestamp("us")
_US: Final = 1000


def arrow_type(name: str, cls: TypeClass) -> pa.DataType:
    """The Arrow type of a column.

    Args:
        name: Its name.
        cls: Its class.

    Returns:
        The type.
    """
    return _TIMESTAMP if name == TIME else cls.arrow


def in_order(names: Iterable[str]) -> list[str]:
    """Columns as people read them.

    Args:
        names: Their names.

    Returns:
        The envelope in its order, the rest by name.
    """
    known = set(names)
    envelope = [name for name in catalogue.envelope() if name in known]
    return envelope + sorted(known.difference(envelope))


def schema(columns: Mapping[str, TypeClass]) -> pa.Schema:
    """The logical columns.

    Args:
        columns: The columns of the events, name to class.

    Returns:
        Their schema: the envelope first, ``ts_ns`` behind ``ts``, the rest by name.
    """
    found = []
    for name in in_order(n for n in columns if n != TIME_NS):
        found.append(pa.field(name, arrow_type(name, columns[name])))
        if name == TIME:
            found.append(pa.field(TIME_NS, pa.int64()))
    return pa.schema(found)


def physical(names: Iterable[str]) -> list[str]:
    """The columns of a batch that logical ones are made of.

    Args:
        names: Logical columns.

    Returns:
        Their names in a batch, each once.
    """
    return list(dict.fromkeys(TIME if name == TIME_NS else name for name in names))


def table(batch: Batch, fields: pa.Schema | Sequence[pa.Field]) -> pa.RecordBatch:
    """Events as a logical table.

    Args:
        batch: The events.
        fields: The columns wanted, in order, as `schema` gives them.

    Returns:
        A record batch at full length, null where an event has no value.
    """
    wanted = pa.schema(list(fields))
    if not len(wanted):
        # Arrow counts the rows of a batch by its columns.
        rows = pa.RecordBatch.from_arrays([pa.nulls(batch.rows)], names=["rows"])
        return rows.select([])
    arrays = [_array(batch, f.name, f.type) for f in wanted]
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _array(batch: Batch, name: str, kind: pa.DataType) -> pa.Array:
    column = batch.get(TIME if name == TIME_NS else name)
    if column is None:
        return pa.nulls(batch.rows, kind)
    if name == TIME:
        whole = pa.array(np.floor_divide(np.asarray(column.values), _US))
        column = Column(TypeClass.I64, whole, column.rows)
    array = column.full(batch.rows)
    return array.view(kind) if name == TIME else array
