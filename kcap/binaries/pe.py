"""What a PE file (a program, a library or a driver of Windows) says of itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from kcap.binaries import parts, signature
from kcap.binaries.parts import Hashing, guarded, text

if TYPE_CHECKING:
    from pefile import PE

_LFANEW: Final = 0x3C
_DLL: Final = 0x2000
_EXECUTABLE: Final = 0x0002
_NATIVE: Final = 1
_EXECUTE: Final = 0x2000_0000
_WRITE: Final = 0x8000_0000
_EXPORT, _IMPORT, _RESOURCE, _SECURITY, _CLR = 0, 1, 2, 4, 14
_NS: Final = 10**9
_VERSIONS: Final = 256
"""Entries of a version resource that are told of."""
_VERSION_BYTES: Final = 4096
"""Longest value of one."""
_OF_DRIVERS: Final = frozenset({"ntoskrnl.exe", "hal.dll", "ndis.sys", "bootvid.dll", "kdcom.dll"})
_USER_SUBSYSTEMS: Final = frozenset({2, 3})
_ALIGNMENT: Final = 0x200


def sniff(content: bytes) -> bool:
    """Whether a file begins like a PE.

    Args:
        content: The file.

    Returns:
        True where ``MZ`` leads to ``PE``.
    """
    if content[:2] != b"MZ" or len(content) < _LFANEW + 4:
        return False
    (at,) = struct.unpack_from("<I", content, _LFANEW)
    return content[at : at + 4] == b"PE\0\0"


@guarded
def facts(content: bytes) -> dict[str, Any]:
    """What a PE file says of itself.

    Args:
        content: The file.

    Returns:
        By the names that Fibratus's fields have: ``nsections``, ``nsymbols`` (of the file's own
        table, else the names imported), ``address.base``, ``address.entrypoint``, ``link_time``
        (ns UTC), ``sections`` (name, size, entropy, md5), ``symbols`` (names imported),
        ``imports`` (libraries that they are from), ``exports``, ``resources`` (the version
        resource), ``imphash``, ``is_dll``, ``is_driver``, ``is_exec``, ``is_dotnet``,
        ``is_signed`` (a signature is there; nothing says that it is valid), ``cert.subject`` and
        so on, ``anomalies``. What it does not say is left out.

    Raises:
        MalformedError: It is no PE file.
        MissingExtraError: The extra ``binaries`` is not installed.
    """
    try:
        import pefile
    except ImportError as e:
        raise parts.missing("pefile") from e
    content = content[: parts.CONTENT_BYTES]
    pe = pefile.PE(data=content, fast_load=True, max_symbol_exports=parts.IMPORTS)
    try:
        return _facts(pe, content)
    finally:
        pe.close()


def _facts(pe: PE, content: bytes) -> dict[str, Any]:
    header, optional = pe.FILE_HEADER, pe.OPTIONAL_HEADER
    hashing = Hashing(content)
    listed = pe.sections[: parts.SECTIONS]
    sections = [hashing.section(text(s.Name), s.PointerToRawData, s.SizeOfRawData) for s in listed]
    libraries, symbols = _imports(pe)
    signed = _certificates(pe, content)
    found: dict[str, Any] = {
        "nsections": header.NumberOfSections,
        "nsymbols": header.NumberOfSymbols or len(symbols),
        "address.base": optional.ImageBase,
        "address.entrypoint": optional.AddressOfEntryPoint,
        "link_time": header.TimeDateStamp * _NS,
        "sections": sections,
        "symbols": symbols,
        "imports": libraries,
        "exports": _exports(pe),
        "resources": _version(pe),
        "imphash": _imphash(pe) if libraries else "",
        "is_dll": bool(header.Characteristics & _DLL),
        "is_driver": _is_driver(pe, libraries),
        "is_exec": bool(header.Characteristics & _EXECUTABLE and not header.Characteristics & _DLL),
        "is_dotnet": bool(_directory(pe, _CLR)),
        "is_signed": bool(signed),
        "anomalies": list(_anomalies(pe, len(content))),
    }
    if signed:
        found |= {f"cert.{name}": value for name, value in signature.signer(signed).items()}
    return {name: value for name, value in found.items() if value not in (None, "", [], {})}


def _directory(pe: PE, number: int) -> tuple[int, int] | None:
    """Where a data directory is, and its size; None for none."""
    directories = pe.OPTIONAL_HEADER.DATA_DIRECTORY
    if number >= len(directories):
        return None
    entry = directories[number]
    return (entry.VirtualAddress, entry.Size) if entry.VirtualAddress and entry.Size else None


def _imports(pe: PE) -> tuple[list[str], list[str]]:
    """Libraries and the names imported from them, in the file's order, each once."""
    if _directory(pe, _IMPORT) is None:
        return [], []
    pe.parse_data_directories(directories=[_IMPORT])
    libraries: dict[str, None] = {}
    symbols: dict[str, None] = {}
    for entry in getattr(pe, "DIRECTORY_ENTRY_IMPORT", ()):
        if len(libraries) >= parts.IMPORTS or len(symbols) >= parts.IMPORTS:
            break
        libraries[text(entry.dll or b"")] = None
        for one in entry.imports:
            name = text(one.name) if one.name else None
            if name and len(symbols) < parts.IMPORTS:
                symbols[name] = None
    libraries.pop("", None)
    return list(libraries), list(symbols)


