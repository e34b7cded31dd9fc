"""Reading pcap and pcapng: every variant exactly, torn and damaged ones as far as they go."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import dpkt
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pcap_support import (
    ETHERNET,
    RAW,
    Packet,
    block,
    enhanced,
    ethernet,
    interface,
    ipv4,
    losses,
    obsolete,
    option,
    options,
    pcap,
    read,
    section,
    simple,
    tcp,
    udp,
)

from kcap.errors import BadInputError, KcapError, NotACaptureError
from kcap.opening import open_source
from kcap.readers.pcap import PcapReader
from kcap.readers.pcapng import PcapngReader

ORDERS = st.sampled_from("<>")
PACKETS = st.lists(
    st.builds(
        Packet,
        st.integers(0, (1 << 32) * 10**9 - 1),
        st.binary(max_size=70),
        st.integers(70, 70_000),
    ),
    max_size=8,
)
S = 1_700_000_000
ONE = ipv4(udp(1000, 2000, b"abc"), 17)
TWO = ipv4(tcp(3000, 80, b"xyz"), 6)

REAL = [
    *("arp.pcapng", "curl-user.pcapng", "dns.pcapng", "tcp.pcapng"),
    *("dns_icmp.pcap", "http.pcap", "truncated_dns.pcap"),
]

needs_tshark = pytest.mark.skipif(not shutil.which("tshark"), reason="tshark is not installed")


def shark(path: Path) -> list[tuple[str, int, int]]:
    """Time, length and captured length of each packet, as Wireshark reads them."""
    fields = ["-e", "frame.time_epoch", "-e", "frame.len", "-e", "frame.cap_len"]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), "-T", "fields", *fields],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split("\t") for line in done.stdout.splitlines()]
    return [(ts, int(size), int(kept)) for ts, size, kept in found]


def seen(row: dict[str, Any]) -> tuple[str, int, int]:
    """What `shark` says, of an event."""
    second, rest = divmod(row["ts"], 10**9)
    before = len(row.get("arg_link_header", b""))
    return f"{second}.{rest:09d}", row["arg_length"] + before, row["arg_captured"] + before


# classic


@given(PACKETS, ORDERS, st.sampled_from([1, 1000]))
def test_a_classic_capture(packets: list[Packet], order: str, unit_ns: int) -> None:
    """Both byte orders and clocks: every byte, length and nanosecond, as dpkt sees them."""
    data = pcap(packets, order, unit_ns, ETHERNET)
    rows, sides = read(data)

    cut = [p.ts_ns // unit_ns * unit_ns for p in packets]
    assert [r["ts"] for r in rows] == cut
    assert [r["arg_length"] for r in rows] == [p.length for p in packets]
    held = [r.get("arg_link_header", b"") + r["arg_data__bin"] for r in rows]
    assert held == [p.data for p in packets]
    assert held == [bytes(raw) for _, raw in dpkt.pcap.Reader(io.BytesIO(data))]
    assert losses(sides) == []


def test_no_packets() -> None:
    """A capture without packets is one."""
    assert read(pcap([]))[0] == []
    assert read(section("<"))[0] == []


@needs_tshark
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("unit_ns", [1, 1000])
def test_wireshark_sees_the_same_in_a_classic_capture(
    order: str, unit_ns: int, tmp_path: Path
) -> None:
    """Times to the nanosecond, and both lengths."""
    packets = [Packet(S * 10**9 + i * 1_000_000_007, ethernet(TWO), 60 + i) for i in range(9)]
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap(packets, order, unit_ns, ETHERNET))
    assert [seen(row) for row in read(path.read_bytes())[0]] == shark(path)


def test_damage_in_the_middle() -> None:
    """What is before it comes; the rest only when that is asked for, and is told."""
    packets = [Packet((S + i) * 10**9 + i, ONE + bytes([i])) for i in range(20)]
    data = bytearray(pcap(packets))
    size = 16 + len(ONE) + 1
    at = 24 + 9 * size
    data[at + 8 : at + 12] = b"\xff\xff\xff\x7f"

    rows: list[dict[str, Any]] = []
    with pytest.raises(BadInputError, match="damaged") as caught:
        rows.extend(
            chain.from_iterable(b.to_pylist() for b in PcapReader(io.BytesIO(data), "x").batches())
        )
    assert caught.value.offset == at
    assert len(rows) == 9

    rows, sides = read(bytes(data), lenient=True)
    assert [r["ts"] for r in rows] == [p.ts_ns for i, p in enumerate(packets) if i != 9]
    assert losses(sides) == ["damaged"]


# pcapng


@given(PACKETS, ORDERS)
def test_enhanced_packets(packets: list[Packet], order: str) -> None:
    """Both byte orders, with a clock of ns: every byte, length and nanosecond."""
    data = section(order) + interface(order, ETHERNET, (9, b"\x09"))
    for ts_ns, raw, length in packets:
        data += enhanced(order, ts_ns, raw, length=length)
    rows, sides = read(data)

    assert [r["ts"] for r in rows] == [p.ts_ns for p in packets]
    assert [r["arg_length"] for r in rows] == [p.length for p in packets]
    held = [r.get("arg_link_header", b"") + r["arg_data__bin"] for r in rows]
    assert held == [p.data for p in packets]
    assert held == [bytes(raw) for _, raw in dpkt.pcapng.Reader(io.BytesIO(data))]
    assert losses(sides) == []


@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 30),
    st.booleans(),
    st.integers(-(1 << 40), 1 << 40),
)
def test_clocks_are_exact(units: int, power: int, binary: bool, offset_s: int) -> None:
    """Any resolution and offset: whole ns as integers have them, or no time where none fits."""
    clock = [(9, bytes([power | binary << 7])), (14, struct.pack("<q", offset_s))]
    data = section("<") + interface("<", RAW, *clock) + enhanced("<", units, ONE)
    (row,), _ = read(data)
    per_s = 2**power if binary else 10**power
    ts = units * 10**9 // per_s + offset_s * 10**9
    limit = ((1 << 63) - 1) // 10**9 * 10**9
    assert row.get("ts") == (ts if -limit <= ts < limit else None)


def every_kind(order: str) -> bytes:
    """A section with each kind of block, and two interfaces."""
    return (
        section(order, (3, b"Linux"), (4, b"test"))
        + interface(order, RAW, (2, b"one"), (9, b"\x09"))
        + interface(order, ETHERNET, (2, b"two"), snap=262144)
        + enhanced(order, S * 10**9 + 1, ONE, (2, struct.pack(f"{order}I", 1)))
        + enhanced(order, (S + 1) * 10**6, ethernet(TWO), of=1, length=99)
        + block(order, 4, bytes(4))
        + obsolete(order, S * 10**9 + 5, TWO)
        + simple(order, ONE)
    )


@needs_tshark
def test_sections_in_both_byte_orders(tmp_path: Path) -> None:
    """Interfaces and clocks are of their section; Wireshark reads the same."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(every_kind("<") + every_kind(">"))
    rows, _ = read(path.read_bytes())

    assert [r.get("arg_interface") for r in rows] == ["one", "two", "one", "one"] * 2
    assert [r.get("ts") for r in rows[:4]] == [S * 10**9 + 1, (S + 1) * 10**9, S * 10**9 + 5, None]
    assert rows[0]["arg_direction"] == "in"
    assert [r.get("arg_src_port") for r in rows] == [1000, 3000, 3000, 1000] * 2
    # Of a packet without a time Wireshark shows no time either, or 1970.
    timed = [(row, told) for row, told in zip(rows, shark(path), strict=True) if "ts" in row]
    assert [seen(row) for row, _ in timed] == [told for _, told in timed]


