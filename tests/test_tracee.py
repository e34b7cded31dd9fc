"""Tracee's events from files and pipes: real, bad, cut and damaged ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import select
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tracee_support import (
    DNS,
    DOCS,
    DUMP,
    GRPC,
    OPENED,
    REPLAY,
    V1BETA1,
    lines,
    losses,
    read,
    rebuilt,
    same,
    schema,
    unpacked,
)

from kcap import limits
from kcap.errors import BadInputError, DamagedError, KcapError, LimitError
from kcap.model import catalogue
from kcap.model.batch import Batch
from kcap.readers import tracee
from kcap.readers.tracee import TraceeReader
from kcap.writers.tracee_json import objects


def reader(data: bytes) -> TraceeReader:
    return TraceeReader(io.BytesIO(data), "in")


# Real events


def test_the_dump_has_its_events_and_its_backward_steps(data: Callable[[str], Path]) -> None:
    """10,534 events, 2,964 of which are before their neighbour, in batches of a bounded size."""
    batches = read(data(DUMP).read_bytes())
    times = np.concatenate([batch.numpy("ts", -1) for batch in batches])

    assert len(times) == 10534
    assert int((np.diff(times) < 0).sum()) == 2964
    assert [batch.rows for batch in batches] == [tracee.BATCH_ROWS, 10534 - tracee.BATCH_ROWS]
    assert losses(batches) == []
    ords = np.concatenate([batch.numpy("ord", -1) for batch in batches])
    assert (ords == np.arange(10534)).all()


@pytest.mark.parametrize("name", [DUMP, DNS, DOCS, REPLAY])
def test_every_real_event_is_rebuilt_exactly(name: str, data: Callable[[str], Path]) -> None:
    """Key order, types, nulls and values of every object come back from shape and columns."""
    source = unpacked(data(name))
    expected = [json.loads(line) for line in source.splitlines()]
    got = rebuilt(source)

    assert len(got) == len(expected)
    assert all(map(same, got, expected))


def test_the_comparison_sees_every_difference() -> None:
    """Negative control: a value, a type, a key's place or an argument's place is a difference."""
    swapped = dict(reversed(OPENED.items()))
    assert same(OPENED, json.loads(json.dumps(OPENED)))
    for other in (
        swapped,
        OPENED | {"argsNum": 1.0},
        OPENED | {"argsNum": True},
        OPENED | {"eventId": 257},
        {k: v for k, v in OPENED.items() if k != "argsNum"},
        OPENED | {"args": []},
        OPENED | {"args": None},
    ):
        assert not same(OPENED, other)
        assert same(rebuilt(lines([other]))[0], other)


def test_a_changed_shape_or_column_is_a_changed_object() -> None:
    """Negative control: the object really comes from shape and columns."""
    (batch,) = read(lines([OPENED]))
    (other,) = read(lines([OPENED | {"hostProcessId": 78}]))
    mixed = batch.adding({"pid": other.columns["pid"]})

    assert not same(next(objects(mixed)), OPENED)
    assert next(objects(mixed))["hostProcessId"] == 78


@pytest.mark.parametrize("name", [DUMP, DOCS])
def test_the_order_of_events_does_not_matter_to_the_schema(
    name: str, data: Callable[[str], Path]
) -> None:
    """Any order of the lines gives the same columns of the same classes."""
    found = unpacked(data(name)).splitlines(keepends=True)
    expected = schema(b"".join(found))

    assert schema(b"".join(reversed(found))) == expected
    random.Random(2).shuffle(found)
    assert schema(b"".join(found)) == expected
    for column, cls in expected:
        assert catalogue.class_of(column) == cls


def test_the_envelope_of_a_real_event(data: Callable[[str], Path]) -> None:
    """Known fields, and what kcap makes of them, stand in the envelope."""
    row = read(data(DUMP).read_bytes())[0].to_pylist()[1]

    assert {k: row[k] for k in ("event", "action", "category", "kind", "host")} == {
        "event": "openat",
        "action": "file_open",
        "category": "file",
        "kind": "event",
        "host": "ip-172-31-72-78",
    }
    assert (row["pid"], row["ns_ppid"], row["event_id"], row["retval"]) == (664966, 664930, 257, 24)
    assert row["ts"] == 1660739752328274613
    assert row["process_start_ns"] == row["thread_start_ns"] == 1906901974396462
    assert row["container_started"] is False
    assert row["arg_pathname"] == "/proc/705536/cmdline"
    assert "stack_addresses" not in row


# Bad input

BAD = [
    b"not json",
    b'{"eventName": "x"',
    b"[1, 2]",
    b"3",
    b'{"timestamp": 1}',
    b'{"eventName": 5}',
    b'{"name": "x"}',
    b'{"eventName": "x", "args": {"a": 1}}',
    b'{"eventName": "x", "args": 7}',
    b'{"eventName": "x", "n": ' + b"9" * 5000 + b"}",
    b'{"eventName": "x", "n": ' + b"[" * 100000 + b"}",
    b'{"eventName": "x", "n": "\xff"}',
    b'{"eventName": "x"} {"eventName": "y"}',
    b'{"eventName": "x\x01"}',
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_line_ends_strict_reading_after_all_before_it(bad: bytes) -> None:
    """The error names file, line and byte, and shows no more than the start of the line."""
    good = lines([OPENED] * 3)
    batches: list[Batch] = []
    with pytest.raises(BadInputError) as caught:
        batches.extend(reader(good + b"\n" + bad + b"\n" + good).batches())

    assert [batch.rows for batch in batches] == [3]
    assert (caught.value.file, caught.value.line, caught.value.offset) == ("in", 5, len(good) + 1)
    assert len(str(caught.value)) < 250
    assert "--lenient" in (caught.value.hint or "")


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_lenient_reading_skips_counts_and_goes_on(bad: bytes) -> None:
    """Bad lines are counted and the first of them named; all others are there."""
    batches = read(lines([OPENED]) + (bad + b"\n") * 5 + lines([OPENED]), lenient=True)
    (loss,) = losses(batches)

    assert sum(batch.rows for batch in batches) == 2
    assert (loss.kind, loss.count) == ("skipped", 5)
    assert "at line 2, byte" in loss.reason
    assert "…" in loss.reason


def test_skipped_lines_alone_are_told_too() -> None:
    """A file of nothing but bad lines has no events, and says so."""
    (batch,) = read(b"a\n" * 20000, lenient=True)

    assert (batch.rows, losses([batch])[0].count) == (0, 20000)


def test_many_bad_lines_cost_no_more_each_than_a_few() -> None:
    """200,000 of them take seconds; all are counted, the first are named with their places."""
    before = b"x" * 9 + b"\n"
    started = time.perf_counter()
    (batch,) = read(before + b"ab\n" * 200_000, lenient=True)
    took = time.perf_counter() - started
    (loss,) = losses([batch])

    assert loss.count == 200_001
    places = re.findall(r"at line (\d+), byte (\d+)", loss.reason)
    assert places == [("1", "0"), ("2", "10"), ("3", "13")]
    assert took < 15  # adding up the lines before each took minutes


def test_bad_lines_between_good_ones_are_named_where_they_are() -> None:
    """Each batch names its own first bad lines, however many blocks of lines it came from."""
    parts = [lines([OPENED]) * 400 + b"bad %d\n" % i for i in range(40)]
    data = b"".join(parts)
    found = losses(read(data, lenient=True))

    assert sum(loss.count or 0 for loss in found) == 40
    places = [p for loss in found for p in re.findall(r"'(bad \d+)' at .*?byte (\d+)", loss.reason)]
    assert len(places) == 3 * len(found) >= 6
    for bad, offset in places:
        assert data[int(offset) :].startswith(f"{bad}\n".encode())


def test_secrets_do_not_get_into_messages() -> None:
    """Of a bad line only its start is shown."""
    line = json.dumps({"timestamp": 1, "padding": "x" * 60, "env": "TOKEN=hunter2"}).encode()
    with pytest.raises(BadInputError) as caught:
        read(line + b"\n")

    assert "timestamp" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_line_beyond_the_limit() -> None:
    """Strict reading ends with `LimitError`, lenient reading skips the line."""
    data = lines([OPENED]) + b'{"x":"' + b"y" * (16 << 20) + b'"}\n' + lines([OPENED])
    with pytest.raises(LimitError):
        read(data)
    batches = read(data, lenient=True)

    assert sum(batch.rows for batch in batches) == 2
    assert [(loss.kind, loss.count) for loss in losses(batches)] == [("skipped", 1)]


def test_long_lines_within_the_limit_are_events() -> None:
    """1 MiB of text in an argument: the event is there, the value cut, its true length kept."""
    args = [{"name": "argv", "type": "s", "value": "z" * (1 << 20)}]
    batches = read(lines([OPENED | {"args": args}] * 20))

    assert len(batches) > 1
    assert sum(batch.rows for batch in batches) == 20
    assert sum(loss.count or 0 for loss in losses(batches)) == 20
    row = batches[0].to_pylist()[0]
    assert len(str(row["arg_argv__str"])) == 64 << 10
    assert row["arg_argv__str__size"] == 1 << 20
    assert next(objects(batches[0]))["args"][0]["value"] == row["arg_argv__str"]


def test_empty_lines_byte_order_mark_and_missing_newline() -> None:
    """None of them matters."""
    event = json.dumps(OPENED).encode()

    assert [b.rows for b in read(b"\xef\xbb\xbf" + event + b"\r\n\n  \n\n" + event)] == [2]
    assert read(b"") == []
    assert read(b"\n\n") == []


# Cut and damaged


def test_a_cut_plain_file_gives_its_complete_lines() -> None:
    """Cut at every byte: complete lines are events, the rest is torn, without any flag."""
    data = lines([OPENED] * 3)
    size = len(data) // 3
    for end in range(len(data)):
        batches = read(data[:end])
        whole, rest = divmod(end + 1, size)
        assert sum(batch.rows for batch in batches) == whole
        found = losses(batches)
        # A line that is complete but for its newline is an event like any other.
        assert [loss.kind for loss in found] == (["torn"] if rest > 1 else [])
        assert all(f"byte {whole * size}" in loss.reason for loss in found)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_cut_compressed_file_gives_its_complete_lines(
    pack: Callable[[bytes], bytes], data: Callable[[str], Path]
) -> None:
    """Cut at many places, the events are exactly the complete lines, and the loss is told."""
    source = b"".join(unpacked(data(DUMP)).splitlines(keepends=True)[:600])
    expected = [json.loads(line) for line in source.splitlines()]
    packed = pack(source)
    counts = set()
    for end in range(20, len(packed), max(1, len(packed) // 60)):
        batches = read(packed[:end])
        got = [item for batch in batches for item in objects(batch)]
        assert all(map(same, got, expected))
        assert [loss.kind for loss in losses(batches)] == ["torn"]
        assert f"byte {end}" in losses(batches)[0].reason
        counts.add(len(got))

    assert len(counts) > 3
    assert read(packed)[0].rows == 600


def test_a_cut_dump_gives_all_lines_before_the_cut(data: Callable[[str], Path]) -> None:
    """The real gzip file, cut at some places, against what zlib makes of the same bytes."""
    packed = data(DUMP).read_bytes()
    for end in range(1000, len(packed), len(packed) // 5):
        text = zlib.decompressobj(wbits=31).decompress(packed[:end])
        batches = read(packed[:end])
        assert sum(batch.rows for batch in batches) == text.count(b"\n")
        assert [loss.kind for loss in losses(batches)] == ["torn"]


def test_damage_ends_strict_reading_and_is_a_loss_when_lenient() -> None:
    """What was good before the damage is delivered either way."""
    packed = bytearray(gzip.compress(lines([OPENED] * 50)))
    packed[-7] ^= 0xFF
    strict: list[Batch] = []
    with pytest.raises(DamagedError, match="in: damaged gzip data"):
        strict.extend(reader(bytes(packed)).batches())
    batches = read(bytes(packed), lenient=True)

    assert sum(b.rows for b in strict) == sum(b.rows for b in batches) == 50
    assert [loss.kind for loss in losses(batches)] == ["damaged"]


@given(st.data())
def test_only_kcap_errors_come_out(draw: st.DataObject) -> None:
    """Bytes changed anywhere, packed or not: rows, losses or a `KcapError`, nothing else."""
    pack = draw.draw(st.sampled_from([bytes, gzip.compress, zstandard.compress]))
    raw = bytearray(pack(lines([OPENED, V1BETA1, GRPC])))
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(raw) - 1))
        raw[at] = draw.draw(st.integers(0, 255))
    for lenient in (False, True):
        try:
            batches = read(bytes(raw), lenient=lenient)
        except KcapError:
            continue
        for batch in batches:
            assert len(list(objects(batch))) == batch.rows


def test_endless_new_shapes_do_not_fill_the_memory() -> None:
    """Layouts are let go of: an input in which no two events are alike is no attack."""
    events = (OPENED | {f"k{i}": 1} for i in range(20000))
    source = reader(lines(events))
    most = 0
    for _ in source.batches():
        assert len(source._records) <= tracee.KEPT_FIELDS + limits.EVENT_FIELDS
        most = max(most, len(source._records))

    assert most > tracee.KEPT_FIELDS / 2


@pytest.mark.parametrize("name", ["openat", 5], ids=["events", "bad lines"])
def test_new_shapes_of_many_fields_do_not_fill_the_memory(name: object) -> None:
    """Neither do a few thousand fields in every line, nor lines that are no event in the end."""
    events = ({"eventName": name} | {f"{i}k{j}": 1 for j in range(4000)} for i in range(50))
    source = TraceeReader(io.BytesIO(lines(events)), "in", lenient=True)
    most = tracee.KEPT_FIELDS + limits.EVENT_FIELDS
    widths = [len(batch.columns) for batch in source.batches()]

    assert most < 50 * 4000
    assert max(widths) < most
    assert 0 < len(source._records) <= most


# Where it comes from


def test_pipe_file_and_compressed_agree(data: Callable[[str], Path], tmp_path: Path) -> None:
    """The same origin, source and rows, however the bytes come."""
    source = unpacked(data(DOCS)) * 8  # more than the MiB that names the origin
    path = tmp_path / "events"
    path.write_bytes(source)
    ends = os.pipe()
    if os.fork() == 0:  # pragma: no cover
        os.close(ends[0])
        with os.fdopen(ends[1], "wb") as out:
            out.write(source)
        os._exit(0)
    os.close(ends[1])
    with path.open("rb") as file, os.fdopen(ends[0], "rb") as pipe:
        streams: list[BinaryIO] = [
            file,
            pipe,
            io.BytesIO(gzip.compress(source)),
            io.BytesIO(zstandard.compress(source)),
        ]
        found = [
            (reader.info.sources[0].id, [row for b in reader.batches() for row in b.to_pylist()])
            for reader in (TraceeReader(stream, "in") for stream in streams)
        ]
    os.wait()

    assert all(each == found[0] for each in found)
    assert len(found[0][1]) == 8 * 203
    assert len(str(found[0][1][0]["origin"])) == 32


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_events_of_a_pipe_are_shown_as_they_come(packed: bool, root: Path) -> None:
    """After the first MiB, which names the origin, each event is shown before the next comes."""
    zipper = zlib.compressobj(wbits=31)

    def pack(data: bytes) -> bytes:
        return zipper.compress(data) + zipper.flush(zlib.Z_SYNC_FLUSH) if packed else data

    event = lines([OPENED])
    count = (1 << 20) // len(event)
    command = [sys.executable, "-m", "kcap.tools", "cat", "-"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        out = select.poll()
        out.register(process.stdout, select.POLLIN)
        process.stdin.write(pack(event * count))
        early = out.poll(1000)
        process.stdin.write(pack(event))
        shown = 0
        while shown < count + 1 and out.poll(20_000):
            shown += process.stdout.read(1 << 16).count(b"\n")
        each = []
        for i in range(3):
            process.stdin.write(pack(lines([OPENED | {"hostProcessId": 1000 + i}])))
            each.append(out.poll(20_000) and process.stdout.read(1 << 16))
        process.stdin.close()
        rest = process.stdout.read()

    assert not early  # negative control: the first MiB was not complete yet
    assert shown == count + 1
    assert [f"({1000 + i})".encode() in text for i, text in enumerate(each)] == [True] * 3
    assert rest == b""


def test_the_origin_is_a_hash_of_name_and_first_mib() -> None:
    """Known before the first row, and no more of the input counts."""
    data = lines([OPENED] * 5000)
    reader = TraceeReader(io.BytesIO(data), "in")
    expected = hashlib.sha256(b"tracee" + data[: 1 << 20]).hexdigest()[:32]

    assert len(data) > 1 << 20
    assert reader.info.sources[0].origin == expected
    assert sum(batch.rows for batch in reader.batches()) == 5000
    assert TraceeReader(io.BytesIO(b" " + data), "in").info.sources[0].origin != expected


def test_sniffing_knows_tracee_and_nothing_else(data: Callable[[str], Path]) -> None:
    """Every spelling is known, also from an incomplete first line; other JSON lines are not."""
    for name in (DUMP, DNS, DOCS, REPLAY):
        assert TraceeReader.sniff(unpacked(data(name))[: 64 << 10])
    for event in (OPENED, V1BETA1, GRPC):
        line = lines([event])
        assert TraceeReader.sniff(line)
        assert TraceeReader.sniff(b"\xef\xbb\xbf\n\n" + line + b"rest")
        assert TraceeReader.sniff(b"broken\n" + line)
    assert TraceeReader.sniff(json.dumps(OPENED | {"eventName": "x", "z": "y" * 99}).encode()[:-50])
    assert TraceeReader.sniff(json.dumps(V1BETA1).encode()[:-50])
    for other in (
        b"",
        b"\x00\x01\x02",
        b"[1,2]\n",
        b'{"event":"openat","ts":1}\n',
        b'{"name":"CreateFile","pid":4}\n',
        b'{"name":"x","id":1}\n',
        b'event,"eventName": "x"\n',
        b"KCAP",
    ):
        assert not TraceeReader.sniff(other)
