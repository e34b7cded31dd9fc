"""Packet captures made to cost much: what one costs grows with its size alone."""

from __future__ import annotations

import io
import json
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcap_support import (
    RAW,
    Packet,
    block,
    enhanced,
    interface,
    ipv4,
    losses,
    obsolete,
    pcap,
    read,
    section,
    simple,
    udp,
)

from kcap.errors import KcapError
from kcap.model.side import Loss
from kcap.packets import dns, tls
from kcap.readers import pcapng_options
from kcap.readers.pcap_source import GAPS
from kcap.readers.pcapng import PcapngReader
from kcap.readers.pcapng_blocks import Process

ONE = ipv4(udp(1, 2), 17)
HEAD = section("<") + interface("<", RAW)
MANY = 4000
STATISTICS = block("<", 5, struct.pack("<3I", 0, 0, 0))


def darwin(pid: int, name: bytes) -> bytes:
    """Darwin's description of a process."""
    return block(
        "<", 0x80000001, struct.pack("<IHH", pid, 2, len(name)) + name + bytes(-len(name) % 4)
    )


def batches(data: bytes, *, lenient: bool = False) -> tuple[int, int, list[Loss]]:
    """How many batches with rows, how many rows, and what was lost."""
    found = list(PcapngReader(io.BytesIO(data), "test", lenient=lenient).batches())
    lost = [side for batch in found for side in batch.before if isinstance(side, Loss)]
    return sum(batch.rows > 0 for batch in found), sum(batch.rows for batch in found), lost


@pytest.mark.parametrize(
    "between",
    [simple("<", ONE), STATISTICS, darwin(1, b"a"), interface("<", RAW), HEAD],
    ids=["kinds", "statistics", "processes", "interfaces", "sections"],
)
def test_blocks_that_take_turns(between: bytes) -> None:
    """What stands between packets does not make each of them a batch of its own."""
    rows = MANY * (1 + (between == simple("<", ONE)))
    assert batches(HEAD + (enhanced("<", 1, ONE) + between) * MANY) == (1, rows, [])


def test_kinds_of_blocks_in_order() -> None:
    """Packets of all kinds of blocks come in the order of the file."""
    made = [enhanced("<", 1, ONE + b"a"), simple("<", ONE + b"b"), obsolete("<", 2, ONE + b"c")]
    order = [0, 1, 2, 2, 1, 0, 1, 2, 0]
    rows, _ = read(HEAD + b"".join(made[kind] for kind in order))
    assert [row["arg_captured"] for row in rows] == [len(ONE) + 1] * 9
    assert [row["arg_data__bin"][-1] - ord("a") for row in rows] == order


def _collect(data: bytes, rows: list[dict[str, Any]]) -> None:
    for batch in PcapngReader(io.BytesIO(data), "test").batches():
        rows += batch.to_pylist()


def test_a_bad_packet_ends_those_behind_it() -> None:
    """Of whatever kind they are: what was good before it stays, and its place is told."""
    good = enhanced("<", 1, ONE) + simple("<", ONE)
    bad = enhanced("<", 1, ONE, of=7)
    rows: list[dict[str, Any]] = []
    with pytest.raises(KcapError) as caught:
        _collect(HEAD + good + bad + good, rows)
    assert len(rows) == 2
    assert caught.value.offset == len(HEAD + good)
    rows, sides = read(HEAD + good + bad * 3 + good, lenient=True)
    assert len(rows) == 4
    assert [side.count for side in sides if isinstance(side, Loss)] == [3]


def test_descriptions_are_of_what_follows() -> None:
    """A packet is of an interface, and of a process, that stand before it."""
    with pytest.raises(KcapError):
        read(section("<") + enhanced("<", 1, ONE) + interface("<", RAW))
    own = (32769, struct.pack("<I", 0))
    rows, _ = read(
        HEAD + enhanced("<", 1, ONE, own) + darwin(5, b"late") + enhanced("<", 1, ONE, own)
    )
    assert [row.get("pid") for row in rows] == [None, 5]


