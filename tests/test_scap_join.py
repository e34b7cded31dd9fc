"""Enter and exit of a call as one event: a plain walk as the reference, any cut into batches."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scap_support import SOURCE, decoded, event, i64, opened, scap, u32

from kcap.model.batch import Batch, concat
from kcap.readers import scap_join, scap_table
from kcap.readers.scap_blocks import Blocks, Events
from kcap.readers.scap_decode import Decoder, RawEvents
from kcap.readers.scap_join import Joiner

OPEN, CLOSE, READ, POLL = 2, 4, 6, 80
SWITCH, PROCEXIT, FORGOTTEN = 152, 186, 5000
FDS = "arg_fds__str"

SAMPLES = (
    "alpine",
    "curl_google",
    "files",
    "full_capture",
    "nginx",
    "rename",
    "sample",
    "setns",
    "setuid",
    "single_ipv6_conn",
    "tcp-client-server",
)

Row = dict[str, Any]


def polled(*pairs: tuple[int, int]) -> bytes:
    """A list of descriptors."""
    return struct.pack("<H", len(pairs)) + b"".join(struct.pack("<qh", *p) for p in pairs)


PARAMETERS: dict[int, Callable[[int], tuple[bytes, ...]]] = {
    OPEN: lambda _: (),
    OPEN + 1: lambda n: (i64(n), f"/f{n}".encode() + b"\0", u32(1), u32(0)),
    CLOSE: lambda n: (i64(n),),
    CLOSE + 1: lambda n: (i64(-n),),
    READ: lambda n: (i64(n), u32(8)),
    READ + 1: lambda n: (i64(n), b"data", i64(n % 2), u32(8)),
    POLL: lambda n: (polled((n, 1)), i64(5)),
    POLL + 1: lambda n: (i64(1), polled((n % 2, 1))),
    SWITCH: lambda n: (i64(n),),
    PROCEXIT: lambda n: (i64(n),),
    FORGOTTEN: lambda n: (b"x" * n,),
}

raw_events = st.lists(
    st.tuples(st.sampled_from(sorted(PARAMETERS)), st.integers(1, 3), st.integers(0, 3)),
    max_size=25,
)


def raw(events: Sequence[tuple[int, int, int]]) -> RawEvents:
    """Raw events out of (type, thread, value)."""
    blocks = (
        event(kind, *PARAMETERS[kind](value), tid=tid, ts=1000 + 10 * i)
        for i, (kind, tid, value) in enumerate(events)
    )
    return decoded(scap(*blocks))[0]


def joined(found: RawEvents, cuts: Sequence[int] = (), *, raw_pairs: bool = False) -> list[Row]:
    """The rows of raw events that come in pieces."""
    joiner = Joiner(raw_pairs=raw_pairs)
    edges = [0, *sorted(min(c, found.batch.rows) for c in cuts), found.batch.rows]
    batches = []
    for start, stop in pairwise(edges):
        part = slice(start, stop)
        piece = found.batch.slice(start, stop)
        batches.append(
            joiner.add(RawEvents(piece, found.number[part], found.tid[part], found.type_id[part]))
        )
    batches.append(joiner.rest())
    return concat([b for b in batches if b.rows] or [Batch(0, {})]).to_pylist()


def walked(found: RawEvents) -> tuple[list[Row], Counter[str]]:
    """The same, one event after another: what belongs together, and what each row holds."""
    types = scap_table.event_types()
    rows = found.batch.to_pylist()
    pending: dict[int, int] = {}
    out: list[Row] = []
    counts: Counter[str] = Counter()

    def leave(index: int) -> None:
        counts["lone"] += 1
        out.append(rows[index])

    for index, row in enumerate(rows):
        kind, tid = row["event_id"], row["tid"]
        call = kind in types and kind ^ 1 in types
        if not call and row["event"] != "procexit":
            counts["other"] += 1
            out.append(without(row, "direction"))
            continue
        enter = pending.pop(tid, None)
        if enter is not None and call and kind == rows[enter]["event_id"] + 1:
            counts["joined"] += 1
            out.append(merged(rows[enter], row))
            continue
        if enter is not None:
            leave(enter)
        if call and not kind & 1:
            pending[tid] = index
        elif call:
            leave(index)
        else:
            counts["other"] += 1
            out.append(without(row, "direction"))
    for index in sorted(pending.values()):
        leave(index)
    return out, counts


def without(row: Row, *names: str) -> Row:
    """A row that lacks some columns."""
    return {name: value for name, value in row.items() if name not in names}


def merged(enter: Row, exit_: Row) -> Row:
    """One row of both halves."""
    out = without(exit_, "direction", "shape")
    for name, value in enter.items():
        if name.startswith("arg_"):
            if name not in out:
                out[name] = value
            elif out[name] != value:
                out[f"{name}__2"] = value
    if "ts" in enter and "ts" in exit_:
        out["duration_ns"] = exit_["ts"] - enter["ts"]
    return out


def plain(rows: Sequence[Row]) -> list[Row]:
    """Rows without what this reference says nothing of."""
    return [
        without(row, "action", "category", *(["shape"] if "duration_ns" in row else []))
        for row in rows
    ]


@given(raw_events, st.lists(st.integers(0, 25), max_size=4))
@example([(READ, 1, 1), (SWITCH, 1, 0), (READ + 1, 1, 1)], [1, 2])
@example([(READ, 1, 1), (OPEN, 1, 0), (READ + 1, 1, 1), (OPEN + 1, 1, 3)], [2])
@example([(POLL, 1, 0), (POLL + 1, 1, 1)], [1])
def test_joining_is_a_plain_walk(events: list[tuple[int, int, int]], cuts: list[int]) -> None:
    """Whatever the order and wherever it is cut: the rows of the reference, in its order."""
    if not events:
        return
    found = raw(events)

    rows = joined(found, cuts)

    assert plain(rows) == plain(walked(found)[0])
    assert rows == joined(found)


@given(raw_events, st.lists(st.integers(0, 25), max_size=4))
def test_raw_pairs_keep_every_half(events: list[tuple[int, int, int]], cuts: list[int]) -> None:
    """Every event stays, in its order and with its own shape; exits know what their enters said."""
    if not events:
        return
    found = raw(events)

    rows = joined(found, cuts, raw_pairs=True)

    given_rows = found.batch.to_pylist()
    assert [r["seq"] for r in rows] == [r["seq"] for r in given_rows]
    for row, before in zip(rows, given_rows, strict=True):
        assert row.items() >= before.items()
        if row["direction"] == "enter" or "duration_ns" not in row:
            assert without(row, "action", "category") == before
    told = {r["seq"]: r for r in joined(found)}
    for row in rows:
        if "duration_ns" in row:
            one = told[row["seq"]]
            assert {n: v for n, v in one.items() if not n.endswith("__2")} == {
                **without(row, "direction"),
                "shape": one["shape"],
            }


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_join_as_a_plain_walk(name: str, data: Callable[[str], Path]) -> None:
    """On real captures too, where every raw event is accounted for."""
    path = data(f"scap/{name}.scap")
    decoder = Decoder(SOURCE, name)
    joiner = Joiner()
    with path.open("rb") as stream:
        items = [i for i in Blocks(stream, name).read() if isinstance(i, Events)]
    found = [decoder.decode(item) for item in items]
    batches = [*(joiner.add(one) for one in found), joiner.rest()]

    rows = concat([b for b in batches if b.rows]).to_pylist()

    whole = RawEvents(
        concat([f.batch for f in found]),
        *(np.concatenate([getattr(f, n) for f in found]) for n in ("number", "tid", "type_id")),
    )
    expected, counts = walked(whole)
    assert plain(rows) == plain(expected)
    assert whole.batch.rows == 2 * counts["joined"] + counts["lone"] + counts["other"]
    assert len(rows) == counts["joined"] + counts["lone"] + counts["other"]


def test_a_joined_call() -> None:
    """A call has both halves' arguments, result, duration and one shape; no direction."""
    data = scap(
        event(READ, i64(3), u32(8), ts=100),
        event(READ + 1, i64(4), b"abcd", ts=350),
    )

    (row,) = joined(decoded(data)[0])

    assert (row["event"], row["action"], row["category"]) == ("read", "file_read", "file")
    assert (row["arg_fd"], row["retval"], row["status"]) == (3, 4, "SUCCESS")
    assert (row["ts"], row["duration_ns"], row["event_id"]) == (350, 250, READ + 1)
    assert row["shape"] == "res:ERRNO,data:BYTEBUF,fd:FD,size:UINT32"
    assert "direction" not in row


