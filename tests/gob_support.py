"""A small writer of Go's gob encoding, and a stream of Tracee's events that it wrote."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

BOOL, INT, UINT, FLOAT, BYTES, STRING, COMPLEX, INTERFACE = range(1, 9)


class Held(NamedTuple):
    """A value in an interface: Go's name of its type, the type's id, the value."""

    name: str
    type: int
    value: Any
    define: bytes = b""
    """A definition that comes with it, as the encoder sends the first value of a type."""


class Struct(NamedTuple):
    name: str
    fields: list[tuple[str, int]]


class Slice(NamedTuple):
    elem: int


class Array(NamedTuple):
    elem: int


class Map(NamedTuple):
    key: int
    elem: int


class Opaque(NamedTuple):
    name: str
    kind: int
    """4 GobEncoder, 5 BinaryMarshaler, 6 TextMarshaler."""


def uint(n: int) -> bytes:
    if n < 128:
        return bytes([n])
    size = (n.bit_length() + 7) // 8
    return bytes([256 - size]) + n.to_bytes(size, "big")


def integer(n: int) -> bytes:
    return uint(~n << 1 | 1 if n < 0 else n << 1)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return uint(len(raw)) + raw


def message(payload: bytes) -> bytes:
    return uint(len(payload)) + payload


def common(name: str, type_id: int) -> bytes:
    return (
        (b"\1" + text(name) if name else b"")
        + (b"\1" if name else b"\2")
        + integer(type_id)
        + b"\0"
    )


def definition(type_id: int, found: Any) -> bytes:
    """The definition of a type, without a length."""
    head = integer(-type_id)
    if isinstance(found, Struct):
        fields = b"".join(b"\1" + text(n) + b"\1" + integer(t) + b"\0" for n, t in found.fields)
        listed = b"\1" + uint(len(found.fields)) + fields if found.fields else b""
        return head + b"\3\1" + common(found.name, type_id) + listed + b"\0\0"
    if isinstance(found, Array):
        body = b"\1" + common("", type_id) + b"\1" + integer(found.elem) + b"\1" + integer(4)
        return head + b"\1" + body + b"\0\0"
    if isinstance(found, Slice):
        return head + b"\2\1" + common("", type_id) + b"\1" + integer(found.elem) + b"\0\0"
    if isinstance(found, Map):
        body = (
            b"\1" + common("", type_id) + b"\1" + integer(found.key) + b"\1" + integer(found.elem)
        )
        return head + b"\4" + body + b"\0\0"
    return head + uint(found.kind + 1) + b"\1" + common(found.name, type_id) + b"\0\0"


class Writer:
    """Encodes values of the types it is given."""

    def __init__(self, types: dict[int, Any]) -> None:
        self.types = types

    def definitions(self) -> bytes:
        return b"".join(message(definition(i, t)) for i, t in self.types.items())

    def is_zero(self, type_id: int, value: Any) -> bool:
        found = self.types.get(type_id)
        if isinstance(found, Struct | Array):
            return False
        return value is None or (value in (False, 0, "", b"", []) and value != {})

    def value(self, type_id: int, value: Any) -> bytes:
        if type_id in {BOOL, UINT}:
            return uint(int(value))
        if type_id == INT:
            return integer(value)
        if type_id == FLOAT:
            return uint(int.from_bytes(struct.pack("<d", value), "big"))
        if type_id == COMPLEX:
            return self.value(FLOAT, value.real) + self.value(FLOAT, value.imag)
        if type_id in {STRING, BYTES}:
            return text(value)
        if type_id == INTERFACE:
            return self.interface(value)
        found = self.types[type_id]
        if isinstance(found, Struct):
            return self.struct(found, value)
        if isinstance(found, Map):
            pairs = [self.value(found.key, k) + self.value(found.elem, v) for k, v in value.items()]
            return uint(len(pairs)) + b"".join(pairs)
        if isinstance(found, Opaque):
            return text(value)
        return uint(len(value)) + b"".join(self.value(found.elem, v) for v in value)

    def struct(self, found: Struct, value: dict[str, Any]) -> bytes:
        out, last = b"", -1
        for index, (name, of) in enumerate(found.fields):
            if name in value and not self.is_zero(of, value[name]):
                out += uint(index - last) + self.value(of, value[name])
                last = index
        return out + b"\0"

    def alone(self, type_id: int, value: Any) -> bytes:
        """A value that stands alone: no struct has a zero in front."""
        start = b"" if isinstance(self.types.get(type_id), Struct) else b"\0"
        return start + self.value(type_id, value)

    def interface(self, value: Held | None) -> bytes:
        if value is None:
            return b"\0"
        body = self.alone(value.type, value.value)
        return text(value.name) + value.define + integer(value.type) + uint(len(body)) + body

    def top(self, type_id: int, value: Any) -> bytes:
        return message(integer(type_id) + self.alone(type_id, value))


EVENT, STACK, FLAGS, ARGUMENT, META, ARGS, STRINGS, MAPPING, SYMBOL, SYMBOLS, PACKET = range(65, 76)

TYPES: dict[int, Any] = {
    EVENT: Struct(
        "Event",
        [
            ("Timestamp", INT),
            ("ProcessID", INT),
            ("ProcessName", STRING),
            ("EventID", INT),
            ("EventName", STRING),
            ("ArgsNum", INT),
            ("ReturnValue", INT),
            ("StackAddresses", STACK),
            ("ContextFlags", FLAGS),
            ("Args", ARGS),
        ],
    ),
    STACK: Slice(UINT),
    FLAGS: Struct("ContextFlags", [("ContainerStarted", BOOL), ("IsCompat", BOOL)]),
    ARGS: Slice(ARGUMENT),
    ARGUMENT: Struct("Argument", [("ArgMeta", META), ("Value", INTERFACE)]),
    META: Struct("ArgMeta", [("Name", STRING), ("Type", STRING)]),
    STRINGS: Slice(STRING),
    MAPPING: Map(STRING, STRING),
    SYMBOL: Struct("HookedSymbolData", [("SymbolName", STRING), ("ModuleOwner", STRING)]),
    SYMBOLS: Slice(SYMBOL),
    PACKET: Struct("PktMeta", [("SrcIP", STRING), ("DstPort", UINT), ("Protocol", UINT)]),
}
TRACEE = Writer(TYPES)


def argument(name: str, kind: str, value: Held | None) -> dict[str, Any]:
    return {"ArgMeta": {"Name": name, "Type": kind}, "Value": value}


def event(i: int, *arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "Timestamp": 1660739752328287263 + i,
        "ProcessID": 100 + i,
        "ProcessName": "node",
        "EventID": 257,
        "EventName": "openat",
        "ArgsNum": len(arguments),
        "ContextFlags": {"ContainerStarted": bool(i % 2)},
        "Args": list(arguments),
        **more,
    }


def opened(i: int) -> dict[str, Any]:
    return event(
        i,
        argument("dirfd", "int", Held("int32", INT, -100)),
        argument("pathname", "const char*", Held("string", STRING, f"/etc/{i}")),
        argument("argv", "const char*const*", Held("[]string", STRINGS, ["a", ""])),
    )


EVENTS = [opened(i) for i in range(6)]
PARTS = [TRACEE.definitions(), *(TRACEE.top(EVENT, e) for e in EVENTS)]
PLAIN = b"".join(PARTS)
