"""What process events do to the process table: the one loop over rows that the state needs.

Only rows with one of `ACTIONS` come here; every fact is read by the names that Tracee and the
proc connector share. A row without a fact says nothing about it: nothing is guessed.

Measured: about 7 µs of CPU a process row (Python 3.11, one core); no other row costs anything here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model import catalogue
from kcap.model.batch import Batch, Column, Rows
from kcap.model.classes import TypeClass
from kcap.model.naming import argument, column_name, extension
from kcap.state.processes import (
    EVENT,
    FACTS,
    SAME_START_NS,
    Process,
    ProcessTable,
    inherited,
    known_facts,
    pairs,
    process_key,
)

_IDENTITY: Final = {
    "ppid": "ppid",
    "name": "process_name",
    "exe": "exe",
    "cmdline": "cmdline",
    "user": "user",
    "uid": "uid",
    "gid": "gid",
    "session": "session",
    "container_id": "container_id",
    "start_ns": "process_start_ns",
}
"""The columns in which a row says who its process is."""

_COLUMNS: Final = ("ts", "pid", "tid", "retval", "provenance", *_IDENTITY.values())

_ARGUMENTS: Final = {
    TypeClass.I64: (
        "child_pid",
        "child_tid",
        "parent_pid",
        "parent_process_pid",
        "start_time",
        "exit_code",
        "signal_code",
        "ruid",
        "rgid",
        "pid",
        "ppid",
        "session_id",
        "exit_status",
    ),
    TypeClass.STR: (
        "pathname",
        "pwd",
        "comm",
        "new_name",
        "name",
        "exe",
        "cmdline",
        "sid",
        "username",
        "domain",
    ),
    TypeClass.BOOL: ("process_group_exit",),
    TypeClass.LIST: ("argv",),
    TypeClass.JSON: ("new_cred",),
}


_ATTACHED: Final = {
    "ps.pid": column_name(extension("ps.pid"), TypeClass.I64, None),
    "ps.cwd": column_name(extension("ps.cwd"), TypeClass.STR, None),
}
"""What a row with a process state says in it, and in which column."""

_NO_SESSION: Final = 0xFFFFFFFF
"""Session id of a Windows process that belongs to no session."""


class Facts:
    """What process rows say, as one list a fact, None where a row does not say it."""

    __slots__ = ("_lists",)

    def __init__(self, batch: Batch, rows: Rows) -> None:
        lists = {name: values_at(batch, name, rows) for name in _COLUMNS}
        for cls, names in _ARGUMENTS.items():
            for name in names:
                base = argument(name)
                column = column_name(base, cls, catalogue.home(base))
                lists[f"arg_{name}"] = values_at(batch, column, rows)
        lists |= {name: values_at(batch, column, rows) for name, column in _ATTACHED.items()}
        self._lists = lists

    def __getitem__(self, name: str) -> Sequence[Any]:
        """The values of a column, of an argument as ``arg_NAME``, of a state as ``ps.NAME``."""
        return self._lists[name]


def values_at(batch: Batch, name: str, rows: Rows) -> Sequence[Any]:
    """The values of a column at some rows, as Python values.

    Args:
        batch: The batch.
        name: The column.
        rows: Ascending row numbers.

    Returns:
        One value a row, None where there is none.
    """
    column = batch.get(name)
    found = None if column is None else column.take(rows, batch.rows)
    if found is None:
        return [None] * len(rows)
    values = python_values(found)
    if found.rows is None:
        return values
    out: list[Any] = [None] * len(rows)
    for at, value in zip(found.rows.tolist(), values, strict=True):
        out[at] = value
    return out


def python_values(column: Column) -> list[Any]:
    """The values of a column; texts of one dictionary entry are one object.

    Args:
        column: The column.

    Returns:
        One Python value each.
    """
    if pa.types.is_dictionary(column.values.type):
        codes = column.codes()
        used, at = np.unique(codes, return_inverse=True)
        entries = column.values.dictionary.take(pa.array(used)).to_pylist()
        return [entries[i] for i in at.tolist()]
    return list(column.values.to_pylist())


def rows_of(batch: Batch, actions: Container[str]) -> tuple[Rows, list[str]]:
    """The rows that a table follows.

    Args:
        batch: The batch.
        actions: The actions that it follows.

    Returns:
        Their numbers, ascending, and the action of each.
    """
    column = batch.get("action")
    if column is None:
        return np.zeros(0, np.int32), []
    entries = column.values.dictionary.to_pylist()
    wanted = np.array([entry in actions for entry in entries], np.bool_)
    codes: npt.NDArray[np.int32] = column.codes()
    at = np.flatnonzero(wanted[codes]).astype(np.int32)
    found = [entries[code] for code in codes[at].tolist()]
    return (at if column.rows is None else column.rows[at]), found


def follow(
    tables: Sequence[ProcessTable], actions: Sequence[str], rows: Rows, facts: Facts
) -> Iterator[int]:
    """Apply process events in stream order.

    Args:
        tables: The table of the machine that each row belongs to.
        actions: The action of each row.
        rows: The row numbers in the batch.
        facts: What the rows say.

    Yields:
        Each row before it is applied, so that others may come in between.
    """
    for i, (table, action, row) in enumerate(zip(tables, actions, rows.tolist(), strict=True)):
        yield row
        ACTIONS[action](table, facts, i, row)


def _fork(table: ProcessTable, facts: Facts, i: int, row: int) -> None:
    """A child starts as its parent's copy."""
    child, tid = facts["arg_child_pid"][i], facts["arg_child_tid"][i]
    if child is None or tid not in {None, child}:
        return  # a thread
    ppid = facts["arg_parent_process_pid"][i]
    if ppid is None:
        ppid = facts["arg_parent_pid"][i]
    if ppid is None:
        ppid = facts["pid"][i]
    parent = None if ppid is None else table.get(ppid)
    if parent is None and ppid is not None and ppid == facts["pid"][i]:
        parent = _learn(table, facts, i, row)
    start_ns = facts["arg_start_time"][i]
    old = table.get(child)
    if old is not None and not old.exited and _same(old.start_ns, start_ns):
        return  # read from /proc between the fork and this row
    parent = parent or Process(child)
    known = (ppid is not None, *known_facts(parent)[1:-1], start_ns is not None)
    process = parent._replace(
        pid=child,
        process_key=process_key(table.machine, child, start_ns),
        parent_key=parent.process_key,
        ppid=ppid,
        start_ns=start_ns,
        exited=False,
        end_ns=None,
        exit_code=None,
        signal_code=None,
        provenance=inherited(known),
    )
    table.put(process, row)


