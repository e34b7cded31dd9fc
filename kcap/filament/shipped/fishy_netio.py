"""Programs that have no business in a network, and talk to one all the same.

Arguments: names of programs in place of the usual suspects: ``-f "fishy_netio,calc.exe,awk"``.
An alert for each process and peer, and a table of all. Such programs serve as hosts of injected
code, or carry data for whoever starts them.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

WINDOWS = (
    "calc.exe, calculator.exe, charmap.exe, control.exe, dfrgui.exe, eventvwr.exe, fodhelper.exe, "
    "magnify.exe, mspaint.exe, narrator.exe, notepad.exe, osk.exe, regedit.exe, sethc.exe, "
    "snippingtool.exe, utilman.exe, winver.exe, wordpad.exe, write.exe"
)
LINUX = (
    "awk, base64, cat, chmod, cp, dd, find, gawk, grep, gzip, head, less, ls, mawk, more, mv, od, "
    "sed, sort, tail, tar, tee, touch, uniq, vi, vim, vim.basic, wc, xargs, xxd"
)

seen: Counter[tuple[str, int | None, str, str]] = Counter()
shown: Counter[str] = Counter()


def on_init() -> None:
    """Ask for the traffic of those programs."""
    names = sys.argv[1:] or [*WINDOWS.split(", "), *LINUX.split(", ")]
    actions = "'net_connect', 'net_accept', 'net_send', 'net_recv'"
    set_filter(f"action in ({actions}) and ps.name iin ({', '.join(map(quoted, names))})")
    columns(["Process", "Pid", "Event", "Peer", "Times"])
    sort_by("Times")
    interval(1)


def quoted(text: str) -> str:
    """Write a text as filters have it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def on_next_event(event: dict[str, Any]) -> None:
    """Count an event; the first of a process with a peer is worth an alert."""
    process, pid, name = event["exe"], event["pid"], event["name"]
    peer = peer_of(event)
    if peer is None:
        return
    talk = f"{event.get('process_key', pid)} {process} {peer}"
    if not shown[talk]:
        shown[talk] = 1
        emit_alert(
            f"{process} talks to the network",
            f"{name} by {process} ({pid}), user {event['sid'] or 'not known'}, peer {peer}; "
            f"command line: {event['cmdline'] or 'not known'}",
            severity="medium",
            tags=["network", "T1055"],
        )
    seen[process, pid, name, peer] += 1


def peer_of(event: dict[str, Any]) -> str | None:
    """Find the other end. Of TCP, Windows calls it the destination in either direction."""
    params = event["params"]
    if "dip" in params:
        came = event["name"] == "Recv" and params.get("l4_proto") == "UDP"
        ip, port = ("sip", "sport") if came else ("dip", "dport")
        return endpoint(params[ip], params.get(port))
    for name in ("dest_addr", "src_addr", "remote_addr", "addr"):
        address = params.get(name)
        if isinstance(address, dict):
            for ip, port in (("sin_addr", "sin_port"), ("sin6_addr", "sin6_port")):
                if ip in address:
                    return endpoint(address[ip], address.get(port))
    return event.get("fd_name") if event.get("fd_type") in {"ipv4", "ipv6"} else None


def endpoint(ip: object, port: object) -> str:
    """Write an address and a port."""
    host = f"[{ip}]" if ":" in str(ip) else f"{ip}"
    return host if port is None else f"{host}:{port}"


def on_interval() -> None:
    """Draw the table where there was traffic since."""
    total = seen.total()
    if shown[""] == total:
        return
    shown[""] = total
    for (process, pid, name, peer), times in seen.items():
        add_row([process, pid, name, peer, times])
    render_table()


def on_stop() -> None:
    """Draw what came after the last interval."""
    on_interval()
