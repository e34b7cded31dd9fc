"""Chunks: a directory and one frame a column (spec/kcap.md, clause 6)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from construct import Const, Int32ul, Int64sl, Int64ul, Struct
from construct.core import ConstructError

from kcap import limits
from kcap.errors import DamagedError, LimitError
from kcap.format import frames, zstd
from kcap.format.cursor import Cursor
from kcap.format.schema import EVENTS, WIDTHS, Directory, Schema
from kcap.model.batch import Batch, Column
from kcap.model.classes import BY_CODE, I64_MAX, I64_MIN, TypeClass

_U32: Final = struct.Struct("<I")

HEAD: Final = Struct(
    "number" / Int32ul,
    "rows" / Int32ul,
    "ord_min" / Int64sl,
    "ord_max" / Int64sl,
    "ts_min" / Int64sl,
    "ts_max" / Int64sl,
    "schema" / Int32ul,
    "columns" / Int32ul,
    "tail_first" / Int64ul,
    "tail_count" / Int32ul,
    Const(b"\0\0\0\0"),
)


class Entry(NamedTuple):
    """What a directory says of one column."""

    id: int
    cls: int
    presence: int
    encoding: int
    zero: int
    present: int
    base: int
    distinct: int
    offset: int
    stored: int
    decoded: int
    crc: int


ENTRIES: Final = np.dtype(list(zip(Entry._fields, "IBBBBIQIIIII", strict=True))).newbyteorder("<")
"""Entries as numpy's: a directory can hold 65,536, and construct takes 30 us for one."""


_CODE_BYTES: Final = 4


class Bounds(NamedTuple):
    """The least and greatest value of an integer column; low > high where it has none."""

    low: int = I64_MAX
    high: int = I64_MIN

    def union(self, other: Bounds) -> Bounds:
        """The bounds of both.

        Args:
            other: Other bounds.

        Returns:
            The least low and the greatest high.
        """
        return Bounds(min(self.low, other.low), max(self.high, other.high))

    def pair(self) -> list[int] | None:
        """Low and high for JSON, None where there are none."""
        return None if self.low > self.high else [self.low, self.high]


def bounds(batch: Batch, name: str) -> Bounds:
    """The bounds of an integer column.

    Args:
        batch: The events.
        name: The column.

    Returns:
        Its bounds.
    """
    column = batch.get(name)
    if column is None or not len(column):
        return Bounds()
    values = np.asarray(column.values)
    return Bounds(int(values.min()), int(values.max()))


def size_of(entry: Entry, cls: TypeClass) -> int:
    """What a column takes in memory (clause 3.1), told by the directory alone.

    Args:
        entry: The column's entry.
        cls: Its class.

    Returns:
        Bytes.
    """
    if cls in WIDTHS:
        return entry.present * WIDTHS[cls]
    size = entry.present * _CODE_BYTES + entry.decoded
    if cls.child:
        size += entry.distinct * WIDTHS.get(cls.child, _CODE_BYTES) + entry.base
    return size


def encode_columns(
    batch: Batch, schema: Schema, table: str
) -> Iterator[tuple[str, Entry, frames.Form]]:
    """Encode the columns of some rows.

    Args:
        batch: 1 to 65,536 rows.
        schema: Has an id for every column.
        table: Whose columns they are.

    Yields:
        By name each column: its entry as it is before compression, and its bytes.

    Raises:
        LimitError: A value, or all of them together, are more than a chunk may hold.
    """
    assert 0 < batch.rows <= limits.CHUNK_ROWS
    size = 0
    for name in sorted(batch.columns):
        column = batch.columns[name]
        if not len(column):
            continue
        form = frames.encode_column(column, batch.rows)
        encoded, length = form.encoded, len(form.rows) + len(form.encoded.data)
        entry = Entry(
            id=schema.id_of(table, name),
            cls=column.cls.code,
            presence=form.presence,
            encoding=encoded.encoding,
            zero=0,
            present=len(column),
            base=encoded.base,
            distinct=encoded.distinct,
            offset=0,
            stored=length,
            decoded=length,
            crc=0,
        )
        size += size_of(entry, column.cls)
        # Held against the limit column by column, so that too much is noticed early.
        if size > (limits.CHUNK_BYTES if batch.rows > 1 else limits.ROW_BYTES):
            raise LimitError(f"{batch.rows} events of more than {size} bytes in one chunk")
        yield name, entry, form


class Superseded(NamedTuple):
    """The TAIL records whose rows a chunk holds."""

    first: int = 0
    """Record number of the first one."""
    records: int = 0
    """How many there are."""


