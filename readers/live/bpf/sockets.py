"""Sockets of a batch: both ends, as the kernel has them and as the process gave them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model import distinct
from kcap.readers.live.bpf import events, values
from kcap.readers.live.bpf.columns import Texts
from kcap.readers.live.bpf.records import Int64s, Mask, Records
from kcap.readers.live.bpf.values import INET, INET6, UNIX, End

ACCEPTED_MAX: Final = 65_536
"""Accepted sockets that are remembered."""

_SOCKET, _ADDRESS, _LOCAL, _REMOTE = 3, 5, 6, 7
"""Pieces: the kernel's socket, an address of the process, paths of Unix sockets."""

_HANDLERS: Final = frozenset({"close", "file", "socket", "state"})
"""Kinds of events that may have a socket."""

_OTHER, _ACCEPT, _RECEIVE, _GIVE = range(4)
"""What a call does: makes a server's end, tells who sent, says where to."""

_ROLES: Final = {
    "accept": _ACCEPT,
    "accept4": _ACCEPT,
    "connect": _GIVE,
    "recvfrom": _RECEIVE,
    "recvmmsg": _RECEIVE,
    "recvmsg": _RECEIVE,
    "sendmmsg": _GIVE,
    "sendmsg": _GIVE,
    "sendto": _GIVE,
}

_ANY: Final = {INET: bytes(4), INET6: bytes(16)}
_TYPE: Final = 0xF
_STREAM: Final = 1


class Socket(NamedTuple):
    """What is said of a socket in one kind of event."""

    type: str | None
    """``ipv4``, ``ipv6``, ``unix``, ``netlink`` …"""
    name: bytes
    """``CLIENT->SERVER``, as far as they are known; else a path, or ``socket:[INODE]``."""
    local: str | None
    remote: str | None
    is_users: bool
    """The remote address is what the process said."""


class Found(NamedTuple):
    """The sockets of a batch."""

    rows: Int64s
    codes: Int64s
    """Which of them each row has."""
    sockets: list[Socket]

    def texts(self, rows: Int64s, entries: Sequence[str | bytes | None]) -> Texts:
        """What is said of the sockets of some rows.

        Args:
            rows: The rows, ascending; those without a socket have none.
            entries: What is said of each socket.

        Returns:
            The texts.
        """
        raw = pa.array([e.encode() if isinstance(e, str) else e for e in entries], pa.binary())
        codes = np.full(len(rows), -1, np.int64)
        both, at, mine = np.intersect1d(rows, self.rows, assume_unique=True, return_indices=True)
        if len(both):
            codes[at] = self.codes[mine]
        return Texts(rows, codes, raw)


@cache
def _roles() -> tuple[npt.NDArray[np.int64], Mask]:
    """By event number: its role, and whether it may have a socket."""
    roles = np.full(events.EVENTS, _OTHER)
    able = np.zeros(events.EVENTS, np.bool_)
    for number, event in events.by_number().items():
        roles[number] = _ROLES.get(event.name, _OTHER)
        able[number] = event.handler in _HANDLERS
    return roles, able


class Sockets:
    """Finds the sockets of batches, and remembers which were accepted.

    The kernel does not keep who called whom: the end of an accepted socket is the server's.
    """

    def __init__(self) -> None:
        self._accepted: OrderedDict[int, None] = OrderedDict()

    def find(self, records: Records, layout: np.dtype[np.void]) -> Found:
        """Find the sockets of a batch.

        Args:
            records: Its records.
            layout: ``struct kcap_socket``.

        Returns:
            The sockets.
        """
        roles, able = _roles()
        has = able[records.event] & (records.sizes(_SOCKET) == layout.itemsize)
        rows = np.flatnonzero(has)
        if not len(rows):
            return Found(rows, rows, [])
        parts = [
            records.encode(*records.pieces(rows, piece))
            for piece in (_SOCKET, _ADDRESS, _LOCAL, _REMOTE)
        ]
        codes = [*(code for code, _ in parts), roles[records.event[rows]]]
        sizes = [*(len(entries) for _, entries in parts), len(_ROLES)]
        groups = distinct.grouped(codes, sizes)
        kernel = _structures(parts[0][1], layout)
        addresses, *paths = (entries.to_pylist() for _, entries in parts[1:])
        combinations = list(zip(*(part.tolist() for part in groups.codes), strict=True))
        for socket, *_, role in combinations:
            if role == _ACCEPT:
                self._remember(kernel[socket]["inode"])
        found = [
            self._socket(kernel[socket], addresses[said], paths[0][here], paths[1][there], role)
            for socket, said, here, there, role in combinations
        ]
        return Found(rows, groups.rows, found)

    def _remember(self, inode: int) -> None:
        self._accepted[inode] = None
        self._accepted.move_to_end(inode)
        if len(self._accepted) > ACCEPTED_MAX:
            self._accepted.popitem(last=False)

    def _socket(
        self, kernel: dict[str, Any], address: bytes, here: bytes, there: bytes, role: int
    ) -> Socket:
        """What is said of a socket."""
        family: int = kernel["family"]
        local, remote = _ends(kernel, here, there)
        said = values.user_address(address) if role in (_GIVE, _RECEIVE) else None
        is_users = remote is None and said is not None and bool(said.name)
        if is_users:
            remote = said
        server = kernel["inode"] in self._accepted or (role == _RECEIVE and is_users)
        name = f"socket:[{kernel['inode']}]".encode()
        if family in _ANY and remote is not None:
            mine = local or values.internet(family, _ANY[family], 0)
            name = b"->".join((remote.name, mine.name) if server else (mine.name, remote.name))
        elif family in _ANY and local is not None:
            name = local.name
        elif remote is not None or local is not None:
            first, second = (local, remote) if server else (remote, local)
            name = (first or second or End(name, "")).name
        return Socket(values.type_of(family), name, _json(local), _json(remote), is_users)


def _json(end: End | None) -> str | None:
    return None if end is None else end.json


def _structures(entries: pa.BinaryArray, layout: np.dtype[np.void]) -> list[dict[str, Any]]:
    """The kernel's sockets, each as a dict of Python values."""
    every = np.frombuffer(b"".join(entries.to_pylist()), layout)
    names = [name for name in layout.names or () if name != "pad"]
    fields = [
        [bytes(v) for v in every[name]] if every[name].ndim > 1 else every[name].tolist()
        for name in names
    ]
    return [dict(zip(names, row, strict=True)) for row in zip(*fields, strict=True)]


def _ends(kernel: dict[str, Any], here: bytes, there: bytes) -> tuple[End | None, End | None]:
    """Both ends as the kernel has them, None for one that has no address yet."""
    family: int = kernel["family"]
    if family == UNIX:
        return values.unix(here), values.unix(there)
    if family not in _ANY:
        return None, None
    found: list[End | None] = []
    for side in ("local", "remote"):
        raw, port = kernel[side][: len(_ANY[family])], kernel[f"{side}_port"]
        # A stream that was refused keeps the address it asked for, but not the port.
        known = port or (any(raw) and kernel["type"] & _TYPE != _STREAM)
        found.append(values.internet(family, raw, port) if known else None)
    return found[0], found[1]
