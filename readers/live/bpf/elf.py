"""A compiled BPF object: its programs, maps and constants, ready to be given to the kernel.

The recorder keeps to what a loader of this size can do: each program is one function of the
sections ``raw_tp/…`` and ``tp/…`` with everything inlined, maps stand in ``.maps``, constants in
``.rodata``. An object that needs more is refused, with what it needs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from kcap.errors import DamagedError, KcapError, LimitError, NotACaptureError, TruncatedError
from kcap.readers.live.bpf.btf import Btf

OBJECT_BYTES: Final = 16 << 20
"""Largest object."""

SECTIONS: Final = 4096
"""Most sections of an object."""

SYMBOLS: Final = 1 << 16
"""Most symbols of an object."""

MAP_BYTES: Final = (1 << 32) - 1
"""Largest size, or number of entries, in the definition of a map."""

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01"
_MACHINE_BPF: Final = 247
_PROGBITS, _SYMTAB, _REL = 1, 2, 9
_EXECUTABLE: Final = 4
_FUNCTION: Final = 2
_LOAD_64: Final = 1
"""The relocation of an instruction that loads an address of 64 bits."""
_INSTRUCTION: Final = 8
_MAP_NUMBERS: Final = {"type", "max_entries", "map_flags", "key_size", "value_size"}
_MAP_TYPES: Final = {"key": "key_size", "value": "value_size"}


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A map as the object declares it, in the kernel's terms."""

    name: str
    type: int
    max_entries: int = 0
    key_size: int = 0
    value_size: int = 0
    map_flags: int = 0


class Relocation(NamedTuple):
    """An instruction that needs the address of a map, or of a constant."""

    at: int
    """Byte of the instruction within its program."""
    section: int
    """Section of what it refers to: that of the maps, or one of constants."""
    map: str
    """Name of the map; empty for a constant."""
    offset: int
    """Byte within the constants."""


class Variable(NamedTuple):
    """A constant that the loader may fill."""

    section: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Program:
    """One BPF program."""

    name: str
    section: str
    """Where it attaches, like ``raw_tp/sched_process_exec``."""
    code: bytes
    relocations: tuple[Relocation, ...]


class _Section(NamedTuple):
    name: str
    type: int
    flags: int
    link: int
    info: int
    body: bytes


class _Symbol(NamedTuple):
    name: str
    kind: int
    section: int
    value: int
    size: int