def _start(table: ProcessTable, facts: Facts, i: int, row: int) -> None:
    """A new image: the process stays, its name, executable and command line are others."""
    if _describes(facts, i):
        table.put(_described(table, facts, i, new=True), row)
        return
    pid = facts["pid"][i]
    if pid is None:
        return
    old = _mine(table, facts, i) or Process(pid)
    base = old._replace(
        name=None,
        exe=None,
        cmdline=None,
        exited=False,  # the exec of another thread follows the exit of the first one
        end_ns=None,
        exit_code=None,
        signal_code=None,
    )
    given = {
        "exe": facts["arg_pathname"][i],
        "cmdline": None if (argv := facts["arg_argv"][i]) is None else " ".join(argv),
        "cwd": facts["arg_pwd"][i],
    }
    table.put(_told(table, base, facts, i, given), row)


def _stop(table: ProcessTable, facts: Facts, i: int, row: int) -> None:
    """The end of a process; of the threads that end, only the first one counts.

    The proc connector does not say which thread is the last. Where the first one ends before
    others, the process is taken to have ended; it stays known until its id is used again.
    """
    old: Process | None
    if _describes(facts, i):
        old = _described(table, facts, i, new=False)
    else:
        group = facts["arg_process_group_exit"][i]
        last = facts["tid"][i] in {None, facts["pid"][i]} if group is None else group
        old = _mine(table, facts, i) if last else None
    if old is not None:
        ended = old._replace(
            exited=True,
            end_ns=facts["ts"][i],
            exit_code=_first(facts["arg_exit_code"][i], facts["arg_exit_status"][i]),
            signal_code=facts["arg_signal_code"][i],
        )
        table.put(ended, row)


