"""What calls do to the descriptors of a process: a function an effect, and the list of them all."""

from __future__ import annotations

from typing import Final

from kcap.state import lives
from kcap.state.fds import Target
from kcap.state.tables import Handler, Step, Tables, path_of

_IN_PROGRESS: Final = -115
"""A connection that is being made has its addresses."""

_TCP: Final = '{"l4_proto": "tcp"}'
_PROTOCOLS: Final = {1: _TCP, 2: '{"l4_proto": "udp"}'}
"""By type of an internet socket, without its flags."""

_SOCKET_TYPES: Final = 0xF
_SOCKET_CLOEXEC: Final = 0o2000000


def _open(tables: Tables, step: Step) -> None:
    """A descriptor is made."""
    kind, name, at, flags, inode, sort, uses = step.values
    owner = step.owner
    if name is not None and step.of.type in _PATHS and name != "":
        name = path_of(tables, owner, name, at)
    if step.retval is None or step.retval < 0:
        if name and step.of.type in _PATHS and step.retval is not None:
            tables.tried(step.row, name)
        return
    type_, details = step.of.type, None
    if flags is not None and step.of.directory and flags & step.of.directory and type_ == "file":
        type_ = "directory"
    elif type_ is None and isinstance(kind, int):
        type_ = step.of.types.get(kind)
        if type_ in _INTERNET:
            details = None if sort is None else _PROTOCOLS.get(sort & _SOCKET_TYPES)
        if sort is not None and sort & _SOCKET_CLOEXEC:
            flags = step.of.cloexec
    elif type_ is None and isinstance(kind, str):
        type_ = kind_of(kind)
        details = _TCP if type_ in _INTERNET else None
    if uses is not None and uses >= 0 and tables.fds.get(owner, uses) is not None:
        return  # signalfd: another mask for one that there is
    tables.fds.put(owner, step.retval, Target(type_, name or None, inode, flags, details), step.row)


_PATHS: Final = frozenset({"file"})
_INTERNET: Final = frozenset({"ipv4", "ipv6"})


def kind_of(connection: str) -> str:
    """The type of a socket, by its addresses.

    Args:
        connection: ``10.0.0.1:4000->10.0.0.2:80``, ``::1:80``, a path behind kernel addresses.

    Returns:
        ``ipv4``, ``ipv6`` or ``unix``.
    """
    first, _, second = connection.partition("->")
    end = second or first
    if "/" in end or " " in end or "@" in end or ":" not in end:
        return "unix"
    return "ipv4" if end.count(":") == 1 else "ipv6"


def _pair(tables: Tables, step: Step) -> None:
    """Two descriptors are made: the ends of a pipe or of a socket."""
    first, second, inode, flags, source, peer = step.values
    if step.retval is None or step.retval < 0:
        return
    owner = step.owner
    name = None if source is None or peer is None else f"{source:x}->{peer:x}"
    for fd in (first, second):
        if fd is not None:
            tables.fds.put(owner, fd, Target(step.of.type, name, inode, flags), step.row)


def _close(tables: Tables, step: Step) -> None:
    """A descriptor ends."""
    if step.retval is not None and step.retval >= 0 and step.values[0] is not None:
        tables.fds.close(step.owner, step.values[0], step.row)


def _close_range(tables: Tables, step: Step) -> None:
    """All descriptors between two numbers end."""
    first, last = step.values
    if step.retval == 0 and first is not None and last is not None:
        owner = step.owner
        inside = [fd for fd in tables.fds.numbers(owner) if first <= fd <= last & 0xFFFFFFFF]
        tables.fds.close_where(owner, inside, step.row)


def _duplicate(tables: Tables, step: Step) -> None:
    """A descriptor becomes another name of what one stands for."""
    fd, flags = step.values
    if step.retval is None or step.retval < 0 or fd is None or fd == step.retval:
        return
    owner = step.owner
    target = tables.fds.get(owner, fd)
    if target is None:
        tables.fds.close(owner, step.retval, step.row)  # what had the number is no more
        return
    kept = None if target.flags is None else target.flags & ~step.of.cloexec
    if flags is not None and flags & step.of.cloexec:
        kept = (kept or 0) | step.of.cloexec
    tables.fds.put(owner, step.retval, target._replace(flags=kept), step.row)


def _inherit(tables: Tables, step: Step) -> None:
    """A descriptor ends, or not, with the next program; where it is not said, it is kept."""
    fd, closes = step.values
    owner = step.owner
    target = None if fd is None else tables.fds.get(owner, fd)
    if step.retval == 0 and target is not None:
        flags = (target.flags or 0) & ~step.of.cloexec
        if closes is not None and closes & 1:
            flags |= step.of.cloexec
        if flags != (target.flags or 0):
            tables.fds.put(owner, fd, target._replace(flags=flags), step.row)


def _connect(tables: Tables, step: Step) -> None:
    """A socket gets both its addresses."""
    fd, name = step.values
    if step.retval is None or fd is None or not name:
        return
    if step.retval >= 0 or step.retval == _IN_PROGRESS:
        _name_socket(tables, step.row, step.owner, fd, name)
    else:
        tables.tried(step.row, name)


def _bind(tables: Tables, step: Step) -> None:
    """A socket gets its own address."""
    fd, name = step.values
    if step.retval is not None and step.retval >= 0 and fd is not None and name:
        _name_socket(tables, step.row, step.owner, fd, name)


def _address(tables: Tables, step: Step) -> None:
    """A socket without a connection has the addresses of what went through it last."""
    fd, name = step.values
    if step.retval is None or step.retval < 0 or fd is None or not name:
        return
    owner = step.owner
    target = tables.fds.get(owner, fd)
    if target is None or not target.name or '"tcp"' not in (target.details or ""):
        _name_socket(tables, step.row, owner, fd, name)


def _name_socket(tables: Tables, row: int, owner: int, fd: int, name: str) -> None:
    target = tables.fds.get(owner, fd) or Target()
    source, _, peer = name.partition("->")
    if target.name not in {name, f"{peer}->{source}"}:  # what comes in, comes from the peer
        tables.fds.put(owner, fd, target._replace(type=kind_of(name), name=name), row)


EFFECTS: Final[dict[str, tuple[Handler, tuple[str, ...]]]] = {
    "open": (_open, ("@type", "@name", "@at", "@flags", "ino", "type", "@uses")),
    "pair": (_pair, ("fd1", "fd2", "ino", "@flags", "source", "peer")),
    "close": (_close, ("@uses",)),
    "close_range": (_close_range, ("first", "last")),
    "duplicate": (_duplicate, ("@uses", "@flags")),
    "inherit": (_inherit, ("@uses", "arg")),
    "connect": (_connect, ("@uses", "@name")),
    "bind": (_bind, ("@uses", "@name")),
    "address": (_address, ("@uses", "@name")),
    **lives.EFFECTS,
}
"""An effect's handler, and the arguments that it wants; behind an ``@``, what the catalogue
names. ``ts`` is the event's time."""
