"""Tracee's gob output: the events are those of its JSON, and come as far as the file is good."""

from __future__ import annotations

import gzip
import io
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gob_support as gs
import pytest
import tracee_support as ts
import zstandard
from cli_support import run
from gob_support import EVENT, EVENTS, INT, PACKET, PARTS, PLAIN, STRING, TRACEE, UINT, Held
from hypothesis import given
from hypothesis import strategies as st
from support import Pipe, opened

from kcap.errors import BadInputError, DamagedError, KcapError
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.readers.tracee import TraceeReader
from kcap.readers.tracee_gob import TraceeGobReader
from kcap.writers.tracee_json import objects

DUMP = "tracee/tracee_event_dump_2022-10.gob"
STARTS = [sum(map(len, PARTS[: i + 1])) for i in range(len(PARTS))]
"""Where each event's message starts in `PLAIN`, and its end."""

SNIFFED = 15
"""Bytes that tell Tracee's gob output."""


def delivered(
    data: bytes, *, lenient: bool = False
) -> tuple[list[dict[str, Any]], list[Loss], KcapError | None]:
    """The events that come before a reader fails, what it tells of, and how it fails."""
    batches: list[Batch] = []
    failure = None
    try:
        for batch in TraceeGobReader(io.BytesIO(data), "in", lenient=lenient).batches():
            batches.append(batch)  # noqa: PERF402  (what came before a failure counts)
    except KcapError as error:
        failure = error
    return [e for b in batches for e in objects(b)], ts.losses(batches), failure


WANT = delivered(PLAIN)[0]


def rows(batches: list[Batch]) -> list[dict[str, Any]]:
    """All rows, but for what names the input."""
    names = {"origin", "source"}
    return [{k: v for k, v in r.items() if k not in names} for b in batches for r in b.to_pylist()]


def test_gob_and_json_of_one_dump_are_the_same(data: Callable[[str], Path]) -> None:
    """All 10,534 events: the same columns, values and shapes."""
    with data(DUMP).open("rb") as one, data(ts.DUMP).open("rb") as other:
        found = list(TraceeGobReader(one, "in").batches())
        want = list(TraceeReader(other, "in").batches())
    assert rows(found) == rows(want)
    assert sum(b.rows for b in found) == 10_534
    schemas = [{(n, c.cls) for b in bs for n, c in b.columns.items()} for bs in (found, want)]
    assert schemas[0] == schemas[1]


def test_imported_they_have_one_content_hash(data: Callable[[str], Path], tmp_path: Path) -> None:
    """The captures hold the same values; those of other events are others."""
    hashes = []
    raw = data(DUMP).read_bytes()
    (tmp_path / "changed").write_bytes(raw.replace(b"cmdline", b"cmdlime", 1))
    for i, name in enumerate([data(DUMP), data(ts.DUMP), tmp_path / "changed"]):
        out = tmp_path / f"{i}.kcap"
        assert run("import", name, "-o", out).exit_code == 0
        footer = opened(out.read_bytes()).footer
        assert footer is not None
        hashes.append(footer.totals["content_hash_values"])
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0]


def test_an_event_as_tracee_prints_it() -> None:
    """Keys, their order, the id as text, zeros and nulls are those of Tracee's JSON."""
    assert ts.same(
        WANT[1],
        {
            "timestamp": 1660739752328287264,
            "processId": 101,
            "processName": "node",
            "eventId": "257",
            "eventName": "openat",
            "argsNum": 3,
            "returnValue": 0,
            "stackAddresses": None,
            "contextFlags": {"containerStarted": True, "isCompat": False},
            "args": [
                {"name": "dirfd", "type": "int", "value": -100},
                {"name": "pathname", "type": "const char*", "value": "/etc/1"},
                {"name": "argv", "type": "const char*const*", "value": ["a", ""]},
            ],
        },
    )


