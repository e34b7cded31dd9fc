"""Go's gob encoding: whatever a stream says its types are, its values come out as JSON has them."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
import time
from typing import Any

import gob_support as gs
import pytest
from gob_support import (
    BOOL,
    BYTES,
    COMPLEX,
    FLOAT,
    INT,
    INTERFACE,
    STRING,
    UINT,
    Array,
    Held,
    Map,
    Opaque,
    Slice,
    Struct,
    Writer,
)
from hypothesis import given
from hypothesis import strategies as st

from kcap import limits
from kcap.readers import gob
from kcap.readers.gob import ContinuesError, Decoder, Spelling
from kcap.readers.gob_values import GobError, uint


def payloads(stream: bytes) -> list[bytes]:
    """The messages of a stream without their lengths."""
    found, at = [], 0
    while at < len(stream):
        size, at = uint(stream, at)
        found.append(stream[at : at + size])
        at += size
    return found


def decoded(types: dict[int, Any], top: int, value: Any, **options: Any) -> Any:
    """What a decoder makes of a value of some types."""
    writer = Writer(types)
    decoder = Decoder(**options)
    *definitions, last = payloads(writer.definitions() + writer.top(top, value))
    assert [decoder.message(d) for d in definitions] == [None] * len(definitions)
    return decoder.message(last)


INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
KINDS: dict[int, tuple[st.SearchStrategy[Any], Any]] = {
    BOOL: (st.booleans(), False),
    INT: (INTEGERS, 0),
    UINT: (st.integers(0, 2**64 - 1), 0),
    FLOAT: (FLOATS, 0),
    STRING: (st.text(st.characters(exclude_categories=["Cs"])), ""),
    BYTES: (st.binary(), None),
}


@st.composite
def typed(draw: st.DrawFn, types: dict[int, Any], height: int) -> tuple[int, Any, Any]:
    """A type, a value of it, and what JSON has for the value; defines the type."""
    kind = draw(st.sampled_from([*KINDS, "struct", "slice", "map", "any"] if height else [*KINDS]))
    if kind in KINDS:
        value = draw(KINDS[kind][0])
        return kind, value, base64.b64encode(value).decode() if kind == BYTES else value
    own = 64 + len(types)
    types[own] = None
    if kind == "any":
        del types[own]
        inner, value, want = draw(typed(types, height - 1))
        return INTERFACE, Held("T", inner, value), want
    if kind == "slice":
        inner, value, want = draw(typed(types, height - 1))
        count = draw(st.integers(0, 3))
        types[own] = Slice(inner)
        return own, [value] * count, [want] * count
    if kind == "map":
        inner, value, want = draw(typed(types, height - 1))
        keys = draw(st.lists(st.text("abc"), unique=True, max_size=3))
        types[own] = Map(STRING, inner)
        return own, dict.fromkeys(keys, value), dict.fromkeys(keys, want)
    fields = [draw(typed(types, height - 1)) for _ in range(draw(st.integers(0, 4)))]
    types[own] = Struct(f"S{own}", [(f"F{i}", t) for i, (t, _, _) in enumerate(fields)])
    value = {f"F{i}": v for i, (_, v, _) in enumerate(fields)}
    want = {f"F{i}": zeroed(types, t, v, w) for i, (t, v, w) in enumerate(fields)}
    return own, value, want


def zeroed(types: dict[int, Any], type_id: int, value: Any, want: Any) -> Any:
    """What JSON has for a field: gob doesn't send zeros, so an empty list is null."""
    if not Writer(types).is_zero(type_id, value):
        return want
    return KINDS[type_id][1] if type_id in KINDS else None


@given(st.data())
def test_any_value_of_any_type(draw: st.DataObject) -> None:
    """Types nested at will, inside interfaces and out: values come out as JSON has them."""
    types: dict[int, Any] = {}
    top, value, want = draw.draw(typed(types, 3))
    assert decoded(types, top, value) == want


def test_the_comparison_sees_a_difference() -> None:
    """Negative control: another value, and a value of another type, are seen."""
    types = {64: Struct("S", [("A", INT), ("B", STRING)])}
    assert decoded(types, 64, {"A": 1, "B": "x"}) != decoded(types, 64, {"A": 2, "B": "x"})
    assert decoded(types, 64, {"A": 1}) == {"A": 1, "B": ""} != {"A": 1}