def test_what_a_capture_lost() -> None:
    """Counters of the capture are losses: those of interfaces, or those of packets."""
    order = "<"
    head = section(order) + interface(order, RAW)
    statistics = struct.pack("<III", 0, 0, 0) + options(order, (5, struct.pack("<Q", 41)))
    rows, sides = read(head + enhanced(order, 1, ONE) + block(order, 5, statistics))
    assert len(rows) == 1
    assert losses(sides) == ["lost"]
    _, sides = read(head + enhanced(order, 1, ONE, (4, struct.pack("<Q", 3))))
    assert losses(sides) == ["lost"]
    assert losses(read(head + enhanced(order, 1, ONE, (4, struct.pack("<Q", 0))))[1]) == []


# whose packets


def custom(order: str, pid: int, *pairs: tuple[int, bytes], kind: int = 3) -> bytes:
    """Wireshark's description of a process: little-endian in any section."""
    entry = struct.pack("<I", pid) + options("<", *pairs)
    inner = struct.pack("<II", kind, len(entry)) + entry
    return block(order, 0xBAD, struct.pack(f"{order}I", 32622) + inner)


@pytest.mark.parametrize("order", "<>")
def test_processes_of_wireshark(order: str) -> None:
    """The option names a process, the block says who it was at that time."""

    def thread(pid: int) -> tuple[int, bytes]:
        return 8, struct.pack(f"{order}II", pid, 0)

    def start(us: int) -> tuple[int, bytes]:
        return 9, struct.pack("<Q", (S * 10**6 + us) * 1000)

    data = (
        section(order)
        + interface(order, RAW)
        + custom(order, 7, (2, b"curl"), (3, b"/bin/curl"), (4, b"curl\0-v"), (6, bytes(4)))
        + custom(order, 500, (2, b"first"), start(-10))
        + custom(order, 500, (2, b"second"), start(20))
        + custom(order, 600, (2, b"old"))
        + custom(order, 600, (2, b"new"))
        + custom(order, 7, (2, b"no"), kind=99)
        + enhanced(order, S * 10**6, ONE, thread(7))
        + enhanced(order, S * 10**6 + 5, ONE, thread(500))
        + enhanced(order, S * 10**6 + 25, ONE, thread(500))
        + enhanced(order, S * 10**6 - 100, ONE, thread(500))
        + enhanced(order, S * 10**6, ONE, thread(600))
        + enhanced(order, S * 10**6, ONE, thread(700))
        + enhanced(order, S * 10**6, ONE)
    )
    rows, _ = read(data)
    names = [row.get("process_name") for row in rows]
    assert names == ["curl", "first", "second", "first", "new", None, None]
    assert [row.get("pid") for row in rows] == [7, 500, 500, 500, 600, 700, None]
    assert (rows[0]["exe"], rows[0]["cmdline"], rows[0]["uid"]) == ("/bin/curl", "curl -v", 0)


