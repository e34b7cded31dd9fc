"""Packets whose owners mislead, and packets that lie about themselves."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import packets_live_support as support
import pytest
from packets_live_support import LOOPBACK, listening, own_network

from kcap.model.side import Heartbeat, Loss
from kcap.readers.live.packets import companion, kernel
from kcap.readers.live.packets.kernel import KernelPackets

pytestmark = pytest.mark.root

SOURCE = Path(__file__).parent / "workloads/accepting.c"
HERE = "127.0.0.1"


def in_it(heard: support.Listening) -> list[support.Row]:
    """What passed in `own_network`."""
    return [row for row in heard.rows if row["arg_interface"] == LOOPBACK]


def unknown(heard: support.Listening) -> tuple[int, int]:
    """How many packets of unknown processes were counted, by the heartbeat and as what is blind."""
    beat = [side for side in heard.sides if isinstance(side, Heartbeat)][-1]
    told = [s.count for s in heard.sides if isinstance(s, Loss) and s.reason.startswith("whose p")]
    return int(beat.details["unknown"]), sum(each or 0 for each in told)


def forget(heard: support.Listening) -> None:
    """Put every process out of the tables, as somebody does who opens sockets enough."""
    packets = heard.companion._packets
    assert isinstance(packets, KernelPackets)
    for name in ("owners", "accepted", "listeners"):
        table = packets._program._loaded.maps[name]
        for key in list(table.keys()):
            table.delete(key)


def test_whose_process_is_forgotten_is_not_of_nobody() -> None:
    """Sockets that were put out of the tables are somebody's: told as unknown, counted."""
    with own_network() as network, listening() as heard, support.inside(network):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind((HERE, 0))
            one.connect(one.getsockname())
            one.send(b"known")
            forget(heard)
            one.send(b"forgotten")
        support.refused(socket.AF_INET, HERE)
    rows = {(r["arg_length"], r["arg_direction"]): r for r in in_it(heard)}
    for way in ("in", "out"):
        assert rows[28 + 5, way]["pid"] == os.getpid()
        lost = rows[28 + 9, way]
        assert (lost.get("pid"), lost.get("provenance")) == (None, None)
    [reset] = [r for r in in_it(heard) if r.get("provenance") == "pid:unowned"]
    assert reset["arg_tcp_flags"] & 4
    counted, told = unknown(heard)
    assert counted == told >= 2


def test_raw_sockets_that_were_open_before() -> None:
    """They are not listed anywhere: unknown, where the kernel's own answer is of nobody."""
    with (
        own_network() as network,
        support.inside(network),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw,
    ):
        raw.settimeout(5)
        with listening() as heard:
            raw.sendto(bytes.fromhex("0800f7ff00000000"), (HERE, 0))
            while raw.recv(1 << 16)[20] != 0:
                pass
    tags = {(r["arg_icmp_type"], r["arg_direction"]): r.get("provenance") for r in in_it(heard)}
    assert tags[8, "out"] is None
    assert tags[0, "out"] == "pid:unowned"
    assert unknown(heard)[0] >= 1


def test_listeners_of_one_port_at_several_addresses() -> None:
    """Who has not been accepted is of who listens there, whoever came last to the port."""
    with own_network() as network, listening() as heard:
        told, go = os.pipe(), os.pipe()

        def listen(address: str, port: int) -> None:
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((address, port))
                server.listen()
                os.write(told[1], struct.pack("=H", server.getsockname()[1]))
                os.read(go[0], 1)

        pids, port = {}, 0
        for address in (HERE, "127.0.0.2", "127.0.0.3"):
            pids[address] = support.begin(network, lambda a=address, p=port: listen(a, p))
            port = struct.unpack("=H", os.read(told[0], 2))[0]

        def connect() -> None:
            for address in pids:
                with socket.create_connection((address, port)) as client:
                    client.send(b"waits")

        support.within(network, connect)
        os.write(go[1], b"xxx")
        for pid in pids.values():
            support.ended(pid)
    seen = {
        (row["arg_dst"], row["pid"], row.get("provenance"))
        for row in in_it(heard)
        if row["arg_dst_port"] == port
        and row["arg_length"] == 52 + 5
        and row["arg_direction"] == "in"
    }
    assert seen == {(address, pid, "pid:inherited") for address, pid in pids.items()}


