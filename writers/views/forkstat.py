"""The view of forkstat: a line for each fork, exec, exit, core dump, change of name, user, session.

Its columns are those that forkstat prints where process ids have up to seven digits, as on any
64-bit Linux. Times are UTC. What it shows of a process is what the capture says of it at that
event, where forkstat looks it up in /proc some time later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kcap.model import text
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.writers.views.lifetimes import DURATION, described, ended, started
from kcap.writers.views.view import (
    UNKNOWN,
    Families,
    Told,
    candidates,
    time_of_day,
    with_lines,
)

EVENTS: Final = ("fork", "exec", "exit", "core", "comm", "clone", "ptrce", "uid", "sid")
"""The events that can be chosen, in forkstat's own spelling and order."""

DEFAULT: Final = frozenset({"fork", "exec", "exit"})
"""Those that forkstat shows where none are chosen."""

_RECORDED: Final = {
    "fork": ("sched_process_fork",),
    "exec": ("sched_process_exec",),
    "exit": ("sched_process_exit",),
    "core": ("sched_process_exit",),
    "comm": ("task_rename",),
    "clone": ("sched_process_fork",),
    "ptrce": ("ptrace",),
    "uid": ("setuid", "setreuid", "setresuid", "setgid", "setregid", "setresgid"),
    "sid": ("setsid",),
}
"""The recorder's events that tell of each."""

_COUNTED: Final = ("Fork", "Exec", "Exit", "Coredump", "Comm", "Clone", "Ptrace", "Uid", "Sid")
_NAMES_MAX: Final = 65_536
"""Processes that statistics tell apart; the rest is one line."""
_REST: Final = "(others)"

_ACTIONS: Final = frozenset(
    {
        "process_fork",
        "process_start",
        "process_stop",
        "process_rename",
        "process_setuid",
        "process_access",
        "thread_start",
        "thread_stop",
    }
)
_NAMELESS: Final = frozenset({"coredump", "ptrace", "sid", "setsid"})
"""Events that forkstat knows and the taxonomy does not."""

_EXECS: Final = frozenset({"execve", "execveat"})
_GLYPHS: Final = {
    "parent": "┬",
    "child": "└",
    "thread": "└",
    "exec": "→",
    "exit": "⇥",
    "core": "☠",
    "comm": "↻",
}
_KTHREADD: Final = 2
_NONE: Final = frozenset({-1, 0xFFFFFFFF})
"""A user or group id that means: as it was."""

_MINUTE_S: Final = 60.0
_UNITS: Final = ((86_400.0, "d"), (3_600.0, "h"), (_MINUTE_S, "m"))


@dataclass(frozen=True, slots=True)
class Form:
    """How forkstat is to print, its own options in words."""

    events: frozenset[str] = DEFAULT
    comm: bool = False
    """``-c``: the kernel's name of the task in place of its command line."""
    base: bool = False
    """``-d``: programs without their folder."""
    short: bool = False
    """``-s``: programs without their arguments."""
    extra: bool = False
    """``-x``: users and terminal."""
    glyphs: bool = False
    """``-g``."""
    statistics: bool = False
    """``-S``."""
    quiet: bool = False
    """``-q``: statistics alone."""


class _Line(NamedTuple):
    """What one line says."""

    event: str
    """One of `EVENTS`, or ``gid``, which is chosen with ``uid``."""
    pid: int | None
    info: str = ""
    number: bool = False
    """The info is a number, which stands at the right."""
    duration_ns: int | None = None
    process: str | None = None
    """The name of the process; None for that of the row's."""
    suffix: str = ""


