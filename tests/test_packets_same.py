"""The same frames live, from files and from Tracee's folder; and as tcpdump and tshark see them."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import packets_live_support as support
import pytest
from badinput_support import ROOT
from cli_support import run

from kcap import limits

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/sys/kernel/btf/vmlinux").exists(),
        reason="needs root and the types of the kernel",
    ),
]

Row = dict[str, Any]

CLIENT, SERVER = "kcap client", "kcap/server"
"""Names of processes; neither can stand in a file's name as it is."""
OF_THE_RECORDING = {"origin", "ord", "seq", "source", "host"}
"""Which recording it is: another file is another one."""
NOT_IN_PCAPNG = {"mount_ns", "pid_ns", "ns_pid", "ns_tid", "ns_ppid", "session", "cwd"}
"""What a pcapng has no place for."""
NOT_IN_PCAP = {"arg_direction", "arg_packet_id", "arg_interface"}
"""What a classic capture has no place for, beside all that is known of processes."""


class Same(NamedTuple):
    """What was recorded."""

    folder: Path
    capture: Path
    tracee: Path
    """A directory as Tracee lays it out."""
    split: Path
    """What ``kcap export --split`` wrote."""
    beside: list[bytes] | None
    """The packets that tcpdump saw; None where there is none."""
    pids: dict[str, int]


@contextmanager
def recording(folder: Path, *words: str | Path) -> Iterator[None]:
    """Record packets, all of each, while something is done."""
    said = folder / "said"
    command = [sys.executable, "-m", "kcap.tools", "record", "--duration", "5m", *map(str, words)]
    with said.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=stream
        )
    try:
        end = time.monotonic() + 60
        while "recording with" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.05)
        yield
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        # What others do on this host may be lost.
        assert process.returncode in {0, 3}, said.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def named(name: str, work: Callable[[], None]) -> None:
    """Do something under another name."""
    Path("/proc/self/comm").write_text(name)
    work()


def serve(ports: int, family: int, address: str) -> None:
    """Answer one connection with so much that the kernel passes 64 KiB on in one piece."""
    with support.listener(family, address) as server:
        os.write(ports, server.getsockname()[1].to_bytes(2, "little"))
        support.serve(server, bytes(range(256)) * 4096)


def call(port: int, family: int, address: str) -> None:
    """Ask for it."""
    assert len(support.ask(family, (address, port))) == 1 << 20


