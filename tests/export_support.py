"""Exports for the tests: written in memory, and read back as kcap's own rows."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kcap.model import catalogue
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.writers import layout as layouts
from kcap.writers.about import About
from kcap.writers.layout import LAYOUTS, Layout, Profile
from kcap.writers.parquet import Parquet


def layout_for(
    batches: Sequence[Batch], name: str = "wide", profile: Profile = Profile.PORTABLE
) -> Layout:
    """A layout that holds all columns of some batches."""
    if name != "wide":
        return LAYOUTS[name](layouts.envelope(), profile)
    found = {n: c.cls for b in batches for n, c in b.columns.items()}
    return Layout({n: found[n] for n in layouts.in_order(found)}, profile)


def parquet(
    batches: Sequence[Batch],
    name: str = "wide",
    profile: Profile = Profile.PORTABLE,
    **options: Any,
) -> bytes:
    """A Parquet file of some batches."""
    out = io.BytesIO()
    sink = Parquet(
        out, layout_for(batches, name, profile), About(name, str(profile), {}), **options
    )
    for batch in batches:
        sink.write(batch)
    sink.close()
    return out.getvalue()


def table_in(data: bytes) -> pa.Table:
    """What pyarrow reads of a Parquet file, all checksums compared."""
    with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
        return file.read()


def metadata_in(data: bytes) -> dict[str, Any]:
    """kcap's metadata of a Parquet file, parsed."""
    found = pq.read_metadata(io.BytesIO(data)).metadata
    return {
        key.decode(): json.loads(text)
        for key, text in found.items()
        if key.startswith(b"kcap.") and key != b"kcap.version"
    }


def undone(table: pa.Table) -> pa.Table:
    """A portable table with the types that kcap's values have: what docs/export.md says."""
    names, arrays = [], []
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if name == "ts_ns":
            continue
        values = table["ts_ns"] if name == "ts" else column
        cls = catalogue.class_of(name)
        if cls is TypeClass.U64:
            values = pa.chunked_array([c.view(pa.uint64()) for c in values.chunks], pa.uint64())
        elif cls is TypeClass.LIST_U64:
            values = values.cast(pa.list_(pa.uint64()), safe=False)
        names.append(name)
        arrays.append(values)
    return pa.table(arrays, names=names)


def texts_of(batch: Batch) -> list[dict[str, str]]:
    """What the columns outside the envelope hold, event by event, as the exact text."""
    outside = {n: c for n, c in batch.columns.items() if n not in catalogue.envelope()}
    return [
        {name: text_of(value) for name, value in row.items()}
        for row in Batch(batch.rows, outside).to_pylist()
    ]


def text_of(value: Any) -> str:
    """A value as text; written anew here, value by value."""
    if isinstance(value, list):
        return "[" + ",".join(_item(v) for v in value) + "]"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return float_text(value)
    return str(value)


def _item(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and not np.isfinite(value):
        return json.dumps(float_text(value))
    return text_of(value)


def float_text(value: float) -> str:
    """A float as JSON spells it."""
    return json.dumps(value)


def same_text(left: str, right: str) -> bool:
    """Whether two texts say the same value: floats and JSON may be spelled in more ways."""
    if left == right:
        return True
    try:
        one, other = json.loads(left), json.loads(right)
    except ValueError:
        return False
    return repr(one) == repr(other)


def same_texts(left: Mapping[str, str], right: Mapping[str, str]) -> bool:
    """Whether two events have the same keys and values."""
    return left.keys() == right.keys() and all(same_text(left[k], right[k]) for k in left)
