"""Which event an artifact of a Tracee output directory belongs to."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.model.batch import Batch
from kcap.model.classes import I64_MAX
from kcap.readers.tracee_folder_files import Found

NEAR_NS: Final = 10_000_000
"""How far the time in a name may be from that of the event, where none has just that time."""

_EXEC: Final = ("sched_process_exec", "execve", "execveat", "security_bprm_check")
_WRITTEN: Final = {"vfs_write", "vfs_writev", "__kernel_write", "magic_write"}
_READ: Final = {"vfs_read", "vfs_readv"}
_OPEN: Final = "security_file_open"
_MODULE: Final = {
    "init_module",
    "finit_module",
    "do_init_module",
    "module_load",
    "security_kernel_read_file",
    "security_post_read_file",
}
_BPF: Final = ("security_bpf_prog", "bpf", "security_bpf", "bpf_attach")
_MEMORY: Final = {"mem_prot_alert", "mprotect", "mmap", "security_file_mprotect"}
_TOLD: Final = ("pid", "tid", "ppid", "uid", "process_name", "exe", "container_id", "host")
_ACCESS: Final = {"write": (1, 2), "read": (0, 2)}

Rank = tuple[int, ...]
_Key = tuple[str | int | None, ...]


@dataclass
class Match:
    """The event of an artifact."""

    rank: Rank
    """Less is better."""
    how: str
    """By what it was found."""
    origin: str
    ord: int
    path: str | None
    told: dict[str, Any]
    """Details of the artifact that the event tells."""


@dataclass
class Join:
    """A sink that finds the events of artifacts: the first one of those that fit best.

    Args:
        found: The artifacts.
    """

    found: Sequence[Found]
    matches: dict[int, Match] = field(default_factory=dict)
    """By the position of the artifact."""

    def __post_init__(self) -> None:
        """Order the artifacts by what events tell."""
        self._groups: dict[_Key, dict[str, _Group]] = {}
        self._timed: dict[_Key, dict[str, _Timed]] = {}
        self._kinds = {one.named.kind for one in self.found}
        timed: dict[tuple[_Key, str], list[tuple[int, int]]] = {}
        inodes: set[int] = set()
        for index, one in enumerate(self.found):
            named = one.named
            if named.kind in ("exec", "mem"):
                by: _Key = (named.kind, named.name if named.kind == "exec" else named.pid)
                if named.time is not None and named.time <= I64_MAX:
                    timed.setdefault((by, one.container), []).append((named.time, index))
                continue
            if named.kind in _ACCESS and named.inode is not None and named.inode <= I64_MAX:
                inodes.add(named.inode)
            for key in _keys(one):
                group = self._groups.setdefault(key, {}).setdefault(one.container, _Group())
                group.indexes.append(index)
        for (by, container), places in timed.items():
            self._timed.setdefault(by, {})[container] = _Timed(places)
        self._inodes = np.array(sorted(inodes), np.int64)
        self._pids = {kind: _numbers(self.found, kind) for kind in ("mem", "module")}

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        column = batch.get("event")
        if column is None or not batch.rows:
            return
        names = column.values.dictionary.to_pylist()
        codes = np.full(batch.rows, -1, np.int64)
        codes[slice(None) if column.rows is None else column.rows] = column.codes()
        if "exec" in self._kinds:
            self._rows(batch, _with(codes, names, _EXEC), self._exec)
        if len(self._inodes):
            self._rows(batch, self._of_inodes(batch, codes), self._file)
        for kind, events, test in (("mem", _MEMORY, self._mem), ("module", _MODULE, self._module)):
            if kind in self._kinds:
                self._rows(batch, self._of_pids(batch, _with(codes, names, events), kind), test)
        if "bpf" in self._kinds:
            self._rows(batch, _with(codes, names, _BPF), self._bpf)

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""

    def _of_inodes(self, batch: Batch, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The first rows of each event and file that is an artifact."""
        inode, dev = batch.numpy("arg_inode", -1), batch.numpy("arg_dev", -1)
        rows = np.flatnonzero(np.isin(inode, self._inodes) & (dev >= 0))
        if not len(rows):
            return rows
        flags = batch.numpy("arg_flags", 0) & 3
        container = batch.get("container_id")
        inside = np.full(batch.rows, -1, np.int64)
        if container is not None:
            at = slice(None) if container.rows is None else container.rows
            inside[at] = container.codes()
        mounts = batch.numpy("mount_ns", 0)
        keys = np.stack([a[rows] for a in (codes, inode, dev, flags, inside, mounts)], axis=1)
        _, first = np.unique(keys, axis=0, return_index=True)
        return rows[np.sort(first)]

    def _rows(self, batch: Batch, rows: npt.NDArray[np.int64], test: Any) -> None:  # noqa: ANN401
        """Look at some rows one by one: those that may well be what is looked for."""
        if not len(rows):
            return
        for event in batch.take(rows.astype(np.int32)).to_pylist():
            test(event)

    def _of_pids(
        self, batch: Batch, rows: npt.NDArray[np.int64], kind: str
    ) -> npt.NDArray[np.int64]:
        """Those of some rows that are of a process of which there is an artifact."""
        pids = self._pids[kind]
        found = np.isin(batch.numpy("pid", -1)[rows], pids)
        return rows[found | np.isin(batch.numpy("ns_pid", -1)[rows], pids)]

    def _exec(self, event: dict[str, Any]) -> None:
        path = event.get("arg_pathname") or event.get("exe")
        if not isinstance(path, str):
            return
        place = _EXEC.index(event["event"])
        ts, ctime = event.get("ts"), event.get("arg_ctime")
        each = self._timed.get(("exec", path.rsplit("/", 1)[-1]), {})
        for known in (timed for name, timed in each.items() if _is_in(event, name)):
            for time in {t for t in (ts, ctime) if isinstance(t, int)}:
                rank = (0 if time == ts else 1) * len(_EXEC) + place
                how = "time and name" if time == ts else "time of change and name"
                for index in known.at(time, rank):
                    self._note(index, event, (rank,), how, path)
            if isinstance(ts, int):
                for index, rank in known.near(ts, 2 * len(_EXEC) + place, len(_EXEC)):
                    self._note(index, event, (rank,), "name and nearest time", path)

    def _file(self, event: dict[str, Any]) -> None:
        name, access = event["event"], event.get("arg_flags")
        path = event.get("arg_pathname") or None
        for kind in _ACCESS:
            rank = 2
            if name in (_WRITTEN if kind == "write" else _READ):
                rank = 0
            elif name == _OPEN and type(access) is int and access & 3 in _ACCESS[kind]:
                rank = 1
            key = (kind, event["arg_dev"], event["arg_inode"])
            self._visit(key, event, (rank,), "device and inode", path)

    def _mem(self, event: dict[str, Any]) -> None:
        ts = event.get("ts")
        if not isinstance(ts, int):
            return
        other = event["event"] != "mem_prot_alert"
        for pid in _pids(event):
            for name, known in self._timed.get(("mem", pid), {}).items():
                if not _is_in(event, name):
                    continue
                for index in known.at(ts, int(other)):
                    self._note(index, event, (int(other),), "process and time")
                for index, rank in known.near(ts, int(other), 2):
                    self._note(index, event, (rank,), "process and nearest time")

    def _module(self, event: dict[str, Any]) -> None:
        file = event.get("arg_dev"), event.get("arg_inode")
        for pid in _pids(event):
            if None in file:
                self._visit(("module", pid), event, (1,), "process")
                continue
            path = event.get("arg_pathname") or None
            how = "process, device and inode"
            self._visit(("module", pid, *file), event, (0,), how, path)
            self._visit(("module", pid, None, None), event, (1,), "process")

    def _bpf(self, event: dict[str, Any]) -> None:
        name, place = event.get("arg_name"), _BPF.index(event["event"])
        named = isinstance(name, str)
        how = "process and name" if named else "process"
        for pid in _pids(event):
            key = ("bpf", pid, name) if named else ("bpf", pid)
            self._visit(key, event, (int(not named), place), how)
        if named:
            self._visit(("bpf", None, name), event, (0, place), how)

    def _visit(
        self, key: _Key, event: dict[str, Any], rank: Rank, how: str, path: str | None = None
    ) -> None:
        """Take note of an event for all artifacts of a key, where none before fits them as well."""
        for container, group in self._groups.get(key, {}).items():
            if (group.best is not None and group.best <= rank) or not _is_in(event, container):
                continue
            group.best = rank
            for index in group.indexes:
                self._note(index, event, rank, how, path)

    def _note(
        self, index: int, event: dict[str, Any], rank: Rank, how: str, path: str | None = None
    ) -> None:
        """Take note of an event that fits, if none before fits as well."""
        known = self.matches.get(index)
        if known is not None and known.rank <= rank:
            return
        told = {name: event[name] for name in _TOLD if event.get(name) is not None}
        told["time_ns"] = event.get("ts")
        self.matches[index] = Match(rank, how, event["origin"], event["ord"], path, told)


