"""Packets of a live host: all of them, whole or cut as asked, each with whose it is."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kernel_support
import packets_live_support as support
import pytest
from packets_live_support import MAX, listening, own_network
from probe_support import ended
from workload_support import Workloads

from kcap.model.side import Heartbeat, Loss
from kcap.readers.live.artifacts.wanted import Network
from kcap.readers.live.bpf import system
from kcap.readers.live.packets.kernel import KernelPackets

pytestmark = pytest.mark.root

ANSWERED = {0x12}
"""Flags of a SYN that is answered: kernels before 6.13 or so show nobody how it leaves."""

V4, V6 = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")


def packets(rows: list[support.Row]) -> Counter[bytes]:
    """The packets that were seen, each once however often it was."""
    by_id = {row["arg_packet_id"]: row["arg_data__bin"] for row in rows}
    return Counter(by_id.values())


def test_all_that_tcpdump_sees(tmp_path: Path, program: Callable[[str], str]) -> None:
    """One packet for each of tcpdump's, byte for byte, of all protocols; none is made up."""
    tool, path = program("tcpdump"), tmp_path / "lo.pcap"

    def send() -> None:
        for family, address in (V4, V6):
            support.exchange(family, address)
            support.refused(family, address)
        support.ping()

    with own_network() as network, listening() as heard, support.tcpdump(tool, network, path):
        support.within(network, send)
    rows = in_it(heard)
    expected = Counter(support.ip_packets(path))
    assert packets(rows) == expected
    assert all(row["arg_length"] == row["arg_captured"] == len(data_of(row)) for row in rows)
    assert {row["arg_protocol"] for row in rows} == {1, 6, 17, 58} - {58}
    assert {row["arg_ip_version"] for row in rows} == {4, 6}
    assert sum(expected.values()) > 30
    unowned = {data_of(row) for row in rows if row.get("pid") is None}
    assert len(unowned) == 2, "the reset of a closed port, and an echo reply, of the kernel itself"
    beat = [side for side in heard.sides if isinstance(side, Heartbeat)][-1]
    assert beat.details["unowned"] >= 2
    assert beat.details["lost"] == 0
    assert [row["ord"] for row in heard.rows] == list(range(len(heard.rows)))
    times_ns = [row["ts"] for row in heard.rows]
    assert times_ns == sorted(times_ns)


def test_both_ends_have_their_process() -> None:
    """Of a connection each end's packets are its process's, accepted or not yet; both ways."""
    with own_network() as network:
        for family, address in (V4, V6):
            ports = os.pipe()
            with listening() as heard:
                server = support.begin(network, partial(support.answer, ports[1], family, address))
                port = struct.unpack("=H", os.read(ports[0], 2))[0]
                client = support.within(network, partial(support.call, port, family, address))
                support.ended(server)
            rows = support.of_port(in_it(heard), port)
            unseen = support.check_ends(rows, client, server, port)
            assert unseen <= ANSWERED


def test_what_was_open_before_has_its_process_too() -> None:
    """A server and a connection that were there when the recording began, in two namespaces."""
    with own_network() as network:
        for inside in (network, None):
            told, go = os.pipe(), os.pipe()
            pid = support.begin(inside, partial(old, told[1], go[0]))
            server, client, datagram = struct.unpack("=3H", os.read(told[0], 6))
            with listening() as heard:
                os.write(go[1], b"x")
                support.ended(pid)
            seen = [r for p in (server, client, datagram) for r in support.of_port(heard.rows, p)]
            assert {row["pid"] for row in seen} == {pid}
            tags = {row["provenance"] for row in seen}
            assert "pid:procfs" in tags
            assert {row["arg_protocol"] for row in seen} == {6, 17}