def test_types_that_tracee_registers() -> None:
    """Packets and hooked symbols have the keys of Tracee's JSON, unknown types Go's names."""
    types = gs.TYPES | {90: gs.Struct("Unheard", [("Of", INT), ("Nor", STRING)])}
    packet = {"SrcIP": "10.0.0.1", "DstPort": 53}
    symbols = [{"SymbolName": "read"}, {"ModuleOwner": "evil"}]
    found = gs.event(
        0,
        gs.argument("m", "trace.PktMeta", Held("trace.PktMeta", PACKET, packet)),
        gs.argument("h", "[]trace.HookedSymbolData", Held("[]h", gs.SYMBOLS, symbols)),
        gs.argument("a", "struct sockaddr*", Held("m", gs.MAPPING, {"sa_family": "AF_INET"})),
        gs.argument("u", "x", Held("x", 90, {"Of": 1})),
        gs.argument("b", "bytes", Held("[]uint8", gs.BYTES, b"\0\1")),
        gs.argument("n", "x", None),
    )
    writer = gs.Writer(types)
    (event,), losses, failure = delivered(writer.definitions() + writer.top(EVENT, found))
    assert (losses, failure) == ([], None)
    assert {a["name"]: a["value"] for a in event["args"]} == {
        "m": {"src_ip": "10.0.0.1", "dst_port": 53, "protocol": 0},
        "h": [
            {"SymbolName": "read", "ModuleOwner": ""},
            {"SymbolName": "", "ModuleOwner": "evil"},
        ],
        "a": {"sa_family": "AF_INET"},
        "u": {"Of": 1, "Nor": ""},
        "b": "AAE=",
        "n": None,
    }


def test_later_releases() -> None:
    """Container, kubernetes and metadata as 0.13 and later print them."""
    names = [("EventName", STRING), ("Container", 81), ("Kubernetes", 82), ("Executable", 83)]
    names += [("MatchedPoliciesKernel", UINT), ("MatchedPolicies", gs.STRINGS), ("Metadata", 84)]
    types: dict[int, Any] = gs.TYPES | {
        EVENT: gs.Struct("Event", [*names, ("Args", gs.ARGS)]),
        81: gs.Struct("Container", [("ID", STRING), ("Name", STRING), ("ImageName", STRING)]),
        82: gs.Struct("Kubernetes", [("PodName", STRING), ("PodSandbox", gs.BOOL)]),
        83: gs.Struct("File", [("Path", STRING)]),
        84: gs.Struct("Metadata", [("Version", STRING), ("Properties", 85)]),
        85: gs.Map(STRING, gs.INTERFACE),
    }
    writer = gs.Writer(types)
    one = {"EventName": "a", "Container": {"ImageName": "i"}, "Kubernetes": {}, "Executable": {}}
    props = {"Severity": Held("int", INT, 3)}
    two: dict[str, Any] = one | {
        "Metadata": {"Version": "1", "Properties": props},
        "MatchedPolicies": [""],
    }
    two["MatchedPoliciesKernel"] = 7
    stream = writer.definitions() + writer.top(EVENT, one) + writer.top(EVENT, two)
    found, _, failure = delivered(stream)
    assert failure is None
    first: dict[str, Any] = {"eventName": "a", "container": {"image": "i"}, "kubernetes": {}}
    first["executable"] = {"path": ""}
    assert ts.same(found[0], first | {"args": []})
    later = {"matchedPolicies": [""], "metadata": {"Version": "1", "Properties": {"Severity": 3}}}
    assert ts.same(found[1], {**first, **later, "args": []})


def test_a_type_is_defined_where_it_is_met_first() -> None:
    """The event goes on in the next message; cut between the two it is torn."""
    late = {90: gs.Struct("Late", [("X", INT)])}
    writer = gs.Writer(gs.TYPES | late)
    held = Held("Late", 90, {"X": 5}, define=gs.definition(90, late[90]))
    body = gs.integer(EVENT) + writer.struct(
        gs.TYPES[EVENT], gs.event(0, gs.argument("x", "y", held))
    )
    cut = body.index(held.define) + len(held.define)
    halves = gs.message(body[:cut]) + gs.message(body[cut:])
    found, _, failure = delivered(PLAIN + halves + PARTS[1])
    assert failure is None
    assert found[6]["args"] == [{"name": "x", "type": "y", "value": {"X": 5}}]
    assert len(found) == 8
    found, losses, failure = delivered(PLAIN + gs.message(body[:cut]))
    assert (len(found), [loss.kind for loss in losses], failure) == (6, ["torn"], None)


def test_dumps_may_follow_each_other() -> None:
    """Two files in one, with a type changed in between: all events of both."""
    other = gs.TYPES | {EVENT: gs.Struct("Event", [("EventName", STRING), ("Args", gs.ARGS)])}
    writer = gs.Writer(other)
    more = writer.definitions() + writer.top(EVENT, {"EventName": "x"})
    found, _, failure = delivered(PLAIN + more + PLAIN)
    assert failure is None
    assert [e["eventName"] for e in found] == ["openat"] * 6 + ["x"] + ["openat"] * 6