class ElfObject:
    """A compiled BPF object.

    Args:
        data: Content of the file that the compiler made.
        file: Its name, for errors.

    Raises:
        NotACaptureError: It is no BPF object for little-endian machines.
        TruncatedError: It ends early.
        DamagedError: Its parts do not fit together.
        LimitError: It is too large, or has too many parts.
        KcapError: It needs what this loader does not do.
    """

    def __init__(self, data: bytes, *, file: str = "BPF object") -> None:
        self._file = file
        if len(data) > OBJECT_BYTES:
            raise LimitError("the BPF object is too large", file=file, expected="16 MiB at most")
        self._data = data
        self._sections = self._read_sections()
        self._numbers = {section.name: n for n, section in enumerate(self._sections)}
        self._symbols = self._read_symbols()
        self.btf = Btf(self._body(".BTF"), file=f"{file} (.BTF)")
        """The object's own types."""
        self.license = self._text(self._body("license"), 0)
        """What it is licensed under; the kernel wants to know."""
        self.constants = {
            n: section.body
            for n, section in enumerate(self._sections)
            if section.name.startswith(".rodata") and section.type == _PROGBITS
        }
        """Content of each section of constants, by its number."""
        self.maps = self._read_maps()
        """Maps by name."""
        self.variables = self._read_variables()
        """Constants that have a name."""
        self.programs = self._read_programs()
        """Programs by the name of their function."""

    def _read_sections(self) -> list[_Section]:
        data = self._data
        if len(data) < _HEADER.size:
            raise TruncatedError("no ELF header", file=self._file, offset=len(data))
        ident, _, machine, _, _, _, start, _, _, _, _, each, count, names = _HEADER.unpack_from(
            data
        )
        if not ident.startswith(_IDENT) or machine != _MACHINE_BPF:
            raise NotACaptureError(
                "no BPF object", file=self._file, expected="an object of clang -target bpfel"
            )
        if each != _SECTION.size or count > SECTIONS or names >= count:
            raise self._bad("its table of sections", 58)
        if start + each * count > len(data):
            raise TruncatedError("sections are cut off", file=self._file, offset=len(data))
        heads = [_SECTION.unpack_from(data, start + each * n) for n in range(count)]
        bodies = [self._content(head) for head in heads]
        return [
            _Section(self._text(bodies[names], head[0]), head[1], head[2], head[6], head[7], body)
            for head, body in zip(heads, bodies, strict=True)
        ]

    def _content(self, head: tuple[int, ...]) -> bytes:
        kind, at, size = head[1], head[4], head[5]
        if kind in (0, 8):  # unused, and what has no content
            return b""
        if at + size > len(self._data):
            raise TruncatedError("a section is cut off", file=self._file, offset=len(self._data))
        return self._data[at : at + size]

    def _read_symbols(self) -> list[_Symbol]:
        table = next((s for s in self._sections if s.type == _SYMTAB), None)
        if table is None or table.link >= len(self._sections):
            raise self._bad("no symbols")
        if len(table.body) % _SYMBOL.size or len(table.body) > SYMBOLS * _SYMBOL.size:
            raise self._bad("its table of symbols")
        names = self._sections[table.link].body
        return [
            _Symbol(self._text(names, name), info & 15, section, value, size)
            for name, info, _, section, value, size in _SYMBOL.iter_unpack(table.body)
        ]

    def _read_maps(self) -> dict[str, MapDefinition]:
        number = self.btf.section(".maps")
        if number is None:
            return {}
        found = {}
        for name, variable, _, _ in self.btf.members(number):
            kind = self.btf.strip(self.btf.type(variable).size)
            numbers: dict[str, int] = {}
            for field, pointer, _, _ in self.btf.members(kind):
                # libbpf's notation: a number is the length of an array that is pointed to.
                target = self.btf.type(pointer).size
                if field in _MAP_NUMBERS:
                    numbers[field] = self.btf.items_of(target)[1]
                elif field in _MAP_TYPES:
                    numbers[_MAP_TYPES[field]] = self.btf.size_of(target)
                else:
                    raise self._unable(f"map {name} has {field}")
            if "type" not in numbers:
                raise self._bad(f"map {name} has no type")
            found[name] = MapDefinition(name, **numbers)
        return found

    def _read_variables(self) -> dict[str, Variable]:
        found = {}
        for symbol in self._symbols:
            if symbol.name and symbol.section in self.constants:
                if symbol.value + symbol.size > len(self.constants[symbol.section]):
                    raise self._bad(f"{symbol.name} is beyond its section")
                found[symbol.name] = Variable(symbol.section, symbol.value, symbol.size)
        return found

    def _read_programs(self) -> dict[str, Program]:
        relocations: dict[int, list[tuple[int, _Symbol]]] = {}
        for section in self._sections:
            if section.type == _REL and section.info < len(self._sections):
                relocations[section.info] = self._read_relocations(section)
        found = {}
        for number, section in enumerate(self._sections):
            executable = section.type == _PROGBITS and section.flags & _EXECUTABLE
            if not executable or not section.body:
                continue
            functions = [s for s in self._symbols if s.kind == _FUNCTION and s.section == number]
            if section.name == ".text" or not functions:
                raise self._unable(f"functions of their own in {section.name}")
            for function in functions:
                found[function.name] = self._program(function, section, relocations.get(number, []))
        return found

    def _read_relocations(self, section: _Section) -> list[tuple[int, _Symbol]]:
        if len(section.body) % _RELOCATION.size:
            raise self._bad(f"section {section.name}")
        executable = self._sections[section.info].flags & _EXECUTABLE
        found = []
        for at, info in _RELOCATION.iter_unpack(section.body):
            if info >> 32 >= len(self._symbols):
                raise self._bad(f"section {section.name} refers to no symbol")
            symbol = self._symbols[info >> 32]
            if executable and info & 0xFFFFFFFF != _LOAD_64:
                raise self._unable(f"a call of {symbol.name or 'a function of its own'}")
            found.append((at, symbol))
        return found

    def _program(
        self, function: _Symbol, section: _Section, relocations: list[tuple[int, _Symbol]]
    ) -> Program:
        begin, end = function.value, function.value + function.size
        if end > len(section.body) or begin % _INSTRUCTION or function.size % _INSTRUCTION:
            raise self._bad(f"program {function.name} is beyond its section")
        code = section.body[begin:end]
        inside = [
            self._relocation(at - begin, symbol, code)
            for at, symbol in relocations
            if begin <= at < end
        ]
        return Program(function.name, section.name, code, tuple(inside))

    def _relocation(self, at: int, symbol: _Symbol, code: bytes) -> Relocation:
        if at % _INSTRUCTION or at + 2 * _INSTRUCTION > len(code):
            raise self._bad(f"a use of {symbol.name} is no instruction")
        if symbol.section == self._numbers.get(".maps"):
            if symbol.name not in self.maps:
                raise self._bad(f"{symbol.name} is no map")
            return Relocation(at, symbol.section, symbol.name, 0)
        if symbol.section not in self.constants:
            raise self._unable(f"the variable {symbol.name or '(static)'}")
        (addend,) = struct.unpack_from("<i", code, at + 4)
        offset = symbol.value + addend
        if not 0 <= offset < len(self.constants[symbol.section]):
            raise self._bad(f"{symbol.name} is beyond its section")
        return Relocation(at, symbol.section, "", offset)

    def _body(self, name: str) -> bytes:
        if name not in self._numbers:
            raise self._bad(f"no section {name}")
        return self._sections[self._numbers[name]].body

    def _text(self, strings: bytes, at: int) -> str:
        end = strings.find(b"\0", at)
        if not 0 <= at <= end:
            raise self._bad("a name is cut off")
        try:
            return strings[at:end].decode("ascii")
        except UnicodeDecodeError:
            raise self._bad("a name is no text") from None

    def _bad(self, what: str, offset: int | None = None) -> DamagedError:
        return DamagedError(f"damaged BPF object: {what}", file=self._file, offset=offset)

    def _unable(self, what: str) -> KcapError:
        return KcapError(
            f"the BPF object needs what kcap's loader does not do: {what}",
            file=self._file,
            expected="inlined functions, maps of .maps, constants of .rodata",
        )
