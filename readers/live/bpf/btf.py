"""BTF, the kernel's description of its own types: where a field stands, how large it is.

The kernel publishes it as one file; a compiled BPF object carries one of its own types. Layout:
``Documentation/bpf/btf.rst`` of the kernel. Only names that are asked for are resolved: the file
of a kernel has some 130,000 types, of which a recorder needs a hundred.
"""

from __future__ import annotations

import math
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from kcap import trust
from kcap.errors import DamagedError, KcapError, LimitError, NotACaptureError, TruncatedError

KERNEL: Final = "/sys/kernel/btf/vmlinux"
"""Where the kernel publishes its types."""

PATH_VARIABLE: Final = "KCAP_BTF"
"""The environment variable that names another file of kernel types."""

FILE_BYTES: Final = 64 << 20
"""Largest file of types; that of a distribution's kernel has 4 to 8 MB."""

TYPES: Final = 1 << 20
"""Most types of one file; the kernel's own limit."""

NAME_BYTES: Final = 4096
"""Longest name, template instances of other languages included."""

_MAGIC: Final = 0xEB9F
_SWAPPED: Final = 0x9FEB
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_HEAD: Final = struct.Struct("<II")
_NESTING: Final = 64
_FIELDS: Final = 1 << 16
_LARGEST: Final = (1 << 32) - 1

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = range(1, 9)
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT = range(9, 17)
_DECL_TAG, _TYPE_TAG, _ENUM64 = range(17, 20)

_ALIASES: Final = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_NAMES: Final = {
    _INT: "int",
    _PTR: "pointer",
    _STRUCT: "struct",
    _UNION: "union",
    _ENUM: "enum",
    _ENUM64: "enum",
    _FLOAT: "float",
}
_AFTER: Final = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
"""Bytes behind a type's head, where their number is fixed."""
_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
"""Bytes for each of the type's members."""


class Type(NamedTuple):
    """The head of one type."""

    at: int
    """Where its head stands in the data."""
    name: int
    """Where its name stands among the strings; 0 for none."""
    kind: int
    entries: int
    """Members, parameters or values that follow the head."""
    flag: bool
    size: int
    """Bytes, or the number of the type that it refers to."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a structure, as C lays it out."""

    name: str
    offset: int
    """Bytes from the start of the structure."""
    size: int
    """Bytes, all items of an array together."""
    kind: str
    """``int``, ``pointer``, ``enum``, ``float``, ``struct`` or ``union``: that of an item."""
    item_size: int
    """Bytes of one item; as `size` where it is no array."""
    counts: tuple[int, ...]
    """Items in each dimension of an array, outermost first; empty where it is none."""
    signed: bool
    bits: int
    """Width of a bit field; 0 where it is none."""
    type_name: str
    """Name of an item's type; empty where it has none."""


@dataclass(frozen=True, slots=True)
class Struct:
    """A structure or union; the members of unnamed ones within it are its own, as in C."""

    name: str
    size: int
    members: tuple[Member, ...]


