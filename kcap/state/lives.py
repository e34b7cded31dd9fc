"""What calls do to threads and processes: a function an effect (`kcap.state.effects`)."""

from __future__ import annotations

import posixpath
from typing import Any, Final

from kcap.state.containers import container_id
from kcap.state.processes import EVENT, FACTS, INHERITED, Process, inherited, known_facts
from kcap.state.tables import Handler, Step, Tables, path_of
from kcap.state.threads import Thread

_NAME_MAX: Final = 15
"""Characters of a thread's name."""

_LONG_NAME_MAX: Final = 64
"""The same where the source says it: newer kernels have longer ones for their own threads."""

_UNCHANGED: Final = frozenset({-1, 0xFFFFFFFF})


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
            _born(tables, step.row, step.tid, pid, parent, shares=shares)
        _tell(tables, step.row, step.tid, told)
        return
    if tables.threads.get(step.tid) is None and told["pid"] is not None:
        _tell(tables, step.row, step.tid, told)
    if told["vtid"] not in {None, step.tid}:
        return  # the result is a number of another namespace: the child will say who it is
    pid = step.owner if shares else step.retval
    known = tables.threads.get(step.retval)
    if known is None or known.exited or known.pid != pid or (known.ptid != step.tid and not shares):
        _born(tables, step.row, step.retval, pid, step.tid, shares=shares)


def _born(
    tables: Tables,
    row: int,
    tid: int,
    pid: int,
    ptid: int | None,
    *,
    shares: bool,
) -> None:
    """A new thread; unless of its parent's process, with a copy of what that has."""
    parent = None if ptid is None else tables.threads.get(ptid)
    name = None if parent is None else parent.name
    tables.threads.put(Thread(tid, pid, name, ptid, provenance=name and INHERITED), row)
    if shares or tid != pid:
        return
    # Whoever has this id for its parent's is the child of one that had it before and has ended:
    # without start times nothing else would tell the two apart, and its ppid is another one now.
    for orphan in tables.processes.children(pid):
        tables.processes.put(_with(orphan, ppid=None), row)
    from_pid = ptid if parent is None else parent.pid
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
    name = (told["comm"] or "")[:_LONG_NAME_MAX]
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


EFFECTS: Final[dict[str, tuple[Handler, tuple[str, ...]]]] = {
    "fork": (_fork, ("flags", *_TOLD)),
    "exec": (_exec, (*_TOLD, "trusted_exepath", "@name", "@at")),
    "exit": (_exit, ("ts", "status", "ret", "sig")),
    "rename": (_rename, ("@name",)),
    "chdir": (_chdir, ("@name",)),
    "fchdir": (_fchdir, ("@uses",)),
    "credentials": (_credentials, ("euid", "uid", "egid", "gid")),
}
"""The part of `kcap.state.effects.EFFECTS` that concerns threads and processes."""
