"""Frames as events: one ``net_packet`` a sighting, in columns.

`columns` is all that a reader or a recorder needs beside what it knows of its source. An event
tells what the headers say, holds the packet from layer 3 on (``data``), and of a frame that is not
IP the whole frame; ``link_type`` says which. What stood before layer 3 is in ``link_header``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model import catalogue, naming
from kcap.model.batch import Column, coded, constant, dictionary
from kcap.model.builder import Field, RawText, columns_of
from kcap.model.classes import TypeClass
from kcap.packets import addresses, applications
from kcap.packets.frames import I64, NONE, Bytes, Direction, Frames, LinkType, Mask, Owner
from kcap.packets.headers import Headers, View, parse
from kcap.packets.identity import PacketIds

EVENT: Final = "net_packet"
"""The name of the event."""

ARGUMENTS: Final = (
    *("data", "captured", "length", "link_type", "link_header", "direction", "interface"),
    *("packet_id", "vlan", "ip_version", "src", "dst", "protocol", "ttl", "ip_id"),
    *("fragment_offset", "more_fragments", "src_port", "dst_port", "payload_offset"),
    *("tcp_flags", "tcp_seq", "tcp_ack", "tcp_window", "icmp_type", "icmp_code"),
    *("proto_dns", "proto_http", "proto_tls", "comment"),
)
"""The arguments that an event may have."""

IDENTITY: Final[dict[str, str]] = {
    "pid": "pid",
    "tid": "tid",
    "ppid": "ppid",
    "process_name": "name",
    "process_start_ns": "start_ns",
    "thread_start_ns": "thread_start_ns",
    "process_key": "process_key",
    "exe": "exe",
    "cmdline": "cmdline",
    "parent_name": "parent_name",
    "user": "user",
    "uid": "uid",
    "gid": "gid",
    "cgroup_id": "cgroup_id",
    "container_id": "container_id",
    "container_name": "container_name",
    "provenance": "provenance",
}
"""Columns of the envelope that tell whose packet it is, and what they are of an `Owner`."""

DIRECTIONS: Final = {Direction.IN: "in", Direction.OUT: "out"}
"""Values of ``direction``."""

_NO_HEADER: Final = (LinkType.NULL, LinkType.LOOP)
"""What stands before layer 3 says nothing that ``ip_version`` does not."""

_INT32: Final = (1 << 31) - 1


def columns(frames: Frames, ids: PacketIds) -> dict[str, Column]:
    """The columns of the events of some frames.

    Args:
        frames: The frames, in stream order.
        ids: What gives the packets of this stream their ids.

    Returns:
        Columns by name, one row a frame: ``event``, ``category``, ``kind``, ``ts``, those of the
        owner, and arguments. What the source is (``origin``, ``ord``, ``source``, ``host``) is for
        the caller to add.
    """
    count = len(frames)
    if not count:
        return {}
    headers = parse(frames)
    most = np.where(headers.version > 0, headers.skipped, 0) + limits.VALUE_BYTES
    if (frames.captured > most).any():
        # An argument holds no more: as if a snap length had cut it, so that copies are equal.
        frames = replace(frames, captured=np.minimum(frames.captured, most).astype(np.int32))
        headers = parse(frames)
    found = {
        "event": constant(TypeClass.STR, EVENT, count),
        "category": constant(TypeClass.STR, "network", count),
        "kind": constant(TypeClass.STR, "event", count),
    }
    timed = np.ones(count, np.bool_) if frames.timed is None else frames.timed
    _put(found, "ts", frames.ts_ns, timed)
    _frame(found, frames, headers)
    _numbers(found, headers)
    _put(found, naming.argument("packet_id"), ids.give(frames, headers))
    for name, column in zip(("src", "dst"), _addresses(frames, headers), strict=True):
        if column is not None:
            found[naming.argument(name)] = column
    for name, values in applications.decode(frames, headers).items():
        field = Field(naming.argument(name), catalogue.home(naming.argument(name)))
        made, _ = columns_of(field, values.rows.astype(np.int32), values.values, count)
        found |= made
    _texts(found, frames)
    if frames.owner is not None:
        found |= owners(frames.owner, frames.owners)
    return found


def _put(found: dict[str, Column], name: str, values: I64, mask: Mask | None = None) -> None:
    """Add a column of numbers."""
    if mask is None or mask.all():
        found[name] = Column(TypeClass.I64, pa.array(np.ascontiguousarray(values, np.int64)))
    elif mask.any():
        rows = np.flatnonzero(mask).astype(np.int32)
        found[name] = Column(TypeClass.I64, pa.array(values[rows].astype(np.int64)), rows)


def _frame(found: dict[str, Column], frames: Frames, headers: Headers) -> None:
    """The bytes, how many there were, and what they are."""
    is_ip = headers.version > 0
    skipped = np.where(is_ip, headers.skipped, 0)
    captured = frames.captured.astype(np.int64) - skipped
    _put(found, naming.argument("captured"), captured)
    _put(found, naming.argument("length"), np.maximum(frames.length - skipped, captured))
    link = np.where(is_ip, int(LinkType.RAW), frames.link_type.astype(np.int64))
    _put(found, naming.argument("link_type"), link)
    data = naming.column_name(naming.argument("data"), TypeClass.BIN, TypeClass.I64)
    found[data] = Column(TypeClass.BIN, dictionary(pieces(frames.data, headers.start, captured)))
    before = is_ip & (skipped > 0) & ~np.isin(frames.link_type, _NO_HEADER)
    if before.any():
        rows = np.flatnonzero(before).astype(np.int32)
        held = dictionary(pieces(frames.data, frames.offsets[rows], skipped[rows]))
        whole = len(rows) == len(frames)
        found[naming.argument("link_header")] = Column(TypeClass.BIN, held, None if whole else rows)


def _numbers(found: dict[str, Column], headers: Headers) -> None:
    """What headers say in numbers."""
    is_ip = headers.version > 0
    part = headers.fragment_offset >= 0
    numbers = {
        "ip_version": (headers.version, is_ip),
        "protocol": (headers.protocol, headers.protocol >= 0),
        "ttl": (headers.ttl, headers.ttl >= 0),
        "ip_id": (headers.ip_id, headers.ip_id >= 0),
        "vlan": (headers.vlan, headers.vlan >= 0),
        "fragment_offset": (headers.fragment_offset, part),
        "src_port": (headers.src_port, headers.ported),
        "dst_port": (headers.dst_port, headers.ported),
        "tcp_flags": (headers.tcp_flags, headers.tcp),
        "tcp_seq": (headers.tcp_seq, headers.tcp),
        "tcp_ack": (headers.tcp_ack, headers.tcp),
        "tcp_window": (headers.tcp_window, headers.tcp),
        "icmp_type": (headers.icmp_type, headers.icmp),
        "icmp_code": (headers.icmp_code, headers.icmp),
        "payload_offset": (headers.payload - headers.start, headers.payload >= 0),
    }
    for name, (values, mask) in numbers.items():
        _put(found, naming.argument(name), values, mask)
    if part.any():
        rows = np.flatnonzero(part).astype(np.int32)
        more = pa.array(headers.more_fragments[rows])
        whole = len(rows) == len(part)
        name = naming.argument("more_fragments")
        found[name] = Column(TypeClass.BOOL, more, None if whole else rows)


def pieces(data: Bytes, starts: I64, sizes: I64) -> pa.Array:
    """Parts of a buffer as binary values.

    Args:
        data: The buffer.
        starts: Where each part begins.
        sizes: How long each is.

    Returns:
        A binary array.
    """
    stops = starts + sizes
    if len(data) > _INT32 or (len(starts) and (starts[1:] < stops[:-1]).any()):
        # Parts that overlap, or in another order.
        places = zip(starts.tolist(), stops.tolist(), strict=True)
        return pa.array([data[a:b].tobytes() for a, b in places], pa.binary())
    edges = np.empty(2 * len(starts), np.int32)
    edges[::2], edges[1::2] = starts, stops
    # Every other value is what lies between two parts.
    buffers = [None, pa.py_buffer(edges), pa.py_buffer(data)]
    every = pa.Array.from_buffers(pa.binary(), max(len(edges) - 1, 0), buffers)
    return every.take(pa.array(np.arange(0, len(edges), 2)))


def _addresses(frames: Frames, headers: Headers) -> tuple[Column | None, Column | None]:
    """Source and destination as text; each different address is spelled once."""
    view = View(frames.data)
    four = np.flatnonzero(headers.version == 4)  # noqa: PLR2004
    six = np.flatnonzero(headers.version == 6)  # noqa: PLR2004
    rows = np.flatnonzero(headers.version > 0).astype(np.int32)
    found = []
    for at4, at6 in ((12, 8), (16, 24)):
        codes = np.full(len(frames), NONE, np.int32)
        texts = []
        if len(four):
            held = pa.array(view.u32(headers.start[four] + at4).astype(np.uint32))
            held = held.dictionary_encode()
            codes[four] = held.indices
            texts.append(_ipv4(np.asarray(held.dictionary)))
        if len(six):
            raw = view.parts(headers.start[six] + at6, 16)
            buffers = [None, pa.py_buffer(raw)]
            held = pa.Array.from_buffers(pa.binary(16), len(six), buffers).dictionary_encode()
            codes[six] = np.asarray(held.indices) + sum(map(len, texts))
            spelled = (addresses.ipv6(a) for a in held.dictionary.to_pylist())
            texts.append(pa.array(spelled, pa.utf8()))
        if not texts:
            return None, None
        values = pa.DictionaryArray.from_arrays(pa.array(codes[rows]), pa.concat_arrays(texts))
        whole = len(rows) == len(frames)
        found.append(Column(TypeClass.STR, values, None if whole else rows))
    return found[0], found[1]


def _ipv4(addresses: npt.NDArray[np.uint32]) -> pa.Array:
    """Addresses as text."""
    octets = pa.array(map(str, range(256)))
    parts = [octets.take(pa.array(addresses >> shift & 255)) for shift in (24, 16, 8, 0)]
    return pc.binary_join_element_wise(*parts, ".")


def _texts(found: dict[str, Column], frames: Frames) -> None:
    """Direction, interface and comment."""
    kinds: list[tuple[str, Sequence[str], Any]] = [
        ("interface", frames.interfaces, frames.interface),
        ("comment", frames.comments, frames.comment),
    ]
    if frames.direction is not None:
        ways = [None, DIRECTIONS[Direction.IN], DIRECTIONS[Direction.OUT], None]
        column = coded(ways, np.minimum(frames.direction, 3))
        if column is not None:
            found[naming.argument("direction")] = column
    for name, texts, codes in kinds:
        if codes is not None:
            base = naming.argument(name)
            rows = np.arange(len(texts), dtype=np.int32)
            made, _ = columns_of(Field(base, TypeClass.STR), rows, list(texts), len(texts))
            found |= {key: spread for key, c in made.items() if (spread := _spread(c, codes))}


def owners(codes: Any, entries: Sequence[Owner]) -> dict[str, Column]:  # noqa: ANN401
    """Identity columns out of a table of owners.

    Args:
        codes: Index into it for each row, `NONE` for no owner.
        entries: The table.

    Returns:
        Columns by name.
    """
    found: dict[str, Column] = {}
    rows = np.arange(len(entries), dtype=np.int32)
    for name, field in IDENTITY.items():
        values = [getattr(entry, field) for entry in entries]
        values = [RawText(v) if isinstance(v, bytes) else v for v in values]
        if any(value is not None for value in values):
            made, _ = columns_of(Field(name, catalogue.home(name)), rows, values, len(entries))
            found |= {key: spread for key, c in made.items() if (spread := _spread(c, codes))}
    return found


def _spread(column: Column, codes: Any) -> Column | None:  # noqa: ANN401
    """A column of a table for rows that refer to its entries."""
    entries = len(column) if column.rows is None else int(column.rows[-1]) + 1 if len(column) else 0
    place = np.full(max(entries, int(codes.max()) + 1) + 1, NONE, np.int64)
    at = np.arange(len(column)) if column.rows is None else column.rows
    place[at] = np.arange(len(column))
    found = place[codes]  # an index of NONE takes the last entry, which is NONE
    rows = np.flatnonzero(found >= 0).astype(np.int32)
    if not len(rows):
        return None
    values = column.values.take(pa.array(found[rows]))
    return Column(column.cls, values, None if len(rows) == len(found) else rows)