def encode(
    batch: Batch,
    schema: Schema,
    number: int,
    table: str = EVENTS,
    level: int = 3,
    tails: Superseded = Superseded(),  # noqa: B008  (immutable)
    watch: Callable[[str, TypeClass, frames.Form], None] | None = None,
) -> bytearray:
    """Encode events, or the rows of a state table.

    Args:
        batch: 1 to 65,536 rows.
        schema: Has an id for every column.
        number: The chunk's number.
        table: Whose columns they are.
        level: zstd's level.
        tails: The TAIL records that it supersedes.
        watch: Is shown name, class and bytes of every column, for whom they save work.

    Returns:
        The payload of a CHUNK record.

    Raises:
        LimitError: A value, or all of them together, are more than a chunk may hold.
    """
    entries: list[Entry] = []
    count = sum(len(column) > 0 for column in batch.columns.values())
    start = 8 + HEAD.sizeof() + count * ENTRIES.itemsize
    payload = bytearray(start)  # grows in place: joined parts would be in memory twice
    for name, entry, form in encode_columns(batch, schema, table):
        frame = form.frame(level)
        if watch is not None:
            watch(name, batch.columns[name].cls, form)
        at = len(payload) - start
        entries.append(entry._replace(offset=at, stored=len(frame), crc=zlib.crc32(frame)))
        payload += frame
    times, ords = bounds(batch, "ts"), bounds(batch, "ord")
    head = HEAD.build(
        {
            "number": number,
            "rows": batch.rows,
            "ord_min": ords.low,
            "ord_max": ords.high,
            "ts_min": times.low,
            "ts_max": times.high,
            "schema": len(schema),
            "columns": len(entries),
            "tail_first": tails.first,
            "tail_count": tails.records,
        }
    )
    directory = head + np.array(entries, ENTRIES).tobytes()
    crc = _U32.pack(zlib.crc32(directory))
    payload[:start] = b"".join([_U32.pack(len(directory)), directory, crc])
    return payload


class Entries(Mapping[str, Entry]):
    """The entries of a directory by name, in order.

    Args:
        places: The place of each name.
        made: The entries.
    """

    def __init__(self, places: Mapping[str, int], made: npt.NDArray[Any]) -> None:
        self._places = places
        self._made = made

    def __getitem__(self, name: str) -> Entry:
        return Entry._make(self._made[self._places[name]].item())

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def read_entries(
    raw: bytes | memoryview, offset: int, schema: Schema, table: str
) -> tuple[Mapping[str, Entry], int]:
    """Read the entries of a directory.

    Args:
        raw: The directory.
        offset: Where its entries begin; they go on to its end.
        schema: The columns.
        table: The table that the columns must belong to.

    Returns:
        Entries by name, in order, and what all columns take in memory, in bytes.

    Raises:
        DamagedError: They do not fit the columns or each other.
    """
    made = np.frombuffer(raw, ENTRIES, offset=offset)
    # Chunk after chunk has the same columns: what is known of them need not be found out again.
    known = schema.directory(made["id"].tobytes(), made["cls"].tobytes(), table)
    size = None if known is None else _size(made, known)
    if known is not None and size is not None:
        return Entries(known.places, made), size
    return _read_entries(made, schema, table)


def _size(made: npt.NDArray[Any], known: Directory) -> int | None:
    """What all columns take in memory; None where something is wrong with their entries."""
    stored = made["stored"].astype(np.int64)
    wrong = (made["present"] == 0) | (made["zero"] != 0) | ((stored > 0) & (made["decoded"] == 0))
    wrong |= made["offset"] != np.cumsum(stored) - stored
    wrong |= (known.item_widths > 0) & (made["base"] > limits.CHUNK_BYTES)
    if wrong.any():
        return None
    present = made["present"].astype(np.int64)
    lists = known.item_widths * made["distinct"] + made["base"].astype(np.int64)
    coded = present * _CODE_BYTES + made["decoded"] + np.where(known.item_widths > 0, lists, 0)
    return int(np.where(known.widths > 0, present * known.widths, coded).sum())


def _read_entries(
    made: npt.NDArray[Any], schema: Schema, table: str
) -> tuple[dict[str, Entry], int]:
    """The same one by one: says what is wrong."""
    found: dict[str, Entry] = {}
    last = ""
    at = size = 0
    for entry in map(Entry._make, made.tolist()):
        spec = schema.get(entry.id)
        fits = spec.table == table and spec.cls is BY_CODE.get(entry.cls)
        if not fits or not entry.present or entry.zero:
            raise DamagedError(f"a directory entry does not fit column {spec.name}")
        if spec.name <= last or entry.offset != at:
            raise DamagedError(f"column {spec.name} is not in its place in the directory")
        if entry.stored and not entry.decoded:
            raise DamagedError(f"column {spec.name} has a frame that holds nothing")
        found[spec.name] = entry
        last = spec.name
        at += entry.stored
        size += size_of(entry, spec.cls)
    return found, size


