"""The views of execsnoop: a line for each program that was executed, or that could not be.

Two tools have the name. bcc's prints ``PCOMM PID PPID RET ARGS`` and is the default; that of
perf-tools prints ``PID PPID ARGS``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from kcap.model import text
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.writers.views.lifetimes import described
from kcap.writers.views.view import Told, candidates, time_of_day, with_lines

_ACTIONS: Final = frozenset({"process_start"})
_CALLS: Final = frozenset({"execve", "execveat"})
"""Calls that a source has beside the event of what was executed: only failed ones count."""

_INTERPRETED: Final = 5
"""The path of a script is among so many arguments: two interpreters, each with an argument."""


@dataclass(frozen=True, slots=True)
class Form:
    """Which executions to print and how, execsnoop's own options in words."""

    time: bool = False
    """``-T``: the time of day."""
    timestamp: bool = False
    """``-t``: seconds since the first event."""
    fails: bool = False
    """``-x``: failed ones too."""
    user: str | None = None
    """``-u``: only those of a user, by name or number."""
    ppid: int | None = None
    """``-P``: only those of a parent."""
    quote: bool = False
    """``-q``."""
    name: re.Pattern[str] | None = None
    """``-n``: only processes with such a name."""
    line: re.Pattern[str] | None = None
    """``-l``: only command lines that have this."""
    show_uid: bool = False
    """``-U``."""
    max_args: int = 20
    perf: bool = False
    """The columns of perf-tools."""


@dataclass
class Execsnoop:
    """The stage that makes the lines.

    Args:
        form: What to print and how.
    """

    form: Form = field(default_factory=Form)

    def __post_init__(self) -> None:
        self._first_ns: int | None = None

    def process(self, batch: Batch) -> Batch:
        """See `View.process`."""
        if self._first_ns is None and len(times := batch.numpy("ts", 0)[batch.mask("ts")]):
            self._first_ns = int(times[0])
        told = Told(batch, rows := candidates(batch, _ACTIONS, _CALLS))
        lines = {}
        for i, row in enumerate(rows.tolist()):
            line = self._line(told, i)
            if line is not None:
                lines[row] = line
        return with_lines(batch, lines)

    @property
    def recorded(self) -> list[str]:
        """See `View.recorded`."""
        return ["sched_process_exec", *(sorted(_CALLS) if self.form.fails else ())]

    def header(self) -> list[str]:
        """See `View.header`."""
        form = self.form
        if form.perf:
            return [f"{'TIMEs':<16} " * form.timestamp + f"{'PID':>6} {'PPID':>6} ARGS"]
        times = f"{'TIME':<9}" * form.time + f"{'TIME(s)':<8}" * form.timestamp
        uid = f"{'UID':<6}" * form.show_uid
        return [f"{times}{uid}{'PCOMM':<16} {'PID':<7} {'PPID':<7} {'RET':>3} ARGS"]

    def footer(self) -> list[str]:
        """See `View.footer`."""
        return []

    def _line(self, told: Told, i: int) -> str | None:
        """A row's line, None where it is not shown."""
        form = self.form
        retval = told.column("retval")[i] or 0
        started = told.column("action")[i] == "process_start"
        if (retval < 0 and not form.fails) or (retval >= 0 and not started):
            return None
        of = described(told, i)
        pid = told.column("pid")[i] if of is None else of
        ppid = told.column("ppid")[i] if of is None else told.number(i, "ppid")
        comm = told.column("process_name")[i] or "?"
        words = _words(told, i)
        if not self._wanted(told, i, comm, ppid, " ".join(words)):
            return None
        shown = self._shown(words)
        ts = told.column("ts")[i]
        if form.perf:
            stamp = f"{_seconds(ts, 0):<16.6f} " if form.timestamp else ""
            return f"{stamp}{_text(pid):>6} {_text(ppid, '0'):>6} {shown}"
        times = f"{time_of_day(ts):<9}" if form.time else ""
        if form.timestamp:
            times += f"{_seconds(ts, self._first_ns or 0):<8.3f}"
        uid = f"{_text(told.column('uid')[i]):<6}" if form.show_uid else ""
        head = f"{text.printable(comm):<16} {_text(pid):<7} {_text(ppid):<7} {retval:>3}"
        return f"{times}{uid}{head} {shown}"

    def _wanted(self, told: Told, i: int, comm: str, ppid: int | None, line: str) -> bool:
        form = self.form
        if form.user is not None:
            ids = {str(told.column("uid")[i]), str(told.column("user")[i])}
            if form.user not in ids:
                return False
        if form.ppid is not None and ppid != form.ppid:
            return False
        if form.name is not None and not form.name.search(comm):
            return False
        return form.line is None or form.line.search(line) is not None

    def _shown(self, words: list[str]) -> str:
        """The arguments as they are printed."""
        form = self.form
        if not words:
            return "[?]" if form.perf else "?"
        kept = words[: form.max_args]
        if form.quote:
            kept = ['"' + word.replace('"', '\\"') + '"' for word in kept]
        if len(words) > form.max_args:
            kept.append("[...]" if form.perf else "...")
        return text.printable(" ".join(kept))


def _words(told: Told, i: int) -> list[str]:
    """The path as the caller gave it, then the arguments behind the first."""
    if described(told, i) is not None:
        line = told.text(i, "cmdline", "comm", "exe", "name")
        return [] if line is None else [line]
    path = told.text(i, "cmdpath", "path_arg", "filename", "pathname") or told.column("exe")[i]
    argv: list[Any] | None = told.argument(i, "argv", TypeClass.LIST)
    if argv is None and (args := told.argument(i, "args", TypeClass.LIST)) is not None:
        argv = [told.text(i, "exe") or path, *args]  # as sysdig divides it
    if argv is None:
        line = told.column("cmdline")[i] if told.column("retval")[i] in {None, 0} else None
        return [found] if (found := line or path) else []
    words = ["" if word is None else str(word) for word in argv]
    if not path:
        return words
    return [path, *words[_own_arguments(path, words) :]]


def _own_arguments(path: str, words: list[str]) -> int:
    """Where the arguments begin that the caller gave, behind the first.

    Of a script the kernel makes the arguments of its interpreter: that one's own first, then the
    script's path in place of the first argument.
    """
    shown = words[1:_INTERPRETED]
    if path in shown and words[0].rpartition("/")[2] != path.rpartition("/")[2]:
        return shown.index(path) + 2
    return 1


def _text(value: int | None, missing: str = "?") -> str:
    return missing if value is None else str(value)


def _seconds(ts: int | None, since_ns: int) -> float:
    return 0.0 if ts is None else (ts - since_ns) / 1e9
