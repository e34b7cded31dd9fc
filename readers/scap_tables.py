"""The tables of a .scap file: what its machine was like when the recording began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from kcap.errors import DamagedError
from kcap.model import text
from kcap.readers import scap_entries
from kcap.readers.scap_blocks import FDS, INTERFACES, MACHINE, PROCESSES, USERS, Table
from kcap.readers.scap_entries import EntryError, Group, Interface, Machine, OpenFile, Task, User
from kcap.state import Process, fds, threads
from kcap.state.containers import container_id
from kcap.state.fds import Descriptor
from kcap.state.processes import FACTS, PASSWD, PROCFS
from kcap.state.threads import Thread

TASKS_MAX: Final = threads.ENTRIES_MAX
FILES_MAX: Final = fds.ENTRIES_MAX
USERS_MAX: Final = 65_536
INTERFACES_MAX: Final = 1024
"""Entries of a list that are kept."""

BYTES_MAX: Final = 256 << 20
"""Bytes of lists of processes and descriptors that are read."""

UNKNOWN_MAX: Final = 1000
"""Different unknown types of blocks that are counted one by one."""


class Tables:
    """The tables of one section.

    Args:
        file: The file's name, for errors.

    Example:
        >>> tables = Tables("x.scap")
        >>> for item in Blocks(stream, "x.scap").read():
        ...     if isinstance(item, Table):
        ...         tables.take(item)
        >>> tables.machine.hostname
        'canaris'
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self.machine: Machine | None = None
        self.interfaces: list[Interface] = []
        self.users: dict[int, User] = {}
        self.groups: dict[int, Group] = {}
        self.tasks: dict[int, Task] = {}
        """By thread id."""
        self.files: list[OpenFile] = []
        self.unknown: dict[int, int] = {}
        """Types of blocks that are not known, and how many there were; 0 for further types."""
        self.left_out = 0
        """Entries, and blocks of further ones, that found no room."""
        self._bytes = 0

    def take(self, table: Table) -> None:
        """Read a block.

        Args:
            table: The block.

        Raises:
            DamagedError: Its entries go beyond it or beyond their lengths; the entries before are
                taken.
        """
        body, kind = table.body, table.type
        try:
            if kind == MACHINE:
                self.machine = scap_entries.machine(body)
            elif kind in INTERFACES:
                for interface in scap_entries.interfaces(body, INTERFACES[kind]):
                    if self._has_room(len(self.interfaces), INTERFACES_MAX):
                        self.interfaces.append(interface)
            elif kind in USERS:
                self._take_users(scap_entries.users(body, USERS[kind]))
            elif kind in PROCESSES or kind in FDS:
                self._bytes += len(body)
                if self._has_room(self._bytes, BYTES_MAX):
                    self._take_list(body, kind)
            else:
                known = kind in self.unknown or len(self.unknown) < UNKNOWN_MAX
                key = kind if known else 0
                self.unknown[key] = self.unknown.get(key, 0) + 1
        except EntryError:
            raise DamagedError(
                f"an entry of the {_what(kind)} list goes beyond its end",
                file=self._file,
                offset=table.offset,
            ) from None

    def _has_room(self, count: int, most: int) -> bool:
        self.left_out += count >= most
        return count < most

    def _take_users(self, entries: Iterable[User | Group]) -> None:
        for entry in entries:
            if not self._has_room(len(self.users) + len(self.groups), USERS_MAX):
                continue
            if isinstance(entry, User):
                self.users[entry.uid] = entry
            else:
                self.groups[entry.gid] = entry

    def _take_list(self, body: bytes, kind: int) -> None:
        if kind in FDS:
            for file in scap_entries.files(body, FDS[kind]):
                if self._has_room(len(self.files), FILES_MAX):
                    self.files.append(file)
            return
        for task in scap_entries.tasks(body, PROCESSES[kind]):
            if task.tid in self.tasks or self._has_room(len(self.tasks), TASKS_MAX):
                self.tasks[task.tid] = task

    def processes(self) -> list[Process]:
        """The processes: a row for each process id, out of its main thread where that is there."""
        mains: dict[int, Task] = {}
        for task in self.tasks.values():
            if task.tid == task.pid or task.pid not in mains:
                mains[task.pid] = task
        return [self._process(task) for _, task in sorted(mains.items())]

    def threads(self) -> list[Thread]:
        """The threads, by thread id."""
        return [
            Thread(
                task.tid,
                task.pid,
                task.comm or None,
                task.ptid,
                provenance=PROCFS,
                details=_json(
                    {
                        "ns_tid": _other(task.details.get("vtid"), task.tid),
                        "ns_pid": _other(task.details.get("vpid"), task.pid),
                    }
                ),
            )
            for _, task in sorted(self.tasks.items())
        ]

    def descriptors(self) -> list[Descriptor]:
        """The descriptors, by process and number.

        Where other threads of a process have lists, too, that of the main thread counts.
        """
        found: dict[tuple[int, int], OpenFile] = {}
        for file in self.files:
            task = self.tasks.get(file.tid)
            pid = task.pid if task else file.tid
            if pid == file.tid or (pid, file.fd) not in found:
                found[pid, file.fd] = file
        return [
            Descriptor(pid, fd, file.type, file.name, file.inode, file.flags, _json(file.details))
            for (pid, fd), file in sorted(found.items())
        ]

    def _process(self, task: Task) -> Process:
        parent = self.tasks.get(task.ptid)
        arguments = [task.exe, *task.args]
        user = self.users.get(task.uid)
        paths = [entry.partition("=")[2] for entry in task.cgroups or ()]
        process = Process(
            task.pid,
            ppid=parent.pid if parent else task.ptid,
            name=(task.comm or None) if task.tid == task.pid else None,
            exe=task.exepath or task.exe or None,
            cmdline=" ".join(arguments) if any(arguments) else None,
            cwd=task.cwd or None,
            user=user.name if user else None,
            uid=task.uid,
            gid=task.gid,
            session=None if task.sid is None or task.sid < 0 else task.sid,
            container_id=container_id(paths),
        )
        tags = ((fact, PASSWD if fact == "user" else PROCFS) for fact in FACTS)
        return process._replace(
            provenance=tuple(tag if getattr(process, f) is not None else None for f, tag in tags)
        )


def _json(values: Mapping[str, Any]) -> str | None:
    """The values that there are as JSON text, None where there are none."""
    known = {name: value for name, value in values.items() if value is not None}
    return text.json_text(known) if known else None


def _other(number: int | None, than: int) -> int | None:
    """A number that is known and another one."""
    return None if number in (than, -1) else number


def is_table(kind: int) -> bool:
    """Whether a type of block is one of the tables.

    Args:
        kind: The type.

    Returns:
        False for types that are not known.
    """
    return any(kind in kinds for kinds in ((MACHINE,), PROCESSES, FDS, INTERFACES, USERS))


def _what(kind: int) -> str:
    for what, kinds in (("process", PROCESSES), ("descriptor", FDS), ("interface", INTERFACES)):
        if kind in kinds:
            return what
    return "user" if kind in USERS else "machine"
