"""Which tracepoints tell of which events, and what their records are for.

Some events take several tracepoints: a call is what was asked for (``sys_enter``) and what came of
it (``sys_exit``); whether a child is a process or a thread says ``task_newtask``, what a program is
called ``task_rename``, and how a process ends what it asked for or the signals that it got.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.errors import KcapError
from kcap.readers.live.bpf import events, values
from kcap.readers.live.bpf.events import Argument, Event
from kcap.readers.live.trace.formats import Format
from kcap.readers.live.trace.tracefs import Tracefs

CALL_ARGUMENTS: Final = 6
"""Arguments of a system call at most."""

_FIRST_ARGUMENT: Final = 16
"""Where the first argument stands in the record of a call that begins; the others follow."""

_WORD: Final = 8
_TYPES: Final = 1 << 16


class Role(IntEnum):
    """What a record is for."""

    NONE = 0
    EXEC = 1
    FORK = 2
    EXIT = 3
    NEWTASK = 4
    RENAME = 5
    STATE = 6
    MODULE = 7
    ENTER = 8
    LEAVE = 9
    QUIT = 10
    SIGNAL = 11
    SENT = 12


class Point(NamedTuple):
    """A tracepoint that is recorded."""

    format: Format
    role: Role
    event: int
    """Number of the event that it tells of; 0 where it only helps to tell of others."""
    filter: str = ""
    """What the kernel is asked to leave out, in its own language."""


MODULE_LOAD: Final = Event(
    number=events.EVENTS - 1,
    name="module_load",
    source="tp/module_load",
    native=(),
    compat=(),
    handler="module",
    kernel=(),
    ring="rare",
    sets=("security",),
    arguments=tuple(Argument(name, "str", "") for name in ("name", "version", "src_version")),
)
"""The event that the kernel program makes a view of a call for."""

_PROCESSES: Final = {
    "sched_process_exec": ("sched/sched_process_exec", Role.EXEC, ("filename", "pid", "old_pid")),
    "sched_process_fork": ("sched/sched_process_fork", Role.FORK, ("parent_comm", "child_pid")),
    "sched_process_exit": ("sched/sched_process_exit", Role.EXIT, ("comm",)),
}
"""Events that always come, their tracepoints, and the fields that are read."""

_OTHERS: Final = {
    "inet_sock_set_state": (
        "sock/inet_sock_set_state",
        Role.STATE,
        ("oldstate", "newstate", "sport", "dport", "family", "saddr", "daddr", "saddr_v6"),
    ),
    "module_load": ("module/module_load", Role.MODULE, ("name",)),
}

_HELPERS: Final = {
    "task/task_newtask": (Role.NEWTASK, ("pid", "clone_flags")),
    "task/task_rename": (Role.RENAME, ("oldcomm", "newcomm")),
    "signal/signal_deliver": (Role.SIGNAL, ("sig", "sa_handler")),
    "signal/signal_generate": (Role.SENT, ("sig", "pid", "result")),
    "syscalls/sys_enter_exit": (Role.QUIT, ("error_code",)),
    "syscalls/sys_enter_exit_group": (Role.QUIT, ("error_code",)),
}
"""Tracepoints that tell of no event by themselves."""

_HELPER_FILTERS: Final = {
    Role.SIGNAL: "sa_handler == 0",
    Role.SENT: "result == 0 && sig != 17",
}
"""Signals that nobody handles; those that are not dropped, but for the deaths of children."""

_RENAME: Final = "task_rename"
_EXECUTES: Final = "prot & 4"
_FILTERS: Final = {
    "mmap": _EXECUTES,
    "mprotect": _EXECUTES,
    "pkey_mprotect": _EXECUTES,
}
"""Calls that would come by the thousand: only those that matter, as the kernel program has it."""

_TRACEPOINT_OF: Final = {"umount2": "umount"}
"""Calls whose tracepoint has the name of the kernel's function."""

_NOT_BY_DEFAULT: Final = frozenset({"mmap"})
"""Each begun program maps a dozen files; without their names that says nothing."""

_BY_DEFAULT: Final = ("inet_sock_set_state", "module_load")
"""What has no place in the default set elsewhere, but is all that tells who is connected to whom,
and which module was loaded."""


