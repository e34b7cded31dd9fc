"""PE and ELF files made byte by byte, and captures that have them as artifacts."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from detect_support import Event, batch
from support import FILE_ID

from kcap.format.writer import CaptureWriter

ORIGIN = "0" * 32
COMPANY = {
    "CompanyName": "Blackwater Ltd, blackwater",
    "FileVersion": "1.2.3.4",
    "ProductName": "Ünïcode",
}
FILE_ALIGN, MEMORY_ALIGN = 0x200, 0x1000
HEADERS = 0x400


class Section(NamedTuple):
    """A section of a PE."""

    name: bytes
    content: bytes
    flags: int = 0x6000_0020


def _wide(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"


def _aligned(raw: bytes, size: int = 4) -> bytes:
    return raw + bytes(-len(raw) % size)


def _node(key: str, value: bytes, children: Sequence[bytes], *, text: bool, count: int) -> bytes:
    """A node of the version resource: length, length of the value, type, key, value, children."""
    body = _aligned(bytes(6) + _wide(key)) + value
    for child in children:
        body = _aligned(body) + child
    return struct.pack("<HHH", len(body), count, int(text)) + body[6:]


def version_resource(strings: Mapping[str, str]) -> bytes:
    """VS_VERSIONINFO with one table of strings."""
    entries = [
        _node(key, _wide(value), [], text=True, count=len(value) + 1)
        for key, value in strings.items()
    ]
    table = _node("040904b0", b"", entries, text=True, count=0)
    info = _node("StringFileInfo", b"", [table], text=True, count=0)
    fixed = struct.pack("<II", 0xFEEF04BD, 0x10000) + bytes(44)
    return _node("VS_VERSION_INFO", fixed, [info], text=False, count=len(fixed))


def resources(address: int, strings: Mapping[str, str]) -> bytes:
    """A resource directory with the version alone: type 16, name 1, language 1033."""
    data = version_resource(strings)
    head = struct.Struct("<IIHHHH")
    out = b""
    for level, number in enumerate((16, 1, 1033)):
        below = (level + 1) * 24
        out += head.pack(0, 0, 0, 0, 0, 1)
        out += struct.pack("<II", number, below if level == 2 else below | 0x8000_0000)
    return out + struct.pack("<IIII", address + len(out) + 16, len(data), 0, 0) + data


def imports(address: int, libraries: Mapping[str, Sequence[str]]) -> bytes:
    """An import directory of a 64-bit image: descriptors, tables of names, names."""
    size = 20 * (len(libraries) + 1)
    tables, at = {}, size
    for library, names in libraries.items():
        tables[library] = at
        at += 8 * (len(names) + 1)
    head = lookups = names_ = b""
    for library, names in libraries.items():
        table = b""
        for name in names:
            raw = _aligned(b"\0\0" + name.encode() + b"\0", 2)
            table += struct.pack("<Q", address + at + len(names_))
            names_ += raw
        lookups += table + bytes(8)
        place = address + at + len(names_)
        names_ += _aligned(library.encode() + b"\0", 2)
        thunk = address + tables[library]
        head += struct.pack("<IIIII", thunk, 0, 0, place, thunk)
    return head + bytes(20) + lookups + names_


def pe(
    strings: Mapping[str, str] | None = None,
    libraries: Mapping[str, Sequence[str]] | None = None,
    *,
    extra: Sequence[Section] = (),
    characteristics: int = 0x0022,
    subsystem: int = 3,
    link_s: int = 1_700_000_000,
    base: int = 0x1_4000_0000,
    dotnet: bool = False,
    signature: bytes = b"",
) -> bytes:
    """A 64-bit PE, complete in itself; nothing in it could run."""
    sections = [Section(b".text", b"\xc3" * 100), *extra]
    directories = [(0, 0)] * 16
    for number, make, given in ((1, imports, libraries), (2, resources, strings)):
        if given:
            address = MEMORY_ALIGN * (len(sections) + 1)
            content = make(address, given)
            directories[number] = address, len(content)
            sections.append(Section((b".idata", b".rsrc")[number - 1], content, 0x4000_0040))
    if dotnet:
        directories[14] = MEMORY_ALIGN, 72
    table, body = b"", b""
    for number, section in enumerate(sections, 1):
        raw = _aligned(section.content, FILE_ALIGN)
        table += struct.pack(
            "<8sIIIIIIHHI", section.name, len(section.content), MEMORY_ALIGN * number, len(raw),
            HEADERS + len(body), 0, 0, 0, 0, section.flags,
        )  # fmt: skip
        body += raw
    if signature:
        certificate = struct.pack("<IHH", len(signature) + 8, 0x200, 2) + signature
        directories[4] = HEADERS + len(body), len(certificate)
        body += _aligned(certificate, 8)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 14, 0, 0x200, 0, 0, MEMORY_ALIGN, MEMORY_ALIGN,
        base, MEMORY_ALIGN, FILE_ALIGN, 6, 0, 0, 0, 6, 0, 0, MEMORY_ALIGN * (len(sections) + 1),
        HEADERS, 0, subsystem, 0, 1 << 20, 1 << 12, 1 << 20, 1 << 12, 0, 16,
    )  # fmt: skip
    optional += b"".join(struct.pack("<II", *one) for one in directories)
    coff = struct.pack(
        "<HHIIIHH", 0x8664, len(sections), link_s, 0, 0, len(optional), characteristics
    )
    stub = b"MZ" + bytes(58) + struct.pack("<I", 0x40)
    return (stub + b"PE\0\0" + coff + optional + table).ljust(HEADERS, b"\0") + body


BLACKWATER = pe(COMPANY, {"KERNEL32.dll": ["CreateFileW", "WriteFile"], "ws2_32.dll": ["connect"]})
PLAIN = pe({"CompanyName": "Honest Inc"})
TEXT = b"#!/bin/sh\necho hello\n" * 10
DUMP = b"MDMP\x93\xa7\0\0" + bytes(100)


def event(name: str, ts: int, exe: str, /, **arguments: Any) -> Event:
    """An event of a process."""
    return {"event": name, "ts": ts, "pid": 7, "exe": exe, "arguments": arguments}


class Blob(NamedTuple):
    """An artifact of a capture."""

    content: bytes
    path: str | None = None
    ord: int | None = None
    kind: str = "exec"
    origin: str | None = ORIGIN
    parts: Sequence[Any] | None = None


def capture(events: Iterable[Event], blobs: Iterable[Blob], **options: Any) -> bytes:
    """A closed capture with events and artifacts."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID, **options)
    for blob in blobs:
        writer.blob(
            blob.parts or [blob.content],
            path=blob.path,
            origin=None if blob.ord is None else blob.origin,
            ord=blob.ord,
            details={"kind": blob.kind},
        )
    writer.write(batch(events))
    writer.close()
    return out.getvalue()


def alerts_of(output: str) -> list[dict[str, Any]]:
    """The alerts that kcap printed as JSON lines."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]
