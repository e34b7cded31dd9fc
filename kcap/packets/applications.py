"""What packets carry for applications: DNS, HTTP, and TLS's hello.

Only packets whose ports or first bytes make it likely are looked at, one at a time; so a million
others cost nothing. What turns out to be something else has no value there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.packets import dns, tls, web
from kcap.packets.frames import I64, Frames, Mask
from kcap.packets.headers import TCP, UDP, Headers, View

DNS_PORTS: Final = (53, 5353, 5355)
"""DNS, and its kin for the neighbourhood: mDNS and LLMNR."""

_TLS_START: Final = 0x1603
_BAD: Final = (dns.BadMessageError, web.BadHeadError, tls.BadHelloError)


class Values(NamedTuple):
    """The values of one argument."""

    rows: I64
    """Ascending row numbers."""
    values: list[dict[str, Any]]


def decode(frames: Frames, headers: Headers) -> Mapping[str, Values]:
    """Read what packets carry.

    Args:
        frames: The frames.
        headers: Their headers.

    Returns:
        By argument: ``proto_dns``, ``proto_http`` and ``proto_tls``.
    """
    room = np.where(headers.payload >= 0, headers.stop - headers.payload, 0)
    if not (room > 0).any():
        return {}
    tcp, udp = headers.protocol == TCP, headers.protocol == UDP
    cut = (headers.start + headers.total > headers.stop) | headers.more_fragments
    port = np.isin(headers.src_port, DNS_PORTS) | np.isin(headers.dst_port, DNS_PORTS)
    view = View(frames.data)
    first = np.where(room >= 4, view.u32(headers.payload), 0)  # noqa: PLR2004
    starts = [int.from_bytes(method, "big") for method in web.METHODS]
    wanted: dict[str, list[tuple[Mask, Callable[[bytes], dict[str, Any]]]]] = {
        "proto_dns": [
            (udp & port & (room >= dns.HEADER_BYTES) & ~cut, dns.message),
            (udp & port & (room >= dns.HEADER_BYTES) & cut, partial(dns.message, cut=True)),
            (tcp & port & (room > dns.HEADER_BYTES + 2), _dns_over_tcp),
        ],
        "proto_http": [(tcp & np.isin(first, starts), web.head)],
        "proto_tls": [(tcp & (first >> 16 == _TLS_START), tls.hello)],
    }
    found = {}
    for name, kinds in wanted.items():
        read: dict[int, dict[str, Any]] = {}
        for mask, reader in kinds:
            for row in np.flatnonzero(mask).tolist():
                start = int(headers.payload[row])
                raw = frames.data[start : int(headers.stop[row])].tobytes()
                try:
                    read[row] = reader(raw)
                except _BAD:
                    continue  # something else on that port
        if read:
            rows = sorted(read)
            found[name] = Values(np.array(rows, np.int64), [read[row] for row in rows])
    return found


def _dns_over_tcp(raw: bytes) -> dict[str, Any]:
    """A message behind its length, where a segment holds all of one."""
    size = int.from_bytes(raw[:2], "big")
    if size < dns.HEADER_BYTES or size > len(raw) - 2:
        raise dns.BadMessageError("not all of a message")
    return dns.message(raw[2 : 2 + size])
