"""Columns to bytes and back (spec/kcap.md, clauses 6.4 to 6.8).

Everything here works on whole columns: a column becomes an Arrow array in one vectorised pass.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from construct import Int8ul, Int32ul, Int64ul, Padding, Struct

from kcap import limits
from kcap.errors import DamagedError, LimitError
from kcap.format import zstd
from kcap.format.cursor import Cursor, Encoded
from kcap.format.integers import decode_integers, encode_integers
from kcap.model.batch import Column, Rows
from kcap.model.classes import BY_CODE, TypeClass

PLAIN: Final = 0x01
WIDE: Final = 0x02
_SPARSE: Final = 16

_CHILD: Final = Struct(
    "cls" / Int8ul,
    "encoding" / Int8ul,
    Padding(2),
    "count" / Int32ul,
    "distinct" / Int32ul,
    Padding(4),
    "base" / Int64ul,
)


# --- presence ---------------------------------------------------------------------------------


def encode_presence(rows: Rows | None, count: int) -> tuple[int, bytes]:
    """Which rows have a value (clause 6.4).

    Args:
        rows: Ascending row numbers, None for all.
        count: Rows of the chunk.

    Returns:
        The form's number and its bytes.
    """
    if rows is None or len(rows) == count:
        return 0, b""
    if len(rows) * _SPARSE < count:
        return 2, rows.astype("<u2").tobytes()
    bits = np.zeros(count, np.bool_)
    bits[rows] = True
    return 1, np.packbits(bits, bitorder="little").tobytes()


def decode_presence(form: int, present: int, count: int, cursor: Cursor) -> Rows | None:
    """`encode_presence` undone.

    Args:
        form: The form's number.
        present: Number of values.
        count: Rows of the chunk.
        cursor: The frame.

    Returns:
        Ascending row numbers, None for all.

    Raises:
        DamagedError: The rows do not fit the counts.
    """
    if form == 0:
        good = present == count
        rows = None
    elif form == 1:
        bits = np.unpackbits(cursor.array(np.uint8, -(-count // 8)), bitorder="little")
        # As booleans they are found in a fifth of the time.
        rows = np.flatnonzero(bits.view(np.bool_)).astype(np.int32)
        good = len(rows) == present and (present == 0 or int(rows[-1]) < count)
    elif form == 2:  # noqa: PLR2004
        rows = cursor.array("<u2", present).astype(np.int32)
        good = present <= count and bool((np.diff(rows) > 0).all())
        good = good and (present == 0 or int(rows[-1]) < count)
    else:
        raise DamagedError(f"there is no presence {form}")
    if not good:
        raise DamagedError("the rows of a column do not fit", expected=f"{present} of {count}")
    return rows


# --- text and bytes ---------------------------------------------------------------------------


def _lengths_and_bytes(entries: pa.Array) -> tuple[bytes, memoryview, int]:
    """Lengths and bytes of plain text or binary entries, and the flag for wide lengths."""
    offsets = np.frombuffer(entries.buffers()[1], np.int32)[
        entries.offset : entries.offset + len(entries) + 1
    ]
    lengths = np.diff(offsets)
    data = entries.buffers()[2]
    raw = memoryview(b"" if data is None else data)[offsets[0] : offsets[-1]]
    wide = len(lengths) and int(lengths.max()) > 0xFFFF  # noqa: PLR2004
    return lengths.astype("<u4" if wide else "<u2").tobytes(), raw, WIDE if wide else 0


class _Sorted(NamedTuple):
    """A dictionary that is sorted by bytes and holds just what is used, each once."""

    entries: pa.Array
    rank: npt.NDArray[np.int64]
    """By the code of the dictionary as it was, the place of its entry."""
    counts: npt.NDArray[np.int64]
    """By the same, how many values have the code."""


def _sorted_dictionary(values: pa.DictionaryArray) -> _Sorted:
    entries = values.dictionary
    counts = np.bincount(np.asarray(values.indices), minlength=len(entries))
    used = np.flatnonzero(counts)
    if len(used) < len(entries):
        entries = entries.take(pa.array(used))
    order = np.asarray(pc.sort_indices(entries))
    ordered = entries.take(pa.array(order))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    if len(ordered) > 1:
        same = np.asarray(pc.equal(ordered.slice(1), ordered.slice(0, len(ordered) - 1)))
        if same.any():  # a foreign dictionary may hold an entry twice
            fresh = np.concatenate([[True], ~same])
            rank = (np.cumsum(fresh) - 1)[rank]
            ordered = ordered.filter(pa.array(fresh))
    lookup = np.zeros(len(values.dictionary), np.int64)
    lookup[used] = rank
    return _Sorted(ordered, lookup, counts)


def encode_text(values: pa.DictionaryArray) -> Encoded:
    """Text or binary values, as a dictionary or plain (clause 6.7).

    Args:
        values: Dictionary-coded, without nulls.

    Returns:
        The bytes.

    Raises:
        LimitError: A value is longer than the format allows.
    """
    if len(values.dictionary) == 1:  # a third of all columns, in a fifth of the time
        return _encode_word(values.dictionary)
    entries, rank, counts = _sorted_dictionary(values)
    sizes = np.asarray(pc.binary_length(entries)).astype(np.int64)
    longest = int(sizes.max())
    if longest > limits.VALUE_BYTES:
        raise LimitError(f"a value of {longest} bytes", expected=f"at most {limits.VALUE_BYTES}")
    each = 4 if longest > 0xFFFF else 2  # noqa: PLR2004
    width = _code_type(len(entries))
    coded_bytes = 0 if width is None else len(values) * np.dtype(width).itemsize
    # By bytes, not by the share of distinct values: a long value may come again and again.
    plain = len(values) * each + int(sizes[rank] @ counts)
    codes = np.asarray(values.indices)
    if plain < coded_bytes + len(entries) * each + int(sizes.sum()):
        every = values.dictionary
        if len(codes) != len(every) or (codes != np.arange(len(codes))).any():
            every = entries.take(pa.array(rank[codes]))
        lengths, raw, wide = _lengths_and_bytes(every)
        return Encoded(b"".join((lengths, raw)), PLAIN | wide, entries=entries)
    lengths, raw, wide = _lengths_and_bytes(entries)
    coded = b"" if width is None else rank.astype(width)[codes].tobytes()
    return Encoded(b"".join((coded, lengths, raw)), wide, 0, len(entries), entries=entries)


def _encode_word(entries: pa.Array) -> Encoded:
    """Values that are all the same: a dictionary is never longer, and needs no codes."""
    lengths, raw, wide = _lengths_and_bytes(entries)
    if len(raw) > limits.VALUE_BYTES:
        raise LimitError(f"a value of {len(raw)} bytes", expected=f"at most {limits.VALUE_BYTES}")
    return Encoded(b"".join((lengths, raw)), wide, 0, 1, entries=entries)


def _code_type(distinct: int) -> npt.DTypeLike | None:
    if distinct == 1:
        return None
    return "u1" if distinct <= 1 << 8 else "<u2" if distinct <= 1 << 16 else "<u4"


def decode_text(
    encoding: int, distinct: int, count: int, cursor: Cursor, kind: pa.DataType
) -> pa.DictionaryArray:
    """`encode_text` undone.

    Args:
        encoding: Form and width of lengths.
        distinct: Entries of the dictionary.
        count: Number of values.
        cursor: The frame.
        kind: utf8 or binary.

    Returns:
        A dictionary array with int32 codes.

    Raises:
        DamagedError: Codes or text are not valid.
    """
    if encoding & ~(PLAIN | WIDE) or (encoding & PLAIN and distinct):
        raise DamagedError(f"there is no text encoding {encoding}")
    lengths_type = "<u4" if encoding & WIDE else "<u2"
    if encoding & PLAIN:
        entries = _entries(cursor, count, lengths_type, kind)
        codes = np.arange(count, dtype=np.int32)
    else:
        if not 1 <= distinct <= max(count, 1):
            raise DamagedError(f"a dictionary has {distinct} entries", expected=f"1 to {count}")
        width = _code_type(distinct)
        stored = np.zeros(count, np.int32) if width is None else cursor.array(width, count)
        if len(stored) and int(stored.max()) >= distinct:
            raise DamagedError("a dictionary code has no entry", expected=f"less than {distinct}")
        codes = stored.astype(np.int32, copy=False)
        entries = _entries(cursor, distinct, lengths_type, kind)
    return pa.DictionaryArray.from_arrays(pa.array(codes), entries)


def _entries(cursor: Cursor, count: int, lengths_type: str, kind: pa.DataType) -> pa.Array:
    """Plain entries out of lengths and bytes."""
    lengths = cursor.array(lengths_type, count)
    if len(lengths) and int(lengths.max()) > limits.VALUE_BYTES:
        raise LimitError(
            f"a value of {int(lengths.max())} bytes", expected=f"at most {limits.VALUE_BYTES}"
        )
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = cursor.buffer(int(offsets[-1]))
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), data]
    array = pa.Array.from_buffers(kind, count, buffers)
    try:
        array.validate(full=True)
    except pa.ArrowException as e:
        raise DamagedError(f"text is not valid: {e}", expected="UTF-8") from e
    return array


# --- any class --------------------------------------------------------------------------------


def encode_values(cls: TypeClass, values: pa.Array, *, deltas: bool = True) -> Encoded:
    """The values of one column.

    Args:
        cls: Their class.
        values: Of the class's Arrow type, without nulls, at least one.
        deltas: Store integers as differences where that is shorter; else always plain.

    Returns:
        The bytes.
    """
    if cls.child:
        return _encode_lists(cls.child, values, deltas=deltas)
    if cls in (TypeClass.I64, TypeClass.U64):
        return encode_integers(np.ascontiguousarray(values.to_numpy()), deltas=deltas)
    if cls is TypeClass.F64:
        return Encoded(np.ascontiguousarray(values.to_numpy()).tobytes())
    if cls is TypeClass.BOOL:
        bits = values.to_numpy(zero_copy_only=False)
        return Encoded(np.packbits(bits, bitorder="little").tobytes())
    return encode_text(values)


def decode_values(
    cls: TypeClass, encoding: int, base: int, distinct: int, count: int, cursor: Cursor
) -> pa.Array:
    """`encode_values` undone.

    Args:
        cls: The class of the values.
        encoding: As the directory says.
        base: As the directory says.
        distinct: As the directory says.
        count: Number of values.
        cursor: The frame, behind its presence.

    Returns:
        An array of the class's Arrow type.

    Raises:
        DamagedError: The frame does not hold such values.
    """
    if cls in (TypeClass.I64, TypeClass.U64):
        signed = cls is TypeClass.I64
        return pa.array(decode_integers(encoding, base, count, cursor, signed=signed))
    if cls in (TypeClass.STR, TypeClass.JSON, TypeClass.BIN):
        return decode_text(encoding, distinct, count, cursor, cls.arrow.value_type)
    if encoding:
        raise DamagedError(f"class {cls} has no encoding {encoding}")
    if cls is TypeClass.F64:
        return pa.array(cursor.array("<f8", count))
    if cls is TypeClass.BOOL:
        bits = np.unpackbits(cursor.array(np.uint8, -(-count // 8)), bitorder="little")
        if bits[count:].any():
            raise DamagedError("a bitmap has bits behind the last value")
        return pa.array(bits[:count].astype(np.bool_))
    raise AssertionError(cls)


def _encode_lists(child: TypeClass, values: pa.ListArray, *, deltas: bool) -> Encoded:
    lengths = np.asarray(pc.list_value_length(values)).astype("<u4")
    if int(lengths.max()) > limits.LIST_VALUE_ITEMS:
        what = f"a list of {int(lengths.max())} items"
        raise LimitError(what, expected=f"at most {limits.LIST_VALUE_ITEMS}")
    items = values.flatten()
    text = int(pc.sum(pc.binary_length(items)).as_py() or 0) if child is TypeClass.STR else 0
    if child is TypeClass.STR:
        items = pc.dictionary_encode(items)
    inner = encode_values(child, items, deltas=deltas) if len(items) else Encoded(b"")
    plain = _list_bytes(child, lengths, len(items), inner.plain) if inner.plain else None
    return Encoded(
        _list_bytes(child, lengths, len(items), inner),
        0,
        text,
        len(items),
        plain=Encoded(plain, 0, text, len(items)) if plain else None,
        entries=inner.entries,
    )


def _list_bytes(
    child: TypeClass, lengths: npt.NDArray[np.uint32], items: int, inner: Encoded
) -> bytes:
    head: bytes = _CHILD.build(
        {
            "cls": child.code,
            "encoding": inner.encoding,
            "count": items,
            "distinct": inner.distinct,
            "base": inner.base,
        }
    )
    return head + lengths.tobytes() + inner.data


def decode_lists(cls: TypeClass, text: int, items: int, count: int, cursor: Cursor) -> pa.ListArray:
    """Lists (clause 6.8).

    Args:
        cls: The class of the lists.
        text: Bytes of all items that are text, as the directory says.
        items: Number of items, as the directory says.
        count: Number of lists.
        cursor: The frame, behind its presence.

    Returns:
        An array of the class's Arrow type.

    Raises:
        DamagedError: The frame does not hold such lists.
    """
    head = _CHILD.parse(cursor.array(np.uint8, _CHILD.sizeof()).tobytes())
    if BY_CODE.get(head.cls) is not cls.child or cls.child is None:
        raise DamagedError(f"a list has items of class {head.cls}", expected=f"{cls.child}")
    lengths = cursor.array("<u4", count)
    if count and int(lengths.max()) > limits.LIST_VALUE_ITEMS:
        what = f"a list of {int(lengths.max())} items"
        raise LimitError(what, expected=f"at most {limits.LIST_VALUE_ITEMS}")
    total = int(lengths.sum(dtype=np.int64))
    if not total == head.count == items:
        raise DamagedError(f"lists have {total} items", expected=f"{items}")
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    if not total:
        values = pa.array([], cls.arrow.value_type)
    else:
        values = decode_values(cls.child, head.encoding, head.base, head.distinct, total, cursor)
    if pa.types.is_dictionary(values.type):
        sizes = np.asarray(pc.binary_length(values.dictionary)).astype(np.int64)
        found = int(sizes[np.asarray(values.indices)].sum())
        if found != text:  # the directory's word was held against the limits, so it must be true
            raise DamagedError(f"the items of lists have {found} bytes", expected=str(text))
        values = values.dictionary_decode()
    return pa.ListArray.from_arrays(pa.array(offsets), values)


class Form(NamedTuple):
    """A whole column as bytes."""

    presence: int
    """Number of the presence form."""
    rows: bytes
    """The presence."""
    encoded: Encoded
    """The values."""

    @property
    def data(self) -> bytes:
        """The decoded bytes of the column's frame."""
        return self.rows + self.encoded.data

    def frame(self, level: int) -> bytes:
        """The column's frame.

        Args:
            level: zstd's level.

        Returns:
            One zstd frame; nothing where there is nothing to compress.
        """
        if self.encoded.frame is not None and not self.rows and level == zstd.LEVEL:
            return self.encoded.frame
        data = self.data
        return zstd.compress(data, level) if data else b""


def encode_column(column: Column, count: int, *, deltas: bool = True) -> Form:
    """A whole column.

    Args:
        column: The column, with at least one value.
        count: Rows of the chunk.
        deltas: Store integers as differences where that is shorter; else always plain.

    Returns:
        Presence and values.
    """
    rows = column.rows
    # Checked before writing, as the reader checks again: a bad column must not reach a file.
    assert len(column) == (count if rows is None else len(rows))
    assert rows is None or (rows[0] >= 0 and rows[-1] < count and bool((np.diff(rows) > 0).all()))
    form, presence = encode_presence(column.rows, count)
    return Form(form, presence, encode_values(column.cls, column.values, deltas=deltas))
