"""Raw events of .scap files: as one decoded by one, whatever their kinds and versions."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scap_support as scap
from hypothesis import given
from hypothesis import strategies as st
from scap_reference import FORMATS, TYPES, parsed, simple

from kcap import limits
from kcap.errors import BadInputError
from kcap.model import catalogue
from kcap.model.batch import concat
from kcap.model.side import Loss
from kcap.readers import scap_blocks, scap_table, scap_values
from kcap.readers.scap_blocks import Blocks
from kcap.readers.scap_decode import Decoder


def values(kind: str, is_list: bool) -> st.SearchStrategy[bytes]:
    """Parameters of a kind: mostly fit ones, with and without a value."""
    texts = st.one_of(st.text(max_size=12).map(str.encode), st.binary(max_size=6))
    ended = texts.map(lambda t: t.replace(b"\0", b"") + b"\0")
    fit: st.SearchStrategy[bytes] = st.binary(max_size=40)
    if is_list:
        fit = st.lists(ended, max_size=4).map(b"".join)
    elif kind in FORMATS:
        size = struct.calcsize(FORMATS[kind])
        fit = st.binary(min_size=size, max_size=size)
    elif kind in ("CHARBUF", "FSPATH", "FSRELPATH"):
        fit = st.one_of(ended, texts)
    elif kind in scap_values.KINDS:
        fit = st.sampled_from(STRUCTURES)
    return st.one_of(fit, fit, fit, fit, st.just(b""), st.binary(max_size=9))


STRUCTURES = [
    b"\2\x7f\0\0\1\x50\0",
    b"\2\x7f\0\0\1\x50\0\x0a\0\0\1\xa0\x0f",
    b"\x0a" + bytes(15) + b"\1\x50\0",
    b"\x0a" + bytes(15) + b"\1\x50\0" + bytes(15) + b"\1\x51\0",
    b"\1/run/x\0",
    b"\1" + bytes(8) + b"\1" * 8 + b"/run/x\0",
    b"\1\0\7\0\0\0\0\0\0\0\1\0",
    b"\0\0",
    b"\2\7\0\0\0",
    b"\1\xfe\xff\xff\xff\xff\xff\xff\xff",
    b"\x7f\0\0\1",
    bytes(16),
]

NUMBERS = [*TYPES, 17, 999, 65535]


@st.composite
def events(draw: st.DrawFn, kind: int = scap.EVENT_V2) -> bytes:
    """An event of any type, with as many parameters as its type has, or less, or more."""
    number = draw(st.sampled_from(NUMBERS))
    known = TYPES[number].parameters if number in TYPES else ()
    parameters = [draw(values(p.kind, p.is_list)) for p in known]
    parameters = parameters[: draw(st.integers(0, 40))]
    if len(parameters) == len(known):
        parameters += draw(st.lists(st.binary(max_size=5), max_size=2))
    return scap.event(
        number,
        *parameters,
        ts=draw(st.sampled_from([0, 1, 1_600_000_000_000_000_000])),
        tid=draw(st.sampled_from([-1, 1, 1 << 40])),
        cpu=draw(st.integers(0, 65535)),
        kind=kind,
    )


any_events = st.lists(
    st.one_of(*map(events, (0x216, 0x216, 0x217, 0x221, 0x222))), min_size=1, max_size=20
)


def compared(data: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a file: ours, and those of one event after the other."""
    items, error, _ = scap.items(data)
    assert error is None
    runs = scap.runs(items)
    rows = scap.rows(data)
    for row in rows:
        row.pop("seq")
        row.pop("ext_flags__i64", None)
    return rows, [simple(event) for run in runs for event in parsed(run)]


@given(any_events)
def test_rows_are_those_of_one_event_after_the_other(made: list[bytes]) -> None:
    """Any events, of known and unknown types, give what reading them one by one gives."""
    rows, expected = compared(scap.scap(*made))

    assert rows == expected


@pytest.mark.parametrize("name", ["curl_google", "rename", "sample", "setns", "single_ipv6_conn"])
def test_rows_of_real_files(name: str, data: Callable[[str], Path]) -> None:
    """The same for recordings, of both versions of events."""
    rows, expected = compared(plain_bytes(data(f"scap/{name}.scap")))

    assert len(rows) > 500
    assert rows == expected


def plain_bytes(file: Path) -> bytes:
    """A file, decompressed."""
    with file.open("rb") as stream:
        pieces = Blocks(stream, file.name)._window.input.pieces()
        return b"".join(piece for piece in pieces if piece)


