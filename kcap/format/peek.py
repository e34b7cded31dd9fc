"""What records tell before they are read in full; nothing where they make no sense.

Whoever copies or reads such a record says what is wrong with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from construct.core import ConstructError

from kcap.errors import KcapError
from kcap.format import payloads, scan, schema, tail
from kcap.format.chunk import HEAD, Bounds, Superseded, directory_bytes
from kcap.format.chunk_index import ChunkIndex
from kcap.format.record import Kind
from kcap.format.regions import Facts


class Directory(NamedTuple):
    """What the directory of a chunk says."""

    number: int
    facts: Facts
    columns: int
    """Columns described before it."""
    tails: Superseded
    """The TAIL records whose rows it holds."""


def directory(payload: bytes | memoryview) -> Directory | None:
    """Read the directory at the start of a chunk, whatever its frames are.

    Args:
        payload: The payload of a CHUNK, or its first part.

    Returns:
        What it says.
    """
    try:
        head = HEAD.parse(directory_bytes(memoryview(payload)))
    except (KcapError, ConstructError):
        return None
    ts, ords = Bounds(head.ts_min, head.ts_max), Bounds(head.ord_min, head.ord_max)
    tails = Superseded(int(head.tail_first), int(head.tail_count))
    return Directory(int(head.number), Facts(int(head.rows), ts, ords), int(head.schema), tails)


def index(item: scan.Record) -> ChunkIndex | None:
    """Read a CHUNK_INDEX.

    Args:
        item: The record.

    Returns:
        Its content.
    """
    try:
        return ChunkIndex.unpack(item.payload)
    except KcapError:
        return None


def described(item: scan.Record) -> list[dict[str, Any]]:
    """Read a SCHEMA.

    Args:
        item: The record.

    Returns:
        The columns that it describes.
    """
    try:
        return schema.unpack(item.payload)
    except KcapError:
        return []


def tail_columns(item: scan.Record) -> set[int]:
    """Look into a TAIL for its columns.

    Args:
        item: The record.

    Returns:
        Their ids.
    """
    try:
        return set(tail.column_ids(item.payload))
    except KcapError:
        return set()


def columns_before(item: scan.Record) -> int:
    """Look into a CHUNK or STATE for the columns that it relies on.

    Args:
        item: The record.

    Returns:
        How many columns were described before it.
    """
    parts = [item.payload]
    if item.header.kind == Kind.STATE:
        try:
            parts = [part for _, part in payloads.unpack_state(item.payload)]
        except KcapError:
            return 0
    return max((found.columns for found in map(directory, parts) if found), default=0)