@pytest.mark.parametrize("order", "<>")
def test_processes_of_darwin(order: str) -> None:
    """Packets refer to descriptions by their place in the section."""

    def described(pid: int, name: bytes) -> bytes:
        body = struct.pack(f"{order}I", pid) + options(order, (2, name), (4, bytes(16)))
        return block(order, 0x80000001, body)

    index = [(32769, struct.pack(f"{order}I", i)) for i in range(3)]
    data = (
        section(order) + interface(order, RAW) + described(501, b"mDNS") + described(1, b"launchd")
    )
    data += b"".join(enhanced(order, 1, ONE, at) for at in index)
    rows, _ = read(data)
    assert [(r.get("pid"), r.get("process_name")) for r in rows] == [
        (501, "mDNS"),
        (1, "launchd"),
        (None, None),
    ]


def test_captures_of_ptcpdump(data: Callable[[str], Path]) -> None:
    """Comments say whose a packet is; sightings in and out of one packet over loopback pair."""
    rows, _ = read(data("pcap/curl-user.pcapng").read_bytes())
    assert {(r["pid"], r["process_name"], r["uid"], r["ppid"]) for r in rows} == {
        (99722, "curl", 1000, 18840)
    }
    assert {(r["exe"], r["cmdline"]) for r in rows} == {
        ("/usr/bin/curl", "curl https://kernel.org")
    }
    assert not any("arg_comment" in r for r in rows)
    rows, _ = read(data("pcap/tcp.pcapng").read_bytes())
    assert len(rows) == 24
    assert len({r["arg_packet_id"] for r in rows}) == 12
    for packet in {r["arg_packet_id"] for r in rows}:
        ways = [r["arg_direction"] for r in rows if r["arg_packet_id"] == packet]
        assert sorted(ways) == ["in", "out"]


def test_other_comments_stay() -> None:
    """What names nobody is a comment."""
    head = section("<") + interface("<", RAW)
    rows, _ = read(head + enhanced("<", 1, ONE, (1, b"look at this"), (1, b"PID: 5")))
    assert (rows[0]["pid"], rows[0]["arg_comment"]) == (5, "look at this")
    rows, _ = read(head + enhanced("<", 1, ONE, (1, b"Name: nobody")))
    assert "pid" not in rows[0]
    assert rows[0]["arg_comment"] == "Name: nobody"


@needs_tshark
@pytest.mark.parametrize("name", REAL)
def test_real_captures(name: str, data: Callable[[str], Path]) -> None:
    """Counts, ns and lengths are those of Wireshark."""
    path = data(f"pcap/{name}")
    rows, sides = read(path.read_bytes())
    assert [seen(row) for row in rows] == shark(path)
    assert losses(sides) == []


# torn, damaged, compressed