def others() -> None:
    """Datagrams, DNS, an echo; and a datagram to nobody: what answers is the kernel's own."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        support.exchange(family, address)
        support.refused(family, address)
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.sendto(b"nobody", (address, 9))
    support.ping()


def send(network: str) -> dict[str, int]:
    """Let a client and a server talk, and others; who they are."""
    pids = {}
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        ports = os.pipe()
        server = partial(named, SERVER, partial(serve, ports[1], family, address))
        pid = support.begin(network, server)
        port = int.from_bytes(os.read(ports[0], 2), "little")
        client = partial(named, CLIENT, partial(call, port, family, address))
        pids[f"{CLIENT} {family}"] = support.within(network, client)
        support.ended(pid)
        pids[f"{SERVER} {family}"] = pid
    support.within(network, others)
    return pids


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Same:
    """Record, beside tcpdump where there is one, and write it in every form."""
    folder = tmp_path_factory.mktemp("same")
    capture, tracee, beside = folder / "r.kcap", folder / "tracee", folder / "lo.pcap"
    words = ("--artifacts", "network,pcap-snaplen:max,pcap:single,process,container,command")
    words += ("--artifacts", f"dir:{tracee}", "--output", "none", "-o", str(capture))
    tool = shutil.which("tcpdump")
    with support.own_network() as network, recording(folder, *words):
        if tool is None:
            pids = send(network)
        else:
            with support.tcpdump(tool, network, beside):
                pids = send(network)
    modes = "single,process,container,command"
    for output in ("r.pcapng", "r.pcap"):
        written("export", capture, "-o", folder / output)
    written("export", capture, "-o", folder / "s", "--format", "pcapng", "--split", modes)
    seen = support.ip_packets(beside) if tool else None
    return Same(folder, capture, tracee, folder / "s/pcap", seen, pids)


def written(*words: str | Path) -> None:
    """Run kcap; what is told of losses of the host is none of ours."""
    done = run(*words)
    assert done.exit_code in {0, 3}, done.output


def rows(path: Path) -> list[Row]:
    """The packets of any input, in its order."""
    done = run("cat", "--format", "jsonl", "-w", "evt.name = 'net_packet'", path)
    assert done.exit_code in {0, 3}, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def data(row: Row) -> bytes:
    """The bytes of a packet."""
    return base64.b64decode(row["arg_data__bin"])


def without(found: list[Row], *names: str) -> list[Row]:
    """Rows as they are in any recording, less some columns."""
    left = OF_THE_RECORDING | set(names)
    return [{k: v for k, v in row.items() if k not in left} for row in found]


def part_of(row: Row) -> tuple[int, ...]:
    """What no two packets have in common, nor two parts of one."""
    return (row["arg_packet_id"], row.get("arg_tcp_seq", 0), row["arg_length"])


def wholes(found: list[Row]) -> dict[int, Row]:
    """What loopback has split: longer than any packet can be."""
    return {row["arg_packet_id"]: row for row in found if row["arg_length"] > 1 << 16}


def first_sightings(found: list[Row]) -> list[Row]:
    """Each packet once: as somebody had it first, if anybody ever had; a split one is its parts."""
    packets: dict[tuple[int, ...], list[Row]] = {}
    split = {row["arg_packet_id"] for row in found} & set(wholes(found))
    for row in found:
        if row["arg_packet_id"] not in split or row["arg_direction"] == "in":
            packets.setdefault(part_of(row), []).append(row)
    owned = [[row for row in seen if "pid" in row] or seen for seen in packets.values()]
    return sorted((seen[0] for seen in owned), key=lambda row: row["ord"])


def test_a_pcapng_holds_the_same_events(same: Same) -> None:
    """Every argument, time and process; not the namespaces."""
    live, read = rows(same.capture), rows(same.folder / "r.pcapng")
    assert len(live) > 200
    assert NOT_IN_PCAPNG & {name for row in live for name in row}
    assert without(read, "seq") == without(live, "seq", *NOT_IN_PCAPNG)


def test_a_pcap_holds_the_same_packets(same: Same) -> None:
    """Every argument but three; nothing of processes."""
    live, read = rows(same.capture), rows(same.folder / "r.pcap")
    names = {name for row in live for name in row if name.startswith("arg_")} - NOT_IN_PCAP
    assert {name for row in read for name in row if name.startswith("arg_")} - NOT_IN_PCAP == names
    names |= {"ts", "event"}
    assert [{n: r.get(n) for n in names} for r in read] == [
        {n: r.get(n) for n in names} for r in live
    ]


def test_a_directory_of_tracees_holds_the_same_events(same: Same) -> None:
    """Each packet once, as all of its arguments, by whom and when it was seen first."""
    live, read = first_sightings(rows(same.capture)), rows(same.tracee)
    assert any("pid" not in row for row in live)
    assert without(read, "seq") == without(live, "seq", *NOT_IN_PCAPNG)


def test_single_is_what_tcpdump_sees(same: Same) -> None:
    """Frame for frame, but for those that nobody owns; these are in a file of their own."""
    if same.beside is None:
        pytest.skip("tcpdump is not installed")
    single, rest = (rows(same.split / f"{name}.pcapng") for name in ("single", "unowned"))
    mine = [
        [row for row in found if row["arg_interface"] == support.LOOPBACK]
        for found in (single, rest)
    ]
    kept, unowned = (Counter((r["arg_length"], data(r)) for r in found) for found in mine)
    assert unowned
    # An event holds 64 KiB, the kernel passes more on in one piece; how long it is stays.
    assert kept + unowned == Counter((len(f), f[: limits.VALUE_BYTES]) for f in same.beside)
    assert all(row["provenance"] == "pid:unowned" and "pid" not in row for row in rest)
    assert not {row["arg_packet_id"] for row in single} & {row["arg_packet_id"] for row in rest}
    # The control: what loopback splits was seen whole, and would not be what tcpdump sees.
    split = wholes(rows(same.capture))
    assert len(split) > 3
    lost = Counter((row["arg_length"], data(row)) for row in split.values())
    assert not lost & Counter((len(f), f[: limits.VALUE_BYTES]) for f in same.beside)
    assert split.keys() <= {row["arg_packet_id"] for row in single}
    protocols = {row["arg_protocol"] for row in mine[1]}
    assert protocols <= {1, 58}, "the kernel's own messages"


@pytest.mark.parametrize("kind", ["processes", "containers", "commands"])
def test_files_of_owners_together_are_single(same: Same, kind: str) -> None:
    """A packet is in the file of each who had it, and in no other's."""
    live = rows(same.capture)
    owners: dict[str, set[int]] = {}
    for row in live:
        if "pid" in row:
            owners.setdefault(_file_of(kind, row), set()).add(row["arg_packet_id"])
    found = {
        str(path.relative_to(same.split / kind)): [part_of(r) for r in rows(path)]
        for path in (same.split / kind).rglob("*.pcapng")
    }
    assert {name: {own[0] for own in ids} for name, ids in found.items()} == owners
    assert all(len(ids) == len(set(ids)) for ids in found.values())
    single = [part_of(row) for row in rows(same.split / "single.pcapng")]
    assert set().union(*owners.values()) == {number for number, *_ in single}
    assert len(single) == len(set(single))


