"""What calls do to the threads, processes and descriptors of a machine: a function an effect."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kcap.state.containers import container_id
from kcap.state.fds import FdTable, Target
from kcap.state.processes import (
    EVENT,
    FACTS,
    INHERITED,
    Process,
    ProcessTable,
    inherited,
    known_facts,
)
from kcap.state.threads import Thread, ThreadTable

AT_CWD: Final = -100
"""Stands for the working directory where a descriptor of a directory is asked for."""

_IN_PROGRESS: Final = -115
"""A connection that is being made has its addresses."""

_NAME_MAX: Final = 15
"""Characters of a thread's name."""

_TOLD_NAME_MAX: Final = 64
"""The same where the source says it: newer kernels have longer ones for their own threads."""

_UNCHANGED: Final = frozenset({-1, 0xFFFFFFFF})

_TCP: Final = '{"l4_proto": "tcp"}'
_PROTOCOLS: Final = {1: _TCP, 2: '{"l4_proto": "udp"}'}
"""By type of an internet socket, without its flags."""

_SOCKET_TYPES: Final = 0xF
_SOCKET_CLOEXEC: Final = 0o2000000


@dataclass(slots=True)
class Tables:
    """What is known of one machine."""

    threads: ThreadTable
    fds: FdTable
    processes: ProcessTable
    users: dict[int, str]
    """User names by id."""
    named: list[tuple[int, str]] = field(default_factory=list)
    """Rows of failed calls, and what they would have opened or connected to."""

    def tried(self, row: int, name: str) -> None:
        """Keep what a failed call was about, while a batch's changes are kept.

        Args:
            row: Its row.
            name: What it would have opened or connected to.
        """
        if self.threads.changes is not None:
            self.named.append((row, name))

    def collect(self) -> None:
        """Begin to keep what a batch changes."""
        self.processes.changes = []
        self.threads.changes = []
        self.fds.collect()
        self.named = []

    def forget(self) -> None:
        """End what `collect` began."""
        self.processes.changes = self.threads.changes = None
        self.processes.before, self.threads.before = {}, {}
        self.fds.forget()
        self.named = []

    def clear(self) -> None:
        """Forget all."""
        self.threads.clear()
        self.fds.clear()
        self.processes.clear()
        self.users.clear()


@dataclass(frozen=True, slots=True)
class Traits:
    """What the handlers must know of an event beyond its values."""

    type: str | None
    """What it makes."""
    types: dict[int, str]
    """What it makes, by the number of its argument for that."""
    cloexec: int
    """The flag with which a descriptor ends with the next program."""
    directory: int
    """The flag of a directory."""
    thread: int
    """The flag with which a clone is a thread of its caller's process."""


class Step(NamedTuple):
    """What a handler gets: a row that changes something."""

    row: int
    tid: int
    """The thread that called."""
    owner: int
    """Its process (`ThreadTable.owner`)."""
    retval: int | None
    of: Traits
    values: Sequence[Any]
    """One for each of the handler's arguments (`EFFECTS`), None where the row has none."""


def path_of(tables: Tables, owner: int, name: str, at: int | None = None) -> str:
    """The path that a process means.

    Args:
        tables: The machine's tables.
        owner: The process.
        name: The path as it was given.
        at: Descriptor of the directory in which it begins.

    Returns:
        The absolute path without ``.``, ``..`` and doubled slashes; a relative one where the
        directory is not known.
    """
    if not name.startswith("/"):
        base: str | None = None
        if at is None or at == AT_CWD:
            process = tables.processes.get(owner)
            base = None if process is None else process.cwd
        elif (target := tables.fds.get(owner, at)) is not None:
            base = target.name
        if base is None or not base.startswith("/"):
            return posixpath.normpath(name) if "./" in name or "//" in name else name
        name = f"{base}/{name}"
    elif "//" not in name and "/." not in name:
        return name if name == "/" else name.removesuffix("/")
    path = posixpath.normpath(name)
    return path[1:] if path.startswith("//") else path


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