@dataclass
class _Group:
    """Artifacts of which events tell the same."""

    indexes: list[int] = field(default_factory=list)
    best: Rank | None = None
    """All of them have an event of this rank, or a better one."""


class _Timed:
    """Artifacts of one name or process, by the time in their names.

    Args:
        places: Time and position of each.
    """

    def __init__(self, places: list[tuple[int, int]]) -> None:
        places.sort()
        self._times = [time for time, _ in places]
        self._array = np.array(self._times, np.int64)
        self._indexes = [index for _, index in places]
        self._best = np.full(len(places), I64_MAX, np.int64)

    def at(self, time: int, rank: int) -> list[int]:
        """Those of just a time that have no better event."""
        part = slice(bisect_left(self._times, time), bisect_right(self._times, time))
        better = part.start + np.flatnonzero(self._best[part] > rank)
        self._best[better] = rank
        return [self._indexes[at] for at in better.tolist()]

    def near(self, time: int, rank: int, step: int) -> Iterator[tuple[int, int]]:
        """Those of about a time that have no better event, and the rank of this one.

        Args:
            time: The time.
            rank: What is to be added to `step` for each ns that they are apart.
            step: How many ranks a ns has.
        """
        start = bisect_left(self._times, time - NEAR_NS)
        part = slice(start, bisect_right(self._times, time + NEAR_NS))
        ranks = np.abs(self._array[part] - time) * step + rank
        for at in np.flatnonzero(ranks < self._best[part]).tolist():
            self._best[start + at] = ranks[at]
            yield self._indexes[start + at], int(ranks[at])


