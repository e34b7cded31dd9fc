"""Go's encoding/gob: values of any type as what a JSON parser gives for the same value.

A stream is messages, each a length and so many bytes. It describes its own types: a message holds
either the definition of a type, under a negative id, or a value. Fields that are zero are left out
and filled in here from the type's definition, as Go's JSON prints them. No Go code and no list of
types is needed; what the JSON of some struct calls its fields is told by a `Spelling` each.
The keys of a map keep the order that they have here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kcap import limits
from kcap.readers.gob_values import (
    BASIC,
    INT,
    INTERFACE,
    SHORT,
    STRING,
    ZERO,
    Decode,
    GobError,
    base64_text,
    integer,
    shortest,
    text,
    uint,
)

VALUE_BYTES: Final = limits.LINE_BYTES
"""Longest value: bytes of its messages, and roughly the length of its JSON."""

JOINTS: Final = 64
"""Messages that may continue one value; it is read anew with each."""

TYPES: Final = 1024
"""Types of one stream."""

FIELDS: Final = 1 << 14
"""Fields of all its types."""

_CHANGES: Final = 1024
"""Times that a stream may define types anew; all that was made of them is made again."""

_DEEP: Final = 16
_WIRE, _ARRAY, _COMMON, _SLICE, _STRUCT, _FIELD, _FIELDS, _MAP, _OPAQUE = range(16, 25)
_FIRST_USER: Final = 64
_LAST: Final = (1 << 31) - 1
_KEY_BYTES: Final = 4
_ABSENT: Final = object()
Fill = Callable[[dict[str, Any], bytes, int], int]
"""Reads a struct's fields at a place into its object; gives the place after it."""


class ContinuesError(Exception):
    """The value goes on in the next message, after the type definition that ends this one."""


class Spelling(NamedTuple):
    """How the JSON of a struct prints one field."""

    key: str | None
    """Its key; None where the field isn't printed."""
    omitted: bool = False
    """Left out where it is empty."""
    text: bool = False
    """A number in quotes."""
    inlined: bool = False
    """A struct whose fields stand among those of the struct around it."""
    empty: Any = None
    """What stands for a value that gob left out, where it isn't the zero of the type."""


@dataclass(frozen=True, slots=True)
class Type:
    """A type that the stream defined."""

    kind: str
    """``array``, ``slice``, ``struct``, ``map`` or ``opaque``; the latter encodes itself."""
    name: str = ""
    elem: int = 0
    key: int = 0
    fields: tuple[tuple[str, int], ...] = ()
    """A struct's fields: name and type."""
    text: bool = False
    """An opaque type's bytes are text."""


_BUILT_IN: Final[Mapping[int, Type]] = {
    _WIRE: Type(
        "struct",
        fields=(
            ("array", _ARRAY),
            ("slice", _SLICE),
            ("struct", _STRUCT),
            ("map", _MAP),
            ("gob", _OPAQUE),
            ("binary", _OPAQUE),
            ("text", _OPAQUE),
        ),
    ),
    _ARRAY: Type("struct", fields=(("common", _COMMON), ("elem", INT), ("len", INT))),
    _COMMON: Type("struct", fields=(("name", STRING), ("id", INT))),
    _SLICE: Type("struct", fields=(("common", _COMMON), ("elem", INT))),
    _STRUCT: Type("struct", fields=(("common", _COMMON), ("fields", _FIELDS))),
    _FIELD: Type("struct", fields=(("name", STRING), ("id", INT))),
    _FIELDS: Type("slice", elem=_FIELD),
    _MAP: Type("struct", fields=(("common", _COMMON), ("key", INT), ("elem", INT))),
    _OPAQUE: Type("struct", fields=(("common", _COMMON),)),
}
"""The types that definitions of types are values of."""


