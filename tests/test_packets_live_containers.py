"""Packets between containers: two network namespaces, joined by a bridge in a third one.

A packet passes four interfaces there, and tcpdump sees it at each. The recorder hears what
sockets send and get: two sightings, equal byte for byte, so one packet.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import packets_live_support as support
import pytest
from pcap_support import read

from kcap.model.batch import Batch
from kcap.readers.live.probe.hierarchies import hierarchies
from kcap.tools.folder import written
from kcap.writers.pcap_split import MANIFEST, MODES, PacketFolder

pytestmark = pytest.mark.root

CONTAINERS: Final = {"a": "a1" * 32, "b": "b2" * 32}
ADDRESSES: Final = {
    "a": ((socket.AF_INET, "10.77.0.1"), (socket.AF_INET6, "fd77::1")),
    "b": ((socket.AF_INET, "10.77.0.2"), (socket.AF_INET6, "fd77::2")),
}
MTU: Final = 1500
ANSWER: Final = bytes(range(256)) * 4096
NEIGHBOURS: Final = range(130, 144)
"""Messages of ICMPv6 that no socket gets or sends: multicast listeners, neighbours."""


class Seen(NamedTuple):
    """What was seen of the same."""

    split: Path
    """The folder that packets were split into."""
    rows: list[support.Row]
    beside: dict[str, Counter[bytes]]
    """What tcpdump saw, by interface."""
    captures: dict[str, Path]


def ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def networks() -> Iterator[dict[str, str]]:
    """A host with a bridge, and two containers at it; their namespaces by name."""
    names = {which: f"kcap{which}{os.getpid()}" for which in ("h", "a", "b")}
    try:
        for name in names.values():
            ip("netns", "add", name)
        host = names["h"]
        ip("-n", host, "link", "add", "name", "bridge", "type", "bridge")
        ip("-n", host, "link", "set", "bridge", "up")
        for which in ("a", "b"):
            mine = names[which]
            ip("-n", mine, "link", "add", "eth", "type", "veth",
               "peer", "name", f"v{which}", "netns", host)  # fmt: skip
            ip("-n", host, "link", "set", f"v{which}", "master", "bridge", "up")
            for (_, address), size in zip(ADDRESSES[which], ("24", "64"), strict=True):
                more = ["nodad"] if ":" in address else []
                ip("-n", mine, "addr", "add", f"{address}/{size}", "dev", "eth", *more)
            ip("-n", mine, "link", "set", "eth", "up")
        time.sleep(0.5)  # ports of a bridge forward when it has looked at them
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextlib.contextmanager
def groups() -> Iterator[dict[str, Path]]:
    """Control groups of two containers, as Docker names them."""
    roots = [m.path for m in hierarchies() if not m.controllers and os.access(m.path, os.W_OK)]
    if not roots:
        pytest.skip("no control groups of version 2 to write to")
    below = Path(roots[0]) / f"kcap-test-{os.getpid()}"
    made = {which: below / f"docker-{number}.scope" for which, number in CONTAINERS.items()}
    try:
        for folder in made.values():
            folder.mkdir(parents=True)
        yield made
    finally:
        for folder in (*made.values(), below):
            if folder.exists():
                folder.rmdir()


@contextlib.contextmanager
def tcpdump(program: str, network: str, interface: str, path: Path) -> Iterator[None]:
    """Record what passes an interface, either way."""
    command = ["ip", "netns", "exec", network, program, "-i", interface, "-nn", "-U"]
    command += ["-B", "65536", "--immediate-mode", "-Z", "root", "-w", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert any("listening on" in process.stderr.readline() for _ in range(3))
        yield
    finally:
        time.sleep(0.5)
        process.terminate()
        said = process.communicate(timeout=10)[1]
    assert " 0 packets dropped by kernel" in said.replace("\n", " "), said


def inside(folder: Path, work: Callable[[], None]) -> None:
    """Do something in a container."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))
    work()


def serve(told: int, family: int, address: str) -> None:
    """Be the server of one connection, and get one datagram."""
    with (
        support.listener(family, address) as server,
        socket.socket(family, socket.SOCK_DGRAM) as one,
    ):
        one.bind((address, server.getsockname()[1]))
        os.write(told, server.getsockname()[1].to_bytes(2, "little"))
        support.serve(server, ANSWER)
        for _ in range(2):
            one.recv(1 << 16)


