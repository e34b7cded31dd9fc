"""Fibratus captures for the tests: where they are, and a writer of small ones of every dialect."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import zstandard

from kcap.model.batch import Batch
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.readers.fibratus import FibratusReader
from kcap.readers.fibratus_values import DIALECTS

REAL = "fibratus/v1.6.0-test.kcap"
SMALL = tuple(
    f"fibratus/{name}.kcap"
    for name in (
        "2020-12-31-cap",
        "v1.2.0-cap",
        "v1.2.0-cap1",
        "v1.4.1-cap",
        "v1.6.0-cap1",
        "v2.0.0-cap",
    )
)
CUT = SMALL[0]
"""Its zstd frame never ends."""
PRE_RELEASE = ("fibratus/v1.0.0-cap.kcap", "fibratus/v1.0.0-cap1.kcap")

PROCESS = "3d6fa8d0-fe05-11d0-9dda-00c04fd7ba7c"
FILE = "90cbdc39-4a3e-11d1-84f4-0000f80464e3"
HANDLE = "89497f50-effe-4440-8cf2-ce6b1cdcaca7"
NOBODY = 0xFFFFFFFF

Parameter = tuple[str, str, Any]
"""Name, type and value."""


class Form(NamedTuple):
    """How a capture is written."""

    types: str = "1"
    width: int = 17
    version: int = 1
    sign: str = "<"
    major: int = 1

    def pack(self, form: str, *values: Any) -> bytes:
        return struct.pack(self.sign + form, *values)

    def text(self, value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return self.pack("H", len(raw)) + raw

    def texts(self, values: Sequence[str | bytes]) -> bytes:
        return self.pack("H", len(values)) + b"".join(map(self.text, values))

    def pairs(self, values: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
        found = list(values)
        return self.pack("H", len(found)) + b"".join(
            self.text(key) + self.text(value) for key, value in found
        )

    def section(self, kind: int, version: int, count: int, size: int) -> bytes:
        return self.pack("BBII", kind, version, count, size)

    def value(self, kind: str, value: Any) -> bytes:
        """A parameter's value as Fibratus stores it."""
        old = self.types == "1"
        if kind == "enum":
            return self.pack("B" if old else "I", value)
        if kind in {"sid", "wbemsid"} and old:
            return self.text(value)
        if kind in {"sid", "wbemsid", "binary"}:
            return self.pack("I", len(value)) + bytes(value)
        if kind in {"ipv4", "ipv6"}:
            return bytes(value)
        if kind == "slice":
            if value and isinstance(value[0], int):
                return self.pack(f"cH{len(value)}Q", b"8", len(value), *value)
            return b"s" + self.texts(value)
        if kind in FORMATS:
            return self.pack(FORMATS[kind], value)
        return self.text(value)


FORMATS = {
    **dict.fromkeys(("u8", "hex8", "bool"), "B"),
    **dict.fromkeys(("u16", "hex16", "port"), "H"),
    **dict.fromkeys(("u32", "hex32", "pid", "tid", "status", "flags"), "I"),
    **dict.fromkeys(("u64", "hex64", "address", "flags64"), "Q"),
    "i8": "b",
    "i16": "h",
    "i32": "i",
    "i64": "q",
    "float": "d",
    "double": "f",
}

OLD = Form()
FORMS = (
    OLD,
    Form(sign=">"),
    Form("2.0", 17, 1, major=2),
    Form("2.0", 18, 1, major=2),
    Form("2.0", 18, 2, major=2),
    Form("2.2", 18, 2, major=2),
    Form("2.2", 18, 2, ">", major=3),
)


def handle(
    form: Form = OLD,
    *,
    pid: int = 4,
    number: int = 8,
    address: int = 0xFFFF800000000000,
    kind: str = "File",
    name: str | bytes = "C:\\Windows",
    tag: int = 5,
    details: bytes = b"",
) -> bytes:
    """A handle, with its length before it."""
    raw = form.pack("QQI", number, address, pid) + form.text(kind) + form.text(name)
    raw += bytes([tag]) + details
    return form.pack("H", len(raw)) + raw