@cache
def known() -> dict[int, Event]:
    """The events that there are, by number."""
    return {**events.by_number(), MODULE_LOAD.number: MODULE_LOAD}


@cache
def told() -> frozenset[str]:
    """The events that tracepoints tell of.

    Not of files, as all that is known of them would be that something was opened or removed, and
    nothing that may come by the million.
    """
    calls = (e.name for e in events.events().values() if e.is_call and _tells(e))
    return frozenset([*_PROCESSES, *_OTHERS, _RENAME, *calls])


def _tells(event: Event) -> bool:
    return event.ring == "rare" and "fs" not in event.sets


@cache
def default() -> frozenset[str]:
    """The events that are recorded unless others are named."""
    usual = told().intersection(events.sets()["default"]) - _NOT_BY_DEFAULT
    return usual.union(_BY_DEFAULT)


_ARGUMENTS: Final = {
    "sched_process_exec": ("cmdpath", "pathname", "argv", "prev_comm", "old_tid"),
    "sched_process_fork": (*("parent_tid", "parent_pid", "child_tid", "child_pid", "start_time"),),
    "sched_process_exit": (
        *("exit_code", "signal_code", "core_dumped", "process_group_exit", "wait_status"),
    ),
    "task_rename": ("old_name", "new_name", "task_tid", "task_pid"),
    "inet_sock_set_state": ("old_state", "new_state", "local_addr", "remote_addr"),
    "module_load": ("name",),
}
"""Of events that are no calls, the arguments that may have a value."""

RESOLVED: Final = {"setuid": ("ruid", "uid"), "setgid": ("rgid", "gid")}
"""Calls of which /proc says what came of them: the argument, and where an `Image` has it."""

_IN_MEMORY: Final = {"openat2": ("n2", "n3", "n4")}
"""Arguments that stand in memory of the process, where only the kernel program looks."""


def place_of(event: Event, argument: Argument) -> int | None:
    """Which argument of the call one of its event is.

    Args:
        event: A system call.
        argument: One of its arguments.

    Returns:
        Its number, from 0; None for what only the kernel program finds.
    """
    kind, place = argument.kind, argument.place
    if kind not in values.NUMBERS or not place.startswith("n") or not place[1:].isdigit():
        return None
    number = int(place[1:])
    elsewhere = number >= CALL_ARGUMENTS or place in _IN_MEMORY.get(event.name, ())
    return None if elsewhere else number


def knows(event: Event, argument: Argument) -> bool:
    """Whether an argument may have a value in a recording through tracepoints.

    Args:
        event: One of `told`.
        argument: One of its arguments.

    Returns:
        True where it may.
    """
    if event.is_call:
        resolved = RESOLVED.get(event.name, ("",))[0]
        return argument.name == resolved or place_of(event, argument) is not None
    return argument.name in _ARGUMENTS[event.name]


def tracepoint_of(event: Event) -> str:
    """The tracepoint that tells of an event; of a call the one of its beginning.

    Args:
        event: One of `told`.

    Returns:
        Group and name.
    """
    if event.is_call:
        return f"syscalls/sys_enter_{_TRACEPOINT_OF.get(event.name, event.name)}"
    found = {**_PROCESSES, **_OTHERS}.get(event.name)
    return found[0] if found else f"task/{_RENAME}"