SMALL = [Packet((S + i) * 10**9, ONE + bytes([i])) for i in range(4)]
FILES = {
    "pcap": pcap(SMALL),
    "pcap-big": pcap(SMALL, ">", 1000),
    "pcapng": every_kind("<"),
    "pcapng-big": every_kind(">"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_truncation(name: str) -> None:
    """A capture cut anywhere gives its whole packets, and says that it is torn."""
    data = FILES[name]
    whole, _ = read(data)
    origin = ("origin", "source")
    counts = []
    for end in range(4 if "pcapng" not in name else 12, len(data)):
        rows, sides = read(data[:end])
        assert set(losses(sides)) <= {"torn"}
        assert [{k: v for k, v in r.items() if k not in origin} for r in rows] == [
            {k: v for k, v in r.items() if k not in origin} for r in whole[: len(rows)]
        ]
        counts.append((len(rows), losses(sides)))
    assert counts == sorted(counts, key=lambda c: c[0])
    assert sum(not lost for _, lost in counts) <= len(whole) + 8  # where a record ends
    assert counts[-1] == (len(whole) - 1, ["torn"])


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(name: str) -> None:
    """Damage is an error of kcap's or a loss, or it is in what a packet holds; never a crash.

    A bit of every byte, another one in each.
    """
    data = FILES[name]
    known = len(read(data)[0])
    refused = 0
    for byte in range(len(data)):
        bit = byte * 8 + byte * 3 % 8
        flipped = bytearray(data)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        raw = bytes(flipped)
        if not (PcapReader.sniff(raw) or PcapngReader.sniff(raw)):
            continue
        try:
            rows, _ = read(raw)
            assert len(rows) <= known
        except KcapError:
            refused += 1
        try:
            read(raw, lenient=True)
        except NotACaptureError:
            assert bit < 28 * 8
    assert refused


@given(st.binary(max_size=300), st.sampled_from(sorted(FILES)), st.integers(0, 400))
def test_any_bytes(junk: bytes, name: str, at: int) -> None:
    """Whatever stands in a file, lenient reading ends, and gives no foreign error."""
    data = FILES[name]
    at = min(max(at, 28), len(data))
    read(data[:at] + junk + data[at:], lenient=True)
    with contextlib.suppress(KcapError):
        read(data[:at] + junk + data[at:])


def test_bad_pcapng_goes_on() -> None:
    """Behind a block that lies about its length, the next one is found."""
    head = section("<") + interface("<", RAW, (9, b"\x09"))
    blocks = [enhanced("<", S * 10**9 + i, ONE) for i in range(10)]
    blocks[4] = blocks[4][:4] + b"\xfe\xff\xff\xff" + blocks[4][8:]
    rows, sides = read(head + b"".join(blocks), lenient=True)
    assert [r["ts"] - S * 10**9 for r in rows] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert losses(sides) == ["damaged"]
    with pytest.raises(BadInputError) as caught:
        read(head + b"".join(blocks))
    assert caught.value.offset == len(head) + 4 * len(blocks[0])


def test_a_packet_of_no_interface() -> None:
    """It is refused, or left out and counted; those before it come."""
    data = section("<") + interface("<", RAW) + enhanced("<", 1, ONE) + enhanced("<", 2, ONE, of=3)
    with pytest.raises(BadInputError, match="of no interface"):
        read(data)
    rows, sides = read(data, lenient=True)
    assert len(rows) == 1
    assert losses(sides) == ["skipped"]


@pytest.mark.parametrize("name", FILES)
def test_compressed_captures(name: str, tmp_path: Path) -> None:
    """gzip and zstd make no difference, to the identity of events neither; cut ones are torn."""
    data = FILES[name]
    for pack in (gzip.compress, zstandard.compress):
        assert read_file(tmp_path / "x", pack(data)) == read(data)[0]


def read_file(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Events of a file, opened by what it holds."""
    path.write_bytes(data)
    source = open_source(str(path), resolve=False)
    try:
        return [row for batch in source.batches() for row in batch.to_pylist()]
    finally:
        source.close()


def test_long_lengths_are_refused() -> None:
    """A packet or a block that claims to be huge takes no memory."""
    bomb = bytearray(pcap([Packet(S * 10**9, ONE)]))
    bomb[24 + 8 : 24 + 12] = struct.pack("<I", 1 << 30)
    with pytest.raises(BadInputError):
        read(bytes(bomb))
    with pytest.raises(BadInputError):
        read(section("<") + struct.pack("<II", 6, 1 << 30) + bytes(100))


def test_sysdig_is_not_taken_for_packets(data: Callable[[str], Path]) -> None:
    """A .scap begins like pcapng, and is another reader's."""
    path = next(data("scap").glob("*.scap"))
    head = path.read_bytes()[:65536]
    head = gzip.decompress(path.read_bytes())[:65536] if head[:2] == b"\x1f\x8b" else head
    assert not PcapngReader.sniff(head)
    assert PcapngReader.sniff(FILES["pcapng"])


def test_options_that_lie() -> None:
    """An option that reaches beyond its block ends the options, and costs nothing else."""
    lying = option("<", 1, b"PID: 1")[:2] + b"\xff\xff" + b"PID: 1"
    body = struct.pack("<5I", 0, 0, 9, len(ONE), len(ONE)) + ONE + bytes(-len(ONE) % 4) + lying
    rows, sides = read(section("<") + interface("<", RAW) + block("<", 6, body))
    assert (len(rows), losses(sides)) == (1, [])
    assert "pid" not in rows[0]
