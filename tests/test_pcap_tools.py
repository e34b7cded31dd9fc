"""What tcpdump and tshark read in exports: as many packets, times in ns, and lengths."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_support import run
from pcap_support import (
    MAC,
    RAW,
    Packet,
    enhanced,
    ethernet,
    interface,
    ipv4,
    ipv6,
    pcap,
    read,
    section,
    tcp,
    udp,
)

pytestmark = pytest.mark.skipif(
    not (shutil.which("tshark") and shutil.which("tcpdump")),
    reason="tshark or tcpdump is not installed",
)

S = 1_700_000_000 * 10**9
ARP = b"\xff" * 6 + MAC[:6] + b"\x08\x06" + bytes(28)
LO, VETH = (2, b"lo"), (2, b"veth\xc3\xbc")
IN, OUT = (2, bytes([1, 0, 0, 0])), (2, bytes([2, 0, 0, 0]))
CLIENT = (1, b"PID: 10\nTID: 11\nName: curl\nContainerId: 0123456789abcdef")
SERVER = (1, b"PID: 20\nTID: 20\nName: a\\b")
RAWS = [
    ipv4(tcp(40000, 80, b"GET / HTTP/1.1\r\n\r\n"), 6),
    ipv6(udp(40000, 53, bytes(40)), 17),
    ipv4(ipv4(udp(1, 2), 17), 4),
    ipv4(udp(5353, 9, bytes(9)), 17, fragment=0x2000),
]


class Seen(NamedTuple):
    """What is said of a packet."""

    ts_ns: int
    length: int
    captured: int


def several_interfaces() -> bytes:
    """Packets of loopback and two other interfaces, RAW all; client and server see each."""
    ns = (9, b"\x09")
    out = section("<") + interface("<", RAW, LO, ns)
    out += interface("<", RAW, VETH, ns) + interface("<", RAW, ns)
    at = 0
    for raw in RAWS:
        for of in range(3):
            for way, owner in ((OUT, CLIENT), (IN, SERVER)):
                at += 1
                body = raw + bytes([of])
                out += enhanced("<", S + at, body, way, owner, of=of, length=len(body) + of)
    return out


def mixed_types() -> bytes:
    """Ethernet and RAW in one file, and a section of the other byte order; an ARP."""
    out = section("<") + interface("<", 1, LO) + interface("<", RAW, VETH)
    for n, raw in enumerate(RAWS):
        out += enhanced("<", 1_000_000 + n, ethernet(raw), OUT, CLIENT, of=0)
        out += enhanced("<", 1_000_100 + n, raw, IN, SERVER, of=1)
    out += enhanced("<", 1_000_200, ARP, of=0)
    out += section(">") + interface(">", 1, VETH)
    return out + enhanced(">", 2_000_000, ethernet(RAWS[0], 7), of=0)


def of_ethernet() -> bytes:
    """What tcpdump records of Ethernet: ns, one packet in a VLAN, an ARP, one that is cut."""
    packets = [Packet(S + n, ethernet(raw)) for n, raw in enumerate(RAWS)]
    packets += [Packet(S + 100, ethernet(RAWS[1], 5)), Packet(S + 101, ARP)]
    return pcap([*packets, Packet(S + 102, ethernet(RAWS[0])[:60], 900)], link=1)


INPUTS = {
    "interfaces.pcapng": several_interfaces,
    "mixed.pcapng": mixed_types,
    "ethernet.pcap": of_ethernet,
}


def by_kcap(path: Path) -> list[Seen]:
    return [
        Seen(row.get("ts", 0), row["arg_length"], row["arg_captured"])
        for row in read(path.read_bytes())[0]
    ]


def by_tshark(path: Path) -> list[Seen]:
    fields = ("frame.time_epoch", "frame.len", "frame.cap_len")
    words = [
        "tshark",
        "-n",
        "-r",
        str(path),
        "-T",
        "fields",
        *(w for f in fields for w in ("-e", f)),
    ]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    told = [line.split("\t") for line in lines]
    return [Seen(_ns(time), int(length), int(captured)) for time, length, captured in told]


def by_tcpdump(path: Path) -> list[Seen]:
    """What it reads, as it writes it: its own file says times and both lengths."""
    words = ["tcpdump", "-n", "--nano", "-r", str(path), "-w", "-"]
    copy = subprocess.run(words, capture_output=True, check=True).stdout
    at, found = 24, []
    assert copy[:4] == b"\x4d\x3c\xb2\xa1"
    while at < len(copy):
        second, ns, captured, length = (
            int.from_bytes(copy[at + n : at + n + 4], "little") for n in (0, 4, 8, 12)
        )
        found.append(Seen(second * 10**9 + ns, length, captured))
        at += 16 + captured
    return found


def _ns(text: str) -> int:
    seconds, _, rest = text.partition(".")
    return int(seconds) * 10**9 + int(rest.ljust(9, "0"))


def exported(folder: Path, name: str, *words: str) -> list[Path]:
    """Every file of an export."""
    source = folder / name
    source.write_bytes(INPUTS[name]())
    out = folder / "out"
    out.mkdir()
    done = run("export", source, *words)
    assert done.exit_code == 0, done.output
    return sorted(path for path in out.rglob("*.pcap*"))


def check(files: Sequence[Path]) -> int:
    """Compare what all read; how many packets there are."""
    for path in files:
        expected = by_kcap(path)
        assert by_tshark(path) == expected, path
        assert by_tcpdump(path) == expected, path
    return sum(len(by_kcap(path)) for path in files)


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
@pytest.mark.parametrize("name", INPUTS)
def test_one_file(name: str, form: str, tmp_path: Path) -> None:
    """All sightings are there; frames that are no IP packets are in a file beside it."""
    files = exported(tmp_path, name, "-o", str(tmp_path / f"out/x.{form}"))
    rows = read((tmp_path / name).read_bytes())[0]
    assert check(files) == len(rows)
    others = any(row["arg_link_type"] != RAW for row in rows)
    names = [f"x.{form}", *([f"x.link-1.{form}"] if others else [])]
    assert [path.name for path in files] == sorted(names)
    main = tmp_path / f"out/x.{form}"
    assert by_kcap(main) == [
        Seen(row.get("ts", 0), row["arg_length"], row["arg_captured"])
        for row in rows
        if row["arg_link_type"] == RAW
    ]


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    "split", ["single", "process", "container", "command", "single,process,container,command"]
)
def test_a_folder(name: str, split: str, form: str, tmp_path: Path) -> None:
    """Every file of every split is read by all."""
    words = ("--format", form, "--split", split, "-o", str(tmp_path / "out/s"))
    files = exported(tmp_path, name, *words)
    ids = {row["arg_packet_id"] for row in read((tmp_path / name).read_bytes())[0]}
    assert check(files) >= len(ids)
    assert len(files) > (1 if split != "single" else 0)


def test_the_control(tmp_path: Path) -> None:
    """What tcpdump refuses: the inputs themselves, with several interfaces of type RAW."""
    path = tmp_path / "x"
    for make in (several_interfaces, mixed_types):
        path.write_bytes(make())
        with pytest.raises(subprocess.CalledProcessError):
            by_tcpdump(path)


@pytest.mark.parametrize("form", ["pcapng", "pcap"])
def test_no_packets_at_all(form: str, tmp_path: Path) -> None:
    """tcpdump and tshark read that, too, and nobody is told of packets; of frames that are no IP
    packets alone as well."""
    made, events = tmp_path / f"made.{form}", tmp_path / "events.jsonl"
    events.write_text('{"eventName":"open","timestamp":1,"args":[]}\n')
    (tmp_path / "arp.pcap").write_bytes(pcap([Packet(S, ARP)], link=1))
    for name in ("events.jsonl", "arp.pcap"):
        result = run("export", tmp_path / name, "-o", made, "--force")
        assert result.exit_code == 0, result.stderr
        assert ("0 events, " in result.stderr) == (name == "events.jsonl")
        assert by_kcap(made) == by_tshark(made) == []
        assert by_tcpdump(made) == []
    folder = tmp_path / "folder"
    options = ("--format", form, "--split", "single")
    assert run("export", events, "-o", folder, *options).exit_code == 0
    assert by_tcpdump(folder / f"pcap/single.{form}") == []


def test_a_pipe_has_no_place_beside_it(tmp_path: Path) -> None:
    """To standard output go the IP packets, and what is left out is a loss."""
    source = tmp_path / "ethernet.pcap"
    source.write_bytes(of_ethernet())
    done = run("export", source, "--format", "pcapng", "-o", "-")
    assert done.exit_code == 3
    assert "1 " in done.stderr
    assert "no IP packets" in done.stderr
    path = tmp_path / "x"
    path.write_bytes(done.stdout_bytes)
    assert check([path]) == len(RAWS) + 2


def test_a_file_beside_is_not_written_over(tmp_path: Path) -> None:
    """The second file is made as carefully as the first."""
    source, beside = tmp_path / "ethernet.pcap", tmp_path / "x.link-1.pcapng"
    source.write_bytes(of_ethernet())
    beside.write_bytes(b"mine")
    done = run("export", source, "-o", tmp_path / "x.pcapng")
    assert done.exit_code == 1
    assert "exists" in done.stderr
    assert beside.read_bytes() == b"mine"
    assert run("export", source, "--force", "-o", tmp_path / "x.pcapng").exit_code == 0
    assert len(by_kcap(beside)) == 1
