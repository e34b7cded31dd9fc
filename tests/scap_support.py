"""A writer of .scap files for the tests: blocks of every version, and how to read them."""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from kcap.errors import KcapError
from kcap.model.batch import Batch, concat
from kcap.model.side import SourceInfo
from kcap.readers.scap_blocks import Blocks, Events, Item
from kcap.readers.scap_decode import Decoder, RawEvents

SOURCE: Final = SourceInfo("scap", host="box", origin="0" * 32)

EVENT, EVENT_V2, EVENT_LARGE = 0x204, 0x216, 0x221
EVENT_FLAGS, EVENT_FLAGS_V2, EVENT_FLAGS_LARGE = 0x208, 0x217, 0x222

OPEN, OPEN_EXIT, CLOSE, CLOSE_EXIT, READ, READ_EXIT = 2, 3, 4, 5, 6, 7
EXECVE_EXIT, CONNECT_EXIT, PROCEXIT, SWITCH = 293, 23, 186, 152

PROCESS_LISTS: Final = {
    1: 0x202,
    2: 0x207,
    3: 0x209,
    4: 0x210,
    5: 0x211,
    6: 0x212,
    7: 0x213,
    8: 0x214,
    9: 0x215,
}
ALIASES: Final = {
    0x201: 0x8002ABCD,
    0x202: 0x8000ABCD,
    0x203: 0x8001ABCD,
    0x204: 0x8010ABCD,
    0x205: 0x8011ABCD,
    0x206: 0x8012ABCD,
    0x207: 0x8013ABCD,
    0x209: 0x8014ABCD,
}
"""Released block types to the numbers before."""


def block(kind: int, body: bytes) -> bytes:
    """A block, filled up to a multiple of four."""
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def section(
    major: int = 1, minor: int = 2, *, magic: int = 0x1A2B3C4D, options: bytes = b""
) -> bytes:
    """A section header."""
    return block(0x0A0D0D0A, struct.pack("<IHHq", magic, major, minor, -1) + options)


def machine(host: str = "box", cpus: int = 4, *, boot_ns: int = 0, flags: int = 0) -> bytes:
    """A machine info block."""
    return block(
        0x201,
        struct.pack("<IQQ128sQQQQ", cpus, 1 << 30, 32768, host.encode(), boot_ns, flags, 0, 0),
    )


