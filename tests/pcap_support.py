"""Packets and packet captures for tests, made byte by byte and not with kcap's own writers."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from kcap.model.side import Loss, Side
from kcap.readers.pcap import PcapReader
from kcap.readers.pcapng import PcapngReader

MAGICS = {1000: 0xA1B2C3D4, 1: 0xA1B23C4D}
ETHERNET, RAW = 1, 101
MAC = bytes(range(12))


class Packet(NamedTuple):
    """A packet of a capture."""

    ts_ns: int
    data: bytes
    length: int = 0
    """0 for that of ``data``."""


def pcap(packets: Sequence[Packet], order: str = "<", unit_ns: int = 1, link: int = RAW) -> bytes:
    """A classic capture."""
    out = struct.pack(f"{order}IHHiIII", MAGICS[unit_ns], 2, 4, 0, 0, 262144, link)
    for ts_ns, data, length in packets:
        second, rest = divmod(ts_ns, 10**9)
        size = len(data)
        out += struct.pack(f"{order}4I", second, rest // unit_ns, size, length or size) + data
    return out


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def options(order: str, *pairs: tuple[int, bytes]) -> bytes:
    """Options and their end; nothing for none."""
    return b"".join(option(order, *pair) for pair in [*pairs, (0, b"")]) if pairs else b""


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = len(body) + 12
    return struct.pack(f"{order}II", kind, size) + body + struct.pack(f"{order}I", size)


def section(order: str, *pairs: tuple[int, bytes]) -> bytes:
    body = struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1)
    return block(order, 0x0A0D0D0A, body + options(order, *pairs))


def interface(order: str, link: int, *pairs: tuple[int, bytes], snap: int = 0) -> bytes:
    body = struct.pack(f"{order}HHI", link, 0, snap)
    return block(order, 1, body + options(order, *pairs))


def enhanced(
    order: str, units: int, data: bytes, *pairs: tuple[int, bytes], of: int = 0, length: int = 0
) -> bytes:
    """An Enhanced Packet Block; ``units`` of the interface's clock."""
    size = len(data)
    body = struct.pack(f"{order}5I", of, units >> 32, units & 0xFFFFFFFF, size, length or size)
    body += data + bytes(-size % 4)
    return block(order, 6, body + options(order, *pairs))


def obsolete(order: str, units: int, data: bytes, of: int = 0) -> bytes:
    """A Packet Block, which also says that 7 were dropped."""
    size = len(data)
    body = struct.pack(f"{order}HHIIII", of, 7, units >> 32, units & 0xFFFFFFFF, size, size)
    return block(order, 2, body + data)


def simple(order: str, data: bytes, length: int = 0) -> bytes:
    return block(order, 3, struct.pack(f"{order}I", length or len(data)) + data)


def ipv4(
    body: bytes, protocol: int, *, fragment: int = 0, total: int = -1, more: bytes = b""
) -> bytes:
    """An IPv4 packet; ``fragment`` are flags and offset, ``more`` options of the header."""
    size = 20 + len(more)
    said = size + len(body) if total < 0 else total
    ends = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    first = 0x40 | size >> 2
    return (
        struct.pack(">BBHHHBBH", first, 0, said, 77, fragment, 64, protocol, 0) + ends + more + body
    )


def ipv6(body: bytes, protocol: int, *, length: int = -1) -> bytes:
    said = len(body) if length < 0 else length
    ends = bytes([0x20, 1, *bytes(13), 1]) + bytes([0x20, 1, *bytes(13), 2])
    return struct.pack(">IHBB", 6 << 28, said, protocol, 63) + ends + body


def tcp(source: int, target: int, payload: bytes = b"", flags: int = 0x18) -> bytes:
    return struct.pack(">HHIIHHHH", source, target, 5, 6, 5 << 12 | flags, 512, 0, 0) + payload


def udp(source: int, target: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HHHH", source, target, 8 + len(payload), 0) + payload


def ethernet(packet: bytes, *tags: int) -> bytes:
    """A frame, in VLANs."""
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    marks = b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
    return MAC + marks + struct.pack(">H", kind) + packet


def read(data: bytes, *, lenient: bool = False) -> tuple[list[dict[str, Any]], list[Side]]:
    """The events of a capture, and what stands beside them."""
    reader = (PcapReader if PcapReader.sniff(data) else PcapngReader)(
        io.BytesIO(data), "test", lenient=lenient
    )
    rows: list[dict[str, Any]] = []
    sides: list[Side] = []
    for batch in reader.batches():
        sides += batch.before
        rows += batch.to_pylist()
    return rows, sides


def losses(sides: Sequence[Side]) -> list[str]:
    """What was lost, by kind."""
    return [side.kind for side in sides if isinstance(side, Loss)]