def state(
    form: Form = OLD,
    version: int = 1,
    *,
    pid: int = 100,
    cwd: str = "C:\\work\\",
    args: Sequence[str | bytes] = ("-a", "b"),
    variables: Iterable[tuple[str | bytes, str | bytes]] = (("PATH", "C:\\"),),
    handles: Sequence[bytes] = (),
    pe: bytes = b"",
    pe_version: int = 1,
) -> bytes:
    """A process state, with its section header."""
    raw = form.pack("II", pid, 4)
    for text in ("a.exe", "a.exe -a b", "C:\\a.exe", cwd, "HOST\\ann"):
        raw += form.text(text)
    raw += form.texts(args)
    raw += form.pack("B" if version < 3 else "I", 1)
    raw += form.pairs(variables)
    raw += form.section(2, 1, len(handles), 0) + b"".join(handles)
    raw += form.section(4, pe_version, 0, len(pe)) + pe
    if version >= 2:
        raw += form.text("2022-08-15T21:35:37Z") + form.pack("Q", 77)
    if version >= 3:
        raw += form.text("ann") + form.text("HOST")
    if version >= 4:
        raw += bytes([1, 0, 1])
    return form.section(1, version, 0, len(raw)) + raw


def record(
    parameters: Iterable[Parameter] = (),
    form: Form = OLD,
    *,
    name: str = "CreateFile",
    provider: str = FILE,
    number: int = 64,
    category: str = "file",
    host: str = "WIN",
    seq: int = 1,
    pid: int = 100,
    tid: int = 101,
    time: str | bytes = "2022-08-15T21:56:28.3433744Z",
    metadata: Iterable[tuple[str | bytes, str | bytes]] = (),
    process: bytes | None = None,
) -> bytes:
    """The content of an event's section."""
    raw = form.pack("QII", seq, pid, tid)
    raw += bytes.fromhex(provider.replace("-", "")) + number.to_bytes(form.width - 16, "big")
    raw += b"\1"
    for text in (name, category, "what it means", host, time):
        raw += form.text(text)
    found = list(parameters)
    raw += form.pack("H", len(found))
    for label, kind, value in found:
        code = DIALECTS[form.types].index(kind)
        raw += form.pack("H", code) + form.text(label) + form.value(kind, value)
    raw += form.pairs(metadata)
    return raw + (form.section(1, 1, 0, 0) if process is None else process)


def header(form: Form = OLD, handles: Sequence[bytes] = ()) -> bytes:
    """The header and the handle section."""
    magic = form.pack("Q", 0x6669627261747573)
    head = magic + bytes([form.major, 0]) + bytes(8)
    return head + form.section(2, 1, len(handles), 0) + b"".join(handles)


def section(raw: bytes, form: Form = OLD) -> bytes:
    """An event's section."""
    return form.section(3, form.version, 0, len(raw)) + raw


def plain(records: Iterable[bytes], form: Form = OLD, handles: Sequence[bytes] = ()) -> bytes:
    """A capture that is not compressed."""
    return header(form, handles) + b"".join(section(raw, form) for raw in records)


def packed(parts: Iterable[bytes]) -> bytes:
    """Parts as one zstd frame, flushed after each as Fibratus does once a second."""
    out = zstandard.ZstdCompressor().compressobj()
    found = b""
    for part in parts:
        found += out.compress(part) + out.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return found + out.flush()


def source(data: bytes, *, lenient: bool = False) -> FibratusReader:
    """A reader of bytes."""
    return FibratusReader(io.BytesIO(data), "in", lenient=lenient)


def read(data: bytes, *, lenient: bool = False) -> list[Batch]:
    """The batches of a capture."""
    return list(source(data, lenient=lenient).batches())


def rows(batches: Iterable[Batch]) -> list[dict[str, Any]]:
    """The events as dicts."""
    return [row for batch in batches for row in batch.to_pylist()]


def sides(batches: Iterable[Batch], kind: type[Any]) -> list[Any]:
    """The side records of a kind."""
    return [side for batch in batches for side in batch.before if isinstance(side, kind)]


def losses(batches: Iterable[Batch]) -> list[Loss]:
    """What was lost."""
    return sides(batches, Loss)


def snapshots(batches: Iterable[Batch]) -> list[Snapshot]:
    """The states that the reader gives."""
    return sides(batches, Snapshot)


def sources(batches: Iterable[Batch]) -> list[SourceInfo]:
    """The sources that the reader tells."""
    return sides(batches, SourceInfo)