def text(value: str | bytes) -> bytes:
    """Text with its length in front."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<H", len(raw)) + raw


def process(version: int, more: bytes = b"", **fields: Any) -> bytes:
    """An entry of a process list; ``more`` stands behind the fields of its version."""
    given: dict[str, Any] = {
        "tid": 1,
        "pid": 1,
        "ptid": 0,
        "sid": 1,
        "vpgid": 1,
        "comm": "init",
        "exe": "init",
    }
    given |= {"exepath": "/sbin/init", "args": b"", "cwd": "/", "uid": 0, "gid": 0}
    given |= {"env": b"HOME=/\0", "cgroups": b"cpu=/\0", "root": "/"}
    given |= fields
    out = struct.pack("<3q", given["tid"], given["pid"], given["ptid"])
    out += struct.pack("<q", given["sid"]) if version >= 6 else b""
    out += struct.pack("<q", given["vpgid"]) if version >= 8 else b""
    out += text(given["comm"]) + text(given["exe"])
    out += text(given["exepath"]) if version >= 7 else b""
    out += text(given["args"]) + text(given["cwd"])
    out += struct.pack("<Q3I", 1024, 0, given["uid"], given["gid"])
    out += struct.pack("<3I2Q", 1, 2, 3, 4, 5) if version >= 2 else b""
    out += text(given["env"]) if version >= 3 else b""
    if version >= 4:
        inside = given.get("vtid", given["tid"]), given.get("vpid", given["pid"])
        out += struct.pack("<2q", *inside) + text(given["cgroups"])
    out += text(given["root"]) if version >= 5 else b""
    out += more
    return struct.pack("<I", len(out) + 4) + out if version >= 9 else out


def process_list(version: int, *entries: bytes) -> bytes:
    """A process list block."""
    return block(PROCESS_LISTS[version], b"".join(entries))


def descriptor(version: int, fd: int, kind: int, body: bytes, *, inode: int = 7) -> bytes:
    """An entry of a descriptor list."""
    out = struct.pack("<qQB", fd, inode, kind) + body
    return struct.pack("<I", len(out) + 4) + out if version > 1 else out


def descriptor_list(version: int, tid: int, *entries: bytes) -> bytes:
    """A descriptor list block."""
    return block({1: 0x203, 2: 0x218}[version], struct.pack("<q", tid) + b"".join(entries))


def interface(version: int, kind: int, name: str, *addresses: str, speed: int = 0) -> bytes:
    """An entry of an interface list."""
    family = socket.AF_INET if kind in (1, 3) else socket.AF_INET6
    out = struct.pack("<HH", kind, len(name))
    out += b"".join(socket.inet_pton(family, a) for a in addresses)
    out += struct.pack("<Q", speed) if kind in (1, 2) else b""
    out += name.encode()
    return struct.pack("<I", len(out)) + out if version > 1 else out


def user(version: int, uid: int, name: str) -> bytes:
    """A user of a user list."""
    out = struct.pack("<BII", 0, uid, uid) + text(name) + text(f"/home/{name}") + text("/bin/sh")
    return struct.pack("<I", len(out) + 4) + out if version > 1 else out


def group(version: int, gid: int, name: str) -> bytes:
    """A group of a user list."""
    out = struct.pack("<BI", 1, gid) + text(name)
    return struct.pack("<I", len(out) + 4) + out if version > 1 else out


def event(
    number: int,
    *parameters: bytes,
    ts: int = 1_000,
    tid: int = 100,
    cpu: int = 0,
    kind: int = EVENT_V2,
    flags: int = 1,
    size: int | None = None,
) -> bytes:
    """An event block; ``size`` is what the event says of its length where that shall be wrong."""
    width = "I" if kind in (EVENT_LARGE, EVENT_FLAGS_LARGE) else "H"
    lengths = struct.pack(f"<{len(parameters)}{width}", *map(len, parameters))
    rest = lengths + b"".join(parameters)
    if kind not in (EVENT, EVENT_FLAGS):
        rest = struct.pack("<I", len(parameters)) + rest
    header = struct.pack("<QqIH", ts, tid, 22 + len(rest) if size is None else size, number)
    has_flags = kind in (EVENT_FLAGS, EVENT_FLAGS_V2, EVENT_FLAGS_LARGE)
    front = struct.pack("<HI", cpu, flags) if has_flags else struct.pack("<H", cpu)
    return block(kind, front + header + rest)


def i64(value: int) -> bytes:
    """A 64-bit parameter."""
    return struct.pack("<q", value)


def u32(value: int) -> bytes:
    """A 32-bit parameter."""
    return struct.pack("<I", value)


def opened(path: str, fd: int = 3, **options: Any) -> bytes:
    """The exit of an open."""
    return event(OPEN_EXIT, i64(fd), path.encode() + b"\0", u32(1), u32(0), **options)


def scap(*blocks: bytes) -> bytes:
    """A whole file."""
    return section() + machine() + b"".join(blocks)


class Stream(io.BytesIO):
    """A stream that gives so many bytes at a time."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        super().__init__(data)
        self._step = step

    def read1(self, size: int | None = -1, /) -> bytes:
        """Read less than asked for."""
        return super().read1(min(size if size and size > 0 else self._step, self._step))


def items(
    data: bytes, *, lenient: bool = False, step: int = 1 << 20
) -> tuple[list[Item], KcapError | None, int]:
    """All items of a file, why they ended, and how much damage was passed over."""
    blocks = Blocks(Stream(data, step), "x.scap", lenient=lenient)
    found: list[Item] = []
    try:
        found.extend(blocks.read())
    except KcapError as error:
        return found, error, len(blocks.damage)
    return found, None, len(blocks.damage)


def runs(found: Iterable[Item]) -> list[Events]:
    """The runs of events among items."""
    return [item for item in found if isinstance(item, Events)]


def decoded(data: bytes, *, lenient: bool = False) -> list[RawEvents]:
    """The raw events of a file."""
    decoder = Decoder(SOURCE, "x.scap", lenient=lenient)
    found, error, _ = items(data)
    assert error is None
    return [decoder.decode(run) for run in runs(found)]


def rows(data: bytes, *, lenient: bool = False) -> list[dict[str, Any]]:
    """The raw events of a file as dicts, without what all have in common."""
    found = decoded(data, lenient=lenient)
    whole = concat([raw.batch for raw in found]) if found else Batch(0, {})
    common = ("source", "origin", "host", "kind", "ord")
    return [{k: v for k, v in row.items() if k not in common} for row in whole.to_pylist()]


def arguments(row: dict[str, Any], names: Sequence[str] = ("arg_", "retval")) -> dict[str, Any]:
    """The arguments and the result of a row."""
    return {k: v for k, v in row.items() if k.startswith(tuple(names))}
