"""Network interfaces and their addresses, as the kernel's route netlink lists them."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from kcap.model import text

ADDRESSES_MAX: Final = 1024
"""Addresses of one interface that are kept."""

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")

_NETLINK_ROUTE: Final = 0
_GETLINK, _NEWLINK, _GETADDR, _NEWADDR = 18, 16, 22, 20
_ERROR, _DONE = 2, 3
_DUMP_REQUEST: Final = 0x301
_TYPE_MASK: Final = 0x3FFF

_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ANSWER_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 2.0

_FAMILIES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
_FLAGS: Final = {0x1: "up", 0x8: "loopback", 0x40: "running", 0x100: "promisc"}
_TYPES: Final = {1: "ether", 772: "loopback", 776: "sit", 778: "gre", 65534: "none", 768: "tunnel"}
"""Hardware types by number (<linux/if_arp.h>)."""


class Interface(NamedTuple):
    """One network interface."""

    ifindex: int
    name: str
    type: str
    mac: str | None
    mtu: int | None
    flags: list[str]
    addresses: list[str]
    """With their prefix: ``10.0.0.5/24``."""


def interfaces() -> list[Interface]:
    """The interfaces of the network namespace that this process is in.

    Returns:
        The interfaces, by index.

    Raises:
        OSError: The kernel did not answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as sock:
        sock.settimeout(_TIMEOUT_S)
        found: dict[int, Interface] = {}
        for body in _dump(sock, _GETLINK, _NEWLINK):
            one = _interface(body)
            found[one.ifindex] = one
        for body in _dump(sock, _GETADDR, _NEWADDR):
            family, prefix, _, _, index = _ADDRESS.unpack_from(body)
            attributes = dict(_attributes(body[_ADDRESS.size :]))
            # Of a point-to-point link the address is the other end's.
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS) or b""
            known = found.get(index)
            if known and len(raw) == _FAMILIES.get(family) and len(known.addresses) < ADDRESSES_MAX:
                known.addresses.append(f"{socket.inet_ntop(family, raw)}/{prefix}")
    return [found[index] for index in sorted(found)]


def _dump(sock: socket.socket, request: int, wanted: int) -> Iterator[bytes]:
    """Ask for all entries of a table."""
    sock.send(_HEADER.pack(_HEADER.size + 4, request, _DUMP_REQUEST, 1, 0) + bytes(4))
    while True:
        answer = sock.recv(_ANSWER_BYTES)
        while len(answer) >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(answer)
            if kind == _DONE or length < _HEADER.size:
                return
            if kind == _ERROR:
                code = int.from_bytes(answer[16:20], sys.byteorder, signed=True)
                raise OSError(-code, "the kernel refused to list the interfaces")
            if kind == wanted:
                yield answer[_HEADER.size : length]
            answer = answer[(length + 3) & ~3 :]


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(raw)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, raw[_ATTRIBUTE.size : length]
        raw = raw[(length + 3) & ~3 :]


def _interface(body: bytes) -> Interface:
    _, kind, index, flags, _ = _LINK.unpack_from(body)
    attributes = dict(_attributes(body[_LINK.size :]))
    mac, mtu = attributes.get(_IFLA_ADDRESS), attributes.get(_IFLA_MTU)
    return Interface(
        index,
        text.clean(attributes.get(_IFLA_NAME, b"").rstrip(b"\0"))[0],
        _TYPES.get(kind, str(kind)),
        mac.hex(":") if mac else None,
        int.from_bytes(mtu, sys.byteorder) if mtu else None,
        [name for bit, name in _FLAGS.items() if flags & bit],
        [],
    )