class Decoder:
    """Reads the messages of one stream in order, and learns its types on the way.

    A later definition of a type replaces the earlier one: streams may follow each other.

    Args:
        spellings: By a struct's name the spelling of its fields by their names; a field that
            has none is printed under its own name.

    Example:
        >>> decoder = Decoder()
        >>> decoder.message(definition)
        >>> decoder.message(value)
        {'Name': 'ls', 'Count': 0}
    """

    def __init__(self, spellings: Mapping[str, Mapping[str, Spelling]] | None = None) -> None:
        self.types: dict[int, Type] = {}
        """The types by their ids."""
        self.deep = False
        """The last value may be deeper than the definition of its type says."""
        self.size = 0
        """Of the last value: about the length of what its JSON has beside its texts."""
        self._spellings = spellings or {}
        self._fields = 0
        self._changes = 0
        self._decoders: dict[int, Decode] = {}
        self._fills: dict[int, tuple[dict[str, Any], Fill]] = {}
        self._concretes: dict[int, _Concrete] = {}
        self._joints: Collection[int] = ()
        self._wire = self._decoder(_WIRE)

    def message(self, data: bytes, joints: Collection[int] = ()) -> Any:  # noqa: ANN401
        """Read a message.

        Args:
            data: Its bytes without their length; of a value that went on in further messages
                the bytes of all.
            joints: Where in ``data`` a further message starts.

        Returns:
            The value; None for the definition of a type.

        Raises:
            ContinuesError: The next message belongs to it.
            GobError: It is no message.
        """
        self._joints = joints
        self.size, self.deep = 0, False
        try:
            type_id, at = integer(data, 0)
            if type_id < 0:
                value, at = None, self._define(-type_id, data, at)
            else:
                concrete = self._concretes.get(type_id) or self._concrete(type_id)
                self.deep = concrete.deep
                value, at = concrete.decode(data, at)
        except IndexError:
            raise GobError("it ends inside a value") from None
        except RecursionError:
            raise GobError("nested too deep") from None
        if at != len(data):
            raise GobError(f"{len(data) - at} bytes too long" if at < len(data) else "too short")
        return value

    def _define(self, type_id: int, data: bytes, at: int) -> int:
        """Take in the definition of a type."""
        if not _FIRST_USER <= type_id <= _LAST:
            raise GobError(f"a type {type_id} can't be defined")
        found, at = self._wire(data, at)
        if at > len(data):
            raise IndexError
        made = _type(found)
        old = self.types.get(type_id)
        if made == old:
            return at
        fields = self._fields + len(made.fields) - (len(old.fields) if old else 0)
        if fields > FIELDS or (old is None and len(self.types) >= TYPES):
            raise GobError("too many types")
        if old is not None and self._concretes:  # any of them may have been made of it
            self._changes += 1
            if self._changes > _CHANGES:
                raise GobError("the types change too often")
            self._decoders, self._fills, self._concretes = {_WIRE: self._wire}, {}, {}
        self.types[type_id] = made
        self._fields = fields
        return at

    def _known(self, type_id: int) -> Type:
        found = self.types.get(type_id) or _BUILT_IN.get(type_id)
        if found is None:
            raise GobError(f"a type {type_id} that was never defined")
        return found

    def _decoder(self, type_id: int) -> Decode:
        """What reads values of a type."""
        made = self._decoders.get(type_id)
        if made is None:
            made = BASIC.get(type_id)
            if type_id == INTERFACE:
                made = self._interface
            if made is None:
                made = self._composite(self._known(type_id), type_id)
            self._decoders[type_id] = made
        return made

    def _later(self, type_id: int) -> Decode:
        """`_decoder`, made when it is needed: types may be recursive, or defined later."""

        def decode(data: bytes, at: int) -> tuple[Any, int]:
            return (self._decoders.get(type_id) or self._decoder(type_id))(data, at)

        return self._decoders.get(type_id) or BASIC.get(type_id) or decode

    def _composite(self, found: Type, type_id: int) -> Decode:
        if found.kind == "struct":
            return self._struct(found, type_id)
        if found.kind == "map":
            return self._map(self._later(found.key), self._later(found.elem))
        if found.kind == "opaque":
            return text if found.text else base64_text
        return self._list(self._later(found.elem))

    def _struct(self, found: Type, type_id: int) -> Decode:
        template, fill = self._fill(found, type_id)
        width = sum(len(key) + _KEY_BYTES for key in template) + 1
        optional = any(value is _ABSENT for value in template.values())

        def decode(data: bytes, at: int) -> tuple[Any, int]:
            self.size += width
            if self.size > VALUE_BYTES:
                raise GobError("a value is too large")
            made = template.copy()
            at = fill(made, data, at)
            if optional:
                made = {key: value for key, value in made.items() if value is not _ABSENT}
            return made, at

        return decode

    def _fill(self, found: Type, type_id: int) -> tuple[dict[str, Any], Fill]:
        """An object of a struct's zeros, and what reads its fields into one."""
        known = self._fills.get(type_id)
        if known is not None:
            return known
        names = self._spellings.get(found.name, {})
        template: dict[str, Any] = {}
        fields: list[tuple[str | None, Decode, Fill | None]] = []
        for name, of in found.fields:
            spelling = names.get(name, _spelled(name))
            inner = self.types.get(of)
            if spelling.inlined and inner is not None and inner.kind == "struct" and of != type_id:
                zeros, fill_inner = self._fill(inner, of)
                template |= zeros
                fields.append((None, text, fill_inner))
                continue
            decode = self._later(of)
            if spelling.text:
                decode = _quoted(decode)
            if spelling.key is not None:
                template[spelling.key] = _empty(spelling, of)
            fields.append((spelling.key, decode, None))
        made = template, _filler(fields)
        self._fills[type_id] = made
        return made

    def _list(self, item: Decode) -> Decode:
        def decode(data: bytes, at: int) -> tuple[Any, int]:
            count, at = uint(data, at)
            self.size += count + 1
            if self.size > VALUE_BYTES:
                raise GobError("a list is too long")
            made = []
            for _ in range(count):
                value, at = item(data, at)
                made.append(value)
            return made, at

        return decode

    def _map(self, key: Decode, item: Decode) -> Decode:
        def decode(data: bytes, at: int) -> tuple[Any, int]:
            count, at = uint(data, at)
            self.size += count + 1
            if self.size > VALUE_BYTES:
                raise GobError("a map is too large")
            made = {}
            for _ in range(count):
                name, at = key(data, at)
                value, at = item(data, at)
                if type(name) is not str:
                    if type(name) is not int:
                        raise GobError("a map's key is neither text nor a number")
                    name = str(name)
                made[name] = value
            return made, at

        return decode

    def _interface(self, data: bytes, at: int) -> tuple[Any, int]:
        """A value that brings its type along: the type's name and id, a length, the value."""
        size = data[at]
        at += 1
        if size >= SHORT:
            size, at = uint(data, at - 1)
        if not size:
            return None, at
        name = data[at : at + size]
        type_id, at = integer(data, at + size)
        while type_id < 0:
            at = self._define(-type_id, data, at)
            if at not in self._joints:
                if at == len(data):
                    raise ContinuesError
                _, at = uint(data, at)
            type_id, at = integer(data, at)
        concrete = self._concretes.get(type_id) or self._concrete(type_id)
        if concrete.nests:
            self.deep = True
        # The length is that of the value's first message only; nothing needs it.
        at += 1
        if data[at - 1] >= SHORT:
            _, at = uint(data, at - 1)
        value, at = concrete.decode(data, at)
        if name == b"float32" and type(value) is float:
            value = shortest(value)
        return value, at

    def _concrete(self, type_id: int) -> _Concrete:
        decode = self._decoder(type_id)
        found = None if type_id in BASIC or type_id == INTERFACE else self._known(type_id)
        if found is None or found.kind != "struct":
            decode = _single(decode)
        height, holds = self._height(type_id)
        made = _Concrete(decode, height > _DEEP, holds or height > _DEEP)
        self._concretes[type_id] = made
        return made

    def _height(self, type_id: int) -> tuple[int, bool]:
        """How deep values of a type nest, up to a limit; whether they hold values of any type."""
        level, seen, holds = [type_id], 0, False
        while level and seen <= _DEEP:
            below: dict[int, None] = {}
            for of in level:
                holds = holds or of == INTERFACE
                if of in self.types:
                    found = self.types[of]
                    ids = [inner for _, inner in found.fields] or [found.key, found.elem]
                    below |= dict.fromkeys(ids)
            level, seen = list(below), seen + 1
        return seen, holds


