"""Files of servers that were opened and have not come: which one held back who opened it again.

Where a server holds back the opening itself, the kernel has not said yet what is opened. The
events have: it is a file there that was executed, or opened and closed, and whose content did not
come.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.model.batch import EMPTY, Batch
from kcap.model.naming import argument
from kcap.model.tracee_names import user_device
from kcap.readers.live.artifacts.companion_unwatched import DEV, INODE, Unwatched
from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

FILES_MAX: Final = 4096
"""Files that are remembered; those that were opened first are forgotten first."""

PATH: Final = argument("pathname")
_FLAGS: Final = argument("flags")
_ACCESS: Final = 3
_FIELDS: Final = ("ts", "pid", DEV, INODE, PATH, _FLAGS)


class Expected:
    """What is to come from servers' file systems.

    Args:
        wanted: What is kept.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.unwatched = Unwatched()
        self._devices = np.zeros(0, np.int64)
        self._files: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()
        self._came: OrderedDict[tuple[int, int], int] = OrderedDict()
        """When: events may be later than what they are about."""

    def watch(self, device: int) -> None:
        """Remember what is opened on a file system.

        Args:
            device: Its number, as the kernel has it.
        """
        self._devices = np.union1d(self._devices, np.array([device], np.int64))

    def add(
        self, batch: Batch, executions: npt.NDArray[np.intp], opens: npt.NDArray[np.intp]
    ) -> None:
        """Take what was executed and opened.

        Args:
            batch: Events.
            executions: The rows of executions.
            opens: Those of opens.
        """
        self.unwatched_too(batch, opens)
        if not len(self._devices):
            return
        devices = batch.numpy(DEV, -1)
        for kind, rows in (("exec", executions), ("open", opens)):
            there = rows[np.isin(devices[rows], self._devices)]
            taken = batch.select(_FIELDS).take(there.astype(np.int32))
            found: list[dict[str, Any]] = taken.to_pylist()
            for row in found:
                key = (int(row[DEV]), int(row[INODE]))
                if self._came.get(key, 0) >= int(row["ts"]):
                    continue
                self._files[key] = row | {"kind": kind}
                self._files.move_to_end(key)
        while len(self._files) > FILES_MAX:
            self._files.popitem(last=False)

    def came(self, device: int, inode: int, time_ns: int) -> None:
        """A file has come, or its hash.

        Args:
            device: Its device, as the kernel has it.
            inode: Its inode.
            time_ns: When it was read.
        """
        if device not in self._devices:
            return
        row = self._files.get((device, inode))
        if row is not None and row["ts"] <= time_ns:
            del self._files[device, inode]
        self._came[device, inode] = time_ns
        self._came.move_to_end((device, inode))
        if len(self._came) > FILES_MAX:
            self._came.popitem(last=False)

    def unwatched_too(self, batch: Batch, opens: npt.NDArray[np.intp]) -> None:
        """Take what was opened where nobody watched.

        Args:
            batch: Events.
            opens: Rows of opens.
        """
        early = self.unwatched.rows(batch, opens)
        taken = batch.select(_FIELDS).take(early.astype(np.int32)) if len(early) else EMPTY
        found: list[dict[str, Any]] = taken.to_pylist()
        for row in found:
            kind = _kind(row | {"kind": "open"})
            filter_ = self._wanted.write if kind == "write" else self._wanted.read
            path = row.get(PATH) or ""
            if _takes(filter_, path):
                self.unwatched.add(int(row[DEV]), int(row[INODE]), path, int(row["ts"]))

    def held(self, time_ns: int) -> dict[str, Any] | None:
        """A file was held back: which one.

        Args:
            time_ns: When it was seen that nothing comes.

        Returns:
            What is known of it, for `Pending`; None where no event tells, or it is not kept.
        """
        earlier = [key for key, row in self._files.items() if row["ts"] <= time_ns]
        if not earlier:
            return None
        key = earlier[-1]
        row = self._files.pop(key)
        kind = _kind(row)
        path = row.get(PATH) or ""
        filters = {"write": self._wanted.write, "read": self._wanted.read}
        taken = self._wanted.exec if kind == "exec" else _takes(filters[kind], path)
        if not taken:
            return None
        return {
            "kind": kind,
            "pid": int(row["pid"]),
            "time_ns": int(row["ts"]),
            "path": path.encode("utf-8", "surrogatepass").decode("latin-1"),
            "dev": user_device(key[0]),
            "inode": key[1],
            "truncated": "timeout",
            "presumed": True,
        }


def _kind(row: dict[str, Any]) -> str:
    if row["kind"] == "exec":
        return "exec"
    flags = row.get(_FLAGS)
    # creat(2) has no flags, and writes.
    return "write" if flags is None or int(flags) & _ACCESS else "read"


def _takes(filter_: FileFilter | None, path: str) -> bool:
    if filter_ is None or not filter_.files:
        return False
    return not filter_.prefixes or path.startswith(filter_.prefixes)