class Points:
    """The tracepoints of a recording, as this kernel has them.

    Args:
        wanted: The names of the events; those of processes come in any case.
        tracefs: The kernel's tracing files.

    Raises:
        PrivilegeError: This user may not read them.
        KcapError: One without which there is no recording is missing; or there is no such event.
    """

    def __init__(self, wanted: Collection[str], tracefs: Tracefs) -> None:
        unknown = sorted(set(wanted) - told())
        if unknown:
            raise KcapError(
                f"tracepoints do not tell of {unknown[0]}",
                hint="record with --source bpf; 'kcap doctor' says what is missing for it",
            )
        self._tracefs = tracefs
        self.wanted = frozenset(wanted) | _PROCESSES.keys()
        self.every: list[Point] = []
        """All of them."""
        self.unavailable: list[str] = []
        """Tracepoints that this kernel has not, or not as they are known."""
        for name, (tracepoint, role, fields) in _PROCESSES.items():
            if not self._add(tracepoint, role, events.events()[name].number, fields):
                raise KcapError(
                    f"no tracepoint {tracepoint} with {', '.join(fields)}",
                    file=self._tracefs.path,
                    expected="a kernel that tells of processes",
                )
        numbers = {event.name: event.number for event in known().values()}
        for name, (tracepoint, role, fields) in _OTHERS.items():
            if name in self.wanted:
                self._add(tracepoint, role, numbers[name], fields)
        for tracepoint, (role, fields) in _HELPERS.items():
            rule = _HELPER_FILTERS.get(role, "")
            number = numbers[_RENAME] if role is Role.RENAME and _RENAME in self.wanted else 0
            self._add(tracepoint, role, number, fields, rule)
        for name in sorted(self.wanted):
            event = events.events().get(name)
            if event is not None and event.is_call:
                self._add_call(event)
        self._tables()

    def _add(
        self, tracepoint: str, role: Role, event: int, fields: Sequence[str], rule: str = ""
    ) -> bool:
        found = self._tracefs.format(tracepoint)
        if found is None or not found.has(*fields):
            self.unavailable.append(tracepoint)
            return False
        self.every.append(Point(found, role, event, rule))
        return True

    def _add_call(self, event: Event) -> None:
        """Both ends of a call; one alone would tell half of it."""
        name = tracepoint_of(event)
        enter = self._tracefs.format(name)
        leave = self._tracefs.format(name.replace("_enter_", "_exit_", 1))
        if enter is None or leave is None or not leave.has("ret"):
            self.unavailable.append(name)
            return
        rule = _FILTERS.get(event.name, "")
        self.every.append(Point(enter, Role.ENTER, event.number, rule))
        self.every.append(Point(leave, Role.LEAVE, event.number))

    def _tables(self) -> None:
        self.common = self.every[0].format.layout
        """What has the fields of every record."""
        self.roles = np.zeros(_TYPES, np.int8)
        """By type of record, its role."""
        self.events = np.zeros(_TYPES, np.int16)
        """By type of record, the event's number."""
        self.sizes = np.full(_TYPES, np.iinfo(np.int64).max)
        """By type of record, the bytes that its fields take."""
        self.filtered = np.zeros(events.EVENTS, np.bool_)
        """By event, whether the kernel leaves some of its calls out."""
        self.arguments = np.zeros(_TYPES, np.int8)
        """By type of record, how many arguments of a call it has."""
        for point in self.every:
            number = point.format.number
            self.roles[number] = point.role
            self.events[number] = point.event
            self.sizes[number] = point.format.layout.itemsize
            if point.role is Role.ENTER:
                self.filtered[point.event] = bool(point.filter)
                self.arguments[number] = arguments_of(point.format)

    @property
    def needed(self) -> list[Point]:
        """Those without which there is no recording."""
        return [point for point in self.every if point.role in (Role.EXEC, Role.FORK, Role.EXIT)]

    @property
    def looked_at(self) -> list[int]:
        """Types of records upon which /proc is read at once: later it may say something else."""
        numbers = {events.events()[name].number for name in RESOLVED}
        return [
            point.format.number
            for point in self.every
            if point.role is Role.EXEC or (point.role is Role.LEAVE and point.event in numbers)
        ]

    def formats(self, role: Role) -> list[Format]:
        """The layouts of the records that are for something.

        Args:
            role: What for.

        Returns:
            They; several only of calls, and of what ends a process.
        """
        return [point.format for point in self.every if point.role is role]


def arguments_of(found: Format) -> int:
    """How many arguments of a call stand in the record of its beginning.

    Args:
        found: Its layout.

    Returns:
        Their number; they are words of 64 bits, one after the other.
    """
    fields: Mapping[str, Any] = found.layout.fields or {}
    places = {field[1] for field in fields.values() if field[0].itemsize == _WORD}
    count = 0
    while _FIRST_ARGUMENT + _WORD * count in places and count < CALL_ARGUMENTS:
        count += 1
    return count