@dataclass
class Forkstat:
    """The stage that makes the lines.

    Args:
        form: How to print.
    """

    form: Form = field(default_factory=Form)

    def __post_init__(self) -> None:
        self._families = Families()
        self._counts: dict[str, Counter[str]] = {}
        self._makers: dict[str, Callable[[Told, int], Iterator[_Line]]] = {
            "process_fork": self._fork,
            "thread_start": self._fork,
            "process_start": self._exec,
            "process_stop": self._exit,
            "thread_stop": self._exit,
            "process_rename": self._rename,
            "process_setuid": self._setuid,
        }

    def process(self, batch: Batch) -> Batch:
        """See `View.process`."""
        self._families.note(batch)
        told = Told(batch, rows := candidates(batch, _ACTIONS, _NAMELESS))
        lines = {}
        for i, row in enumerate(rows.tolist()):
            shown = []
            for line in self._lines(told, i):
                name = self._name(told, i) if line.process is None else line.process
                if self.form.statistics:
                    self._count(name, line)
                chosen = "uid" if line.event == "gid" else line.event
                if chosen in self.form.events and not self.form.quiet:
                    shown.append(self._text(told, i, line, name))
            if shown:
                lines[row] = "\n".join(shown)
        return with_lines(batch, lines)

    @property
    def recorded(self) -> list[str]:
        """See `View.recorded`."""
        wanted = EVENTS if self.form.statistics else self.form.events
        return sorted({name for event in wanted for name in _RECORDED[event]})

    def header(self) -> list[str]:
        """See `View.header`."""
        if self.form.quiet:
            return []
        extra = f"{'UID':>7} {'EUID':>7} {'TTY':<6} " if self.form.extra else ""
        glyph = " " if self.form.glyphs else ""
        return [f"{'Time':<8} Event {'PID':>7} {extra}{glyph}{'Info':<6} Duration Process"]

    def footer(self) -> list[str]:
        """See `View.footer`."""
        if not self.form.statistics:
            return []
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1].total(), item[0]))
        heads = [f"{name:>8}" for name in (*_COUNTED, "Total")]
        out = [] if self.form.quiet else [""]
        out.append(f"{' '.join(heads)} Process")
        for name, counts in ranked:
            numbers = [counts[event] for event in EVENTS]
            columns = [f"{number:>8}" for number in (*numbers, sum(numbers))]
            out.append(f"{' '.join(columns)} {name}")
        return out

    def _lines(self, told: Told, i: int) -> Iterator[_Line]:
        """What a row has to say."""
        event = told.column("event")[i]
        if event == "coredump":
            return iter([_Line("core", _task(told, i))])
        if event == "ptrace":
            return self._ptrace(told, i)
        if event in {"sid", "setsid"}:
            return _session(told, i)
        maker = self._makers.get(told.column("action")[i])
        return iter(()) if maker is None else maker(told, i)

    def _fork(self, told: Told, i: int) -> Iterator[_Line]:
        retval = told.column("retval")[i]
        if retval is not None and retval < 0:
            return
        child, pid = started(told, i), told.column("pid")[i]
        event, one = ("clone", "thread") if self._is_thread(told, i) else ("fork", "child")
        if retval == 0 and told.number(i, "child_tid") is None:
            yield _Line(event, _task(told, i), one)  # the call returns in the child, too
            return
        yield _Line(event, pid, "parent")
        if retval is None or told.number(i, "child_tid") is not None:
            yield _Line(event, child, one)

    def _is_thread(self, told: Told, i: int) -> bool:
        if told.column("action")[i] == "thread_start":
            return True
        child, of = told.number(i, "child_tid"), told.number(i, "child_pid")
        if child is not None and of is not None:
            return child != of
        flags = told.argument(i, "flags", TypeClass.I64, TypeClass.STR)
        return "CLONE_THREAD" in self._called(told, i, "flags", flags, "clone_flags")

    def _exec(self, told: Told, i: int) -> Iterator[_Line]:
        retval = told.column("retval")[i]
        if retval is not None and retval < 0:
            return
        of = described(told, i)
        if of is None:
            yield _Line("exec", _task(told, i))
        else:
            yield _Line("exec", of, process=self._described_name(told, i))

    def _exit(self, told: Told, i: int) -> Iterator[_Line]:
        tid, _ = ended(told, i)
        status = _status(told, i)
        core = told.argument(i, "core_dumped", TypeClass.BOOL) or told.number(i, "core")
        process = None if described(told, i) is None else self._described_name(told, i)
        if core:
            yield _Line("core", tid, process=process)
        info = "" if status is None else str(status)
        lived_ns = told.column(DURATION)[i]
        yield _Line("exit", tid, info, number=True, duration_ns=lived_ns, process=process)

    def _rename(self, told: Told, i: int) -> Iterator[_Line]:
        new = told.text(i, "new_name", "comm")
        if new is None or told.column("syscall")[i] in _EXECS:
            return  # the kernel names what it executes; forkstat does not count that
        name = self._name(told, i)
        if self.form.comm:
            old = told.text(i, "old_name") or _program(told.column("cmdline")[i], base=True)
            name = text.printable(old or UNKNOWN)
        yield _Line("comm", _task(told, i), process=name, suffix=f" -> {text.printable(new)}")

    def _setuid(self, told: Told, i: int) -> Iterator[_Line]:
        retval = told.column("retval")[i]
        if retval not in {None, 0}:
            return
        pid = _task(told, i)
        uid, gid = _ids(told, i)
        if uid is not None:
            known = told.column("uid")[i] == uid and told.column("user")[i]
            yield _Line("uid", pid, text.printable(known or str(uid)))
        if gid is not None:
            yield _Line("gid", pid, str(gid), number=True)

    def _ptrace(self, told: Told, i: int) -> Iterator[_Line]:
        tracer = told.number(i, "tracer_pid")
        if tracer is not None:
            yield _Line("ptrce", _task(told, i), "attach" if tracer else "detach")
            return
        request = told.argument(i, "request", TypeClass.I64, TypeClass.STR)
        called = self._called(told, i, "request", request, "ptrace_request")
        retval = told.column("retval")[i]
        info = {"PTRACE_ATTACH": "attach", "PTRACE_SEIZE": "attach", "PTRACE_DETACH": "detach"}
        if called in info and (retval is None or retval >= 0):
            yield _Line("ptrce", told.number(i, "pid"), info[called], process="")

    def _called(self, told: Told, i: int, name: str, value: int | str | None, other: str) -> str:
        kind = f"{told.column('source')[i] or ''}/{told.column('event')[i]}"
        return self._families.name(kind, name, value, other)

    def _name(self, told: Told, i: int) -> str:
        """The process of a row, in the form that was asked for."""
        name, line = told.column("process_name")[i], told.column("cmdline")[i]
        if not line and _KTHREADD in {told.column("pid")[i], told.column("ppid")[i]}:
            return text.printable(f"[{name}]") if name else UNKNOWN
        return self._shown(name, line or told.column("exe")[i])

    def _described_name(self, told: Told, i: int) -> str:
        line = told.text(i, "cmdline", "comm", "exe", "name")
        return self._shown(told.text(i, "name"), line)

    def _shown(self, name: str | None, line: str | None) -> str:
        found = (name if self.form.comm else None) or line or name
        if found and found is not name and (self.form.base or self.form.short):
            program = _program(found, base=self.form.base) or ""
            rest = "" if self.form.short else found[len(_program(found, base=False) or "") :]
            found = program + rest
        return text.printable(found or UNKNOWN)

    def _text(self, told: Told, i: int, line: _Line, name: str) -> str:
        pid = "" if line.pid is None else line.pid
        extra = ""
        if self.form.extra:
            user = told.column("user")[i] or told.column("uid")[i]
            euid = told.number(i, "euid")
            own = None if user is None else text.printable(str(user))
            extra = f"{own or '?':>7} {'?' if euid is None else euid:>7} {'?':>6} "
        glyph = ""
        if self.form.glyphs:
            glyph = _GLYPHS.get(line.info) or _GLYPHS.get(line.event, " ")
        info = f"{line.info:>6}" if line.number else f"{line.info:<6}"
        head = f"{time_of_day(told.column('ts')[i])} {line.event:<5} {pid:>7} {extra}{glyph}{info}"
        return f"{head} {duration_text(line.duration_ns):>8} {name}{line.suffix}"

    def _count(self, name: str, line: _Line) -> None:
        counts = self._counts.get(name)
        if counts is None:
            if len(self._counts) >= _NAMES_MAX:
                name = _REST
            counts = self._counts.setdefault(name, Counter())
        counts["uid" if line.event == "gid" else line.event] += 1


