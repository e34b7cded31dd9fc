"""Against sysdig: a .scap file has as many events for us, and its calls last as long."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scap_oracle import FILES, UNKNOWN_IDS, numbers, oracle, sysdig_of
from scap_rows import cut_rows, rows

Data = Callable[[str], Path]
Program = Callable[[str], str]

HIDDEN = {
    "alpine": 1,
    "files": 2,
    "full_capture": 2,
    "nginx": 2,
    "rename": 1,
    "setns": 2,
    "setuid": 2,
    "tcp-client-server": 3,
}
"""How many records of containers stand before all others: sysdig counts but never prints them."""

UNKNOWN = {"rename": {354: 10, 358: 10}, "sample": {354: 34, 358: 61}}
"""Event types that this sysdig does not know, and how often they occur."""

EVENT_BLOCKS = {0x204, 0x208, 0x216, 0x217, 0x221, 0x222}


def event_blocks(data: bytes) -> int:
    """Count the complete event blocks of a file, by its block headers alone."""
    if data[:2] == b"\x1f\x8b":
        data = zlib.decompressobj(31).decompress(data)
    at = count = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        at += length
        count += kind in EVENT_BLOCKS and at <= len(data)
    return count


@pytest.mark.parametrize("name", FILES)
def test_every_event_is_counted(name: str, data: Data, program: Program) -> None:
    """We have the events that sysdig counts, and those it does not know."""
    path = data(f"scap/{name}.scap")
    ours = rows(path)
    theirs = oracle(sysdig_of(program), path).events
    unknown = Counter(r["event_id"] for r in ours if r["event_id"] in UNKNOWN_IDS)

    assert len(ours) == event_blocks(path.read_bytes())
    assert len(ours) == max(theirs) + unknown.total()
    assert unknown == UNKNOWN.get(name, {})
    assert [r["seq"] for r in ours] == list(range(1, len(ours) + 1))


@pytest.mark.parametrize("name", FILES)
def test_only_records_at_the_head_are_not_printed(name: str, data: Data, program: Program) -> None:
    """sysdig prints every event that it counts but containers known from the start."""
    path = data(f"scap/{name}.scap")
    theirs = oracle(sysdig_of(program), path).events
    missing = sorted(set(range(1, max(theirs) + 1)) - theirs.keys())
    events = [r["event"] for r in rows(path)]

    assert missing == list(range(1, HIDDEN.get(name, 0) + 1))
    assert {events[n - 1] for n in missing} <= {"container"}


@pytest.mark.parametrize("name", ["alpine", "curl_google", "rename"])
def test_a_cut_file_has_every_complete_block(
    name: str, data: Data, program: Program, tmp_path: Path
) -> None:
    """Of a file cut in the middle we have the events of all blocks before the cut, as sysdig."""
    whole = data(f"scap/{name}.scap").read_bytes()
    path = tmp_path / "cut.scap"
    path.write_bytes(whole[: len(whole) * 3 // 4])
    ours, losses = cut_rows(path)
    unknown = sum(r["event_id"] in UNKNOWN_IDS for r in ours)

    assert 0 < len(ours) < event_blocks(whole)
    assert len(ours) == event_blocks(path.read_bytes())
    assert len(ours) == max(oracle(sysdig_of(program), path).events) + unknown
    assert [loss.kind for loss in losses] == ["torn"]


def durations(path: Path) -> Iterator[tuple[int, Any]]:
    """The number of every exit and how long the call took, None for a lone exit."""
    known = {r["seq"]: n for n, r in zip(numbers(rows(path)), rows(path), strict=True)}
    for row in rows(path, raw_pairs=False):
        if row.get("direction") != "enter" and row["event_id"] % 2 and known[row["seq"]]:
            yield known[row["seq"]], row.get("duration_ns")


@pytest.mark.parametrize("name", FILES)
def test_calls_last_as_long(name: str, data: Data, program: Program) -> None:
    """An event joined of both its halves took as long as sysdig says of its exit."""
    path = data(f"scap/{name}.scap")
    theirs = oracle(sysdig_of(program), path).latencies
    ours = dict(durations(path))

    assert ours.keys() == theirs.keys()
    assert {n: d or 0 for n, d in ours.items()} == theirs


@pytest.mark.parametrize("name", FILES)
def test_a_joined_event_is_its_exit(name: str, data: Data) -> None:
    """Joined or not, an exit has the same time, names, result and place: compared with sysdig."""
    path = data(f"scap/{name}.scap")
    exits = {r["seq"]: envelope(r) for r in rows(path)}
    joined = rows(path, raw_pairs=False)

    assert len(joined) < len(exits)
    assert [envelope(r) for r in joined] == [exits[r["seq"]] for r in joined]


def envelope(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of an event that are no argument, and not of joining itself."""
    return {
        name: value
        for name, value in row.items()
        if not name.startswith("arg_") and name not in ("direction", "shape")
    }


def test_a_wrong_length_is_noticed(data: Data, program: Program) -> None:
    """Negative control: an exit joined to another enter has another duration."""
    path = data("scap/nginx.scap")
    theirs = oracle(sysdig_of(program), path).latencies
    ours = dict(durations(path))
    joined = [n for n, d in ours.items() if d]

    assert len(joined) > 100
    assert [ours[n] for n in joined] == [theirs[n] for n in joined]
    assert [ours[n] for n in joined[1:]] != [theirs[n] for n in joined[:-1]]