@pytest.mark.parametrize(
    ("kind", "value", "want"),
    [
        (FLOAT, 1.0, 1),
        (FLOAT, -0.0, 0),
        (FLOAT, 1e20, 10**20),
        (FLOAT, 1e21, 1e21),
        (FLOAT, 0.1, 0.1),
        (FLOAT, math.inf, math.inf),
        (COMPLEX, 1 + 2.5j, [1, 2.5]),
        (BYTES, b"\0\1\2", "AAEC"),
        (STRING, b"a\xff\xe2\x82b", "a\ufffd\ufffd\ufffdb"),
        (INT, -(2**63), -(2**63)),
        (UINT, 2**64 - 1, 2**64 - 1),
    ],
)
def test_values_are_as_in_json(kind: int, value: Any, want: Any) -> None:
    """Floats without a fraction are integers, bytes base64, bytes that are no text replaced."""
    found = decoded({}, kind, value)
    assert found == want
    assert type(found) is type(want)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_32_bit_floats_have_few_digits(value: float) -> None:
    """Of an interface's float32 the digits are those that Go's JSON prints."""
    found = decoded({64: Struct("S", [("A", INTERFACE)])}, 64, {"A": Held("float32", FLOAT, value)})
    assert struct.pack("<f", found["A"]) == struct.pack("<f", value) or value == 0
    assert found["A"] == value or len(repr(found["A"])) <= len(repr(value))


def test_one_tenth_is_one_tenth() -> None:
    """A float32 of 0.1 isn't 0.10000000149011612; a float64 is as it is."""
    tenth = struct.unpack("<f", struct.pack("<f", 0.1))[0]
    types = {64: Slice(INTERFACE)}
    values = [Held("float32", FLOAT, tenth), Held("float64", FLOAT, tenth), None]
    assert decoded(types, 64, values) == [0.1, tenth, None]


def test_types_that_encode_themselves() -> None:
    """Text is text, other bytes are base64."""
    types = {64: Opaque("T", 4), 65: Opaque("U", 6), 66: Struct("S", [("A", 64), ("B", 65)])}
    assert decoded(types, 66, {"A": b"\1", "B": b"x"}) == {"A": "AQ==", "B": "x"}


def test_arrays_and_numbers_as_keys() -> None:
    """Arrays are lists; a map's keys are text in JSON, in the order of the stream."""
    types = {64: Array(UINT), 65: Map(INT, 64)}
    found = decoded(types, 65, {5: [1, 2], -3: [0]})
    assert json.dumps(found) == '{"5": [1, 2], "-3": [0]}'


def test_a_type_that_holds_itself() -> None:
    """A recursive type is fine as far as its values end, and refused where they don't."""
    types = {64: Struct("T", [("V", INT), ("Next", 64)])}
    assert decoded(types, 64, {"V": 1, "Next": {"V": 2}})["Next"] == {"V": 2, "Next": None}
    decoder = Decoder()
    decoder.message(gs.definition(64, types[64]))
    with pytest.raises(GobError, match="nested too deep"):
        decoder.message(gs.integer(64) + b"\2" * 5000 + b"\0" * 5001)


def test_spellings() -> None:
    """Fields are renamed, quoted, inlined, left out; the order stays the struct's."""
    types = {
        64: Struct("In", [("A", INT), ("B", STRING)]),
        65: Struct("Out", [("Id", INT), ("In", 64), ("Gone", INT), ("Opt", STRING), ("L", 66)]),
        66: Slice(INT),
    }
    spellings = {
        "In": {"A": Spelling("a")},
        "Out": {
            "Id": Spelling("id", text=True),
            "In": Spelling(None, inlined=True),
            "Gone": Spelling(None),
            "Opt": Spelling("opt", omitted=True),
            "L": Spelling("l", empty=[]),
        },
    }
    full = {"Id": 7, "In": {"A": 1, "B": "b"}, "Gone": 3, "Opt": "o", "L": [4]}
    found = decoded(types, 65, full, spellings=spellings)
    assert json.dumps(found) == '{"id": "7", "a": 1, "B": "b", "opt": "o", "l": [4]}'
    found = decoded(types, 65, {"In": {}}, spellings=spellings)
    assert json.dumps(found) == '{"id": "0", "a": 0, "B": "", "l": []}'


def test_a_definition_inside_a_value() -> None:
    """At the top the value goes on in the next message, inside an interface after a length."""
    types = {64: Struct("S", [("A", INTERFACE), ("B", INT)])}
    late = {66: Struct("Late", [("X", INT)]), 67: Struct("Later", [("Y", INTERFACE)])}
    writer = Writer(types | late)
    decoder = Decoder()
    decoder.message(gs.definition(64, types[64]))
    first = gs.integer(64) + b"\1" + gs.text("Late") + gs.definition(66, late[66])
    rest = gs.integer(66) + gs.uint(3) + writer.alone(66, {"X": 5}) + b"\1" + gs.integer(9) + b"\0"
    with pytest.raises(ContinuesError):
        decoder.message(first)
    assert decoder.message(first + rest, {len(first)}) == {"A": {"X": 5}, "B": 9}

    inner = gs.integer(66) + gs.uint(3) + writer.alone(66, {"X": 6}) + b"\0"
    decoder = Decoder()
    for type_id in (64, 67):
        decoder.message(gs.definition(type_id, (types | late)[type_id]))
    pieces = b"\1" + gs.text("Late") + gs.definition(66, late[66])
    data = gs.integer(64) + b"\1" + gs.text("Later") + gs.integer(67) + gs.uint(len(pieces))
    data += pieces + gs.uint(len(inner)) + inner + b"\0"
    assert decoder.message(data) == {"A": {"Y": {"X": 6}}, "B": 0}