def test_another_value_is_noticed() -> None:
    """Negative control: one flipped bit of a value makes the comparison above fail."""
    good = scap.event(scap.CLOSE, scap.i64(3))
    other = scap.event(scap.CLOSE, scap.i64(2))
    rows, expected = compared(scap.scap(good))

    assert rows == expected
    assert rows != compared(scap.scap(other))[1]


@given(any_events, st.integers(1, 5))
def test_runs_of_any_length_give_the_same(made: list[bytes], size: int) -> None:
    """How many events are decoded together changes nothing."""
    data = scap.scap(*made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scap_blocks, "RUN_EVENTS", size)
        parts = scap.rows(data)

    assert parts == scap.rows(data)


def test_the_event_table_is_the_newest(data: Callable[[str], Path]) -> None:
    """Numbers, names, flags and parameters are those of the drivers' own table."""
    theirs = json.loads(data("tables/scap_event_table.json").read_text())
    seen = 0
    for number, (_, name, flags, parameters) in theirs.items():
        ours = TYPES.get(int(number))
        if ours is None:
            assert name == "NA"
            assert not parameters
            continue
        seen += 1
        assert ours.name == ("tracer" if name == "NA" else name)
        words = {f[3:].lower() for f in flags if f not in ("EF_NONE", "EF_UNUSED")}
        assert ours.flags | ours.categories == words
        assert [[p.name, p.kind] for p in ours.parameters] == parameters
    assert seen == len(TYPES) == 420


def test_every_kind_has_a_way_to_be_read() -> None:
    """No kind in the table is only kept as bytes for want of a reader, but buffers of bytes."""
    kinds = {p.kind for event in TYPES.values() for p in event.parameters if not p.is_list}
    known = {*FORMATS, "CHARBUF", "FSPATH", "FSRELPATH", *scap_values.KINDS}

    assert kinds - known == {"BYTEBUF"}


def test_the_first_version_uses_up_the_event() -> None:
    """Without a number of parameters it is the greatest for which the lengths add up."""
    rows = scap.rows(
        scap.scap(
            scap.event(scap.OPEN, kind=scap.EVENT),
            scap.event(scap.OPEN_EXIT, scap.i64(3), b"/a\0", scap.u32(1), kind=scap.EVENT),
            scap.event(scap.CLOSE, scap.i64(3), kind=scap.EVENT_FLAGS, flags=5),
            scap.event(999, b"abc", b"", kind=scap.EVENT),
            scap.event(999, kind=scap.EVENT),
        )
    )

    assert [row.get("shape") for row in rows] == [
        "",
        "fd:FD,name:FSPATH,flags:FLAGS32",
        "fd:FD",
        "0:BYTEBUF,!1:BYTEBUF",
        "",
    ]
    assert rows[1]["arg_name"] == "/a"
    assert rows[2]["ext_flags__i64"] == 5


def test_results() -> None:
    """The result of an exit stands in retval, its error's name in status; an enter has none."""
    rows = scap.rows(
        scap.scap(
            scap.event(scap.CLOSE_EXIT, scap.i64(-9)),
            scap.event(scap.CLOSE, scap.i64(3)),
            scap.opened("/a", fd=-2),
            scap.opened("/a", fd=7),
            scap.event(159, scap.i64(-1), scap.u32(1)),
            scap.event(161, scap.i64(-4096)),
            scap.event(scap.CLOSE_EXIT, scap.u32(1)),
            scap.event(scap.PROCEXIT, scap.i64(-1)),
        )
    )

    assert [(r.get("retval", r.get("retval__u64")), r.get("status")) for r in rows] == [
        (-9, "EBADF"),
        (None, None),
        (-2, "ENOENT"),
        (7, "SUCCESS"),
        ((1 << 64) - 1, "SUCCESS"),
        (-4096, "SUCCESS"),
        (None, None),
        (None, None),
    ]
    assert "arg_res__i64" not in rows[0]
    assert (rows[2]["arg_fd"], rows[3]["arg_fd"]) == (-2, 7)
    assert rows[6]["arg_res__bin"] == scap.u32(1)