def _imphash(pe: PE) -> str:
    found = pe.get_imphash()
    return found if isinstance(found, str) else ""


def _exports(pe: PE) -> list[str]:
    if _directory(pe, _EXPORT) is None:
        return []
    pe.parse_data_directories(directories=[_EXPORT])
    table = getattr(pe, "DIRECTORY_ENTRY_EXPORT", None)
    names = (text(one.name) for one in (table.symbols if table else ()) if one.name)
    return list(dict.fromkeys(names))[: parts.IMPORTS]


def _version(pe: PE) -> dict[str, str]:
    """The version resource: names and values, the first of each name."""
    if _directory(pe, _RESOURCE) is None:
        return {}
    pe.parse_data_directories(directories=[_RESOURCE])
    found: dict[str, str] = {}
    tables = (t for info in getattr(pe, "FileInfo", ()) for one in info for t in _tables(one))
    for table in tables:
        for name, value in table.entries.items():
            if len(found) >= _VERSIONS:
                return found
            key = text(name)
            if key:
                found.setdefault(key, text(value, _VERSION_BYTES).strip())
    return found


def _tables(info: Any) -> list[Any]:  # noqa: ANN401 - pefile has no types
    return list(getattr(info, "StringTable", ()))


def _is_driver(pe: PE, libraries: list[str]) -> bool:
    """A native image that imports what only the kernel has."""
    if pe.OPTIONAL_HEADER.Subsystem != _NATIVE:
        return False
    return not _OF_DRIVERS.isdisjoint(name.lower() for name in libraries)


def _certificates(pe: PE, content: bytes) -> bytes:
    """What stands in the security directory: it has a place in the file, not in memory."""
    place = _directory(pe, _SECURITY)
    if place is None:
        return b""
    at, size = place
    return content[at : at + min(size, signature.BYTES)]


def _anomalies(pe: PE, size: int) -> Iterator[str]:
    """What no linker makes."""
    header, optional = pe.FILE_HEADER, pe.OPTIONAL_HEADER
    sections = pe.sections[: parts.SECTIONS]
    if header.NumberOfSections > parts.SECTIONS:
        yield "more than 96 sections"
    if len(pe.sections) < header.NumberOfSections:
        yield "fewer sections than announced"
    if not header.NumberOfSections:
        yield "no sections"
    if not header.TimeDateStamp:
        yield "no link time"
    if optional.ImageBase % 0x10000:
        yield "image base not a multiple of 64 KiB"
    if optional.FileAlignment < _ALIGNMENT and optional.FileAlignment != optional.SectionAlignment:
        yield "file alignment below 512 bytes"
    if optional.AddressOfEntryPoint and not _inside(sections, optional.AddressOfEntryPoint):
        yield "entry point outside of all sections"
    names = [text(s.Name) for s in sections]
    if len(set(names)) < len(names):
        yield "sections of the same name"
    if any(not name.isprintable() or not name for name in names):
        yield "section without a printable name"
    if any(s.Characteristics & _EXECUTE and s.Characteristics & _WRITE for s in sections):
        yield "section both writable and executable"
    if any(s.PointerToRawData + s.SizeOfRawData > size for s in sections if s.SizeOfRawData):
        yield "section beyond the end of the file"
    spans = sorted((s.PointerToRawData, s.SizeOfRawData) for s in sections if s.SizeOfRawData)
    if any(a + length > b for (a, length), (b, _) in pairwise(spans)):
        yield "sections that overlap in the file"


def _inside(sections: list[Any], address: int) -> bool:
    spans = ((s.VirtualAddress, max(s.Misc_VirtualSize, s.SizeOfRawData)) for s in sections)
    return any(start <= address < start + length for start, length in spans)