def old(told: int, go: int) -> None:
    """Connect to oneself, wait, and use what is connected."""
    with (
        support.listener(*V4) as server,
        socket.socket() as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        one.bind((V4[1], 0))
        one.connect(one.getsockname())
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        ports = (server.getsockname()[1], client.getsockname()[1], one.getsockname()[1])
        os.write(told, struct.pack("=3H", *ports))
        os.read(go, 1)
        client.sendall(b"old")
        one.send(b"old")
        accepted.recv(3)
        accepted.close()


@pytest.mark.parametrize("payload_bytes", [0, 1, 96, 1000, MAX])
@pytest.mark.parametrize("size", [0, 97, 5000])
def test_so_much_is_kept_behind_the_header(payload_bytes: int, size: int) -> None:
    """The snap length counts from the end of layer 4's header; the true length stays."""
    with own_network() as network, listening(payload_bytes) as heard:
        support.within(network, lambda: datagrams(size))
    for version, header in ((4, 28), (6, 48)):
        rows = [r for r in in_it(heard) if r["arg_ip_version"] == version]
        assert len(rows) == 2
        for row in rows:
            assert row["arg_length"] == header + size
            assert row["arg_captured"] == header + min(size, payload_bytes)
            assert data_of(row)[header:] == b"z" * min(size, payload_bytes)


def datagrams(size: int) -> None:
    """One of IPv4 and one of IPv6."""
    for family, address in (V4, V6):
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.bind((address, 0))
            one.sendto(b"z" * size, one.getsockname())


def test_options_and_extension_headers_are_headers() -> None:
    """What stands between the headers of IP and of layer 4 is not counted as payload."""
    with own_network() as network, listening(4) as heard:
        support.within(network, with_options)
    found = {row["arg_ip_version"]: row["arg_captured"] for row in in_it(heard)}
    assert found == {4: 20 + 8 + 8 + 4, 6: 40 + 16 + 8 + 4}


def with_options() -> None:
    """Datagrams with options of IPv4, and with a destination header of IPv6."""
    with socket.socket(*socket_of(V4)) as one:
        one.bind((V4[1], 0))
        one.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 8)
        one.sendto(b"z" * 100, one.getsockname())
    with socket.socket(*socket_of(V6)) as one:
        one.bind((V6[1], 0))
        padded = b"\x00\x01\x01\x0c" + bytes(12)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, padded)
        one.sendto(b"z" * 100, one.getsockname())


def socket_of(which: tuple[socket.AddressFamily, str]) -> tuple[int, int]:
    """Family and type of a datagram socket."""
    return which[0], socket.SOCK_DGRAM


def test_a_segment_of_64_kib_keeps_its_length() -> None:
    """What the kernel passes on in one piece is told so; all bytes of it are there when asked."""
    answer_bytes = bytes(range(256)) * 4096
    for payload_bytes in (96, MAX):
        with own_network() as network, listening(payload_bytes) as heard:
            support.within(network, lambda: support.exchange(*V4, answer_bytes))
        rows = [r for r in in_it(heard) if r["arg_protocol"] == 6]
        longest = max(rows, key=lambda row: row["arg_length"])
        assert longest["arg_length"] > 60_000
        most = min(52 + payload_bytes, 1 << 16)
        assert longest["arg_captured"] == min(longest["arg_length"], most)
        sent = [r for r in rows if r["arg_direction"] == "out"]
        assert sum(r["arg_length"] - r["arg_payload_offset"] for r in sent) >= len(answer_bytes)


def test_received_and_lost_are_what_was_sent() -> None:
    """A ring that is too small: what it did not take is counted, by direction."""
    sent = 5000
    with own_network() as network, listening(ring_bytes=1 << 16) as heard:
        support.within(network, lambda: flood(sent))
    rows = in_it(heard)
    lost = {
        way: sum(
            s.count or 0 for s in heard.sides if isinstance(s, Loss) and s.reason.endswith(way)
        )
        for way in (" in", " out")
    }
    assert lost[" out"] > 0
    others = len(heard.rows) - len(rows)
    total = len(rows) + sum(lost.values())
    assert 2 * sent <= total <= 2 * sent + others + 100
    counted = [side for side in heard.sides if isinstance(side, Heartbeat)][-1].details
    assert counted["kept"] == len(heard.rows)
    assert counted["lost"] == sum(lost.values())


def flood(count: int) -> None:
    """Many datagrams to oneself."""
    with socket.socket(*socket_of(V4)) as one:
        one.bind((V4[1], 0))
        where = one.getsockname()
        for _ in range(count):
            one.sendto(b"flood", where)
            one.recv(16)


def loaded() -> set[int]:
    """The numbers of the programs for packets that the kernel holds."""
    found = set()
    for number in system.program_ids():
        fd = system.program_fd(number)
        if fd is not None:
            info = system.program_info(fd)
            os.close(fd)
            if info.name in {"on_ingress", "on_egress", "on_create", "on_accept"}:
                found.add(number)
    return found


def test_nothing_stays_in_the_kernel() -> None:
    """After the end there are the programs that there were; detached, they hear nothing."""
    before = loaded()
    heard = support.Listening()
    try:
        assert len(loaded() - before) == 4
        heard.companion.serve("detach", b"")
        seen = heard.companion.serve("counts", b"")
        datagrams(5)
        assert heard.companion.serve("counts", b"") == seen
    finally:
        heard.end()
    for _ in range(50):  # the kernel frees them when nobody can be inside them any more
        if not loaded() - before:
            break
        time.sleep(0.1)
    assert loaded() - before == set()