def _numbers(found: Iterable[Found], kind: str) -> npt.NDArray[np.int64]:
    """The processes of which there are artifacts of a kind."""
    pids = {one.named.pid for one in found if one.named.kind == kind}
    return np.array(sorted(pid for pid in pids if pid is not None), np.int64)


def _keys(one: Found) -> list[_Key]:
    """What events of an artifact may tell of it."""
    named = one.named
    if named.kind in _ACCESS:
        return [(named.kind, named.dev, named.inode)] if named.dev is not None else []
    if named.kind == "module":
        place = (named.dev, named.inode) if named.inode is not None else (None, None)
        return [("module", named.pid), ("module", named.pid, *place)]
    alone: list[_Key] = [("bpf", named.pid)] if named.pid is not None else []
    return [*alone, ("bpf", named.pid, named.name)]


def _pids(event: dict[str, Any]) -> set[int]:
    """Numbers of its process, on the host and inside its container."""
    return {pid for pid in (event.get("pid"), event.get("ns_pid")) if isinstance(pid, int)}


def _with(
    codes: npt.NDArray[np.int64], names: Sequence[str | None], wanted: Iterable[str]
) -> npt.NDArray[np.int64]:
    """The rows of some events."""
    known = set(wanted)
    mine = [code for code, name in enumerate(names) if name in known]
    return np.flatnonzero(np.isin(codes, np.array(mine, np.int64)))


def _is_in(event: dict[str, Any], folder: str) -> bool:
    """Whether an event is of the container, or mount namespace, that a folder is of."""
    container = event.get("container_id")
    if folder == "host":
        return not container
    if len(folder) < 12:  # noqa: PLR2004  (no id is that short)
        return event.get("mount_ns") in (None, int(folder))
    if not isinstance(container, str) or not container:
        return False
    return folder.startswith(container) or container.startswith(folder)
