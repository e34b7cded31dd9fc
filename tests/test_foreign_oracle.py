"""What Wireshark says of the same packets, in all shapes that its tools give a file."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kcap.opening import open_source

REAL: tuple[str, ...] = (
    "arp.pcapng",
    "curl-user.pcapng",
    "dns.pcapng",
    "dns_icmp.pcap",
    "http.pcap",
)
REAL += ("tcp.pcapng", "truncated_dns.pcap")
SHAPES: dict[str, list[str]] = {
    "as it is": [],
    "snapped": ["-s", "90"],
    "ns": ["-F", "nsecpcap"],
    "us": ["-F", "pcap", "-s", "70"],
    "moved": ["-t", "0.000000123", "-F", "pcapng"],
}
FIELDS = (
    *("frame.time_epoch", "frame.cap_len", "frame.len", "ip.src", "ip.dst", "ipv6.src"),
    *("ipv6.dst", "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport", "tcp.flags"),
    *("tcp.seq_raw", "dns.qry.name", "http.request.method", "http.host"),
    "tls.handshake.extensions_server_name",
)
# Each packet by itself, as kcap looks at it.
ALONE = ("ip.defragment:FALSE", "tcp.analyze_sequence_numbers:FALSE")

needs_tools = pytest.mark.skipif(
    shutil.which("tshark") is None or shutil.which("editcap") is None,
    reason="needs tshark and editcap (Debian: tshark)",
)


def shark(path: Path) -> list[list[str]]:
    """Time in ns, lengths, addresses, ports, TCP, DNS, HTTP, TLS of each packet."""
    options = [part for option in ALONE for part in ("-o", option)]
    fields = [part for field in FIELDS for part in ("-e", field)]
    shape = ["-T", "fields", "-E", "separator=|", "-E", "occurrence=f"]
    command = ["tshark", "-r", str(path), *options, *shape, *fields]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = []
    for line in run.stdout.splitlines():
        said = dict(zip(FIELDS, line.split("|"), strict=True))
        cut = said["frame.cap_len"] != said["frame.len"]
        rows.append(
            [
                str(int(Decimal(said["frame.time_epoch"]) * 10**9)),
                said["frame.cap_len"],
                said["frame.len"],
                said["ip.src"] or said["ipv6.src"],
                said["ip.dst"] or said["ipv6.dst"],
                said["tcp.srcport"] or said["udp.srcport"],
                said["tcp.dstport"] or said["udp.dstport"],
                str(int(said["tcp.flags"], 16) if said["tcp.flags"] else ""),
                said["tcp.seq_raw"],
                said["dns.qry.name"],
                # Of a line that was cut Wireshark tells the beginning, kcap nothing.
                *(["", ""] if cut else [said["http.request.method"], said["http.host"]]),
                said["tls.handshake.extensions_server_name"],
            ]
        )
    return rows


def ours(path: Path) -> list[list[str]]:
    """The same of kcap's events."""
    source = open_source(str(path), resolve=False)
    rows = [_ours(row) for batch in source.batches() for row in batch.to_pylist()]
    source.close()
    return rows


def _ours(row: dict[str, Any]) -> list[str]:
    dns, http, tls = (json.loads(row.get(f"arg_proto_{n}", "{}")) for n in ("dns", "http", "tls"))
    header = len(row.get("arg_link_header", b""))
    cut = row["arg_captured"] != row["arg_length"]
    names = ("src", "dst", "src_port", "dst_port", "tcp_flags", "tcp_seq")
    return [
        str(row["ts"]),
        str(row["arg_captured"] + header),
        str(row["arg_length"] + header),
        *(str(row.get(f"arg_{name}", "")) for name in names),
        (dns.get("questions") or [{}])[0].get("name", ""),
        *(["", ""] if cut else [http.get("method", ""), http.get("host", "")]),
        tls.get("server_name", ""),
    ]


@needs_tools
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", REAL)
def test_wireshark_sees_the_same(
    name: str, shape: str, data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Counts, ns, lengths, addresses, ports, flags, and what packets carry, packet by packet."""
    path = data(f"pcap/{name}")
    if SHAPES[shape]:
        made = tmp_path / "made.pcapng"
        done = subprocess.run(
            ["editcap", *SHAPES[shape], str(path), str(made)], check=False, capture_output=True
        )
        if done.returncode:
            pytest.skip("editcap can't write several link types so")
        path = made
    assert ours(path) == shark(path)


@needs_tools
def test_wireshark_sees_the_same_in_one_file(data: Callable[[str], Path], tmp_path: Path) -> None:
    """Several interfaces and link types, one behind the other and merged by time."""
    paths = [str(data(f"pcap/{name}")) for name in REAL]
    for name, options in (("merged", []), ("joined", ["-a"])):
        made = tmp_path / f"{name}.pcapng"
        subprocess.run(["mergecap", *options, "-w", str(made), *paths], check=True)
        found = ours(made)
        assert found == shark(made)
        assert len({row[3] for row in found}) > 5