def call(family: int, address: str, port: int) -> None:
    """Be the client; a datagram goes to nobody, too: the kernel answers it."""
    assert support.ask(family, (address, port)) == ANSWER
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.sendto(b"datagram", (address, port))
        one.sendto(b"fragments" * 400, (address, port))
        one.sendto(b"nobody", (address, 9))
        time.sleep(0.2)


def talk(names: dict[str, str], folders: dict[str, Path]) -> None:
    """A client in one container asks a server in the other."""
    for family, address in ADDRESSES["b"]:
        ports = os.pipe()
        server = partial(inside, folders["b"], partial(serve, ports[1], family, address))
        pid = support.begin(names["b"], server)
        port = int.from_bytes(os.read(ports[0], 2), "little")
        client = partial(inside, folders["a"], partial(call, family, address, port))
        support.within(names["a"], client)
        support.ended(pid)


class Batches(support.Listening):
    """What a companion hears, batch by batch."""

    def _keep(self, batches: Iterator[Batch]) -> None:
        self.batches: list[Batch] = getattr(self, "batches", [])
        found = list(batches)
        self.batches += found
        super()._keep(iter(found))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Let two containers talk, and see it everywhere."""
    found = [Path(p) / "tcpdump" for p in os.environ["PATH"].split(":")]
    tool = next((str(path) for path in found if path.exists()), None)
    if tool is None:
        pytest.skip("tcpdump is not installed")
    folder = tmp_path_factory.mktemp("containers")
    places = {
        "eth of a": ("a", "eth"),
        "eth of b": ("b", "eth"),
        "va": ("h", "va"),
        "any": ("h", "any"),
    }
    captures = {place: folder / f"{place}.pcap" for place in places}
    with contextlib.ExitStack() as stack:
        names, folders = stack.enter_context(networks()), stack.enter_context(groups())
        with contextlib.ExitStack() as beside:
            for place, (which, interface) in places.items():
                beside.enter_context(tcpdump(tool, names[which], interface, captures[place]))
            heard = Batches()
            try:
                time.sleep(0.3)
                talk(names, folders)
            finally:
                heard.end()
    with written(str(folder / "s"), force=False, mark=MANIFEST) as made:
        sink = PacketFolder(made.create, made.append, MODES, "pcapng")
        for batch in heard.batches:
            sink.write(batch)
        sink.close()
    beside_us = {place: of_sockets(rows_of(path)) for place, path in captures.items()}
    return Seen(folder / "s/pcap", [r for r in heard.rows if ours(r)], beside_us, captures)


def rows_of(path: Path) -> list[support.Row]:
    """The events of a capture."""
    return read(path.read_bytes())[0]


def ours(row: support.Row) -> bool:
    """Whether it is between the containers, and not only to find each other."""
    mine = {address for ends in ADDRESSES.values() for _, address in ends}
    return {row.get("arg_src"), row.get("arg_dst")} <= mine and not (
        row["arg_protocol"] == socket.IPPROTO_ICMPV6 and row["arg_icmp_type"] in NEIGHBOURS
    )


def is_last(row: support.Row) -> bool:
    """Whether it carries nothing, and ends a connection or may come behind its end."""
    if row["arg_protocol"] != socket.IPPROTO_TCP:
        return False
    empty = row["arg_length"] == row["arg_payload_offset"]
    return bool(empty and row["arg_tcp_flags"] in (support.ACK, support.FIN | support.ACK))


def data_of(row: support.Row) -> bytes:
    """The bytes of a packet."""
    data = row["arg_data__bin"]
    assert isinstance(data, bytes)
    return data


def of_sockets(rows: list[support.Row]) -> Counter[bytes]:
    """The packets between the containers, without fragments."""
    kept = (row for row in rows if ours(row) and row.get("arg_fragment_offset") is None)
    return Counter(map(data_of, kept))


def packets(path: Path) -> Counter[bytes]:
    """The packets in a file of the split, but for what does not fit the wire as it is."""
    rows = rows_of(path) if path.exists() else []
    return of_sockets([row for row in rows if not too_long(row)])


def too_long(row: support.Row) -> bool:
    """Whether the network sends it in fragments: what is no TCP, and longer than it carries."""
    return row["arg_length"] > MTU and row["arg_protocol"] == socket.IPPROTO_UDP


def test_single_is_what_either_side_sees(seen: Seen) -> None:
    """Frame for frame, at either container's interface and at the host's end of it."""
    single, rest = packets(seen.split / "single.pcapng"), packets(seen.split / "unowned.pcapng")
    assert sum(single.values()) > 40
    for place in ("eth of a", "eth of b", "va"):
        assert single + rest == seen.beside[place], place
    ids = [row["arg_packet_id"] for row in rows_of(seen.split / "single.pcapng")]
    assert len(ids) == len(set(ids))


def test_a_datagram_in_fragments_is_whole(seen: Seen) -> None:
    """Sockets send and get it in one piece; the wire has its fragments."""
    whole = [row for row in rows_of(seen.split / "single.pcapng") if ours(row) and too_long(row)]
    assert [row["arg_ip_version"] for row in whole] == [4, 6]
    for row in whole:
        parts = [
            part
            for part in rows_of(seen.captures["va"])
            if ours(part)
            and part.get("arg_fragment_offset") is not None
            and part["arg_ip_version"] == row["arg_ip_version"]
        ]
        assert len(parts) == 3
        assert sum(part["arg_length"] for part in parts) > row["arg_length"] > 3600


def test_all_interfaces_of_the_host_see_it_more_than_once(seen: Seen) -> None:
    """The control: tcpdump -i any has each packet at both ports of the bridge."""
    single, rest = packets(seen.split / "single.pcapng"), packets(seen.split / "unowned.pcapng")
    assert seen.beside["any"] == Counter({data: 2 * n for data, n in (single + rest).items()})


def test_sockets_see_each_packet_twice(seen: Seen) -> None:
    """Once as it leaves one container, once as it comes to the other; one packet id."""
    ways: dict[int, list[str]] = {}
    for row in seen.rows:
        ways.setdefault(row["arg_packet_id"], []).append(row["arg_direction"])
    twice = [way for way in ways.values() if sorted(way) == ["in", "out"]]
    # How the answer to a SYN leaves is not seen before Linux 6.13 or so.
    once = [way for way in ways.values() if len(way) == 1]
    assert len(twice) + len(once) == len(ways)
    # Nor is what comes to a connection that is over: no socket gets it.
    last = {row["arg_packet_id"] for row in seen.rows if is_last(row)}
    once = [way for number, way in ways.items() if len(way) == 1 and number not in last]
    assert len(twice) > 40
    assert len(once) <= 2 * len(ADDRESSES["b"])


def test_each_container_has_its_packets(seen: Seen) -> None:
    """Both have all of their connection, once; together they are single."""
    files = {which: seen.split / f"containers/{CONTAINERS[which][:11]}.pcapng" for which in "ab"}
    held = {which: packets(path) for which, path in files.items()}
    single = packets(seen.split / "single.pcapng")
    assert held["a"] | held["b"] == single
    for which, found in held.items():
        rows = [r for r in rows_of(files[which]) if ours(r)]
        assert {row["container_id"] for row in rows} == {CONTAINERS[which]}
        assert sum(found.values()) > 40
    # What only one of them has, no process of the other had: the datagram to nobody.
    assert sum((held["b"] - held["a"]).values()) == 0
    last = len({row["arg_packet_id"] for row in seen.rows if is_last(row)})
    assert sum((held["a"] - held["b"]).values()) <= 2 * len(ADDRESSES["b"]) + last


def test_processes_and_commands_together_are_single(seen: Seen) -> None:
    """The union of packets is the same for each way to split."""
    single = {r["arg_packet_id"] for r in rows_of(seen.split / "single.pcapng")}
    for folder in ("processes", "containers", "commands"):
        found = {
            row["arg_packet_id"]
            for path in (seen.split / folder).rglob("*.pcapng")
            for row in rows_of(path)
        }
        assert found <= single
        mine = {r["arg_packet_id"] for r in seen.rows if r["pid"] is not None}
        assert mine <= found
