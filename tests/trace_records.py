"""A kernel made up for tests: its tracepoints' format files, and records as it would write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.readers.live.host import Clocks
from kcap.readers.live.trace import formats
from kcap.readers.live.trace.decode import Decoder
from kcap.readers.live.trace.formats import Format
from kcap.readers.live.trace.lives import Lives
from kcap.readers.live.trace.points import Points
from kcap.readers.live.trace.samples import UNKNOWN, Samples, spared
from kcap.readers.live.trace.tracefs import Tracefs

COMMON: Final = (
    ("unsigned short", "common_type", 2, False),
    ("unsigned char", "common_flags", 1, False),
    ("unsigned char", "common_preempt_count", 1, False),
    ("int", "common_pid", 4, True),
)
_INT = ("int", 4, True)
_COMM = ("char[16]", 16, False)
_TEXT = ("__data_loc char[]", 4, False)
_WORD = ("unsigned long", 8, False)
_CALL: Final = {"__syscall_nr": _INT}
_ENTER: Final = ("a0", "a1", "a2", "a3", "a4", "a5")

POINTS: Final[dict[str, dict[str, tuple[str, int, bool]]]] = {
    "sched/sched_process_exec": {"filename": _TEXT, "pid": _INT, "old_pid": _INT},
    "sched/sched_process_fork": {
        "parent_comm": _TEXT,
        "parent_pid": _INT,
        "child_comm": _TEXT,
        "child_pid": _INT,
    },
    "sched/sched_process_exit": {
        "comm": _COMM,
        "pid": _INT,
        "prio": _INT,
        "group_dead": ("bool", 1, False),
    },
    "task/task_newtask": {"pid": _INT, "comm": _COMM, "clone_flags": _WORD},
    "task/task_rename": {"pid": _INT, "oldcomm": _COMM, "newcomm": _COMM},
    "signal/signal_deliver": {"sig": _INT, "sa_handler": _WORD},
    "signal/signal_generate": {"sig": _INT, "pid": _INT, "result": _INT},
    "sock/inet_sock_set_state": {
        "oldstate": _INT,
        "newstate": _INT,
        "sport": ("__u16", 2, False),
        "dport": ("__u16", 2, False),
        "family": ("__u16", 2, False),
        "saddr": ("__u8[4]", 4, False),
        "daddr": ("__u8[4]", 4, False),
        "saddr_v6": ("__u8[16]", 16, False),
        "daddr_v6": ("__u8[16]", 16, False),
    },
    "module/module_load": {"taints": ("unsigned int", 4, False), "name": _TEXT},
    "syscalls/sys_enter_exit": {**_CALL, "error_code": _WORD},
    "syscalls/sys_enter_exit_group": {**_CALL, "error_code": _WORD},
    "syscalls/sys_enter_kill": {**_CALL, "pid": _WORD, "sig": _WORD},
    "syscalls/sys_enter_mprotect": {**_CALL, "start": _WORD, "len": _WORD, "prot": _WORD},
    "syscalls/sys_enter_execve": {**_CALL, "filename": _WORD, "argv": _WORD, "envp": _WORD},
    "syscalls/sys_enter_setuid": {**_CALL, "uid": _WORD},
    "syscalls/sys_enter_umount": {**_CALL, "name": _WORD, "flags": _WORD},
    **{
        f"syscalls/sys_exit_{name}": {**_CALL, "ret": ("long", 8, True)}
        for name in ("kill", "mprotect", "execve", "setuid", "umount")
    },
}
NUMBERS: Final = {name: 300 + i for i, name in enumerate(POINTS)}
CLOCKS: Final = Clocks(realtime_ns=1_700_000_000 * 10**9, boottime_ns=0)


def text(name: str, fields: Mapping[str, tuple[str, int, bool]], number: int) -> str:
    """A format file; each field lies at a multiple of its size, of an array of bytes anywhere."""
    lines, at = [f"name: {name.rpartition('/')[2]}", f"ID: {number}", "format:"], 0
    every = [*COMMON, *((kind, field, *rest) for field, (kind, *rest) in fields.items())]
    for kind, field, size, signed in every:
        at += -at % (1 if "[" in kind and "loc" not in kind else size)
        plain, bracket, count = kind.partition("[")
        declared = f"{kind} {field}" if "loc" in kind else f"{plain} {field}{bracket}{count}"
        lines.append(f"\tfield:{declared};\toffset:{at};\tsize:{size};\tsigned:{int(signed)};")
        at += size
    return "\n".join([*lines, "", 'print fmt: ""', ""])


class MadeUp(Tracefs):
    """The tracing files of that kernel.

    Args:
        without: Tracepoints that it has not.
        instead: Other descriptions of some.
    """

    def __init__(
        self, without: Iterable[str] = (), instead: Mapping[str, str] | None = None
    ) -> None:
        self.path = "/made/up"
        self._mount = None
        self._texts = {
            name: text(name, fields, NUMBERS[name])
            for name, fields in POINTS.items()
            if name not in without
        } | dict(instead or {})

    def format(self, name: str) -> Format | None:
        found = self._texts.get(name)
        return None if found is None else formats.parse(found, name, f"{self.path}/{name}")


class Made(NamedTuple):
    """A record."""

    time_ns: int
    data: bytes
    pid: int
    cpu: int = 0


@cache
def described(name: str) -> Format:
    """How the records of one of `POINTS` lie in memory."""
    return formats.parse(text(name, POINTS[name], NUMBERS[name]), name, name)


def record(
    point: str, time_ns: int, tid: int, *, task: int = UNKNOWN, flags: int = 0, **values: Any
) -> Made:
    """A record as the kernel writes it.

    Args:
        point: The tracepoint.
        time_ns: When.
        tid: The thread.
        task: Its process, if the ring says it.
        flags: Common flags.
        values: The fields; text for those that are strings.

    Returns:
        The record.
    """
    found = described(point)
    body = np.zeros((), found.layout)
    body["common_type"], body["common_flags"], body["common_pid"] = found.number, flags, tid
    tail = b""
    size = found.layout.itemsize
    for field, value in values.items():
        if field in found.located:
            raw = value.encode() + b"\0"
            body[field] = len(raw) << 16 | size + len(tail)
            tail += raw
        elif isinstance(value, str | bytes):
            raw = value.encode() if isinstance(value, str) else value
            width = found.layout[field].shape[0]
            body[field] = np.frombuffer(raw.ljust(width, b"\0"), np.uint8)
        else:
            body[field] = value
    return Made(time_ns, body.tobytes() + tail, task)


def samples(made: Iterable[Made]) -> Samples:
    """Records in memory, with something else in between."""
    data, starts = b"", []
    every = list(made)
    for each in every:
        data += b"\xff" * (-len(data) % 4 + 4)
        starts.append(len(data))
        data += each.data
    columns = ([len(m.data) for m in every], *([m[i] for m in every] for i in (0, 3, 2)))
    return Samples(
        spared(np.frombuffer(data, np.uint8)),
        np.array(starts, np.int64),
        *(np.array(column, np.int64) for column in columns),
    )


def decoder(points: Points, groups: Mapping[int, int] | None = None) -> Decoder:
    """What makes columns of such records.

    Args:
        points: The tracepoints.
        groups: The processes of threads that are only in /proc.
    """
    return Decoder(points, Lives((groups or {}).get), CLOCKS, "source")
