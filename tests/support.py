"""Events and captures for the tests of the format."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, Column, concat
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX, TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.replay.chosen import chosen

FILE_ID = bytes(range(16))
SOURCE = SourceInfo("test", host="host", boot_id="boot", origin="00" * 16)

_TEXT = st.text(st.characters(exclude_categories=[]), max_size=6)
_INTEGER = st.one_of(
    st.integers(I64_MIN, I64_MAX),
    st.integers(1 << 63, U64_MAX),
    st.integers(-(1 << 80), 1 << 80),
    st.integers(0, 300),
)
_NAN = st.integers(1, (1 << 51) - 1).map(
    lambda bits: struct.unpack("<d", struct.pack("<Q", bits | 0x7FF8 << 48))[0]
)
_FLOAT = st.floats() | _NAN
VALUES = st.one_of(
    st.none(),
    _INTEGER,
    _FLOAT,
    st.booleans(),
    _TEXT,
    st.binary(max_size=6),
    st.lists(_INTEGER, max_size=4),
    st.lists(_FLOAT, max_size=4),
    st.lists(st.booleans(), max_size=4),
    st.lists(_TEXT, max_size=4),
    st.dictionaries(_TEXT, st.none() | _INTEGER | st.lists(_TEXT, max_size=2), max_size=3),
)
NAMES = st.sampled_from(["flags", "pathname", "a", "b", "é-é", "", "x2D"]) | _TEXT
RECORDS = st.lists(
    st.tuples(st.integers(I64_MIN, I64_MAX), st.dictionaries(NAMES, VALUES, max_size=5)),
    max_size=20,
)


def batch_of(records: Sequence[tuple[int, dict[str, Any]]], before: Sequence[Side] = ()) -> Batch:
    """Events of (time, arguments), as a reader would make them."""
    from kcap.model import naming, shape

    builder = RecordBuilder()
    layouts: dict[tuple[str, ...], Any] = {}
    for ts, arguments in records:
        names = tuple(arguments)
        if names not in layouts:
            fields = [Field("ts", TypeClass.I64), *(Field(naming.argument(n)) for n in names)]
            text = shape.encode([shape.Item(n, "any") for n in names])
            layouts[names] = builder.layout(fields, text)
        builder.add(layouts[names], [ts, *arguments.values()])
    count = len(builder)
    ords = Column(TypeClass.I64, np_array(range(count))) if count else None
    return builder.finish({"ord": ords} if ords else {}, before)


def np_array(values: Any) -> Any:
    """An Arrow array of int64."""
    import pyarrow as pa

    return pa.array(np.fromiter(values, np.int64))


def make_events(count: int = 300, seed: int = 1) -> Batch:
    """Seeded events with every class, sparse and dense columns, times that go back."""
    rng = random.Random(seed)
    records: list[tuple[int, dict[str, Any]]] = []
    for i in range(count):
        ts = 1_700_000_000_000_000_000 + i * 1000 + rng.randrange(-5000, 5000)
        arguments: dict[str, Any] = {
            "pathname": f"/tmp/{rng.randrange(20)}",
            "fd": rng.randrange(9),
        }
        if i % 3 == 0:
            arguments["data"] = rng.randbytes(rng.randrange(12))
        if i % 5 == 0:
            arguments |= {"big": (1 << 63) + rng.randrange(9), "real": rng.random()}
        if i % 7 == 0:
            arguments |= {"argv": ["sh", "-c", str(i)], "ok": bool(i % 2), "ids": [i, -i]}
        if i % 11 == 0:
            arguments |= {"nested": {"k": [i, None]}, "pathname": b"/tmp/\xff"}
        records.append((ts, arguments))
    return batch_of(records)


def snapshot(rows: int = 3) -> Snapshot:
    """A process table."""
    builder = RecordBuilder()
    layout = builder.layout([Field("pid", TypeClass.I64), Field("name", TypeClass.STR)])
    for i in range(rows):
        builder.add(layout, [i, f"process {i}"])
    return Snapshot({"processes": builder.finish()})


def capture(
    batches: Sequence[Batch] | None = None, *, closed: bool = True, **options: Any
) -> bytes:
    """The bytes of a capture; without batches one with every kind of record."""
    if batches is None:
        events = make_events(60)
        sides: list[Side] = [SOURCE, snapshot(), Loss("lost", 3, "a reason", cpu=1)]
        batches = [events.slice(0, 35).with_before(sides), events.slice(35, 60)]
        options.setdefault("chunk_rows", 25)
    out = io.BytesIO()
    options.setdefault("file_id", FILE_ID)
    writer = CaptureWriter(out, **options)
    for batch in batches:
        writer.write(batch)
    if closed:
        writer.close()
    else:
        writer.flush()
    return out.getvalue()


class Pipe(io.RawIOBase):
    """Bytes as a stream that can't seek and gives a few at a time."""

    def __init__(self, data: bytes, step: int = 1000) -> None:
        super().__init__()
        self._data = io.BytesIO(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._data.read(min(len(buffer), self._step))
        buffer[: len(part)] = part
        return len(part)


def opened(data: bytes, *, pipe: bool = False, **options: Any) -> CaptureReader:
    """A reader over bytes."""
    stream = io.BufferedReader(Pipe(data)) if pipe else io.BytesIO(data)
    return CaptureReader(stream, "test.kcap", **options)  # type: ignore[arg-type]


def read(data: bytes, **options: Any) -> tuple[list[Batch], list[Loss]]:
    """The batches of a capture, and the losses of reading it."""
    batches = list(opened(data, **options).batches())
    losses = [s for b in batches for s in b.before if isinstance(s, Loss) and not s.recorded]
    return batches, losses


def selected(
    reader: CaptureReader,
    columns: Iterable[str] | None = None,
    start_ns: int = I64_MIN,
    end_ns: int | None = None,
) -> list[Batch]:
    """What a capture holds, read by its index: chunk by chunk, where it says they are."""
    found, _ = chosen(reader, columns=columns, start_ns=start_ns, end_ns=end_ns)
    assert found is not reader
    return list(found.batches())


def rows_of(batches: Sequence[Batch]) -> list[str]:
    """Every event as a text that tells all values apart, floats by their bits."""
    if not batches:
        return []
    return [repr(_exact(row)) for row in concat(list(batches)).to_pylist()]


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack("<d", value).hex()
    if isinstance(value, list):
        return [_exact(v) for v in value]
    if isinstance(value, dict):
        return {k: _exact(v) for k, v in value.items()}
    return value
