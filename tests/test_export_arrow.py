"""Arrow exports come back as the same rows; what is damaged or lies is refused."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import support
from cli_support import run
from export_support import layout_for
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import BadInputError, DamagedError, KcapError, LimitError
from kcap.format.content import ContentHash
from kcap.model import arrow_sides
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, Side, Snapshot
from kcap.readers import arrow_messages
from kcap.readers.arrow_ipc import ArrowReader
from kcap.writers.about import About
from kcap.writers.arrow_ipc import ArrowIpc
from kcap.writers.layout import Profile


def exported(batches: list[Batch], *, file: bool = True) -> bytes:
    """An Arrow file or stream of some batches."""
    out = io.BytesIO()
    layout = layout_for(batches, profile=Profile.FULL)
    sink = ArrowIpc(out, layout, About("wide", "full", {}), file=file)
    for batch in batches:
        sink.write(batch)
    sink.close()
    return out.getvalue()


def opened(data: bytes, *, pipe: bool = False, **options: Any) -> ArrowReader:
    """A reader over bytes."""
    stream: Any = io.BufferedReader(support.Pipe(data, 700)) if pipe else io.BytesIO(data)
    return ArrowReader(stream, "test.arrow", **options)


def read(data: bytes, **options: Any) -> tuple[list[Batch], list[Side]]:
    """Batches and side records of an export."""
    batches = list(opened(data, **options).batches())
    return batches, [side for b in batches for side in b.before]


@given(support.RECORDS, st.integers(1, 30), st.booleans())
def test_round_trip(records: list[Any], rows: int, file: bool) -> None:
    """Events of every class come back exactly, from a file, a stream and a pipe."""
    batch = support.batch_of(records)
    parts = [batch.slice(i, i + rows) for i in range(0, batch.rows, rows)]
    data = exported(parts, file=file)

    for pipe in (False, True):
        batches, _ = read(data, pipe=pipe)
        found = support.rows_of(batches)
        assert found[: batch.rows] == [_identified(row, data) for row in support.rows_of(parts)]


def _identified(row: str, data: bytes) -> str:
    """Events of the test have a position and no origin, so the reader adds nothing."""
    assert "'ord'" in row
    assert data
    return row


def test_side_records_come_back() -> None:
    """Sources, losses and the state stand before the events that they stood before."""
    events = support.make_events(60)
    loss = Loss("lost", 3, "a reason", cpu=1, start_ns=5)
    end = Loss("torn", None, "the end")
    batches = [
        events.slice(0, 20).with_before([support.SOURCE, loss]),
        events.slice(20, 60).with_before([support.snapshot(4)]),
        EMPTY.with_before([end]),
    ]

    found, _ = read(exported(batches))

    assert support.rows_of(found) == support.rows_of([events])
    assert [b.rows for b in found] == [20, 40, 0]
    source, lost = found[0].before
    assert source == support.SOURCE
    assert isinstance(lost, Loss)
    assert (lost.to_json(), lost.recorded) == (loss.to_json(), True)
    (state,) = found[1].before
    assert isinstance(state, Snapshot)
    expected = support.snapshot(4).tables["processes"]
    assert support.rows_of([state.tables["processes"]]) == support.rows_of([expected])


@given(support.RECORDS)
def test_any_state_comes_back(records: list[Any]) -> None:
    """A state's table of any columns, also under names that an event could not have."""
    batch = support.batch_of(records)
    table = Batch(batch.rows, {f"{n}!": c for n, c in batch.columns.items() if len(c)})
    if not table.columns:
        return

    (found,) = arrow_sides.unpack(arrow_sides.pack([Snapshot({"t": table})]))

    assert isinstance(found, Snapshot)
    assert support.rows_of([found.tables["t"]]) == support.rows_of([table])


@pytest.mark.parametrize("pipe", [False, True])
def test_the_verbs_there_and_back(closed: Path, tmp_path: Path, pipe: bool) -> None:
    """export to Arrow and import again give equal content_hash, sources, losses and state."""
    there, back = tmp_path / "there.arrow", tmp_path / "back.kcap"
    if pipe:
        there.write_bytes(run("export", closed, "--format", "arrow").stdout_bytes)
    else:
        assert run("export", closed, "-o", there).exit_code == 0

    assert run("import", there, "-o", back).exit_code == 0

    assert hashes(back) == hashes(closed)
    sides = [s for b in support.opened(back.read_bytes()).batches() for s in b.before]
    assert {type(s) for s in sides} >= {type(support.SOURCE), Loss, Snapshot}


def test_any_change_shows_in_the_hash(closed: Path, tmp_path: Path) -> None:
    """Negative control: one event less is another content_hash."""
    there, back = tmp_path / "there.arrow", tmp_path / "back.kcap"
    assert run("export", closed, "-n", "59", "-o", there).exit_code == 0
    assert run("import", there, "-o", back).exit_code == 0

    assert hashes(back) != hashes(closed)


def hashes(path: Path) -> dict[str, Any]:
    """The content hashes of a capture, computed anew."""
    content = ContentHash()
    for batch in support.opened(path.read_bytes()).batches():
        content.add(batch)
    return content.digests()


