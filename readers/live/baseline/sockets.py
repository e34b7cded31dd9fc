"""The sockets of network namespaces, out of /proc/PID/net.

A descriptor says only ``socket:[INODE]``; these files say which addresses stand behind the inode,
but of one network namespace each. So they are read once for every namespace that a process is in.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from kcap.model import text
from kcap.readers.live.probe import Item, Op
from kcap.readers.live.probe.folders import Folder

SOCKETS_MAX: Final = 131_072
"""Sockets of a host that are kept."""

FILE_BYTES: Final = 64 << 20
"""What is read of one file: some 400,000 sockets."""


class Socket(NamedTuple):
    """One socket, as its namespace's files have it."""

    net_ns: int
    """Inode of its network namespace."""
    inode: int
    family: str
    """As the type of a descriptor: ``ipv4``, ``ipv6``, ``unix``, ``netlink``, ``packet``."""
    protocol: str | None
    """``tcp``, ``udp``, ``raw``, ``icmp``; of unix sockets ``stream``, ``dgram``, ``seqpacket``;
    the number's name of netlink, the ether type of packet sockets."""
    state: str | None = None
    """``listen``, ``established`` …"""
    local_addr: str | None = None
    local_port: int | None = None
    remote_addr: str | None = None
    remote_port: int | None = None
    path: str | None = None
    """Of a unix socket; an abstract one's begins with ``@``."""
    uid: int | None = None

    @property
    def name(self) -> str | None:
        """As the name of a descriptor: ``ADDRESS:PORT->ADDRESS:PORT``, one address, a path."""
        if self.local_addr is None:
            return self.path
        local = f"{self.local_addr}:{self.local_port}"
        if not self.remote_port and self.remote_addr in _ANY:
            return local
        return f"{local}->{self.remote_addr}:{self.remote_port}"


_ANY: Final = frozenset({"0.0.0.0", "::", None})  # noqa: S104 (no address to bind to)

_STATES: Final = (
    None,
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "new_syn_recv",
)
"""Names of the states of TCP by number (<net/tcp_states.h>)."""

_UNIX_TYPES: Final = {1: "stream", 2: "dgram", 5: "seqpacket"}
_LISTENING: Final = 0x10000
"""__SO_ACCEPTCON among the flags of a unix socket."""

_CONNECTED: Final = 3
"""SS_CONNECTED (<linux/net.h>)."""

_NETLINK: Final = {
    0: "route",
    2: "usersock",
    4: "sock_diag",
    6: "xfrm",
    7: "selinux",
    9: "audit",
    10: "fib_lookup",
    11: "connector",
    12: "netfilter",
    15: "kobject_uevent",
    16: "generic",
    18: "scsitransport",
    19: "ecryptfs",
    20: "rdma",
    21: "crypto",
}
"""Protocols of netlink by number (<linux/netlink.h>)."""

_WORDS: Final = struct.Struct("=4I")
_WORD: Final = struct.Struct("=I")
_V4_DIGITS: Final = 8
_MAPPED: Final = bytes(10) + b"\xff\xff"


@lru_cache(maxsize=4096)
def _address(digits: bytes) -> tuple[str, bool]:
    """An address, whose words the kernel prints as numbers; whether it is IPv4 within IPv6."""
    if len(digits) == _V4_DIGITS:
        return socket.inet_ntop(socket.AF_INET, _WORD.pack(int(digits, 16))), False
    words = (int(digits[at : at + 8], 16) for at in range(0, 32, 8))
    raw = _WORDS.pack(*words)
    if raw.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, raw[-4:]), True
    return socket.inet_ntop(socket.AF_INET6, raw), False


_ADDRESS, _REMOTE, _STATE, _UID, _INODE = 1, 2, 3, 7, 9
"""Fields of a line of /proc/net/tcp and its like."""