@pytest.mark.parametrize(
    "pack", [lambda d: d, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"]
)
def test_file_and_pipe_agree(pack: Callable[[bytes], bytes]) -> None:
    """However the bytes come: the same rows, origin and source."""
    whole = list(TraceeGobReader(io.BytesIO(PLAIN), "in").batches())
    packed = list(TraceeGobReader(io.BytesIO(pack(PLAIN)), "in").batches())
    piped = list(TraceeGobReader(io.BufferedReader(Pipe(pack(PLAIN))), "in").batches())
    for other in (packed, piped):
        assert [r for b in other for r in b.to_pylist()] == [
            r for b in whole for r in b.to_pylist()
        ]


def test_events_of_a_pipe_come_as_they_are_written() -> None:
    """Behind the first MiB, an event is there before the next one is written."""
    many = b"".join(PARTS[1:]) * (2 << 20 >> 9)
    ends = os.pipe()
    got = threading.Event()

    def write() -> None:
        with os.fdopen(ends[1], "wb", 0) as out:
            out.write(PARTS[0] + many)
            out.write(PARTS[1])
            assert got.wait(20)
            out.write(PARTS[2])

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(ends[0], "rb") as stream:
        seen = 0
        for batch in TraceeGobReader(stream, "-").batches():
            seen += batch.rows
            if seen == many.count(b"openat") + 1:
                got.set()
    thread.join()
    assert seen == many.count(b"openat") + 2


def test_cut_at_every_byte() -> None:
    """All whole events, and one loss that says it is torn, unless it is cut between two."""
    for end in range(SNIFFED, len(PLAIN)):
        found, losses, failure = delivered(PLAIN[:end])
        whole = sum(s <= end for s in STARTS[1:])
        assert failure is None, end
        assert found == WANT[:whole], end
        at_edge = end in STARTS or end in DEFINED
        assert [loss.kind for loss in losses] == ([] if at_edge else ["torn"]), end
        assert TraceeGobReader.sniff(PLAIN[:end])


DEFINED = {
    sum(len(gs.message(gs.definition(*t))) for t in list(gs.TYPES.items())[: i + 1])
    for i in range(len(gs.TYPES))
}
"""Where the definitions end."""


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_compressed_and_cut_at_every_byte(pack: Callable[[bytes], bytes]) -> None:
    """What can be decompressed is delivered, whole events only."""
    packed = pack(PLAIN)
    for end in range(4, len(packed)):
        found, losses, failure = delivered(packed[:end])
        assert failure is None
        assert found == WANT[: len(found)]
        assert [loss.kind for loss in losses] == ["torn"]


@pytest.mark.parametrize("lenient", [False, True])
def test_a_flipped_bit(lenient: bool) -> None:
    """Gob has no checksum: events before the bit are as they were, the rest may not be."""
    for at in range(len(PLAIN)):
        for bit in (0, 3, 7):
            data = bytearray(PLAIN)
            data[at] ^= 1 << bit
            found, losses, failure = delivered(bytes(data), lenient=lenient)
            whole = sum(s <= at for s in STARTS[1:])
            assert found[:whole] == WANT[:whole]
            if lenient:
                assert failure is None
                # One bad message costs no more than itself, once the types are known.
                assert at < STARTS[0] or found[whole + 1 :] == WANT[whole + 1 :] or losses, at
            if failure is not None:
                assert isinstance(failure, (BadInputError, DamagedError))
                assert failure.offset is not None


@pytest.mark.parametrize("byte", [0, 1, 0x7F, 0xF7, 0xFC])
def test_after_a_bad_length_the_next_event_is_found(byte: int) -> None:
    """Lenient: only the event whose length is wrong is missing."""
    data = bytearray(PLAIN)
    for start in STARTS[1:-2]:
        data = bytearray(PLAIN)
        data[start] = byte
        place = STARTS.index(start)
        found, losses, failure = delivered(bytes(data), lenient=True)
        assert failure is None
        assert found == WANT[:place] + WANT[place + 1 :]
        assert "damaged" in {loss.kind for loss in losses}
        assert any(str(STARTS[place + 1]) in loss.reason for loss in losses)


def test_damage_in_a_file(tmp_path: Path) -> None:
    """Exit 1 with what is before it delivered; with --lenient all others, and exit 3."""
    data = bytearray(PLAIN)
    data[STARTS[3] + 4] = 0x70  # the first field of the fourth event
    path = tmp_path / "x"
    path.write_bytes(data)
    strict = run("cat", path, "--format", "jsonl")
    assert (strict.exit_code, len(strict.stdout.splitlines())) == (1, 3)
    assert f"{path}: no event: a field that its type hasn't" in strict.stderr
    assert f"byte {STARTS[3]}" in strict.stderr
    lenient = run("cat", path, "--format", "jsonl", "--lenient")
    assert (lenient.exit_code, len(lenient.stdout.splitlines())) == (3, 5)
    assert (
        "skipped: 1" in lenient.stderr
        or "1 skipped" in lenient.stderr
        or "skipped" in (lenient.stderr)
    )
    path.write_bytes(PLAIN[:-1])
    assert run("cat", path).exit_code == 3
    path.write_bytes(PLAIN)
    assert run("cat", path).exit_code == 0


def test_flips_of_a_real_dump(data: Callable[[str], Path]) -> None:
    """Random damage of the real file: only our errors, lenient loses few events."""
    raw = data(DUMP).read_bytes()[:300_000]
    total = len(delivered(raw)[0])
    chance = random.Random(4)
    for _ in range(15):
        broken = bytearray(raw)
        place = chance.randrange(2000, len(raw))
        broken[place] ^= 1 << chance.randrange(8)
        delivered(bytes(broken))
        found, _, failure = delivered(bytes(broken), lenient=True)
        assert failure is None
        assert len(found) >= total - 3, place


@given(st.lists(st.tuples(st.integers(0, 1 << 12), st.binary(max_size=9))), st.booleans())
def test_accidents(edits: list[tuple[int, bytes]], lenient: bool) -> None:
    """Bytes written over anywhere: events, losses or a `KcapError`, nothing else."""
    data = bytearray(PLAIN)
    for at, new in edits:
        start = at % len(data)
        data[start : start + len(new)] = new
    delivered(bytes(data), lenient=lenient)


@given(st.binary(max_size=300), st.booleans())
def test_anything_behind_the_definitions(raw: bytes, lenient: bool) -> None:
    """Any bytes where events belong."""
    found, losses, failure = delivered(PARTS[0] + PARTS[1] + raw, lenient=lenient)
    assert found[:1] == WANT[:1]
    assert not raw or len(found) > 1 or losses or failure


@given(st.binary(max_size=400))
def test_sniffing_takes_any_bytes(raw: bytes) -> None:
    """Whatever the head is, sniffing answers."""
    assert TraceeGobReader.sniff(raw + PLAIN) in {True, False}
    assert not TraceeGobReader.sniff(raw[:1] + b"{" + raw)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(5000),
        PLAIN[:10],
        gs.message(gs.definition(65, gs.Struct("Other", [("A", INT)]))),
        gs.message(gs.definition(65, gs.Slice(INT))) + PLAIN,
        ts.lines([ts.OPENED]),
    ],
    ids=["empty", "zeros", "start", "other", "slice", "json"],
)
def test_what_is_no_dump(data: bytes, tmp_path: Path) -> None:
    """Empty, zeros, gob of something else: not ours, and no verb takes it for ours."""
    assert not TraceeGobReader.sniff(data)
    path = tmp_path / "x"
    path.write_bytes(data)
    if not data.startswith(b"{"):
        result = run("cat", path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"kcap: {path}: ")


def test_sniffing_knows_dumps(data: Callable[[str], Path]) -> None:
    """A real dump, from its first bytes on; no other reader takes it."""
    head = data(DUMP).read_bytes()[: 1 << 16]
    for end in (SNIFFED, 100, 500, 1 << 16):
        assert TraceeGobReader.sniff(head[:end])
        assert not TraceeReader.sniff(head[:end])


def test_endless_continuations_end() -> None:
    """A value that goes on and on is a bad message, and takes no time."""
    definition = gs.definition(90, gs.Slice(INT))
    first = gs.integer(EVENT) + gs.uint(10) + b"\1\1\1\1\1x\0\1" + gs.text("T") + definition
    start = time.monotonic()
    _, _, failure = delivered(PARTS[0] + gs.message(first) + gs.message(definition) * 100_000)
    assert isinstance(failure, BadInputError)
    assert time.monotonic() - start < 5


def test_closing_twice_is_fine() -> None:
    """As every source."""
    reader = TraceeGobReader(io.BytesIO(PLAIN), "in")
    reader.close()
    reader.close()


def test_events_count() -> None:
    """The sample's events are those that were written."""
    assert len(WANT) == len(EVENTS) == 6
    assert TRACEE.types[EVENT].name == "Event"
