"""Packets of this host while known things are sent, and what tcpdump sees of the same."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from kcap.model.batch import Batch
from kcap.model.side import Side
from kcap.readers.live.artifacts.wanted import Network
from kcap.readers.live.packets.companion import PacketsCompanion

MAX: Final = 65_535
LOOPBACK: Final = "kcaplo"
"""The loopback interface of `own_network`."""
FIN: Final = 0x01
ACK: Final = 0x10

Row = dict[str, Any]


class Listening:
    """A companion that listens, driven by hand.

    Args:
        payload_bytes: What is kept behind the header of layer 4.
        options: More for the companion.
    """

    def __init__(self, payload_bytes: int = MAX, **options: Any) -> None:
        network = options.pop("network", None) or Network(payload_bytes=payload_bytes)
        self.companion = PacketsCompanion(network, **options)
        self.rows: list[Row] = []
        self.sides: list[Side] = []
        try:
            self.companion.prepare()
            self.companion.begin()
        except BaseException:
            self.companion.close()
            raise

    def take(self, batch: Batch | None = None) -> None:
        """What has come so far; ``batch`` is what the source tells meanwhile."""
        batch = Batch(0, {}) if batch is None else batch
        self._keep(made for made in self.companion.follow(batch) if made is not batch)

    def end(self) -> list[Row]:
        """The rest; the program is gone then."""
        try:
            self._keep(self.companion.end())
        finally:
            self.companion.close()
        return self.rows

    def _keep(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self.sides += batch.before
            names = sorted(batch.columns)
            values = [batch.array(name).to_pylist() for name in names]
            self.rows += [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


@contextlib.contextmanager
def listening(payload_bytes: int = MAX, **options: Any) -> Iterator[Listening]:
    """Listen while something is done; ended behind it, so that all rows are there."""
    heard = Listening(payload_bytes, **options)
    try:
        yield heard
    finally:
        heard.end()


@contextlib.contextmanager
def own_network() -> Iterator[str]:
    """A network namespace with nothing but loopback."""
    name = f"kcap{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        # Named apart, so that what others send meanwhile on the host's loopback is told apart.
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "name", LOOPBACK], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", LOOPBACK, "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def within(network: str | None, work: Callable[[], None]) -> int:
    """Do something in a process of its own.

    Args:
        network: The network namespace to be in; None for ours.
        work: What.

    Returns:
        The process, which has ended well.
    """
    pid = begin(network, work)
    ended(pid)
    return pid


def begin(network: str | None, work: Callable[[], None]) -> int:
    """Begin to do something in a process of its own; see `within` and `ended`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if network is not None:
            enter(network)
        work()
        status = 0
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def enter(network: str) -> None:
    """Go into a network namespace."""
    with Path("/run/netns", network).open() as file:
        setns(file.fileno())


def setns(descriptor: int) -> None:
    """Go into the network namespace of a descriptor."""
    assert ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000) == 0


def ended(pid: int) -> None:
    """Wait for a process that ends well."""
    _, status = os.waitpid(pid, 0)
    assert status == 0