def _fork(tables: Tables, step: Step) -> None:
    """A thread starts another one, seen from either of them."""
    flags = step.values[0] or 0
    told = dict(zip(_TOLD, step.values[1:], strict=True))
    if step.retval is None or step.retval < 0:
        return
    shares = bool(step.of.thread and flags & step.of.thread)
    if step.retval == 0:  # the child's own return
        parent = told["ptid"]
        pid = told["pid"] if told["pid"] is not None else step.tid
        known = tables.threads.get(step.tid)
        if known is None or known.exited or known.pid != pid:
            _born(tables, step.row, step.tid, pid, parent, shares=shares, from_thread=parent)
        _tell(tables, step.row, step.tid, told)
        return
    if tables.threads.get(step.tid) is None and told["pid"] is not None:
        _tell(tables, step.row, step.tid, told)
    if told["vtid"] not in {None, step.tid}:
        return  # the result is a number of another namespace: the child will say who it is
    pid = step.owner if shares else step.retval
    known = tables.threads.get(step.retval)
    if known is None or known.exited or known.pid != pid or (known.ptid != step.tid and not shares):
        _born(tables, step.row, step.retval, pid, step.tid, shares=shares, from_thread=step.tid)


def _born(
    tables: Tables,
    row: int,
    tid: int,
    pid: int,
    ptid: int | None,
    *,
    shares: bool,
    from_thread: int | None,
) -> None:
    """A new thread; unless of its parent's process, with a copy of what that has."""
    parent = None if from_thread is None else tables.threads.get(from_thread)
    name = None if parent is None else parent.name
    tables.threads.put(Thread(tid, pid, name, ptid, provenance=name and INHERITED), row)
    if shares or tid != pid:
        return
    from_pid = from_thread if parent is None else parent.pid
    base = None if from_pid is None else tables.processes.get(from_pid)
    if base is None:
        tables.processes.put(_with(Process(pid), ppid=from_pid), row)
    else:
        known = (True, *known_facts(base)[1:-1], False)
        child = base._replace(
            pid=pid,
            process_key=None,
            parent_key=base.process_key,
            ppid=from_pid,
            start_ns=None,
            exited=False,
            end_ns=None,
            exit_code=None,
            signal_code=None,
            provenance=inherited(known),
        )
        tables.processes.put(child, row)
    if from_pid is not None:
        tables.fds.fork(from_pid, pid, row)


def _exec(tables: Tables, step: Step) -> None:
    """A process runs another program."""
    if step.retval is None or step.retval < 0:
        return
    told = dict(zip((*_TOLD, "trusted_exepath", "filename", "at"), step.values, strict=True))
    pid = told["pid"] if told["pid"] is not None else step.owner
    path = told["trusted_exepath"] or told["filename"]
    if path in {"", "<NA>"}:
        path = None
    if path is not None:
        path = path_of(tables, pid, path, told["at"])
    told["exepath"] = path
    gone = [
        fd
        for fd in tables.fds.numbers(pid)
        if (target := tables.fds.get(pid, fd)) and (target.flags or 0) & step.of.cloexec
    ]
    tables.fds.close_where(pid, gone, step.row)
    _tell(tables, step.row, step.tid, told)


_TOLD: Final = (
    "pid",
    "ptid",
    "exe",
    "args",
    "cwd",
    "comm",
    "cgroups",
    "uid",
    "gid",
    "vtid",
)
"""What the result of a fork or exec says of the thread that it returns in."""


def _tell(tables: Tables, row: int, tid: int, told: dict[str, Any]) -> None:
    """Enter what a thread's own row says of it and of its process."""
    known = tables.threads.get(tid)
    pid = told["pid"] if told["pid"] is not None else tables.threads.owner(tid)
    name = (told["comm"] or "")[:_TOLD_NAME_MAX]
    name = name or posixpath.basename(told["exe"] or "")[:_NAME_MAX] or None
    ptid = known.ptid if known is not None and known.pid == pid else told["ptid"]
    details = known.details if known is not None and known.pid == pid else None
    thread = Thread(tid, pid, name, ptid, provenance=name and EVENT, details=details)
    if thread != known:
        tables.threads.put(thread, row)
    process = tables.processes.get(pid) or Process(pid)
    said: dict[str, Any] = {}
    if tid == pid and name:
        said["name"] = name
    if (path := told.get("exepath") or told["exe"]) and ("exepath" in told or not process.exe):
        said["exe"] = path
    if told["exe"] is not None:
        said["cmdline"] = " ".join([told["exe"], *(told["args"] or ())])
    if told["cwd"]:
        said["cwd"] = told["cwd"] if told["cwd"] == "/" else told["cwd"].removesuffix("/")
    if told["uid"] is not None and told["uid"] != process.uid:
        said |= {"uid": told["uid"], "user": tables.users.get(told["uid"])}
    if told["gid"] is not None:
        said["gid"] = told["gid"]
    if told["cgroups"] is not None:
        paths = [entry.partition("=")[2] for entry in told["cgroups"]]
        said["container_id"] = container_id(paths)
    if process.ppid is None and told["ptid"] is not None and tid == pid:
        said["ppid"] = tables.threads.owner(told["ptid"])
    changed = _with(process._replace(exited=False, end_ns=None), **said)
    if changed != process:
        tables.processes.put(changed, row)