def decode_column(entry: Entry, rows: int, data: bytes) -> Column:
    """Decode one column.

    Args:
        entry: What the directory says of it.
        rows: Rows of the chunk.
        data: Its decoded bytes.

    Returns:
        The column.

    Raises:
        DamagedError: The bytes are not what the entry says.
    """
    cursor = Cursor(data)
    at = frames.decode_presence(entry.presence, entry.present, rows, cursor)
    cls = BY_CODE[entry.cls]
    if cls.child:
        if entry.encoding:
            raise DamagedError(f"class {cls} has no encoding {entry.encoding}")
        values = frames.decode_lists(cls, entry.base, entry.distinct, entry.present, cursor)
    else:
        values = frames.decode_values(
            cls, entry.encoding, entry.base, entry.distinct, entry.present, cursor
        )
    cursor.end()
    return Column(cls, values, at)


class Chunk:
    """A chunk's payload; columns are decoded when asked for."""

    def __init__(self, payload: bytes | memoryview, schema: Schema, table: str = EVENTS) -> None:
        """Read the directory.

        Args:
            payload: The payload of a CHUNK record, or its first part up to the frames wanted.
            schema: The columns.
            table: The table that the columns must belong to.

        Raises:
            DamagedError: The directory does not hold.
            LimitError: It announces more than the format allows.
        """
        self._payload = memoryview(payload)
        raw = directory_bytes(self._payload)
        self._frames = len(raw) + 8
        try:
            self.head = HEAD.parse(raw)
        except ConstructError as e:
            raise DamagedError(f"a chunk's directory is not valid: {e}") from e
        size = HEAD.sizeof() + self.head.columns * ENTRIES.itemsize
        if size != len(raw):
            raise DamagedError(f"a directory has {len(raw)} bytes", expected=str(size))
        if not 0 < self.head.rows <= limits.CHUNK_ROWS:
            raise LimitError(f"a chunk of {self.head.rows} rows", expected="1 to 65,536")
        self._entries, self.size = read_entries(raw, HEAD.sizeof(), schema, table)
        if self.size > limits.CHUNK_BYTES + limits.ROW_BYTES:
            raise LimitError(f"a chunk of {self.size} bytes in memory", expected="at most 32 MiB")

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.head.rows)

    @property
    def number(self) -> int:
        """The chunk's number."""
        return int(self.head.number)

    @property
    def tails(self) -> Superseded:
        """The TAIL records whose rows it holds."""
        return Superseded(int(self.head.tail_first), int(self.head.tail_count))

    def columns(self) -> list[str]:
        """The columns that have a value in this chunk."""
        return list(self._entries)

    def frame_range(self, name: str) -> tuple[int, int]:
        """Where a column's frame lies in the payload.

        Args:
            name: The column.

        Returns:
            Its first byte and the byte behind it.
        """
        entry = self._entries[name]
        return self._frames + entry.offset, self._frames + entry.offset + entry.stored

    def column(self, name: str, frame: bytes | memoryview | None = None) -> Column:
        """Decode one column.

        Args:
            name: One of `columns`.
            frame: Its frame, where the payload was read only in part.

        Returns:
            The column.

        Raises:
            DamagedError: The frame does not hold.
        """
        entry = self._entries[name]
        if frame is None:
            start, stop = self.frame_range(name)
            frame = self._payload[start:stop]
        if len(frame) != entry.stored or zlib.crc32(frame) != entry.crc:
            raise DamagedError(f"the frame of column {name} fails its CRC")
        data = zstd.decompress(frame, entry.decoded) if entry.decoded else b""
        return decode_column(entry, self.rows, data)

    def batch(self, wanted: Iterable[str] | None = None) -> Batch:
        """Decode the chunk.

        Args:
            wanted: Columns to decode; all where None. Unknown ones are left out.

        Returns:
            The rows.
        """
        names = self._entries if wanted is None else [n for n in wanted if n in self._entries]
        return Batch(self.rows, {n: self.column(n) for n in names})


def directory_bytes(payload: memoryview) -> bytes:
    """The directory at the start of a chunk's payload.

    Args:
        payload: The payload, or at least its directory and CRC.

    Returns:
        The directory.

    Raises:
        DamagedError: Length or CRC do not hold.
        LimitError: It is too long.
    """
    if len(payload) < 8 + HEAD.sizeof():
        raise DamagedError("a chunk is too short for its directory")
    (length,) = _U32.unpack_from(payload)
    if length > limits.DIRECTORY_BYTES:
        raise LimitError(f"a directory of {length} bytes", expected="at most 16 MiB")
    if length + 8 > len(payload):
        raise DamagedError(f"a directory of {length} bytes does not fit its chunk")
    raw = bytes(payload[4 : 4 + length])
    (crc,) = _U32.unpack_from(payload, 4 + length)
    if zlib.crc32(raw) != crc:
        raise DamagedError("a chunk's directory fails its CRC")
    return raw


def directory_length(start: bytes) -> int:
    """How much of a payload is needed to read its directory.

    Args:
        start: The first four bytes.

    Returns:
        Length with prefix and CRC.
    """
    return min(int(_U32.unpack_from(start)[0]), limits.DIRECTORY_BYTES) + 8
