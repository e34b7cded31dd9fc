"""What the arguments of the Linux recorder's events hold, by the words of their table.

Numbers are turned into values all at once; what is made of bytes is made of each different value
of a batch once.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.model import catalogue, text
from kcap.readers.live.bpf.records import Int64s

Uint64s = npt.NDArray[np.uint64]

_TEXT: Final = "const char*"
_LIST: Final = "const char*const*"
_INT: Final = "int"
_UNSIGNED: Final = "unsigned int"
_LONG: Final = "unsigned long"
_ADDRESS: Final = "struct sockaddr*"

SPELLINGS: Final[Mapping[str, str]] = {
    "addr": _ADDRESS,
    "argv": _LIST,
    "bool": "bool",
    "bytes": "bytes",
    "comm": _TEXT,
    "core": "bool",
    "cwd": _TEXT,
    "dev": "dev_t",
    "env": _LIST,
    "exit": _INT,
    "high": _UNSIGNED,
    "int": _INT,
    "local": _ADDRESS,
    "long": "long",
    "low": _UNSIGNED,
    "mode": "mode_t",
    "none": _TEXT,
    "opened": _TEXT,
    "path": _TEXT,
    "ptr": "void*",
    "rel": _TEXT,
    "remote": _ADDRESS,
    "signal": _INT,
    "some": _INT,
    "str": _TEXT,
    "u32": _UNSIGNED,
    "ulong": _LONG,
}
"""The kinds of arguments, and how Tracee calls the types of such values."""


def _low(values: Uint64s) -> Uint64s:
    return values & np.uint64(0xFFFFFFFF)


def _signed(values: Uint64s) -> Int64s:
    return values.view(np.int64).astype(np.int32).astype(np.int64)


NUMBERS: Final[Mapping[str, Callable[[Uint64s], npt.NDArray[np.generic]]]] = {
    "bool": lambda values: values != 0,
    "core": lambda values: values & np.uint64(0x80) != 0,
    "dev": _low,
    "exit": lambda values: values >> np.uint64(8) & np.uint64(0xFF),
    "high": lambda values: values >> np.uint64(32),
    "int": _signed,
    "long": lambda values: values.view(np.int64),
    "low": _low,
    "mode": lambda values: values & np.uint64(0xFFFF),
    "ptr": lambda values: values,
    "signal": lambda values: values & np.uint64(0x7F),
    "some": _signed,
    "u32": _low,
    "ulong": lambda values: values,
}
"""Kinds that stand in a number of the record, and what makes values of it. A wait status holds
the exit code, the signal, and whether there is a core. Where "some" is 0 there is none."""

# ---- lists ----


def arguments(block: bytes, tail: bytes, total: int) -> list[bytes]:
    """The arguments of a program.

    Args:
        block: They, a NUL behind each; of a long block its beginning.
        tail: The rest of a long block, or its end.
        total: Bytes of the whole block.

    Returns:
        The arguments. Where something between beginning and end is missing, that place says how
        many bytes it was; what is known of the arguments around it stays.
    """
    missing = total - len(block) - len(tail)
    if missing > 0:
        block += f"…[{missing} bytes]…".encode()
    return _items(block + tail)


def variables(block: bytes, names: Collection[str] | None) -> list[bytes]:
    """The environment of a program.

    Args:
        block: The variables, a NUL behind each.
        names: Those that are wanted, ``LD_*`` for all that begin so; None for all.

    Returns:
        The variables as ``NAME=VALUE``.
    """
    items = _items(block)
    if names is None:
        return items
    begins = tuple(name[:-1] for name in names if name.endswith("*"))
    each = ((item, item.split(b"=", 1)[0].decode("utf-8", "replace")) for item in items)
    return [item for item, name in each if name in names or name.startswith(begins)]


def _items(block: bytes) -> list[bytes]:
    return block.removesuffix(b"\0").split(b"\0") if block else []


# ---- sockets ----

UNIX, INET, INET6 = 1, 2, 10

_FAMILIES: Final = {UNIX: "unix", INET: "ipv4", INET6: "ipv6"}
_MAPPED: Final = bytes(10) + b"\xff\xff"
_port = struct.Struct(">H").unpack_from
_family = struct.Struct("<H").unpack_from
_flow = struct.Struct(">I").unpack_from
_scope = struct.Struct("<I").unpack_from
_INET_BYTES, _INET6_BYTES = 8, 24
_INET6_SCOPE_BYTES: Final = 28


class End(NamedTuple):
    """One end of a connection."""

    name: bytes
    """``10.0.0.1:80``, ``::1:80``, a path, ``@NAME`` of the abstract ones."""
    json: str
    """The address as Tracee has it."""


class Ends(NamedTuple):
    """A socket."""

    type: str | None
    """``ipv4``, ``ipv6``, ``unix``, ``netlink`` …"""
    name: bytes | None
    """From client to server, as far as is known."""
    local: str | None
    remote: str | None


def ip_text(raw: bytes) -> str:
    """An address as text.

    Args:
        raw: Its 4 or 16 bytes.

    Returns:
        The text, as inet_ntop(3) spells it: an IPv4 address inside an IPv6 one is dotted.
    """
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)  # noqa: PLR2004


def type_of(family: int) -> str | None:
    """What a socket is.

    Args:
        family: Its address family.

    Returns:
        ``ipv4``, ``unix``, ``netlink`` …; None for an unknown family.
    """
    known = _FAMILIES.get(family)
    if known is not None:
        return known
    name = catalogue.decoder("socket_family").get(family)
    return None if name is None else name.removeprefix("AF_").lower()


def _object(family: int, **fields: str) -> str:
    name = catalogue.decoder("socket_family").get(family, str(family))
    return json.dumps({"sa_family": name, **fields}, ensure_ascii=False, separators=(",", ":"))


def internet(family: int, raw: bytes, port: int, **more: str) -> End:
    """An internet address.

    Args:
        family: `INET` or `INET6`.
        raw: The address.
        port: The port.
        more: Further fields of the address, as plain words.

    Returns:
        The end. One of IPv4 in a socket of IPv6 is named like any other of IPv4.
    """
    address = ip_text(raw)
    plain = ip_text(raw[12:]) if raw.startswith(_MAPPED) else address
    name, key = ("AF_INET", "sin") if family == INET else ("AF_INET6", "sin6")
    # Nothing in it needs quoting, and a JSON encoder takes ten times as long.
    rest = "".join(f',"{field}":"{value}"' for field, value in more.items())
    told = f'{{"sa_family":"{name}","{key}_addr":"{address}","{key}_port":"{port}"{rest}}}'
    return End(f"{plain}:{port}".encode(), told)


def unix(path: bytes) -> End | None:
    """A Unix socket's address.

    Args:
        path: As the kernel has it; begins with a NUL where it is no path but an abstract name.

    Returns:
        The end, None for a socket without an address.
    """
    name = b"@" + path[1:] if path.startswith(b"\0") else path.split(b"\0", 1)[0]
    if len(name) <= name.startswith(b"@"):
        return None
    return End(name, _object(UNIX, sun_path=text.clean(name)[0]))


@lru_cache(maxsize=1 << 13)
def user_address(raw: bytes) -> End | None:
    """The address that a program gave, or was given.

    Args:
        raw: ``struct sockaddr``.

    Returns:
        The end, None where it is too short to be one. Of other families than the internet's and
        Unix's, only the family is told.
    """
    if len(raw) < 2:  # noqa: PLR2004
        return None
    family: int = _family(raw)[0]
    if family == INET and len(raw) >= _INET_BYTES:
        return internet(family, raw[4:8], _port(raw, 2)[0])
    if family == INET6 and len(raw) >= _INET6_BYTES:
        scope = _scope(raw, 24)[0] if len(raw) >= _INET6_SCOPE_BYTES else 0
        more = {"sin6_flowinfo": str(_flow(raw, 4)[0]), "sin6_scopeid": str(scope)}
        return internet(family, raw[8:24], _port(raw, 2)[0], **more)
    if family == UNIX:
        return unix(raw[2:]) or End(b"", _object(family))
    return End(b"", _object(family))