class _Slow(io.RawIOBase):
    """Gives few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data, self._step = io.BytesIO(data), step

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        part = self._data.read(min(self._step, len(into)))
        into[: len(part)] = part
        return len(part)


_BLOCKS = st.lists(
    st.sampled_from(
        [
            enhanced("<", 5, ONE, (1, b"PID: 7\nCmd: /bin/a"), (2, b"\1\0\0\0")),
            enhanced("<", 6, ONE, (8, struct.pack("<II", 9, 9))),
            enhanced("<", 6, ONE, (1, b"hello"), of=1),
            simple("<", ONE),
            obsolete("<", 7, ONE),
            interface("<", RAW, (2, b"eth0")),
            darwin(9, b"nine"),
            STATISTICS,
            HEAD,
        ]
    ),
    max_size=30,
)


@given(_BLOCKS, st.integers(1, 200))
def test_pieces_make_no_difference(parts: list[bytes], step: int) -> None:
    """A capture that comes in pieces gives the same events as one that is there."""
    data = HEAD + b"".join(parts)

    def rows(stream: Any) -> tuple[list[dict[str, Any]], str]:
        found: list[dict[str, Any]] = []
        try:
            for batch in PcapngReader(stream, "test").batches():
                found += batch.to_pylist()
        except KcapError as error:
            return found, str(error)
        return found, ""

    assert rows(io.BytesIO(data)) == rows(io.BufferedReader(_Slow(data, step), 1))


# much damage


DAMAGED = {
    "pcap": pcap([]) + (pcap([Packet(10**18, ONE)])[24:] * 4 + b"\xff" * 16) * MANY,
    "pcapng": HEAD + (enhanced("<", 1, ONE) * 4 + b"\xff" * 16) * MANY,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_much_damage(name: str) -> None:
    """What is between is read in one go; of damage the first hundred places are named."""
    rows, sides = read(DAMAGED[name], lenient=True)
    assert len(rows) == 4 * MANY
    told = [side.reason for side in sides if isinstance(side, Loss)]
    left = MANY - GAPS - 1  # nothing follows the last one
    assert f"{16 * left} bytes in {left} more places are no packets" in told
    assert len(told) == GAPS + 2


def test_a_chain_of_records_that_breaks() -> None:
    """Many places that look like a record, and lead to none, are found out together."""
    bait = struct.pack("<4I", 1, 1, 1, 1)
    data = pcap([]) + b"\xff" * 16 + bait * 60_000
    rows, sides = read(data, lenient=True)
    assert "damaged" in losses(sides)
    assert len(rows) < 60_000


# numbers and texts


def test_counts_of_lost_packets() -> None:
    """Only of interfaces that there are, and no number that no counter reaches."""

    def counted(interface_id: int, dropped: int) -> bytes:
        option = struct.pack("<HHQ", 5, 8, dropped)
        return block("<", 5, struct.pack("<3I", interface_id, 0, 0) + option)

    most = (1 << 64) - 1
    _, sides = read(HEAD + counted(0, 9) + counted(0, most) + counted(1, 5) + counted(1 << 31, 7))
    assert [side.count for side in sides if isinstance(side, Loss)] == [9]


def test_numbers_of_a_comment() -> None:
    """Digits without end are no number."""
    rows, _ = read(HEAD + enhanced("<", 1, ONE, (1, b"PID: " + b"9" * 5000)))
    assert "pid" not in rows[0]
    rows, _ = read(HEAD + enhanced("<", 1, ONE, (1, b"PID: 12")))
    assert rows[0]["pid"] == 12


@pytest.mark.parametrize("field", ["Cmd", "Args"])
def test_arguments_say_nothing_of_other_facts(field: str) -> None:
    """ptcpdump writes paths and arguments as they are: who breaks lines there names nobody."""
    evil = "/x\nPID: 1\nUserId: 0\nName: sshd\nContainerId: abc\nand more"
    path, args = (evil, "-f") if field == "Cmd" else ("/x", evil)
    process = f"PID: 12\nCmd: {path}\nArgs: {args}".encode()
    parent = f"ParentPID: 11\nParentCmd: {path}\nParentArgs: {args}".encode()
    for comments in ([process, b"UserId: 1000", parent], [parent, b"UserId: 1000", process]):
        rows, _ = read(HEAD + enhanced("<", 1, ONE, *((1, comment) for comment in comments)))
        assert (rows[0]["pid"], rows[0]["uid"], rows[0]["ppid"]) == (12, 1000, 11)
        assert not {"container_id", "arg_comment"} & rows[0].keys()
        assert (rows[0]["exe"], rows[0]["cmdline"]) == (path, args)
    # The control: lines of one's own are facts.
    rows, _ = read(HEAD + enhanced("<", 1, ONE, (1, b"PID: 12\nName: x\nContainerId: abc")))
    assert (rows[0]["process_name"], rows[0]["container_id"]) == ("x", "abc")


def test_a_clock_that_cannot_be() -> None:
    """Lenient reading gives its packets without a time; a clock of 2**-63 s is one."""
    for resolution, timed in ((0xFF, False), (0xC0, False), (0xBF, True), (0x1F, False)):
        head = section("<") + interface("<", RAW, (9, bytes([resolution])))
        rows, _ = read(head + enhanced("<", 1, ONE), lenient=True)
        assert ("ts" in rows[0]) is timed, resolution
        if not timed:
            with pytest.raises(KcapError, match="impossible resolution"):
                read(head + enhanced("<", 1, ONE))


def test_processes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond the limit is counted, and no packet gets another's process for it."""
    monkeypatch.setattr(pcapng_options, "_TEXT_CHARS", 2000)
    known = [darwin(5, b"five"), darwin(6, b"n" * 2000), darwin(7, b"seven")]
    packets = [enhanced("<", 1, ONE, (32769, struct.pack("<I", i))) for i in range(3)]
    rows, sides = read(HEAD + b"".join(known + packets))
    assert [row.get("pid") for row in rows] == [5, None, None]
    assert [(side.kind, side.count) for side in sides if isinstance(side, Loss)] == [("skipped", 2)]
    monkeypatch.undo()
    processes = pcapng_options.Processes()
    for number in range(200):
        processes.add(Process(1, {"name": "x"}, {"start_ns": number}), numbered=False)
    assert (len(processes.by_pid[1]), processes.unkept) == (64, 0)
    assert processes.chars == 64 * Process(1, {"name": "x"}, {}).size