def test_the_recorders_own_packets_are_left_out() -> None:
    """Who records is not recorded, or a recording that goes over the network fed itself."""
    heard = support.Listening()
    heard.companion.own([os.getpid()])
    datagrams(7)
    heard.companion.own([])
    datagrams(8)
    mine = [row for row in heard.end() if row.get("pid") == os.getpid()]
    assert {row["arg_length"] for row in mine} == {28 + 8, 48 + 8}


@pytest.mark.parametrize("inside", [True, False])
def test_only_of_processes_that_are_recorded(inside: bool) -> None:
    """Packets of others are left out and counted, unowned ones too; the control: all in scope."""
    mine = os.getpid()
    wanted = {"scoped": 1, "pid_min": mine + (not inside), "pid_max": mine + (not inside)}
    network = Network(payload_bytes=8, filtered=True)
    heard = support.Listening(network=network, constants=wanted)
    datagrams(3)
    support.refused(*V4)
    rows = heard.end()
    assert {row.get("pid") for row in rows} == ({mine} if inside else set())
    assert len(rows) == (4 + 2 if inside else 0)
    left_out = [s.count or 0 for s in heard.sides if isinstance(s, Loss) and s.kind == "filtered"]
    assert sum(left_out) >= (1 if inside else 7)


def test_somebody_who_detaches_it_is_told() -> None:
    """A part that is not attached any more, though nobody here detached it, is a loss."""
    heard = support.Listening()
    heard.companion._looked()
    packets = heard.companion._packets
    assert isinstance(packets, KernelPackets)
    links = packets._program._loaded.links
    os.close(links["on_ingress"])
    sides = heard.companion._looked()
    del links["on_ingress"]
    heard.end()
    assert [s.reason.split()[0] for s in sides if isinstance(s, Loss)] == ["on_ingress"]


def test_who_ends_the_reader_of_proc_is_told() -> None:
    """Whose sockets are comes from there: a loss, once; the control is before it."""
    heard = support.Listening()
    prober = heard.companion._proc.prober
    assert prober is not None
    before = heard.companion._looked()
    os.kill(prober._supervisor, signal.SIGKILL)
    assert ended(frozenset({prober._supervisor}))
    sides = [*heard.companion._looked(), *heard.companion._looked()]
    heard.end()
    assert not [side for side in before if isinstance(side, Loss)]
    (loss,) = (side for side in sides if isinstance(side, Loss))
    assert (loss.kind, loss.source) == ("blind", heard.companion.source.id)
    assert "reads /proc" in loss.reason


def in_it(heard: support.Listening) -> list[support.Row]:
    """What passed in `own_network`."""
    return [row for row in heard.rows if row["arg_interface"] == support.LOOPBACK]


def data_of(row: support.Row) -> bytes:
    """The bytes of a packet."""
    data = row["arg_data__bin"]
    assert isinstance(data, bytes)
    return data


@pytest.mark.kernels
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_other_kernels(series: str, tmp_path: Path, workloads: Workloads) -> None:
    """Debian's kernels take every part; both ends of connections have their process."""
    said = kernel_support.record_packets(series, tmp_path, workloads)
    assert said["refused"] == {}
    for family in ("4", "6"):
        done = said[family]
        rows = support.of_port(said["rows"], done["port"])
        assert support.check_ends(rows, **done) <= ANSWERED
    longest = max(said["rows"], key=lambda row: row["arg_length"])
    assert longest["arg_length"] > 30_000
    assert longest["arg_captured"] == 52 + 300


def test_a_packet_socket_hears_them_where_the_kernel_takes_no_program() -> None:
    """The same packets in one network namespace; whose they are is looked up, and marked so."""
    with own_network() as network, support.inside(network):
        told, go = os.pipe(), os.pipe()
        pid = support.begin(None, partial(old, told[1], go[0]))
        server, client, datagram = struct.unpack("=3H", os.read(told[0], 6))
        with listening(2, tap=True) as heard:
            os.write(go[1], b"x")
            support.ended(pid)
            time.sleep(0.2)
    rows = in_it(heard)
    assert {row.get("pid") for row in rows if row["arg_tcp_flags"] == 0x18} == {pid}
    sent = [row for p in (client, datagram) for row in support.of_port(rows, p)]
    assert {row["arg_protocol"] for row in sent} == {6, 17}
    assert {server} <= {row["arg_dst_port"] for row in sent}
    pairs = Counter(row["arg_packet_id"] for row in rows)
    assert set(pairs.values()) == {2}
    for row in rows:
        payload = row["arg_length"] - row["arg_payload_offset"]
        assert row["arg_captured"] == row["arg_payload_offset"] + min(payload, 2)
        assert row.get("pid") is None or row["provenance"] == "pid:procfs"
    blind = [s.reason for s in heard.sides if isinstance(s, Loss)]
    assert len(blind) == 1
    assert blind[0].startswith("packets of other network namespaces")