def test_a_listener_that_is_closed_has_no_connections() -> None:
    """What listened at an address does not have the connections of who listens at any later."""
    with own_network() as network, listening() as heard:

        def server(address: str) -> None:
            with socket.socket() as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((address, 7777))
                one.listen()
                with socket.create_connection((HERE, 7777)) as client:
                    client.send(b"waits")

        first = support.within(network, lambda: server(HERE))
        second = support.within(network, lambda: server("0.0.0.0"))
    seen = [
        (row["pid"], row.get("provenance"))
        for row in in_it(heard)
        if row["arg_dst_port"] == 7777
        and row["arg_length"] == 52 + 5
        and row["arg_direction"] == "in"
    ]
    assert seen == [(first, "pid:inherited"), (second, "pid:inherited")]


@pytest.fixture(params=["-m64", "-m32"])
def accepting(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A server whose child accepts, built for 64 and for 32 bits."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed; `make test` as root on Debian installs it")
    path = str(tmp_path / "accepting")
    command = ["gcc", "-O1", "-Wall", "-Werror", request.param, "-o", path, str(SOURCE)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("gcc can't build this; on Debian: apt-get install gcc-multilib")
    return path


def test_who_accepts_has_the_connection(accepting: str) -> None:
    """It is the child's from then on, not the listener's, for programs of 32 bits too."""
    with listening() as heard, subprocess.Popen([accepting], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        for _ in range(2):
            assert support.ask(socket.AF_INET, (HERE, port)) == b"answer"
        child = int(server.stdout.readline())
        assert server.wait(10) == 0
    answers = [
        row
        for row in support.of_port(heard.rows, port)
        if row["arg_length"] == 52 + 6 and row["arg_direction"] == "out"
    ]
    assert len(answers) == 2
    for row in answers:
        assert (row["pid"], row.get("provenance")) == (child, None)


IPV6 = struct.Struct(">IHBB16s16s")
V6_HERE = bytes(15) + b"\x01"


def made(next_header: int, rest: bytes) -> bytes:
    """A packet of IPv6 to ourselves."""
    return IPV6.pack(6 << 28, len(rest), next_header, 64, V6_HERE, V6_HERE) + rest


LIES = {
    # An extension that says it has 2,048 bytes; it has, but that is no header to keep.
    "long": (made(60, b"\x11\xff" + bytes(2046) + bytes(900)), 1024),
    # A chain that leads beyond the packet's end.
    "beyond": (made(60, b"\x3c\xff" + bytes(300)), 40 + 302),
    # More extensions than are followed.
    "chain": (made(60, (b"\x3c\x00" + bytes(6)) * 20 + bytes(500)), 40 + 8 * 8),
    # A header of TCP that says it has none.
    "tcp": (made(6, bytes(12) + b"\x00\x02" + bytes(6) + bytes(400)), 60),
    "tcp cut": (made(6, bytes(13)), 53),
    "fragment": (made(44, b"\x06\x00\x00\x08" + bytes(4) + bytes(400)), 48),
    "nothing": (made(59, bytes(100)), 40),
}


def test_headers_that_lie() -> None:
    """Where only headers are kept, no packet makes us keep more of it than headers can have."""
    with own_network() as network, listening(0) as heard, support.inside(network):
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for data, _ in LIES.values():
                raw.sendto(data, ("::1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            short = struct.pack(
                ">BBHHHBBH4s4s", 0x45, 0, 21, 0, 0, 9, 6, 0, bytes(4), b"\x7f\0\0\1"
            )
            raw.sendto(short + b"x", (HERE, 0))
    sent = [r for r in in_it(heard) if r["arg_direction"] == "out" and r["pid"] == os.getpid()]
    found = [(r["arg_length"], r["arg_captured"]) for r in sent if r["arg_ip_version"] == 6]
    assert found == [(len(data), most) for data, most in LIES.values()]
    [four] = [row for row in sent if row["arg_ip_version"] == 4]
    assert (four["arg_length"], four["arg_captured"]) == (21, 21)
    assert "arg_src_port" not in four or four["arg_src_port"] is None
    for row in sent:
        data = row["arg_data__bin"]
        assert len(data) == row["arg_captured"]


def test_packets_do_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much waits, so much is taken at a time; the rest comes later, in order."""
    monkeypatch.setattr(kernel, "BATCH_BYTES", 4096)
    monkeypatch.setattr(companion, "_QUIET_NS", 0)  # nobody tells of events here
    with own_network() as network, listening(0) as heard:

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.bind((HERE, 0))
                for size in range(200):
                    one.sendto(bytes(size), one.getsockname())

        support.within(network, flood)
        for _ in range(2):
            time.sleep(0.05)
            heard.take()
        assert 0 < len(heard.rows) < 2 * (2 * 4096 // 200 + 2)
    sizes = [r["arg_length"] - 28 for r in in_it(heard) if r["arg_direction"] == "out"]
    assert sizes == list(range(200))