def _rename(table: ProcessTable, facts: Facts, i: int, row: int) -> None:
    """A process gave itself another name; a thread's name is not the process's."""
    name = facts["arg_new_name"][i]
    if name is None:
        name = facts["arg_comm"][i]
    pid = facts["pid"][i]
    if pid is None or name is None or facts["tid"][i] not in {None, pid}:
        return
    old = _mine(table, facts, i) or _told(table, Process(pid), facts, i)
    table.put(_with(old, {"name": name}), row)


def _setuid(table: ProcessTable, facts: Facts, i: int, row: int) -> None:
    """A process has other user or group ids; the real ones, as everywhere."""
    pid = facts["pid"][i]
    failed = facts["retval"][i] not in {None, 0}  # the row of a system call
    if pid is None or failed or facts["tid"][i] not in {None, pid}:
        return
    uid, gid = _id(facts["arg_ruid"][i]), _id(facts["arg_rgid"][i])
    if (text := facts["arg_new_cred"][i]) is not None:
        uid, gid = _credentials(text)
    if uid is None and gid is None:
        return
    old = _mine(table, facts, i) or _told(table, Process(pid), facts, i)
    told: dict[str, Any] = {"gid": gid} if gid is not None else {}
    if uid is not None and uid != old.uid:
        told |= {"uid": uid, "user": table.users.get(uid)}
    process = _with(old, told)
    if uid is not None and facts["user"][i] is not None and facts["uid"][i] in {None, uid}:
        tag = pairs(facts["provenance"][i]).get("user", EVENT)
        process = _with(process, {"user": facts["user"][i]}, {"user": tag})
    table.put(process, row)


def _rundown(table: ProcessTable, facts: Facts, i: int, row: int) -> None:
    """A description of a process that is there."""
    if _describes(facts, i):
        table.put(_described(table, facts, i, new=False), row)
        return
    pid = facts["pid"][i]
    if pid is not None:
        table.put(_told(table, _mine(table, facts, i) or Process(pid), facts, i), row)


def _describes(facts: Facts, i: int) -> bool:
    """Whether a row describes a process in its arguments, which need not be its own.

    On Windows the start of a process is an event of its creator, and descriptions of what was
    there are events of nobody. Both name the process and its parent.
    """
    return facts["arg_pid"][i] is not None and facts["arg_ppid"][i] is not None


def _described(table: ProcessTable, facts: Facts, i: int, *, new: bool) -> Process:
    """The process that a row describes in its arguments.

    A second description of one process adds what the first did not say and replaces nothing:
    the later ones know less. The same holds for an attached state of another process.
    """
    pid = facts["arg_pid"][i]
    user, domain = facts["arg_username"][i], facts["arg_domain"][i]
    session = facts["arg_session_id"][i]
    said: dict[str, Any] = {
        "ppid": facts["arg_ppid"][i],
        "name": facts["arg_name"][i],
        "exe": facts["arg_exe"][i],
        "cmdline": facts["arg_cmdline"][i] or facts["arg_comm"][i],
        "cwd": facts["ps.cwd"][i] if facts["ps.pid"][i] == pid else None,
        "user": "\\".join(filter(None, (domain, user))) if user else facts["arg_sid"][i],
        "session": None if session == _NO_SESSION else session,
        "start_ns": facts["arg_start_time"][i],
    }
    told = {fact: value for fact, value in said.items() if value not in {None, ""}}
    base = table.get(pid)
    if base is None or not _is_that(base, told, new=new):
        base = Process(pid)
    added = {fact: value for fact, value in told.items() if getattr(base, fact) is None}
    return _placed(table, _with(base, added), base)