def test_a_bad_process_keeps_its_place() -> None:
    """Of a description that can't be read, those behind it keep their numbers."""
    bad = block("<", 0x80000001, b"")
    packet = enhanced("<", 1, ONE, (32769, struct.pack("<I", 1)))
    rows, _ = read(HEAD + bad + darwin(7, b"seven") + packet, lenient=True)
    assert rows[0]["pid"] == 7


def test_names_of_interfaces_are_bounded() -> None:
    """Of a long one the beginning is kept."""
    head = section("<") + interface("<", RAW, (2, b"n" * 60_000))
    rows, _ = read(head + enhanced("<", 1, ONE))
    assert rows[0]["arg_interface"] == "n" * 1024


# what packets carry


def pointers(count: int) -> bytes:
    """A DNS message: pointers that lead through one another, and records named by the last."""
    first = 12 + 11
    chain = [first, *range(first + 1, first + 2 * count - 2, 2)]
    data = b"\0" + b"".join(struct.pack(">H", 0xC000 | to) for to in chain)
    record = b"\0" + struct.pack(">HHIH", 10, 1, 0, len(data)) + data
    name = struct.pack(">H", 0xC000 | first + 1 + 2 * (count - 1))
    rest = (name + struct.pack(">HHIH", 15, 1, 0, 4) + b"\0\1" + name) * 900
    return struct.pack(">6H", 1, 0x8000, 0, 901, 0, 0) + record + rest


def test_pointers_through_pointers() -> None:
    """A name of DNS may lead through as many pointers as a name has labels, not through more."""
    assert len(dns.message(pointers(125))["answers"]) == 901
    for count in (126, 8000):
        with pytest.raises(dns.BadMessageError, match="around"):
            dns.message(pointers(count))


def test_pointers_in_a_circle() -> None:
    """A name that leads to itself, or to what leads back, is none."""
    for name in (b"\xc0\x0c", b"\1a\xc0\x0c", b"\xc0\x0e\xc0\x0c"):
        with pytest.raises(dns.BadMessageError):
            dns.message(struct.pack(">6H", 1, 0, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1))


def client_hello(name: bytes) -> bytes:
    """The handshake message."""
    server = struct.pack(">HBH", len(name) + 3, 0, len(name)) + name
    extension = struct.pack(">HH", 0, len(server)) + server
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    body += struct.pack(">H", len(extension)) + extension
    return b"\1" + len(body).to_bytes(3, "big") + body


@given(st.lists(st.integers(0, 90), max_size=6))
def test_a_hello_in_several_records(cuts: list[int]) -> None:
    """However a hello is spread over records, it asks for the same server."""
    message = client_hello(b"hidden.example.org")
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    parts = [message[a:b] for a, b in pairwise(edges)]
    raw = b"".join(b"\x16\3\1" + struct.pack(">H", len(part)) + part for part in parts)
    said = tls.hello(raw)
    assert said["server_name"] == "hidden.example.org"
    assert "truncated" not in said


def test_a_hello_that_ends_with_its_segment() -> None:
    """What another record goes on with is not made up from what follows."""
    message = client_hello(b"hidden.example.org")
    raw = b"\x16\3\1" + struct.pack(">H", 40) + message[:40] + b"\x17\3\3\0\5hello"
    said = tls.hello(raw)
    assert said["truncated"]
    assert "server_name" not in said
    assert json.dumps(said)


def answer(names: int) -> bytes:
    """A DNS message of a question and some answers."""
    found = b"\7example\3org\0" + struct.pack(">HH", 1, 1)
    for number in range(names):
        found += b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([10, 0, 0, number])
    return struct.pack(">6H", 1, 0x8180, 1, names, 0, 0) + found


@given(st.integers(0, 200))
def test_dns_that_a_snap_length_cut(captured: int) -> None:
    """What is whole of it is told, with a mark; that a packet itself ends early is none of that."""
    message = answer(5)
    whole = ipv4(udp(53, 9, message), 17)
    (row,), _ = read(pcap([Packet(10**18, whole[: 28 + captured], len(whole))]))
    question, one = 12 + 17, 16
    if captured < question:
        assert "arg_proto_dns" not in row
        return
    said = json.loads(row["arg_proto_dns"])
    assert said["questions"][0]["name"] == "example.org"
    assert [a["IP"] for a in said["answers"]] == [
        f"10.0.0.{n}" for n in range(min(5, (captured - question) // one))
    ]
    assert said.get("truncated", False) is (captured < len(message))
    (row,), _ = read(pcap([Packet(10**18, ipv4(udp(53, 9, message[:-1]), 17))]))
    assert "arg_proto_dns" not in row