@contextlib.contextmanager
def tcpdump(program: str, network: str, path: Path) -> Iterator[None]:
    """Record loopback beside us with tcpdump.

    Args:
        program: Its path.
        network: The network namespace.
        path: The file that it writes.
    """
    command = [
        "ip",
        "netns",
        "exec",
        network,
        program,
        "-i",
        LOOPBACK,
        "-Qin",
        "-nn",
        "-U",
        "-B",
        "65536",
    ]
    process = subprocess.Popen(
        [*command, "--immediate-mode", "-Z", "root", "-w", str(path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert any("listening on" in process.stderr.readline() for _ in range(3))
        time.sleep(0.3)
        yield
        time.sleep(0.5)
    finally:
        process.terminate()
        said = process.communicate(timeout=10)[1]
    assert " 0 packets dropped by kernel" in said.replace("\n", " "), said


def ip_packets(path: Path) -> list[bytes]:
    """The packets of a pcap file of Ethernet, from layer 3 on, as they were captured."""
    content = path.read_bytes()
    magic, _, _, _, _, _, link = struct.unpack_from("<IHHiIII", content)
    assert (magic, link) == (0xA1B2C3D4, 1)
    at, found = 24, []
    while at < len(content):
        _, _, size, length = struct.unpack_from("<IIII", content, at)
        frame = content[at + 16 : at + 16 + size]
        assert size == length
        assert frame[12:14] in (b"\x08\x00", b"\x86\xdd")
        found.append(frame[14:])
        at += 16 + size
    return found


def serve(server: socket.socket, answer: bytes = b"answer") -> None:
    """Accept one connection, and answer what comes."""
    connection, _ = server.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(answer)


def listener(family: int, address: str) -> socket.socket:
    """A server's socket at a free port."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.bind((address, 0))
    made.listen()
    return made


def ask(family: int, address: tuple[str, int], question: bytes = b"question") -> bytes:
    """Connect, ask and take the answer until its end."""
    got = b""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.connect(address)
        client.sendall(question)
        while part := client.recv(1 << 16):
            got += part
    return got


def exchange(family: int, address: str, answer: bytes = b"answer") -> None:
    """A connection within this process, and some datagrams."""
    with listener(family, address) as server:
        where = server.getsockname()[:2]
        pid = begin(None, lambda: serve(server, answer))
        assert ask(family, where) == answer
        ended(pid)
    with (
        socket.socket(family, socket.SOCK_DGRAM) as one,
        socket.socket(family, socket.SOCK_DGRAM) as two,
    ):
        one.bind((address, 0))
        for size in (0, 1, 300, 9000):
            two.sendto(bytes(size), one.getsockname())
            assert len(one.recv(1 << 16)) == size
        name = b"\x04name\x07example\x00\x00\x01\x00\x01"
        two.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + name, one.getsockname())
        _, back = one.recvfrom(1 << 16)
        one.sendto(b"\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00" + name, back)
        two.recv(1 << 16)


def ping(address: str = "127.0.0.1") -> None:
    """One echo request, and its reply."""
    message = struct.pack(">BBHHH", 8, 0, 0, 77, 1) + b"echo"
    total = sum(struct.unpack(f">{len(message) // 2}H", message))
    checksum = ~(total + (total >> 16)) & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(5)
        raw.sendto(message[:2] + struct.pack(">H", checksum) + message[4:], (address, 0))
        while raw.recv(1 << 16)[20] != 0:
            pass


def refused(family: int, address: str, port: int = 9) -> None:
    """Connect to where nobody listens."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        assert client.connect_ex((address, port)) != 0


def answer(ports: int, family: int, address: str) -> None:
    """Be the server of one connection: tell the port, take it late, and answer."""
    with listener(family, address) as server:
        os.write(ports, struct.pack("=H", server.getsockname()[1]))
        time.sleep(0.3)
        serve(server)


def call(port: int, family: int, address: str) -> None:
    """Be the client: what it asks comes before anybody accepts."""
    assert ask(family, (address, port)) == b"answer"


def check_ends(rows: list[Row], client: int, server: int, port: int) -> set[int]:
    """Each end of a connection has its process, whichever way a packet goes.

    Args:
        rows: Of the connection.
        client: Who connected.
        server: Who listened and accepted.
        port: Where.

    Returns:
        The flags of packets that were seen as they came, but not as they left.
    """
    way = {w: {r["arg_packet_id"] for r in rows if r["arg_direction"] == w} for w in ("in", "out")}
    assert len(way["out"]) > 6
    assert way["out"] <= way["in"]
    for row in rows:
        from_client, sent = row["arg_dst_port"] == port, row["arg_direction"] == "out"
        assert row["pid"] == (client if from_client == sent else server), row
        assert row["process_start_ns"] > 0
        assert row["uid"] == 0
    unseen = [row for row in rows if row["arg_packet_id"] not in way["out"]]
    # A connection that is over has no socket: the kernel itself acknowledges a late FIN.
    over = max(
        min(row["ts"] for row in rows if row["arg_tcp_flags"] & FIN and row["arg_dst_port"] == to)
        for to in {row["arg_dst_port"] for row in rows}
    )
    return {
        row["arg_tcp_flags"] for row in unseen if row["arg_tcp_flags"] != ACK or row["ts"] < over
    }


def of_port(rows: list[Row], port: int) -> list[Row]:
    """The rows of one port."""
    return [row for row in rows if port in (row.get("arg_src_port"), row.get("arg_dst_port"))]


@contextlib.contextmanager
def inside(network: str) -> Iterator[None]:
    """Be in a network namespace: this thread, and the processes that it starts."""
    with Path("/proc/thread-self/ns/net").open() as home:
        enter(network)
        try:
            yield
        finally:
            setns(home.fileno())