def duration_text(ns: int | None) -> str:
    """A duration as forkstat writes it.

    Args:
        ns: Nanoseconds, None where it is not known.

    Returns:
        ``0.412s``, ``16.392m``, ``3.100h``, ``2.500d``; empty for None.
    """
    if ns is None:
        return ""
    seconds = ns / 1e9
    for size_s, unit in _UNITS:
        if seconds >= size_s:
            return f"{seconds / size_s:.3f}{unit}"
    return f"{seconds:.3f}s"


def _task(told: Told, i: int) -> int | None:
    """The thread that a row is about; its process where the row names no thread."""
    tid: int | None = told.column("tid")[i]
    return told.column("pid")[i] if tid is None else tid


def _session(told: Told, i: int) -> Iterator[_Line]:
    """A process leads a session of its own, whose number is the process's."""
    retval = told.column("retval")[i]
    if retval is None or retval >= 0:
        yield _Line("sid", _task(told, i), str(told.column("pid")[i]), number=True)


def _status(told: Told, i: int) -> int | None:
    """How something ended, as wait(2) has it; on Windows its exit code."""
    whole = told.number(i, "wait_status", "status", "exit_status")
    if whole is not None:
        return whole
    code, signal = told.number(i, "exit_code"), told.number(i, "signal_code")
    if signal is None:
        return code  # Tracee's exit code is the wait status
    core = 0x80 if told.argument(i, "core_dumped", TypeClass.BOOL) else 0
    return (code or 0) << 8 | signal | core


def _ids(told: Told, i: int) -> tuple[int | None, int | None]:
    """The new user and group id that a row tells of; the effective ones, where it tells both."""
    new = told.argument(i, "new_cred", TypeClass.JSON)
    if new is not None:
        old = told.argument(i, "old_cred", TypeClass.JSON)
        before, after = _credentials(old), _credentials(new)
        return tuple(b if b != a else None for a, b in zip(before, after, strict=True))  # type: ignore[return-value]
    found = []
    for names in (("euid", "ruid", "uid"), ("egid", "rgid", "gid")):
        values = (told.number(i, name) for name in names)
        found.append(next((v for v in values if v is not None and v not in _NONE), None))
    return found[0], found[1]


def _credentials(said: str | None) -> tuple[int | None, int | None]:
    """Effective user and group id of Tracee's credentials."""
    try:
        value = json.loads(said or "null")
    except ValueError:  # cut at the limit of a value, which is counted where it happened
        value = None
    ids = [value.get(key) if isinstance(value, dict) else None for key in ("Euid", "Egid")]
    uid, gid = (found if type(found) is int else None for found in ids)
    return uid, gid


def _program(line: str | None, *, base: bool) -> str | None:
    """The first word of a command line, with its folder or without."""
    if not line:
        return None
    quoted = line.startswith('"') and line.find('"', 1) > 0
    word = line[: line.index('"', 1) + 1] if quoted else line.partition(" ")[0]
    if not base:
        return word
    bare = word.strip('"') if quoted else word
    return bare.rpartition("\\" if ":\\" in bare else "/")[2] or bare