def test_texts_that_are_none() -> None:
    """Bytes that are no UTF-8 are escaped, with the exact ones beside them, in lists, too."""
    bad, good = b"/\xff\0", b"/x\0"
    rows = scap.rows(
        scap.scap(
            scap.event(scap.OPEN_EXIT, scap.i64(1), bad),
            scap.event(scap.OPEN_EXIT, scap.i64(1), good),
            scap.event(scap.EXECVE_EXIT, scap.i64(0), b"a\0", b"x\0\xffy\0"),
            scap.event(scap.EXECVE_EXIT, scap.i64(0), b"a\0", b"x\0y\0"),
            scap.event(scap.EXECVE_EXIT, scap.i64(0), b"a\0", b"\0"),
        )
    )

    assert [(r.get("arg_name"), r.get("arg_name__raw")) for r in rows[:2]] == [
        ("/\\xff", b"/\xff"),
        ("/x", None),
    ]
    assert [(r["arg_args__list"], r.get("arg_args__list__raw")) for r in rows[2:]] == [
        (["x", "\\xffy"], b"x\0\xffy"),
        (["x", "y"], None),
        ([""], None),
    ]


def test_long_values_are_cut() -> None:
    """A value beyond the limit is cut, with its length beside it, and counted."""
    long = b"x" * (limits.VALUE_BYTES + 5)
    raw = scap.decoded(
        scap.scap(
            scap.event(324, long + b"\0", kind=scap.EVENT_LARGE),
            scap.event(322, scap.u32(1), long, kind=scap.EVENT_FLAGS_LARGE),
        )
    )
    batch = raw[0].batch
    rows = batch.to_pylist()

    assert rows[0]["arg_json"] == "x" * limits.VALUE_BYTES
    assert rows[0]["arg_json__size"] == len(long)
    assert rows[1]["arg_event_data"] == long[: limits.VALUE_BYTES]
    assert rows[1]["arg_event_data__size"] == len(long)
    assert [(s.kind, s.count) for s in batch.before if isinstance(s, Loss)] == [("cut", 2)]


def test_lists_with_too_many_items_are_json() -> None:
    """A list beyond the limit is JSON text, which holds it."""
    many = b"\0" * (limits.LIST_VALUE_ITEMS + 1)
    row = scap.rows(scap.scap(scap.event(scap.EXECVE_EXIT, scap.i64(0), b"a\0", many)))[0]

    assert json.loads(row["arg_args__json"]) == [""] * (limits.LIST_VALUE_ITEMS + 1)


WRONG = {
    "event beyond its block": scap.event(scap.CLOSE, scap.i64(3), size=64),
    "event shorter than its header": scap.event(scap.CLOSE, scap.i64(3), size=25),
    "event much shorter than its block": scap.event(scap.CLOSE, scap.i64(3), size=26),
    "first version that adds up for no number": scap.event(
        scap.CLOSE, b"x" * 9, kind=scap.EVENT, size=32
    ),
    "block shorter than a header": scap.block(scap.EVENT_V2, b"\0" * 8),
    "empty block": scap.block(scap.EVENT_V2, b""),
    "lengths beyond the event": scap.event(scap.CLOSE, scap.i64(3)).replace(
        struct.pack("<IH", 1, 8), struct.pack("<IH", 1, 9)
    ),
    "lengths short of the event": scap.event(scap.CLOSE, scap.i64(3)).replace(
        struct.pack("<IH", 1, 8), struct.pack("<IH", 1, 7)
    ),
    "too many parameters": scap.event(scap.CLOSE, scap.i64(3)).replace(
        struct.pack("<IH", 1, 8), struct.pack("<IH", 0xFFFFFFFF, 8)
    ),
}


@pytest.mark.parametrize("bad", WRONG.values(), ids=WRONG.keys())
def test_events_that_do_not_add_up(bad: bytes) -> None:
    """They end the rows with an error that says where; lenient leaves them out and counts them."""
    good = [scap.opened(f"/{i}") for i in range(4)]
    front = scap.section() + scap.machine() + b"".join(good[:2])
    data = front + bad + b"".join(good[2:])

    strict = scap.decoded(data)[0]
    lenient = scap.decoded(data, lenient=True)[0]

    assert strict.number.tolist() == [1, 2]
    assert strict.batch.rows == 2
    assert isinstance(strict.failure, BadInputError)
    assert strict.failure.offset == len(front)
    assert lenient.failure is None
    assert lenient.number.tolist() == [1, 2, 4, 5]
    assert [r["arg_name"] for r in lenient.batch.to_pylist()] == ["/0", "/1", "/2", "/3"]
    losses = [s for s in lenient.batch.before if isinstance(s, Loss)]
    assert [(loss.kind, loss.count) for loss in losses] == [("skipped", 1)]