def test_a_type_defined_anew() -> None:
    """A second stream may follow the first, with other types under the same ids."""
    decoder = Decoder()
    for name, want in (("A", {"A": 3}), ("B", {"B": 3}), ("B", {"B": 3})):
        decoder.message(gs.definition(64, Struct("S", [(name, INT)])))
        assert decoder.message(gs.integer(64) + b"\1" + gs.integer(3) + b"\0") == want


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xf0" + bytes(16),
        gs.integer(99) + b"\0",
        gs.integer(64),
        gs.integer(64) + b"\3\0",
        gs.integer(64) + b"\1\2\0\0",
        gs.integer(64) + b"\2\xfb\x01\0",
        gs.integer(INT) + b"\1\2",
        gs.integer(-3) + b"\0",
        gs.integer(-70) + b"\0",
        gs.integer(-70) + b"\1\1\2\0\0",
        gs.definition(70, Struct("S", [("A", INT), ("A", INT)])),
        gs.definition(70, Struct("S", [("A" * 2000, INT)])),
        gs.definition(70, Struct("S", [(f"F{i}", INT) for i in range(8193)])),
        gs.integer(67) + b"\0\1\1\0\1",
    ],
)
def test_messages_that_are_none(data: bytes) -> None:
    """Cut, of unknown types, with fields that aren't there, too long: each says what is wrong."""
    decoder = Decoder()
    for type_id, found in {
        64: Struct("S", [("A", INT), ("B", 65)]),
        65: Slice(UINT),
        66: Slice(INT),
        67: Map(66, INT),
    }.items():
        decoder.message(gs.definition(type_id, found))
    with pytest.raises(GobError):
        decoder.message(data)


@given(st.binary(max_size=80), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255))))
def test_any_bytes(raw: bytes, edits: list[tuple[int, int]]) -> None:
    """Any message, and any message of a stream with bytes written over: only our errors."""
    for found in (raw, *payloads(gs.PLAIN)):
        data = bytearray(found)
        for at, byte in edits:
            if data:
                data[at % len(data)] = byte
        decoder = Decoder()
        for definition in payloads(gs.TRACEE.definitions()):
            decoder.message(definition)
        with contextlib.suppress(GobError, ContinuesError):
            decoder.message(bytes(data))


def test_small_messages_make_no_large_values() -> None:
    """Structs of many fields a byte each, and counts of what isn't there, end early."""
    wide = Struct("W", [(f"Field{i}", STRING) for i in range(8000)])
    decoder = Decoder()
    for type_id, found in {64: wide, 65: Slice(64), 66: Map(STRING, 64)}.items():
        decoder.message(gs.definition(type_id, found))
    start = time.monotonic()
    with pytest.raises(GobError, match="too large"):
        decoder.message(gs.integer(65) + b"\0" + gs.uint(100_000) + bytes(100_000))
    with pytest.raises(GobError, match="too long"):
        decoder.message(gs.integer(65) + b"\0" + gs.uint(2**64 - 1))
    with pytest.raises(GobError, match="too large"):
        decoder.message(gs.integer(66) + b"\0" + gs.uint(2**40))
    assert time.monotonic() - start < 10


def test_the_number_of_types_is_limited() -> None:
    """Neither many types, nor many fields, nor endless changes are kept."""
    decoder = Decoder()
    for i in range(gob.TYPES):
        decoder.message(gs.definition(64 + i, Slice(INT)))
    with pytest.raises(GobError, match="too many types"):
        decoder.message(gs.definition(64 + gob.TYPES, Slice(INT)))
    decoder = Decoder()
    wide = Struct("W", [(f"F{i}", INT) for i in range(limits.EVENT_FIELDS)])
    for i in range(gob.FIELDS // limits.EVENT_FIELDS):
        decoder.message(gs.definition(64 + i, wide))
    with pytest.raises(GobError, match="too many types"):
        decoder.message(gs.definition(90, Struct("W", [("A", INT)])))
    decoder = Decoder()

    def change() -> None:
        for i in range(3000):
            decoder.message(gs.definition(64, Slice(INT if i % 2 else UINT)))
            decoder.message(gs.integer(64) + b"\0\0")

    with pytest.raises(GobError, match="change too often"):
        change()
