"""Which event an artifact of a Tracee output directory belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.model.batch import Batch
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
        self._by_name: dict[str, list[int]] = {}
        self._by_inode: dict[tuple[int, int], list[int]] = {}
        self._by_pid: dict[str, list[int]] = {}
        for index, one in enumerate(self.found):
            named = one.named
            if named.kind == "exec":
                self._by_name.setdefault(named.name or "", []).append(index)
            elif named.kind in _ACCESS:
                if named.dev is not None and named.inode is not None:
                    self._by_inode.setdefault((named.dev, named.inode), []).append(index)
            else:
                self._by_pid.setdefault(named.kind, []).append(index)
        inodes = {inode for _, inode in self._by_inode if inode < 1 << 63}
        self._inodes = np.array(sorted(inodes), np.int64)

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        column = batch.get("event")
        if column is None or not batch.rows:
            return
        names = column.values.dictionary.to_pylist()
        codes = np.full(batch.rows, -1, np.int64)
        codes[slice(None) if column.rows is None else column.rows] = column.codes()
        if self._by_name:
            self._rows(batch, _with(codes, names, _EXEC), self._exec)
        if self._by_inode:
            self._rows(batch, self._of_inodes(batch, codes), self._file)
        for kind, events in (("mem", _MEMORY), ("module", _MODULE), ("bpf", _BPF)):
            if kind in self._by_pid:
                self._rows(batch, _with(codes, names, events), getattr(self, f"_{kind}"))

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

    def _exec(self, event: dict[str, Any]) -> None:
        path = event.get("arg_pathname") or event.get("exe")
        if not isinstance(path, str):
            return
        place = _EXEC.index(event["event"])
        ts, ctime = event.get("ts"), event.get("arg_ctime")
        for index in self._by_name.get(path.rsplit("/", 1)[-1], ()):
            time = self.found[index].named.time
            if time == ts:
                self._note(index, event, (0, place), "time and name", path)
            elif time is not None and time == ctime:
                self._note(index, event, (1, place), "time of change and name", path)
            elif time is not None and isinstance(ts, int) and abs(time - ts) <= NEAR_NS:
                near = (2, abs(time - ts), place)
                self._note(index, event, near, "name and nearest time", path)

    def _file(self, event: dict[str, Any]) -> None:
        name, access = event["event"], event.get("arg_flags")
        for index in self._by_inode.get((event["arg_dev"], event["arg_inode"]), ()):
            kind = self.found[index].named.kind
            path = event.get("arg_pathname")
            rank = 2
            if name in (_WRITTEN if kind == "write" else _READ):
                rank = 0
            elif name == _OPEN and type(access) is int and access & 3 in _ACCESS[kind]:
                rank = 1
            self._note(index, event, (rank,), "device and inode", path or None)

    def _mem(self, event: dict[str, Any]) -> None:
        ts = event.get("ts")
        for index in self._by_pid["mem"]:
            named = self.found[index].named
            if not _is_of(event, named.pid) or named.time is None or not isinstance(ts, int):
                continue
            apart = abs(named.time - ts)
            if apart <= NEAR_NS:
                other = event["event"] != "mem_prot_alert"
                how = "process and time" if not apart else "process and nearest time"
                self._note(index, event, (apart, other), how)

    def _module(self, event: dict[str, Any]) -> None:
        file = event.get("arg_dev"), event.get("arg_inode")
        for index in self._by_pid["module"]:
            named = self.found[index].named
            if not _is_of(event, named.pid):
                continue
            known = None not in file and named.inode is not None
            if known and file != (named.dev, named.inode):
                continue
            how = "process, device and inode" if known else "process"
            path = event.get("arg_pathname") or None
            self._note(index, event, (not known,), how, path if known else None)

    def _bpf(self, event: dict[str, Any]) -> None:
        for index in self._by_pid["bpf"]:
            named = self.found[index].named
            name = event.get("arg_name")
            if (named.pid is not None and not _is_of(event, named.pid)) or (
                isinstance(name, str) and name != named.name
            ):
                continue
            if named.pid is None and name is None:
                continue
            rank = (name is None, _BPF.index(event["event"]))
            self._note(index, event, rank, "process" if name is None else "process and name")

    def _note(
        self, index: int, event: dict[str, Any], rank: Rank, how: str, path: str | None = None
    ) -> None:
        """Take note of an event that fits, if none before fits as well."""
        known = self.matches.get(index)
        if (known is not None and known.rank <= rank) or not _is_in(event, self.found[index]):
            return
        told = {name: event[name] for name in _TOLD if event.get(name) is not None}
        told["time_ns"] = event.get("ts")
        self.matches[index] = Match(rank, how, event["origin"], event["ord"], path, told)


def _with(
    codes: npt.NDArray[np.int64], names: Sequence[str | None], wanted: Iterable[str]
) -> npt.NDArray[np.int64]:
    """The rows of some events."""
    known = set(wanted)
    mine = [code for code, name in enumerate(names) if name in known]
    return np.flatnonzero(np.isin(codes, np.array(mine, np.int64)))


def _is_of(event: dict[str, Any], pid: int | None) -> bool:
    """Whether an event is of a process, by its number on the host or inside its container."""
    return pid is not None and pid in (event.get("pid"), event.get("ns_pid"))


def _is_in(event: dict[str, Any], one: Found) -> bool:
    """Whether an event is of the container, or mount namespace, that a folder is of."""
    container = event.get("container_id")
    if one.container == "host":
        return not container
    if len(one.container) < 12:  # noqa: PLR2004  (no id is that short)
        return event.get("mount_ns") in (None, int(one.container))
    if not isinstance(container, str) or not container:
        return False
    return one.container.startswith(container) or container.startswith(one.container)