def test_good_events_are_not_refused() -> None:
    """Negative control: the events that are damaged above are read when they are whole."""
    raw = scap.decoded(scap.scap(scap.event(scap.CLOSE, scap.i64(3)), scap.event(scap.OPEN)))

    assert raw[0].failure is None
    assert raw[0].number.tolist() == [1, 2]


@given(st.binary(max_size=200), st.sampled_from(sorted(scap_blocks.EVENTS)))
def test_any_bytes_are_events_or_are_refused(body: bytes, kind: int) -> None:
    """Whatever stands in a block of events, it is rows or a refusal."""
    data = scap.scap(scap.block(kind, body), scap.opened("/a"))

    strict = scap.decoded(data)[0]
    lenient = scap.decoded(data, lenient=True)[0]

    assert strict.batch.rows == (2 if strict.failure is None else 0)
    assert lenient.batch.rows == (2 if strict.failure is None else 1)


def test_the_envelope() -> None:
    """Number, position, source, host and kind are those of the event."""
    raw = scap.decoded(scap.scap(scap.opened("/a"), scap.opened("/b")))[0]
    row = raw.batch.to_pylist()[1]

    assert (row["seq"], row["ord"], row["kind"]) == (2, 1, "event")
    assert (row["source"], row["origin"], row["host"]) == (scap.SOURCE.id, "0" * 32, "box")
    assert raw.tid.tolist() == [100, 100]
    assert raw.type_id.tolist() == [3, 3]


def test_events_for_the_state_alone() -> None:
    """What sysdig -F adds to a filtered file has the kind state; other flags change no kind."""
    raw = scap.decoded(
        scap.scap(
            scap.opened("/a"),
            scap.opened("/b", kind=scap.EVENT_FLAGS_V2, flags=1),
            scap.opened("/c", kind=scap.EVENT_FLAGS_V2, flags=2),
            scap.opened("/d", kind=scap.EVENT_FLAGS_LARGE, flags=3),
        )
    )
    rows = raw[0].batch.to_pylist()

    assert [row["kind"] for row in rows] == ["event", "state", "event", "state"]
    assert [row.get("ext_flags__i64") for row in rows] == [None, 1, 2, 3]


def test_no_events_are_no_rows() -> None:
    """A run whose only event is refused gives an empty batch."""
    raw = scap.decoded(scap.scap(WRONG["empty block"]))[0]

    assert raw.batch.rows == 0
    assert raw.failure is not None


def test_traits_follow_the_table() -> None:
    """The arrays say of every number what the table says."""
    traits = scap_table.traits()

    assert traits.size == max(TYPES) + 1
    for number in range(traits.size + 1):
        event = TYPES.get(number)
        assert traits.known[number] == (event is not None)
        assert traits.uses_fd[number] == (event is not None and "uses_fd" in event.flags)
        both = number in TYPES and number ^ 1 in TYPES
        assert traits.has_both[number] == both
    assert scap_table.name_of(17) == "unknown_17"
    assert scap_table.name_of(269) == "tracer"


def test_events_are_in_the_catalogue() -> None:
    """Every event of the table has a row in the catalogue, and no other has."""
    assert set(catalogue.events("scap")) == {event.name for event in TYPES.values()}


def test_decoding_does_not_depend_on_order(data: Callable[[str], Path]) -> None:
    """Events of a real file in another order give the same rows in that order."""
    items, _, _ = scap.items(plain_bytes(data("scap/setns.scap")))
    run = scap.runs(items)[0]
    order = list(range(len(run.starts)))[:2000]
    random.Random(1).shuffle(order)
    blocks = [run.data[run.starts[i] : run.ends[i] + 4] for i in order]
    shuffled = scap.rows(scap.scap(*blocks))
    straight = scap.rows(
        scap.scap(*[run.data[run.starts[i] : run.ends[i] + 4] for i in range(2000)])
    )
    for row in (*shuffled, *straight):
        row.pop("seq")

    assert shuffled == [straight[i] for i in order]


def test_batches_concatenate() -> None:
    """Batches of runs with other columns become one table."""
    one = scap.decoded(scap.scap(scap.opened("/a")))[0].batch
    other = scap.decoded(scap.scap(scap.event(999, b"x")))[0].batch

    assert concat([one, other]).rows == 2
    assert Decoder(scap.SOURCE, "x").source is scap.SOURCE