def _internet(line: bytes, net_ns: int, protocol: str) -> Socket:
    fields = line.split()
    digits, _, port = fields[_ADDRESS].partition(b":")
    far_digits, _, far_port = fields[_REMOTE].partition(b":")
    (local, mapped), (remote, _) = _address(digits), _address(far_digits)
    state = int(fields[_STATE], 16)
    four = mapped or len(digits) == _V4_DIGITS
    if four and remote == "::":
        remote = "0.0.0.0"  # noqa: S104 (as printed, not to bind to)
    return Socket(
        net_ns,
        int(fields[_INODE]),
        "ipv4" if four else "ipv6",
        protocol,
        _STATES[state] if protocol == "tcp" and state < len(_STATES) else None,
        local,
        int(port, 16),
        remote,
        int(far_port, 16),
        uid=int(fields[_UID]),
    )


def _unix(line: bytes, net_ns: int, _: str) -> Socket:
    fields = line.split(maxsplit=7)
    kind, state = int(fields[4], 16), int(fields[5], 16)
    listening = int(fields[3], 16) & _LISTENING
    connected = "established" if state == _CONNECTED else None
    path = text.clean(fields[7])[0] if len(fields) > 7 else None  # noqa: PLR2004
    return Socket(
        net_ns,
        int(fields[6]),
        "unix",
        _UNIX_TYPES.get(kind),
        "listen" if listening else connected,
        path=path,
    )


def _netlink(line: bytes, net_ns: int, _: str) -> Socket:
    fields = line.split()
    number = int(fields[1])
    return Socket(net_ns, int(fields[9]), "netlink", _NETLINK.get(number, str(number)))


def _packet(line: bytes, net_ns: int, _: str) -> Socket:
    fields = line.split()
    return Socket(net_ns, int(fields[8]), "packet", f"0x{fields[3].decode()}", uid=int(fields[7]))


_FILES: Final[dict[str, tuple[Callable[[bytes, int, str], Socket], str]]] = {
    "tcp": (_internet, "tcp"),
    "tcp6": (_internet, "tcp"),
    "udp": (_internet, "udp"),
    "udp6": (_internet, "udp"),
    "udplite": (_internet, "udplite"),
    "udplite6": (_internet, "udplite"),
    "raw": (_internet, "raw"),
    "raw6": (_internet, "raw"),
    "icmp": (_internet, "icmp"),
    "icmp6": (_internet, "icmp"),
    "unix": (_unix, ""),
    "netlink": (_netlink, ""),
    "packet": (_packet, ""),
}


class Sockets:
    """The sockets of the network namespaces that were looked at.

    Args:
        sockets_max: How many to keep.
    """

    def __init__(self, sockets_max: int = SOCKETS_MAX) -> None:
        self._sockets_max = sockets_max
        self._namespaces: set[int] = set()
        self.by_inode: dict[int, Socket] = {}
        """Those that have an inode: a connection that waits for its end has none any more."""
        self.without_inode: list[Socket] = []
        self.left_out = 0
        """Sockets that found no room, and lines that are none."""

    def look(self, net_ns: int, folder: Folder) -> None:
        """Read the files of a namespace, where that was not done before.

        Args:
            net_ns: Inode of the namespace.
            folder: The /proc folder of a process in it.
        """
        if net_ns in self._namespaces:
            return
        self._namespaces.add(net_ns)
        folder.fetch([Item(Op.CONTENT, f"net/{file}", FILE_BYTES) for file in _FILES])
        for file, (parse, protocol) in _FILES.items():
            for line in _lines(folder, f"net/{file}"):
                try:
                    found = parse(line, net_ns, protocol)
                except (ValueError, IndexError, struct.error):
                    # A path with a line feed goes on in a line of its own.
                    self.left_out += 1
                    continue
                self._keep(found)

    def _keep(self, found: Socket) -> None:
        if len(self.by_inode) + len(self.without_inode) >= self._sockets_max:
            self.left_out += 1
        elif found.inode:
            self.by_inode[found.inode] = found
        else:
            self.without_inode.append(found)

    def rows(self) -> list[Socket]:
        """All of them, by namespace and inode."""
        return sorted(
            [*self.by_inode.values(), *self.without_inode],
            key=lambda s: (s.net_ns, s.inode, s.family, s.name or ""),
        )


def _lines(folder: Folder, name: str) -> Iterator[bytes]:
    """The lines of a table behind its heading; none where the kernel has no such file."""
    content = folder.content(name, FILE_BYTES)
    if content:
        yield from content.rstrip(b"\n").split(b"\n")[1:]
