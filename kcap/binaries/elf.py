"""What an ELF file (a program, a library or a module of Linux) says of itself.

Read here rather than by a library: each table is one array of a limited length, so that a hostile
file costs no more than an honest one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.binaries import parts
from kcap.binaries.parts import Hashing, MalformedError, guarded, text

_MAGIC: Final = b"\x7fELF"
_IDENT_BYTES: Final = 16
_CLASS_AT, _DATA_AT = 4, 5
_SECTIONS: Final = 4096
"""Section headers that are looked at; a kernel module has some hundred."""
_SEGMENTS: Final = 256
_NOTE_BYTES: Final = 64 << 10
_DYNAMIC: Final = 4096
"""Entries of the dynamic section that are looked at."""
_XINDEX: Final = 0xFFFF
_TYPES: Final = {1: "relocatable", 2: "executable", 3: "shared", 4: "core"}
_MACHINES: Final = {
    2: "sparc", 3: "386", 4: "68k", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm",
    43: "sparcv9", 50: "ia_64", 62: "x86_64", 183: "aarch64", 243: "riscv", 247: "bpf",
    258: "loongarch",
}  # fmt: skip
_LOAD, _DYNAMIC_SEGMENT, _INTERP, _NOTE = 1, 2, 3, 4
_SYMTAB, _NOTE_SECTION, _NOBITS, _DYNSYM = 2, 7, 8, 11
_END, _NEEDED, _STRTAB, _SONAME = 0, 1, 5, 14
_BUILD_ID: Final = 3
_BUILD_ID_BYTES: Final = 64

_Fields = list[tuple[str, str]]
_HEADER: Final[_Fields] = [
    ("type", "u2"), ("machine", "u2"), ("version", "u4"), ("entry", "W"), ("phoff", "W"),
    ("shoff", "W"), ("flags", "u4"), ("ehsize", "u2"), ("phentsize", "u2"), ("phnum", "u2"),
    ("shentsize", "u2"), ("shnum", "u2"), ("shstrndx", "u2"),
]  # fmt: skip
_SECTION: Final[_Fields] = [
    ("name", "u4"), ("type", "u4"), ("flags", "W"), ("addr", "W"), ("offset", "W"), ("size", "W"),
    ("link", "u4"), ("info", "u4"), ("align", "W"), ("entsize", "W"),
]  # fmt: skip
_SEGMENT_64: Final[_Fields] = [
    ("type", "u4"), ("flags", "u4"), ("offset", "W"), ("vaddr", "W"), ("paddr", "W"),
    ("filesz", "W"), ("memsz", "W"), ("align", "W"),
]  # fmt: skip
_SEGMENT_32: Final[_Fields] = [
    ("type", "u4"), ("offset", "W"), ("vaddr", "W"), ("paddr", "W"), ("filesz", "W"),
    ("memsz", "W"), ("flags", "u4"), ("align", "W"),
]  # fmt: skip
_ENTRY: Final[_Fields] = [("tag", "W"), ("value", "W")]

Table = npt.NDArray[Any]


def sniff(content: bytes) -> bool:
    """Whether a file begins like an ELF.

    Args:
        content: The file.

    Returns:
        True for its magic.
    """
    return content[:4] == _MAGIC and len(content) >= _IDENT_BYTES


@guarded
def facts(content: bytes) -> dict[str, Any]:
    """What an ELF file says of itself.

    Args:
        content: The file.

    Returns:
        ``type`` (``executable``, ``shared``, ``relocatable``, ``core``), ``machine`` (``x86_64``:
        as EM_X86_64, else its number), ``bits``, ``entrypoint``, ``interpreter``, ``needed``
        (libraries), ``soname``, ``build_id`` (hex), ``nsections``, ``sections`` (name, size,
        entropy, md5), ``nsymbols``, ``is_stripped`` (there is no table of symbols beside the
        dynamic one), ``is_static`` (a program that names no interpreter). What it does not say is
        left out.

    Raises:
        MalformedError: It is no ELF file.
    """
    return _Elf(content[: parts.CONTENT_BYTES]).facts()


class _Elf:
    """A file.

    Args:
        content: Its bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        words, order = content[_CLASS_AT : _DATA_AT + 1]
        if words not in (1, 2) or order not in (1, 2):
            raise MalformedError("neither 32 nor 64 bits, or of no known byte order")
        self.bits = 32 * words
        self._order = "<" if order == 1 else ">"
        header = self._table(_HEADER, _IDENT_BYTES, 1)
        if not len(header):
            raise MalformedError("its header is cut")
        self.header = {name: int(header[name][0]) for name, _ in _HEADER}
        self.sections = self._sections()
        segment = _SEGMENT_64 if self.bits == 64 else _SEGMENT_32  # noqa: PLR2004
        count = min(self.header["phnum"], _SEGMENTS)
        self.segments = self._table(segment, self.header["phoff"], count)

    def facts(self) -> dict[str, Any]:
        """See `facts`."""
        header, types = self.header, self.sections["type"]
        interpreter = self._interpreter()
        kind = _TYPES.get(header["type"])
        is_program = kind in ("executable", "shared")
        found = {
            "type": kind or str(header["type"]),
            "machine": _MACHINES.get(header["machine"], str(header["machine"])),
            "bits": self.bits,
            "entrypoint": header["entry"],
            "interpreter": interpreter,
            **self._dynamic(),
            "build_id": self._build_id(),
            "nsections": header["shnum"],
            "sections": self._described(),
            "nsymbols": self._symbols(),
            "is_stripped": not (types == _SYMTAB).any(),
        }
        if is_program:
            found["is_static"] = not interpreter and not found["needed"]
        return {name: value for name, value in found.items() if value not in (None, "", [])}

    def _table(self, fields: _Fields, at: int, count: int) -> Table:
        """Some entries of a table; those that the file does not have are left out."""
        word = "u8" if self.bits == 64 else "u4"  # noqa: PLR2004
        kind = np.dtype([(n, self._order + t.replace("W", word)) for n, t in fields])
        left = max(len(self._content) - at, 0) // kind.itemsize if at >= 0 else 0
        if not min(left, count):
            return np.zeros(0, kind)
        return np.frombuffer(self._content, kind, min(left, count), at)

    def _bytes(self, at: int, size: int) -> bytes:
        return self._content[at : at + size]

    def _sections(self) -> Table:
        header = self.header
        if not header["shoff"]:
            return self._table(_SECTION, 0, 0)
        first = self._table(_SECTION, header["shoff"], 1)
        # Of very many the number stands in the first entry.
        if not header["shnum"] and len(first):
            header["shnum"] = int(first["size"][0])
        if header["shstrndx"] == _XINDEX and len(first):
            header["shstrndx"] = int(first["link"][0])
        return self._table(_SECTION, header["shoff"], min(header["shnum"], _SECTIONS))

    def _described(self) -> list[dict[str, Any]]:
        at = self.header["shstrndx"]
        names = self.sections[at : at + 1] if at < len(self.sections) else self.sections[:0]
        base, size = (int(names[n][0]) if len(names) else 0 for n in ("offset", "size"))
        hashing = Hashing(self._content)
        found = []
        for section in self.sections[1 : parts.SECTIONS + 1]:
            start = int(section["name"])
            raw = self._bytes(base + start, parts.NAME_BYTES) if start < size else b""
            length = 0 if section["type"] == _NOBITS else int(section["size"])
            found.append(hashing.section(text(raw), int(section["offset"]), length))
        return found

    def _symbols(self) -> int:
        """How many symbols there are, the dynamic ones where there are no others."""
        for kind in (_SYMTAB, _DYNSYM):
            for table in self.sections[self.sections["type"] == kind][:1]:
                left = min(int(table["size"]), max(len(self._content) - int(table["offset"]), 0))
                return left // max(int(table["entsize"]), 16)
        return 0

    def _interpreter(self) -> str | None:
        for segment in self.segments[self.segments["type"] == _INTERP][:1]:
            size = min(int(segment["filesz"]), parts.NAME_BYTES)
            return text(self._bytes(int(segment["offset"]), size))
        return None

    def _dynamic(self) -> dict[str, Any]:
        """The libraries that it needs, and its own name as one."""
        found: dict[str, Any] = {"needed": [], "soname": None}
        for segment in self.segments[self.segments["type"] == _DYNAMIC_SEGMENT][:1]:
            entries = self._table(_ENTRY, int(segment["offset"]), _DYNAMIC)
            ends = np.flatnonzero(entries["tag"] == _END)
            entries = entries[: ends[0]] if len(ends) else entries
            tables = entries["value"][entries["tag"] == _STRTAB][:1]
            base = self._place(int(tables[0])) if len(tables) else None
            if base is None:
                break
            for tag, value in entries.tolist():
                if tag == _NEEDED:
                    found["needed"].append(text(self._bytes(base + value, parts.NAME_BYTES)))
                elif tag == _SONAME:
                    found["soname"] = text(self._bytes(base + value, parts.NAME_BYTES))
        return found

    def _place(self, address: int) -> int | None:
        """Where in the file an address of its memory is."""
        for segment in self.segments[self.segments["type"] == _LOAD]:
            into = address - int(segment["vaddr"])
            if 0 <= into < int(segment["filesz"]):
                return int(segment["offset"]) + into
        return None

    def _build_id(self) -> str | None:
        """Of the notes the one that tells one build from another."""
        notes = [(s["offset"], s["filesz"]) for s in self.segments if s["type"] == _NOTE]
        notes += [(s["offset"], s["size"]) for s in self.sections if s["type"] == _NOTE_SECTION]
        for offset, size in notes[:_SEGMENTS]:
            raw = self._bytes(int(offset), min(int(size), _NOTE_BYTES))
            at = 0
            while at + 12 <= len(raw):
                head = np.frombuffer(raw, self._order + "u4", 3, at).tolist()
                name = raw[at + 12 : at + 12 + head[0]]
                start = at + 12 + (head[0] + 3) // 4 * 4
                if head[2] == _BUILD_ID and name == b"GNU\0":
                    return raw[start : start + min(head[1], _BUILD_ID_BYTES)].hex() or None
                at = start + (head[1] + 3) // 4 * 4
        return None