def _file_of(kind: str, row: Row) -> str:
    name = re.sub(r"[ /]", lambda m: f"%{ord(m[0]):02X}", row["process_name"])
    at = {
        "processes": f"host/{name}_{row['tid']}_{row['thread_start_ns']}.pcapng",
        "commands": f"host/{name}.pcapng",
        "containers": "host.pcapng",
    }
    return at[kind]


def test_client_and_server_have_their_packets(same: Same) -> None:
    """All packets of their connection are in both one's files, and none of others'."""
    live = rows(same.capture)
    for family in (socket.AF_INET, socket.AF_INET6):
        client, server = (same.pids[f"{name} {family}"] for name in (CLIENT, SERVER))
        of = {pid: [row for row in live if row.get("pid") == pid] for pid in (client, server)}
        ports = [{row["arg_src_port"], row["arg_dst_port"]} for row in of[client]]
        assert ports
        assert all(pair == ports[0] for pair in ports)
        ids = {pid: {row["arg_packet_id"] for row in found} for pid, found in of.items()}
        both = ids[client] & ids[server]
        assert len(both) > 20
        one = [r for r in of[client] + of[server] if r["arg_packet_id"] not in both]
        # The kernel answers a SYN, and what comes behind the end, without the process.
        assert all(row["arg_length"] == row["arg_payload_offset"] for row in one)


def test_a_segment_of_64_kib_keeps_its_length(same: Same) -> None:
    """It is as long in each form, and all of it is there."""
    for path in (same.capture, same.folder / "r.pcapng", same.folder / "r.pcap", same.tracee):
        longest = max(rows(path), key=lambda row: row["arg_length"])
        assert longest["arg_length"] > 60_000
        most = min(longest["arg_length"], limits.VALUE_BYTES)
        assert longest["arg_captured"] == len(data(longest)) == most


def _exported(same: Same) -> list[Path]:
    return sorted([*same.folder.glob("r.pcap*"), *same.split.rglob("*.pcapng")])


def test_others_read_the_same(same: Same, program: Callable[[str], str]) -> None:
    """tshark and tcpdump find in each file as many packets, their times in ns and lengths."""
    tshark, tcpdump = program("tshark"), program("tcpdump")
    files = _exported(same)
    assert len(files) > 10
    for path in files:
        expected = [(r["ts"], r["arg_length"], r["arg_captured"]) for r in rows(path)]
        fields = ("frame.time_epoch", "frame.len", "frame.cap_len")
        words = [tshark, "-r", path, "-T", "fields", *(w for f in fields for w in ("-e", f))]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
        seen = [line.split("\t") for line in lines if line]
        assert [(_ns(t), int(length), int(cap)) for t, length, cap in seen] == expected, path
        words = [tcpdump, "-r", path, "-n", "-tt", "--nano", "-q"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        times = [_ns(line.split()[0]) for line in shown.splitlines() if line[:1].isdigit()]
        assert times == [ts for ts, *_ in expected], path


def _ns(text: str) -> int:
    seconds, _, rest = text.partition(".")
    return int(seconds) * 10**9 + int(rest.ljust(9, "0"))


def test_merged_they_are_the_whole(
    same: Same, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """What Wireshark's mergecap makes of single and unowned is what tcpdump saw, in order."""
    mergecap = program("mergecap")
    merged = tmp_path / "m.pcapng"
    parts = [same.split / f"{name}.pcapng" for name in ("single", "unowned")]
    subprocess.run([mergecap, "-w", merged, *parts], check=True, capture_output=True)
    found = rows(merged)
    names = ("ts", "arg_data__bin", "arg_length", "arg_packet_id", "pid", "process_name", "exe")
    live = sorted(first_sightings(rows(same.capture)), key=lambda row: row["ts"])
    assert [[r.get(n) for n in names] for r in found] == [[r.get(n) for n in names] for r in live]
    tshark = program("tshark")
    told = subprocess.run([tshark, "-r", merged], capture_output=True, check=True, text=True)
    assert len(told.stdout.splitlines()) == len(live)