class Btf:
    """The types of a kernel or of an object.

    Args:
        data: The content of the file or section.
        file: Its name, for errors.

    Raises:
        NotACaptureError: No BTF, or that of a big-endian machine.
        TruncatedError: It ends early.
        DamagedError: Its parts do not fit together.
        LimitError: It is larger than any kernel's.
    """

    def __init__(self, data: bytes, *, file: str = "BTF") -> None:
        self._file = file
        if len(data) > FILE_BYTES:
            raise LimitError("more types than a kernel has", file=file, expected="64 MiB at most")
        if len(data) < _HEADER.size:
            raise TruncatedError("no BTF header", file=file, offset=len(data))
        magic, version, _, header, type_at, type_len, string_at, string_len = _HEADER.unpack_from(
            data
        )
        if magic != _MAGIC:
            order = "big-endian BTF" if magic == _SWAPPED else "no BTF"
            raise NotACaptureError(order, file=file, offset=0, expected="the magic number 0xeb9f")
        if version != 1:
            raise NotACaptureError(f"BTF of version {version}", file=file, expected="version 1")
        self._begin = header + type_at
        self._end = self._begin + type_len
        strings = header + string_at
        if header < _HEADER.size or max(self._end, strings + string_len) > len(data):
            raise TruncatedError("a section of BTF is cut off", file=file, offset=len(data))
        self._data = data
        self._strings = data[strings : strings + string_len]
        if not self._strings.startswith(b"\0") or not self._strings.endswith(b"\0"):
            raise self._bad("its names do not begin and end with a zero", strings)
        self._positions = self._walk()
        self._names: dict[int, list[int]] | None = None
        self._found: dict[str, list[int]] = {}

    @classmethod
    def of_kernel(cls, path: str | None = None) -> Btf:
        """Read the types of the running kernel.

        Args:
            path: Another file; else that of the variable KCAP_BTF, else the kernel's own.

        Returns:
            The types.

        Raises:
            KcapError: The kernel publishes none, or they cannot be read; or another user than
                root could change the file, and this is root.
        """
        path = path or os.environ.get(PATH_VARIABLE) or KERNEL
        try:
            with Path(path).open("rb") as file:
                if path != KERNEL:
                    trust.check(path)  # it says where a program in the kernel reads
                data = file.read(FILE_BYTES + 1)
        except OSError as error:
            raise KcapError(
                f"the kernel's types cannot be read: {error.strerror}",
                file=path,
                expected="a kernel built with CONFIG_DEBUG_INFO_BTF",
                hint=f"record with --source proc, or name a file of types in {PATH_VARIABLE}",
            ) from error
        return cls(data, file=path)

    def has_type(self, name: str) -> bool:
        """Whether a type of this name is known, whatever its kind."""
        return bool(self._named(name))

    def offset(self, path: str) -> int | None:
        """Where a field stands in a structure.

        Args:
            path: Structure and fields, like ``task_struct.real_parent`` or
                ``mnt_namespace.ns.inum``; unnamed structures within are looked through.

        Returns:
            Bytes from the start; None where the kernel has no such field, or it is a bit field.
        """
        first, *fields = path.split(".")
        found = self._find(first, (_STRUCT, _UNION))
        total_bits = 0
        for field in fields:
            if found is None:
                return None
            member = next((one for one in self._fields(found) if one[0] == field), None)
            if member is None or member[3]:
                return None
            found = self.strip(member[1])
            total_bits += member[2]
        return None if found is None or total_bits % 8 else total_bits // 8

    def struct(self, name: str) -> Struct:
        """A structure's members with their places.

        Args:
            name: Of a structure, a union or a typedef of one.

        Returns:
            The structure.

        Raises:
            KcapError: There is none of this name.
        """
        found = self._find(name, (_STRUCT, _UNION))
        if found is None:
            alias = self._find(name, (_TYPEDEF,))
            found = None if alias is None else self.strip(alias)
        if found is None or self.type(found).kind not in (_STRUCT, _UNION):
            raise KcapError(f"no structure {name}", file=self._file)
        members = tuple(self._described(field) for field in self._fields(found))
        return Struct(name, self.type(found).size, members)

    def size(self, name: str) -> int | None:
        """Bytes of a structure; None where there is none of this name."""
        found = self._find(name, (_STRUCT, _UNION))
        return None if found is None else self.type(found).size

    def enum(self, name: str) -> dict[str, int]:
        """The values of an enumeration by their names; empty where there is none."""
        found = self._find(name, (_ENUM, _ENUM64))
        if found is None:
            return {}
        head = self.type(found)
        wide = head.kind == _ENUM64
        layout = struct.Struct(("<IIi" if wide else "<Ii") if head.flag else "<III"[: 3 + wide])
        values: dict[str, int] = {}
        for at in range(head.at + 12, head.at + 12 + layout.size * head.entries, layout.size):
            text, low, *high = layout.unpack_from(self._data, at)
            values[self.name(text)] = low + (high[0] << 32 if high else 0)
        return values

    def type(self, number: int) -> Type:
        """The head of a type, by its number; 0 is void.

        Raises:
            DamagedError: There is no such type.
        """
        if not 0 <= number < len(self._positions):
            raise self._bad(f"no type {number}")
        if number == 0:
            return Type(0, 0, 0, 0, flag=False, size=0)
        at = self._positions[number]
        name, info, size = _TYPE.unpack_from(self._data, at)
        return Type(at, name, info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), size)

    def name(self, at: int) -> str:
        """The string that begins at a position of the strings.

        Raises:
            DamagedError: The position is beyond them, or the name is no text.
        """
        end = self._strings.find(b"\0", at, at + NAME_BYTES)
        if end < 0:
            raise self._bad(f"no name at {at} of its strings")
        try:
            return self._strings[at:end].decode("utf-8")
        except UnicodeDecodeError:
            raise self._bad(f"the name at {at} of its strings is no text") from None

    def strip(self, number: int) -> int:
        """The type behind typedefs and qualifiers.

        Raises:
            DamagedError: They lead round in a circle.
        """
        for _ in range(_NESTING):
            head = self.type(number)
            if head.kind not in _ALIASES:
                return number
            number = head.size
        raise self._bad(f"type {number} refers to itself")

    def members(self, number: int) -> list[tuple[str, int, int, int]]:
        """The members of a structure, variables of a section: name, type, first bit, bits.

        The fourth is 0 where the member is no bit field; for a variable it is its size.
        """
        head, found = self.type(number), []
        if head.kind not in (_STRUCT, _UNION, _DATASEC):
            return []
        for at in range(head.at + 12, head.at + 12 + 12 * head.entries, 12):
            first, second, third = _TYPE.unpack_from(self._data, at)
            if head.kind == _DATASEC:
                found.append((self.name(self.type(first).name), first, second * 8, third))
            elif head.flag:
                found.append((self.name(first), second, third & 0xFFFFFF, third >> 24))
            else:
                found.append((self.name(first), second, third, 0))
        return found

    def items_of(self, number: int) -> tuple[int, int]:
        """Type and number of an array's items."""
        item, _, count = _TYPE.unpack_from(self._data, self.type(number).at + 12)
        return item, count

    def section(self, name: str) -> int | None:
        """The number of a section of variables."""
        return self._find(name, (_DATASEC,))

    def size_of(self, number: int, depth: int = _NESTING) -> int:
        """Bytes of a type.

        Raises:
            DamagedError: It has no size, or refers to itself.
            LimitError: It is larger than 4 GiB.
        """
        if not depth:
            raise self._bad(f"type {number} refers to itself")
        number = self.strip(number)
        head = self.type(number)
        if head.kind == _PTR:
            return 8
        if head.kind == _ARRAY:
            item, count = self.items_of(number)
            size = count * self.size_of(item, depth - 1)
            if size > _LARGEST:
                raise LimitError(f"type {number} has {size} bytes", file=self._file)
            return size
        if head.kind in _NAMES:
            return head.size
        raise self._bad(f"type {number} has no size")

    def _walk(self) -> array[int]:
        positions = array("I", [0])
        append = positions.append
        unpack = _HEAD.unpack_from
        data, at, end = self._data, self._begin, self._end
        after, each = _AFTER, _EACH
        while at + 12 <= end:
            append(at)
            info = unpack(data, at)[1]
            kind = info >> 24 & 0x1F
            if kind in each:
                at += 12 + each[kind] * (info & 0xFFFF)
            elif 0 < kind <= _ENUM64:
                at += 12 + after.get(kind, 0)
            else:
                raise self._bad(f"a type of unknown kind {kind}", at)
        if at != end:
            raise self._bad("its last type is cut off", at)
        if len(positions) > TYPES:
            raise LimitError("more types than a kernel has", file=self._file)
        return positions

    def _named(self, name: str) -> list[int]:
        """The types of a name; that of a structure is asked for with each of its fields."""
        if name not in self._found:
            self._found[name] = self._look_up(name)
        return self._found[name]

    def _look_up(self, name: str) -> list[int]:
        if self._names is None:
            names: dict[int, list[int]] = {}
            unpack = struct.Struct("<I").unpack_from
            for number, at in enumerate(self._positions):
                (text,) = unpack(self._data, at)
                if number and text:
                    names.setdefault(text, []).append(number)
            self._names = names
        found: list[int] = []
        wanted = b"\0" + name.encode() + b"\0"
        at = self._strings.find(wanted) if name else -1
        while at >= 0:
            found += self._names.get(at + 1, ())
            at = self._strings.find(wanted, at + 1)
        return sorted(found)

    def _find(self, name: str, kinds: tuple[int, ...]) -> int | None:
        return next((n for n in self._named(name) if self.type(n).kind in kinds), None)

    def _fields(self, number: int) -> Iterator[tuple[str, int, int, int]]:
        """The members of a structure as `members` has them, those of unnamed ones within too."""
        todo = [(0, iter(self.members(number)))]
        for _ in range(_FIELDS):
            while todo:
                base, members = todo[-1]
                member = next(members, None)
                if member is not None:
                    break
                todo.pop()
            else:
                return
            text, kind, bits, width = member
            inner = self.strip(kind)
            if not text and self.type(inner).kind in (_STRUCT, _UNION):
                todo.append((base + bits, iter(self.members(inner))))
            else:
                yield text, kind, base + bits, width
        raise LimitError(f"type {number} has more than {_FIELDS} members", file=self._file)

    def _described(self, field: tuple[str, int, int, int]) -> Member:
        name, kind, bits, width = field
        item, counts = self.strip(kind), list[int]()
        while self.type(item).kind == _ARRAY and len(counts) < _NESTING:
            inner, count = self.items_of(item)
            counts.append(count)
            item = self.strip(inner)
        head = self.type(item)
        if head.kind not in _NAMES:
            raise self._bad(f"a member of type {item}, which has no size")
        item_size = self.size_of(item)
        return Member(
            name=name,
            offset=bits // 8,
            size=item_size * math.prod(counts),
            kind=_NAMES[head.kind],
            item_size=item_size,
            counts=tuple(counts),
            signed=self._signed(head),
            bits=width,
            type_name=self.name(head.name),
        )

    def _signed(self, head: Type) -> bool:
        if head.kind == _INT:
            (encoding,) = struct.unpack_from("<I", self._data, head.at + 12)
            return bool(encoding >> 24 & 1)
        return head.kind in (_ENUM, _ENUM64) and head.flag

    def _bad(self, what: str, offset: int | None = None) -> DamagedError:
        return DamagedError(f"damaged BTF: {what}", file=self._file, offset=offset)