@dataclass(frozen=True, slots=True)
class _Concrete:
    """A type whose values may stand alone."""

    decode: Decode
    deep: bool
    """The type itself may be deeper than a few levels."""
    nests: bool
    """Or it holds values of any type."""


def _quoted(decode: Decode) -> Decode:
    def quoted(data: bytes, at: int) -> tuple[Any, int]:
        value, at = decode(data, at)
        return (str(value) if type(value) is int else value), at

    return quoted


def _single(decode: Decode) -> Decode:
    """A value that is no struct has a zero in front where it stands alone."""

    def single(data: bytes, at: int) -> tuple[Any, int]:
        if data[at]:
            raise GobError("a value that isn't of its type")
        return decode(data, at + 1)

    return single


def _filler(fields: list[tuple[str | None, Decode, Fill | None]]) -> Fill:
    last = len(fields) - 1

    def fill(made: dict[str, Any], data: bytes, at: int) -> int:
        index = -1
        while True:
            step = data[at]
            at += 1
            if not step:
                return at
            index += step
            if index > last:
                raise GobError("a field that its type hasn't")
            key, decode, inline = fields[index]
            if key is not None:
                made[key], at = decode(data, at)
            elif inline is not None:
                at = inline(made, data, at)
            else:
                _, at = decode(data, at)

    return fill


def _spelled(name: str) -> Spelling:
    return Spelling(name)


def _empty(spelling: Spelling, type_id: int) -> Any:  # noqa: ANN401
    """What stands for a field that gob left out."""
    if spelling.omitted:
        return _ABSENT
    zero = ZERO.get(type_id) if spelling.empty is None else spelling.empty
    return str(zero) if spelling.text else zero


def _type(found: Mapping[str, Any]) -> Type:
    """The type that a definition describes."""
    kinds = [kind for kind, value in found.items() if value is not None]
    if len(kinds) != 1:
        raise GobError("no definition of a type")
    kind, value = kinds[0], found[kinds[0]]
    common = value["common"] or {"name": ""}
    name = common["name"]
    fields = value.get("fields") or ()
    if len(fields) > limits.EVENT_FIELDS:
        raise GobError("a struct of too many fields")
    if any(len(item["name"]) > limits.NAME_BYTES for item in (*fields, common)):
        raise GobError("a name is too long")
    pairs = tuple((item["name"], item["id"]) for item in fields)
    if len(dict(pairs)) < len(pairs):
        raise GobError("a struct with two fields of one name")
    if kind in {"gob", "binary", "text"}:
        return Type("opaque", name, text=kind == "text")
    return Type(kind, name, value.get("elem", 0), value.get("key", 0), pairs)