def _with(process: Process, **said: Any) -> Process:  # noqa: ANN401 - as `_replace`
    """A process with other facts, said by an event; those that stay keep their provenance."""
    changed = process._replace(**said)
    tags = [
        None
        if not known
        else EVENT
        if fact in said and getattr(process, fact) != said[fact]
        else old or EVENT
        for fact, old, known in zip(FACTS, process.provenance, known_facts(changed), strict=True)
    ]
    return changed._replace(provenance=tuple(tags))


def _exit(tables: Tables, step: Step) -> None:
    """A thread ends; the last one of a process ends that."""
    ts, status, ret, signal = step.values
    thread = tables.threads.get(step.tid)
    if thread is None:
        thread = Thread(step.tid, step.tid)
    tables.threads.put(thread._replace(exited=True), step.row)
    if tables.threads.alive(thread.pid):
        return
    tables.fds.end(thread.pid, step.row)
    process = tables.processes.get(thread.pid)
    if process is not None:
        code = ret if ret is not None else None if status is None else status >> 8 & 0xFF
        sent = signal if signal is not None else None if status is None else status & 0x7F
        ended = process._replace(exited=True, end_ns=ts, exit_code=code, signal_code=sent or None)
        tables.processes.put(ended, step.row)


def _rename(tables: Tables, step: Step) -> None:
    """A thread gives itself another name."""
    name = step.values[0]
    if step.retval != 0 or name is None:
        return
    name = name[:_NAME_MAX]
    thread = tables.threads.get(step.tid) or Thread(step.tid, step.tid)
    tables.threads.put(thread._replace(name=name, provenance=EVENT), step.row)
    process = tables.processes.get(step.tid)
    if thread.pid == step.tid and process is not None:
        tables.processes.put(_with(process, name=name), step.row)


def _chdir(tables: Tables, step: Step) -> None:
    """A process goes to another directory."""
    if step.retval == 0 and step.values[0]:
        owner = step.owner
        _go(tables, step.row, owner, path_of(tables, owner, step.values[0]))


def _fchdir(tables: Tables, step: Step) -> None:
    """A process goes to a directory that it has open."""
    owner = step.owner
    if step.retval == 0 and step.values[0] is not None:
        target = tables.fds.get(owner, step.values[0])
        _go(tables, step.row, owner, None if target is None else target.name)


def _go(tables: Tables, row: int, owner: int, path: str | None) -> None:
    process = tables.processes.get(owner) or Process(owner)
    if path is not None and not path.startswith("/"):
        path = None  # not known any more
    if process.cwd != path:
        tables.processes.put(_with(process, cwd=path), row)


def _credentials(tables: Tables, step: Step) -> None:
    """A process becomes another user's; the effective ids count, as in the process list."""
    if step.retval != 0:
        return
    uid, gid = (
        next((v for v in pair if v is not None and v not in _UNCHANGED), None)
        for pair in (step.values[:2], step.values[2:])
    )
    process = tables.processes.get(step.owner)
    if process is None:
        return
    said: dict[str, Any] = {}
    if uid is not None and uid != process.uid:
        said |= {"uid": uid, "user": tables.users.get(uid)}
    if gid is not None and gid != process.gid:
        said["gid"] = gid
    if said:
        tables.processes.put(_with(process, **said), step.row)


Handler = Callable[[Tables, Step], None]

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
    "fork": (_fork, ("flags", *_TOLD)),
    "exec": (_exec, (*_TOLD, "trusted_exepath", "@name", "@at")),
    "exit": (_exit, ("ts", "status", "ret", "sig")),
    "rename": (_rename, ("@name",)),
    "chdir": (_chdir, ("@name",)),
    "fchdir": (_fchdir, ("@uses",)),
    "credentials": (_credentials, ("euid", "uid", "egid", "gid")),
}
"""An effect's handler, and the arguments that it wants; behind an ``@``, what the catalogue
names. ``ts`` is the event's time."""
