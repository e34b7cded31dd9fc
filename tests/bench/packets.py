"""Packets of a pcap file as events, beside tshark and tcpdump.

``python tests/bench/packets.py [PACKETS]`` prints a table. The packets are like
those that Tracee keeps of a connection: IPv4 and TCP with 96 bytes behind the headers, of many
addresses and ports. Each program reads the same file from the page cache; what counts is the time
of processors, so that other work on the machine matters little.
"""

from __future__ import annotations

import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kcap.opening import open_source
from kcap.packets.decode import columns
from kcap.packets.headers import parse
from kcap.packets.identity import PacketIds
from kcap.readers.pcap import PcapReader

TURNS = 3
_SECOND = 1_700_000_000
_FIELDS = ("frame.time_epoch", "frame.len", "ip.src", "ip.dst", "tcp.srcport", "tcp.dstport")


def capture(path: Path, count: int) -> None:
    """Write a pcap of so many packets."""
    rng = np.random.default_rng(7)
    size = 20 + 20 + 96
    record = np.zeros((count, 16 + size), np.uint8)
    numbers = np.arange(count)
    head = record[:, :16].view("<u4")
    head[:, 0], head[:, 1] = _SECOND + numbers // 1_000_000, numbers % 1_000_000
    head[:, 2] = head[:, 3] = size
    packet = record[:, 16:]
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 6, 0, bytes(4), bytes(4))
    packet[:, :20] = np.frombuffer(ip, np.uint8)
    hosts = rng.integers(0, 256, (500, 4), np.uint8)
    packet[:, 12:16] = hosts[rng.integers(0, 500, count)]
    packet[:, 16:20] = hosts[rng.integers(0, 500, count)]
    packet[:, 20:24] = rng.integers(0, 256, (count, 4), np.uint8)
    packet[:, 24:32] = rng.integers(0, 256, (count, 8), np.uint8)
    packet[:, 32], packet[:, 33] = 0x50, 0x18
    packet[:, 40:] = rng.integers(128, 256, (count, 96), np.uint8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 101))
        stream.write(record.tobytes())


def headers_s(path: Path) -> float:
    """Seconds to frame the packets of a file and look at their headers."""
    start = time.process_time()
    with path.open("rb") as stream:
        reader = PcapReader(stream, str(path))
        _ = reader.info
        for frames in reader._frames():
            parse(frames)
    return time.process_time() - start


def columns_s(path: Path) -> float:
    """Seconds to make the columns of events out of frames that are at hand."""
    with path.open("rb") as stream:
        reader = PcapReader(stream, str(path))
        _ = reader.info
        held = list(reader._frames())
    ids = PacketIds()
    start = time.process_time()
    for frames in held:
        columns(frames, ids)
    return time.process_time() - start


def events_s(path: Path) -> float:
    """Seconds to read a file as events."""
    start = time.process_time()
    source = open_source(str(path), resolve=False)
    rows = sum(batch.rows for batch in source.batches())
    source.close()
    assert rows
    return time.process_time() - start


def program_s(command: list[str]) -> float:
    """Seconds of processors that a program takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.pcap")
        capture(path, count)
        wanted = [part for field in _FIELDS for part in ("-e", field)]
        runs = {
            "kcap: frames and headers": lambda: headers_s(path),
            "kcap: columns of events, frames at hand": lambda: columns_s(path),
            "kcap: file to events": lambda: events_s(path),
            "kcap cat -w (none match), whole process": lambda: program_s(
                [sys.executable, "-m", "kcap.tools", "cat", str(path), "-w", "evt.arg[ttl] = 1"]
            ),
        }
        if shutil.which("tshark"):
            runs["tshark -T fields (6), whole process"] = lambda: program_s(
                ["tshark", "-n", "-r", str(path), "-T", "fields", *wanted]
            )
        if shutil.which("tcpdump"):
            runs["tcpdump -nr, whole process"] = lambda: program_s(["tcpdump", "-nr", str(path)])
        best = {name: min(run() for _ in range(TURNS)) for name, run in runs.items()}
    print(f"{count:,} packets of 136 bytes; best of {TURNS}")
    reference = best.get("tshark -T fields (6), whole process")
    for name, seconds in best.items():
        ratio = "" if reference is None else f"  {reference / seconds:6.1f} x tshark"
        print(f"{name:<44} {seconds:7.3f} s  {count / seconds / 1e6:6.2f} M/s{ratio}")


if __name__ == "__main__":
    main()
