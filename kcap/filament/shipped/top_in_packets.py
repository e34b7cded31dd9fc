"""Peers that most packets come from, TCP and UDP.

Arguments: names of processes to look at, all where none is given:
``-f "top_in_packets,svchost.exe,curl"``. A peer is an address and a port; where a capture does not
say which end is the peer, it is both ends.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

packets: Counter[str] = Counter()
size: Counter[str] = Counter()
shown: Counter[str] = Counter()


def on_init() -> None:
    """Ask for what was received, by calls that moved something."""
    condition = (
        "(action = 'net_recv' or action = 'file_read' and fd_type in ('ipv4', 'ipv6')) "
        "and not (retval < 1)"
    )
    if sys.argv[1:]:
        condition += f" and ps.name iin ({', '.join(map(quoted, sys.argv[1:]))})"
    set_filter(condition)
    columns(["Source", "Packets", "Bytes"])
    sort_by("Packets")
    max_rows(25)
    interval(1)


def quoted(text: str) -> str:
    """Write a text as filters have it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def on_next_event(event: dict[str, Any]) -> None:
    """Count a packet and its bytes."""
    params = event["params"]
    peer = peer_of(params)
    if peer is None and event.get("fd_type") in {"ipv4", "ipv6"}:
        peer = event.get("fd_name")
    if peer is not None:
        packets[peer] += 1
        size[peer] += event.get("retval", params.get("size", 0))


def peer_of(params: dict[str, Any]) -> str | None:
    """Find the other end. Of TCP, Windows calls it the destination in either direction."""
    if "dip" in params:
        udp = params.get("l4_proto") == "UDP"
        ip, port = ("sip", "sport") if udp else ("dip", "dport")
        return endpoint(params[ip], params.get(port))
    for name in ("src_addr", "remote_addr"):
        address = params.get(name)
        if isinstance(address, dict):
            for ip, port in (("sin_addr", "sin_port"), ("sin6_addr", "sin6_port")):
                if ip in address:
                    return endpoint(address[ip], address.get(port))
    return None


def endpoint(ip: object, port: object) -> str:
    """Write an address and a port."""
    host = f"[{ip}]" if ":" in str(ip) else f"{ip}"
    return host if port is None else f"{host}:{port}"


def on_interval() -> None:
    """Draw the table where a packet came since."""
    total = packets.total()
    if shown["events"] == total:
        return
    shown["events"] = total
    for peer, count in packets.items():
        add_row([peer, count, size[peer]])
    render_table()


def on_stop() -> None:
    """Draw what came after the last interval."""
    on_interval()
