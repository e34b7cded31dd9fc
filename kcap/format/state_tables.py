"""STATE records: the tables of what was known at a place (spec/kcap.md, clause 4.5)."""

from __future__ import annotations

from kcap import limits
from kcap.errors import LimitError
from kcap.format import payloads, schema
from kcap.format.chunk import Chunk
from kcap.model.batch import Batch, concat
from kcap.model.side import Snapshot


def read_state(payload: bytes | memoryview, known: schema.Schema) -> Snapshot:
    """Read a STATE record.

    Args:
        payload: Its payload.
        known: The columns.

    Returns:
        The snapshot; a table in several parts as one.

    Raises:
        DamagedError: It is not well formed.
    """
    parts: dict[str, list[Batch]] = {}
    room = limits.STATE_BYTES
    for name, raw in payloads.unpack_state(payload):
        part = Chunk(raw, known, name)
        room -= part.size
        if room < 0:
            raise LimitError(f"a state of more than {limits.STATE_BYTES} bytes in memory")
        parts.setdefault(name, []).append(part.batch())
    return Snapshot({name: concat(found) for name, found in parts.items()})
