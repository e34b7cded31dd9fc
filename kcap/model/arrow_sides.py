"""Side records as the metadata of an Arrow batch, so that an export can be read back whole."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa

from kcap.errors import DamagedError
from kcap.model.arrow import CLASS_KEY, from_arrow
from kcap.model.artifact import Artifact
from kcap.model.batch import Batch
from kcap.model.side import Heartbeat, Loss, Side, Snapshot, SourceInfo

KEY: Final = b"kcap.before"
"""Key of the side records among a batch's own metadata."""

_STATE: Final = "state."
"""Before a state's column, whose name need not say its class as an event's does."""


def pack(sides: Iterable[Side]) -> bytes:
    """Write side records as JSON.

    Args:
        sides: What stands before a batch.

    Returns:
        The text; a snapshot's tables are in it as base64 of an Arrow IPC stream each.
    """
    # Heartbeats are of a recording alone: what a gap between them means, a loss says. Artifacts
    # are for captures: a table has no place for files.
    kept = [side for side in sides if not isinstance(side, Heartbeat | Artifact)]
    return json.dumps([_packed(side) for side in kept], sort_keys=True).encode("ascii")


def _packed(side: SourceInfo | Loss | Snapshot) -> dict[str, Any]:
    if isinstance(side, SourceInfo):
        return {"source": side.to_json()}
    if isinstance(side, Loss):
        return {"loss": side.to_json()}
    tables = sorted(side.tables.items())
    return {"snapshot": {name: base64.b64encode(_stream(t)).decode() for name, t in tables}}


def _stream(table: Batch) -> bytes:
    names = sorted(table.columns)
    classes = [table.columns[name].cls for name in names]
    fields = [
        pa.field(_STATE + name, cls.arrow, metadata={CLASS_KEY: str(cls)})
        for name, cls in zip(names, classes, strict=True)
    ]
    arrays = [table.array(name) for name in names]
    found = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
    out = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(out, found.schema, options=options) as writer:
        writer.write_batch(found)
    return bytes(out.getvalue())


def unpack(text: bytes) -> list[Side]:
    """Read what `pack` wrote.

    Args:
        text: The text; it is judged, not trusted.

    Returns:
        The side records.

    Raises:
        DamagedError: It is no such text.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, list):
            raise DamagedError("side records are no JSON list")
        return [_unpacked(value) for value in values]
    except (ValueError, RecursionError, binascii.Error, pa.ArrowException) as e:
        raise DamagedError(f"side records are not well formed: {e}") from e


def _unpacked(value: object) -> Side:
    if not isinstance(value, dict) or len(value) != 1:
        raise DamagedError("a side record is no JSON object of one member")
    ((kind, content),) = value.items()
    if kind == "source":
        return SourceInfo.from_json(content)
    if kind == "loss":
        return Loss.from_json(content)
    if kind != "snapshot" or not isinstance(content, dict):
        raise DamagedError(f"a side record of unknown kind {kind!r}")
    return Snapshot({name: _table(coded) for name, coded in content.items()})


def _table(coded: object) -> Batch:
    if not isinstance(coded, str):
        raise DamagedError("a table of a snapshot is no text")
    with pa.ipc.open_stream(base64.b64decode(coded, validate=True)) as reader:
        table = reader.read_all()
    table.validate(full=True)
    batch = from_arrow(table)
    return Batch(batch.rows, {n.removeprefix(_STATE): c for n, c in batch.columns.items()})