def test_an_input_that_ends_early() -> None:
    """Cut anywhere, what is complete is delivered, and the end is a loss; no traceback."""
    events = support.make_events(90)
    snapshot = support.snapshot()
    parts = [events.slice(i, i + 30).with_before([snapshot]) for i in (0, 30, 60)]
    data = exported(parts)
    expected = support.rows_of([events])
    seen = set()
    for stop in range(16, len(data), 97):
        batches, sides = read(data[:stop])
        rows = support.rows_of(batches)
        assert rows == expected[: len(rows)]
        seen.add(len(rows))
        torn = [s for s in sides if isinstance(s, Loss) and s.kind == "torn"]
        assert bool(torn) == (stop < _end_of_messages(data))

    assert seen == {0, 30, 60, 90}


def _end_of_messages(data: bytes) -> int:
    found = arrow_messages.Messages(io.BytesIO(data), "x")
    while found.next():
        pass
    return found.offset + 8


def test_damage() -> None:
    """A flip is an error, unseen where Arrow has no checksum, and never another exception."""
    data = exported([support.make_events(40).with_before([support.snapshot()])])
    raised = 0
    for at in range(8, len(data), 13):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with contextlib.suppress(KcapError):  # nothing else comes out, or the test fails
            list(opened(bytes(damaged)).batches())
            continue
        raised += 1
    assert raised > 20


def test_lenient_ends_at_damage() -> None:
    """What came before damage is kept and the rest counted; without --lenient it is an error."""
    parts = [support.make_events(10, seed).with_before([support.snapshot()]) for seed in range(3)]
    data = bytearray(exported(parts))
    found = arrow_messages.Messages(io.BytesIO(bytes(data)), "x")
    for _ in range(3):
        found.next()
    data[found.offset] = 0

    batches, sides = read(bytes(data), lenient=True)
    with pytest.raises(DamagedError) as caught:
        read(bytes(data))

    assert sum(b.rows for b in batches) == 10
    assert any(isinstance(s, Loss) and s.kind == "damaged" for s in sides)
    assert caught.value.offset == found.offset


def test_a_bomb_is_refused_before_it_is_read() -> None:
    """A buffer that says it will be huge, or a body or metadata that is, costs no memory."""
    data = bytearray(exported([support.make_events(3000)], file=False))
    found = arrow_messages.Messages(io.BytesIO(bytes(data)), "x")
    found.next()
    message = found.next()
    length = struct.unpack_from("<i", message, 4)[0]
    body = found.offset + 8 + length
    for at in range(body, body + 4000, 8):
        if 8 < struct.unpack_from("<q", data, at)[0] < 1 << 30:
            struct.pack_into("<q", data, at, 1 << 40)
            break

    with pytest.raises(LimitError, match="buffers of"):
        read(bytes(data))
    with pytest.raises(LimitError, match="metadata"):
        read(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100))


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        (pa.table({"path": ["a"]}), BadInputError, "path is no column's name"),
        (pa.table({"pid": ["a"]}), BadInputError, "column pid"),
        (pa.table({"event": pa.array(["a"]).dictionary_encode()}), DamagedError, "dictionary"),
    ],
)
def test_other_columns(table: pa.Table, error: type[KcapError], said: str) -> None:
    """What carries none of kcap's names or types is refused by name."""
    with pytest.raises(error, match=said):
        read(_stream(table))


def _stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def test_another_programs_events() -> None:
    """Events without identity get an origin, that of the bytes, and positions."""
    data = _stream(pa.table({"pid": [1, 2], "event": ["open", "close"]}))

    (batch,) = [b for b in opened(data).batches() if b.rows]
    (again,) = [b for b in opened(data, pipe=True).batches() if b.rows]

    assert batch.array("ord").to_pylist() == [0, 1]
    assert len(batch.array("origin")[0].as_py()) == 32
    assert support.rows_of([batch]) == support.rows_of([again])
    (source,) = batch.before
    assert batch.array("source").to_pylist() == [source.id] * 2  # type: ignore[union-attr]


def test_polars_there_and_back(tmp_path: Path) -> None:
    """Polars reads the file, and what it writes of it is read again."""
    data = exported([support.make_events(50)])
    frame = pl.read_ipc(io.BytesIO(data))
    assert frame.shape[0] == 50
    back = tmp_path / "p.arrow"
    frame.filter(pl.col("ord") < 10).write_ipc_stream(back, compat_level=pl.CompatLevel.oldest())

    batches, _ = read(back.read_bytes())

    assert support.rows_of(batches) == support.rows_of([support.make_events(50).slice(0, 10)])


def test_sniffing() -> None:
    """Both forms are told by their content, and nothing else is taken for them."""
    events = [support.make_events(5)]
    assert arrow_messages.sniff(exported(events)[:4096])
    assert arrow_messages.sniff(exported(events, file=False)[:4096])
    for other in (b"", b"\xff\xff\xff\xff", b"\xff" * 64, support.capture()[:64], b"{}", b"PAR1"):
        assert not arrow_messages.sniff(other)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{}", b"[1]", b"[{}]", b'[{"source": 1}]', b'[{"x": {}}]', b"[" * 100_000),
        *(b'[{"snapshot": {"t": 1}}]', b'[{"snapshot": {"t": "#"}}]', b'[{"snapshot": []}]'),
        *(b'[{"snapshot": {"t": "AAAA"}}]', b'[{"loss": {"count": "x"}}]', b"\xff"),
    ],
)
def test_side_records_that_make_no_sense(text: bytes) -> None:
    """They are refused as damage, whatever they are."""
    with pytest.raises(KcapError):
        arrow_sides.unpack(text)