def test_what_both_halves_say() -> None:
    """An argument that both have stands once where it is equal, else the exit's comes first."""
    data = scap(
        event(POLL, polled((3, 1)), i64(5)),
        event(POLL + 1, i64(1), polled((3, 4))),
        event(READ, i64(3), u32(8)),
        event(READ + 1, i64(4), b"abcd", i64(3), u32(9)),
    )

    poll, read = joined(decoded(data)[0])

    assert (poll[FDS], poll[f"{FDS}__2"]) == ("3:4", "3:1")
    assert poll["shape"] == "res:ERRNO,fds:FDLIST,fds:FDLIST,timeout:INT64"
    assert (read["arg_fd"], read.get("arg_fd__2")) == (3, None)
    assert (read["arg_size"], read["arg_size__2"]) == (9, 8)


def test_a_lone_half_is_an_event() -> None:
    """It says which half it is; an enter is only about something, nothing has happened yet."""
    data = scap(opened("/a"), event(CLOSE, i64(3)))

    exit_, enter = joined(decoded(data)[0])

    assert (exit_["direction"], exit_["action"]) == ("exit", "file_open")
    assert (enter["direction"], enter.get("action"), enter["category"]) == ("enter", None, "file")


def test_enters_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more waiting enters than can be kept the oldest are given up, none is lost."""
    monkeypatch.setattr(scap_join, "HELD", 3)
    found = decoded(scap(*(event(CLOSE, i64(n), tid=n) for n in range(10))))[0]
    joiner = Joiner()

    first = joiner.add(found)

    assert [r["tid"] for r in first.to_pylist()] == list(range(7))
    assert [r["tid"] for r in joiner.rest().to_pylist()] == [7, 8, 9]


def test_control_threads_matter() -> None:
    """Negative control: halves of different threads, joined, would be noticed."""
    events = [(READ, 1, 1), (READ + 1, 2, 1)]
    found = raw(events)
    mixed = found._replace(tid=found.tid * 0)

    assert plain(joined(mixed)) != plain(walked(found)[0])
