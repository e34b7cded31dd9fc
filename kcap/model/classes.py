"""Type classes: the few kinds of values a column can hold (spec/kcap.md, clause 5)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import pyarrow as pa

I64_MIN: Final = -(1 << 63)
I64_MAX: Final = (1 << 63) - 1
U64_MAX: Final = (1 << 64) - 1

TEXT: Final = pa.dictionary(pa.int32(), pa.utf8())
"""Arrow type of text and json columns."""

BINARY: Final = pa.dictionary(pa.int32(), pa.binary())
"""Arrow type of binary columns."""


class TypeClass(StrEnum):
    """The class of a column; its value is the suffix of a column that is not at home."""

    I64 = "i64"
    """An integer that fits int64."""
    U64 = "u64"
    """An integer from 2**63 to 2**64-1."""
    F64 = "f64"
    """A float; float32 is widened."""
    BOOL = "bool"
    STR = "str"
    """Text, valid UTF-8."""
    BIN = "bin"
    """Bytes."""
    JSON = "json"
    """Structure that no other class holds, as JSON text; also integers beyond 64 bits."""
    LIST = "list"
    """A list of text."""
    LIST_I64 = "list_i64"
    LIST_U64 = "list_u64"
    LIST_F64 = "list_f64"
    LIST_BOOL = "list_bool"

    @property
    def child(self) -> TypeClass | None:
        """The class of a list's items, None for what is no list."""
        return _CHILD.get(self)

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type of such a column."""
        return _ARROW[self]

    @property
    def code(self) -> int:
        """The number of the class in a chunk's directory."""
        return _CODES[self]


_CHILD: Final = {
    TypeClass.LIST: TypeClass.STR,
    TypeClass.LIST_I64: TypeClass.I64,
    TypeClass.LIST_U64: TypeClass.U64,
    TypeClass.LIST_F64: TypeClass.F64,
    TypeClass.LIST_BOOL: TypeClass.BOOL,
}

_ARROW: Final = {
    TypeClass.I64: pa.int64(),
    TypeClass.U64: pa.uint64(),
    TypeClass.F64: pa.float64(),
    TypeClass.BOOL: pa.bool_(),
    TypeClass.STR: TEXT,
    TypeClass.BIN: BINARY,
    TypeClass.JSON: TEXT,
    TypeClass.LIST: pa.list_(pa.utf8()),
    TypeClass.LIST_I64: pa.list_(pa.int64()),
    TypeClass.LIST_U64: pa.list_(pa.uint64()),
    TypeClass.LIST_F64: pa.list_(pa.float64()),
    TypeClass.LIST_BOOL: pa.list_(pa.bool_()),
}

_CODES: Final = {
    TypeClass.I64: 1,
    TypeClass.U64: 2,
    TypeClass.F64: 3,
    TypeClass.BOOL: 4,
    TypeClass.STR: 5,
    TypeClass.BIN: 6,
    TypeClass.JSON: 7,
    TypeClass.LIST: 16,
    TypeClass.LIST_I64: 17,
    TypeClass.LIST_U64: 18,
    TypeClass.LIST_F64: 19,
    TypeClass.LIST_BOOL: 20,
}

BY_CODE: Final = {code: cls for cls, code in _CODES.items()}
"""Directory number to class."""
