"""Taking the baseline: the tables of the first snapshot, and what the host says of itself.

Taken after the recorder has attached: what happens meanwhile is in the tables, in the events, or
in both, and never in neither.

Measured (Python 3.11, Linux 6.18, one core): see docs/decisions.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kcap.errors import KcapError
from kcap.model import text
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.readers.live import cgroups, host, procfs
from kcap.readers.live.baseline import interfaces, kernel
from kcap.readers.live.baseline.sockets import Sockets
from kcap.readers.live.baseline.tasks import Tasks
from kcap.readers.live.probe.hierarchies import hierarchies
from kcap.readers.live.probe.wire import CONTENT_BYTES
from kcap.readers.live.procfs import ProcFS
from kcap.state import State, fds, rows, threads
from kcap.state.state import FDS, PROCESSES, THREADS, USERS

ENTRIES_MAX: Final = 65_536
"""Entries of each table of `TABLES` that are kept: all of them together fit a STATE record."""

_I64, _STR, _LIST = TypeClass.I64, TypeClass.STR, TypeClass.LIST

TABLES: Final[dict[str, dict[str, TypeClass]]] = {
    "bpf_programs": {
        "id": _I64,
        "type": _STR,
        "name": _STR,
        "tag": _STR,
        "uid": _I64,
        "load_ns": _I64,
        "size": _I64,
        "maps": TypeClass.LIST_I64,
    },
    "cgroups": {
        "id": _I64,
        "controllers": _STR,
        "path": _STR,
        "container_id": _STR,
        "pod_uid": _STR,
    },
    "groups": {"gid": _I64, "name": _STR, "members": _LIST},
    "interfaces": {
        "ifindex": _I64,
        "name": _STR,
        "type": _STR,
        "mac": _STR,
        "mtu": _I64,
        "flags": _LIST,
        "addresses": _LIST,
    },
    "modules": {
        "name": _STR,
        "size": _I64,
        "references": _I64,
        "used_by": _LIST,
        "state": _STR,
        "address": _STR,
        "taints": _STR,
    },
    "mounts": {
        "mount_ns": _I64,
        "mount_id": _I64,
        "parent_id": _I64,
        "device": _STR,
        "root": _STR,
        "path": _STR,
        "options": _STR,
        "propagation": _STR,
        "fs_type": _STR,
        "source": _STR,
        "super_options": _STR,
    },
    "namespaces": {"type": _STR, "inode": _I64, "pid": _I64, "name": _STR, "processes": _I64},
    "sockets": {
        "net_ns": _I64,
        "inode": _I64,
        "family": _STR,
        "protocol": _STR,
        "state": _STR,
        "local_addr": _STR,
        "local_port": _I64,
        "remote_addr": _STR,
        "remote_port": _I64,
        "path": _STR,
        "uid": _I64,
        "pid": _I64,
        "process_name": _STR,
    },
    USERS: {"uid": _I64, "name": _STR, "gid": _I64, "home": _STR, "shell": _STR},
}
"""The columns of the tables that replay does not follow, behind the machine."""


@dataclass(frozen=True)
class Baseline:
    """What was there when the recording began."""

    source: SourceInfo
    """The source, with what the host says of itself."""
    tables: Mapping[str, Batch]
    losses: Sequence[Loss]
    """What found no room."""

    def sides(self, *, without: Collection[str] = ()) -> tuple[Side, ...]:
        """What stands before the first event: source, snapshot, losses.

        Args:
            without: Tables to leave out, as the events that follow do not keep them true.

        Returns:
            The side records.
        """
        kept = {name: table for name, table in self.tables.items() if name not in without}
        return (self.source, Snapshot(kept), *self.losses)


def take(
    source: SourceInfo,
    proc: ProcFS | None = None,
    *,
    etc: str = "/etc",
    recording: Mapping[str, Any] | None = None,
) -> Baseline:
    """Look at the host.

    Args:
        source: The recording's source.
        proc: The proc file system.
        etc: Where the files of users, groups and the dynamic linker are.
        recording: What is to be said of the recording itself, for the source's details: filter,
            case, operator, note.

    Returns:
        What was there. A process that ends meanwhile is left out; what this user may not read
        stands in the details, by table, as ``baseline_unavailable``.
    """
    taken = _Taken(proc or ProcFS(), etc, State.machine(source), source.id)
    tables = taken.tables()
    taken.proc.rest()
    details = {**source.details, **host.facts(taken.proc.root, etc), **(recording or {})}
    if taken.unavailable:
        details["baseline_unavailable"] = taken.unavailable
    losses = (*taken.losses, *taken.proc.losses(source.id))
    return Baseline(replace(source, details=details), tables, losses)


class _Taken:
    """The tables as they are read."""

    def __init__(self, proc: ProcFS, etc: str, machine: str, source: str) -> None:
        self.proc = proc
        self.losses: list[Loss] = []
        self.unavailable: dict[str, str] = {}
        self._etc = Path(etc)
        self._machine = machine
        self._source = source

    def tables(self) -> dict[str, Batch]:
        """All tables that have rows; that of the processes always."""
        sockets = Sockets()
        tasks = Tasks(self.proc, sockets)
        tasks.collect()
        mounts = (m for ns, raw in sorted(tasks.mounts.items()) for m in kernel.mounts(ns, raw))
        found = {
            PROCESSES: procfs.table(tasks.images, self._machine),
            THREADS: threads.to_batch([(self._machine, tasks.threads)]),
            FDS: fds.to_batch([(self._machine, tasks.descriptors())]),
            USERS: self._table(USERS, _users(self._etc / "passwd")),
            "bpf_programs": self._asked("bpf_programs", kernel.programs),
            "cgroups": self._table("cgroups", self._cgroups()),
            "groups": self._table("groups", _groups(self._etc / "group")),
            "interfaces": self._asked("interfaces", interfaces.interfaces),
            "modules": self._table("modules", kernel.modules(self.proc.root)),
            "mounts": self._table("mounts", mounts),
            "namespaces": self._table("namespaces", sorted(tasks.namespaces.values())),
            "sockets": self._table("sockets", self._with_owners(sockets, tasks)),
        }
        if tasks.refused:
            self.unavailable[FDS] = f"those of {tasks.refused} processes: permission denied"
        if tasks.left_out:
            self._lose("processes, threads and descriptors", tasks.left_out)
        if sockets.left_out:
            self._lose("sockets", sockets.left_out)
        return {name: table for name, table in found.items() if table.rows or name == PROCESSES}

    def _table(self, name: str, found: Iterable[Sequence[Any]]) -> Batch:
        """A table; entries beyond the limit are counted."""
        every = list(itertools.islice(found, ENTRIES_MAX + 1))
        if len(every) > ENTRIES_MAX:
            self._lose(name.replace("_", " "), None)
        return rows.to_batch(TABLES[name], [(self._machine, every[:ENTRIES_MAX])])

    def _lose(self, what: str, count: int | None) -> None:
        reason = f"{what} of the host beyond the limit, when the recording began"
        self.losses.append(Loss("skipped", count, reason, self._source))

    def _asked(self, table: str, ask: Callable[[], Sequence[Sequence[Any]]]) -> Batch:
        """A table that the kernel may refuse; a recording goes without it then, and says so."""
        try:
            return self._table(table, ask())
        except (KcapError, OSError) as error:
            said = error.what if isinstance(error, KcapError) else error.strerror or str(error)
            self.unavailable[table] = said
            return EMPTY

    @staticmethod
    def _with_owners(sockets: Sockets, tasks: Tasks) -> Iterator[Sequence[Any]]:
        """The sockets, each with the process of least id that has it open."""
        names = {image.pid: procfs.stored(image.name) for image in tasks.images}
        owners: dict[int, tuple[int, str | None]] = {}
        for inode, pid in tasks.sockets():
            owners.setdefault(inode, (pid, names.get(pid)))
        for socket in sockets.rows():
            yield (*socket, *owners.get(socket.inode, (None, None)))

    def _cgroups(self) -> Iterator[Sequence[Any]]:
        for mounted in hierarchies(self.proc.root):
            for path, number in cgroups.walk(mounted, ENTRIES_MAX + 1):
                shown = procfs.stored(path.encode("utf-8", "surrogateescape")) or ""
                group = cgroups.group(shown)
                yield number, mounted.controllers, shown, group.container_id, group.pod_uid


def _entries(path: Path, fields: int) -> list[list[str]]:
    """The entries of a file of /etc; none where there is no such file."""
    try:
        with path.open("rb") as file:
            lines = file.read(CONTENT_BYTES).split(b"\n")
    except OSError:
        return []
    split = (text.clean(line)[0].split(":") for line in lines)
    return [e for e in split if len(e) >= fields and e[2].isdigit() and int(e[2]) < 1 << 32]


def _users(path: Path) -> list[tuple[Any, ...]]:
    """The users; of several of one number the first is the one that counts, and stands first."""
    found = [
        (int(uid), name, int(gid) if gid.isdigit() else None, home, shell)
        for name, _, uid, gid, _, home, shell, *_ in _entries(path, 7)
    ]
    return sorted(found, key=lambda user: user[0])


def _groups(path: Path) -> list[tuple[Any, ...]]:
    found = [
        (int(gid), name, [member for member in members.split(",") if member])
        for name, _, gid, members, *_ in _entries(path, 4)
    ]
    return sorted(found, key=lambda one: one[0])