def _is_that(known: Process, told: dict[str, Any], *, new: bool) -> bool:
    """Whether a description is that of a known process, not of a later one with its id."""
    start_ns = told.get("start_ns")
    if start_ns is not None and known.start_ns is not None:
        return _same(known.start_ns, start_ns)
    names = {known.name, told.get("name")} - {None}
    return not new and not known.exited and len(names) < 2  # noqa: PLR2004


ACTIONS: Final[dict[str, Callable[[ProcessTable, Facts, int, int], None]]] = {
    "process_fork": _fork,
    "process_rename": _rename,
    "process_rundown": _rundown,
    "process_setuid": _setuid,
    "process_start": _start,
    "process_stop": _stop,
}
"""The actions that the process table follows."""


def _same(a_ns: int | None, b_ns: int | None) -> bool:
    return a_ns is not None and b_ns is not None and abs(a_ns - b_ns) < SAME_START_NS


def _mine(table: ProcessTable, facts: Facts, i: int) -> Process | None:
    """The row's process, None where it is not known or the row's start time is another one's."""
    pid = facts["pid"][i]
    found = None if pid is None else table.get(pid)
    start_ns = facts["process_start_ns"][i]
    if found is None or start_ns is None or found.start_ns is None:
        return found
    return found if _same(found.start_ns, start_ns) else None


def _learn(table: ProcessTable, facts: Facts, i: int, row: int) -> Process | None:
    """Enter the process of a row that the table does not know yet, if the row describes it."""
    process = _told(table, Process(facts["pid"][i]), facts, i)
    if not any(known_facts(process)):
        return None
    table.put(process, row)
    return process


def _told(
    table: ProcessTable,
    base: Process,
    facts: Facts,
    i: int,
    given: dict[str, Any] | None = None,
) -> Process:
    """A process with what its row says: its identity columns first, then its arguments."""
    told = {fact: value for fact, value in (given or {}).items() if value is not None}
    tags = pairs(facts["provenance"][i])
    where = {}
    for fact, column in _IDENTITY.items():
        value = facts[column][i]
        if value is not None:
            told[fact] = value
            where[fact] = tags.get(column, EVENT)
    if base.start_ns is not None:
        told.pop("start_ns", None)  # the same process: its key must not change
    if told.get("uid", base.uid) != base.uid:
        told.setdefault("user", None)
    return _placed(table, _with(base, told, where), base)


def _placed(table: ProcessTable, process: Process, base: Process) -> Process:
    """A process with its own key and its parent's, where it has learnt what they need."""
    if process.process_key is None and process.start_ns is not None:
        key = process_key(table.machine, process.pid, process.start_ns)
        process = process._replace(process_key=key)
    if process.ppid != base.ppid and process.ppid is not None:
        parent = table.get(process.ppid)
        here = parent is not None and not parent.exited
        process = process._replace(parent_key=parent.process_key if parent and here else None)
    return process


def _with(process: Process, told: dict[str, Any], where: dict[str, str] | None = None) -> Process:
    """A process with other facts; of unknown ones no provenance stays."""
    changed = process._replace(**told)
    tags = [
        ((where or {}).get(fact, EVENT) if fact in told else old) if known else None
        for fact, old, known in zip(FACTS, process.provenance, known_facts(changed), strict=True)
    ]
    return changed._replace(provenance=tuple(tags))


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _id(value: int | None) -> int | None:
    """A user or group id as an argument has it; -1 leaves it as it is."""
    return None if value in {-1, 0xFFFFFFFF} else value


def _credentials(text: str) -> tuple[int | None, int | None]:
    """Real user and group id of Tracee's credentials."""
    try:
        value = json.loads(text)
    except ValueError:  # cut at the limit of a value, which is counted where it happened
        return None, None
    ids = [value.get(k) if isinstance(value, dict) else None for k in ("Uid", "Gid")]
    uid, gid = (i if type(i) is int else None for i in ids)
    return uid, gid
