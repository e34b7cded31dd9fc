"""Files that were opened on a file system before that was watched: what of them did not come."""

from __future__ import annotations

import stat
import time
from collections import OrderedDict
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.model.batch import Batch
from kcap.model.naming import argument

FILES_MAX: Final = 1 << 14
LATE_S: Final = 3.0
"""A file that was opened then and has not come after so long was missed."""

DEV: Final = argument("dev")
INODE: Final = argument("inode")
MODE: Final = argument("inode_mode")


class Unwatched:
    """What may be missed."""

    def __init__(self) -> None:
        self._since_ns: dict[int, int] = {}
        self._files: OrderedDict[tuple[int, int, str], float] = OrderedDict()
        """With the path: where a device has the number of one before, its inodes have, too."""
        self._came: OrderedDict[tuple[int, int, str], int] = OrderedDict()
        """When: what was opened before that has come, whichever is heard of first."""
        self._missed = 0

    def watch(self, device: int, time_ns: int, after_ns: int | None = None) -> int | None:
        """A file system is watched, or has no files that are kept.

        Args:
            device: Its number, as the kernel has it.
            time_ns: Since when.
            after_ns: When another may have had its number; None where it is the one before.

        Returns:
            Since when its files were taken for those of the other; None where they were not.
        """
        before_ns = self._since_ns.get(device)
        if before_ns is None or after_ns is not None:
            self._since_ns[device] = time_ns
        return None if before_ns is None or after_ns is None else max(before_ns, after_ns)

    def gone(self, device: int, after_ns: int) -> int | None:
        """A file system is no more; the next may have its number, or have had it by now.

        Args:
            device: Its number, as the kernel has it.
            after_ns: When it was still there.

        Returns:
            See `watch`.
        """
        before_ns = self._since_ns.pop(device, None)
        return None if before_ns is None else max(before_ns, after_ns)

    def rows(self, batch: Batch, opens: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Opens of regular files that nobody watched.

        Args:
            batch: Events.
            opens: Their rows.

        Returns:
            Those of these rows.
        """
        devices, times = batch.numpy(DEV, -1)[opens], batch.numpy("ts", 0)[opens]
        found, places = np.unique(devices, return_inverse=True)
        never = np.iinfo(np.int64).max
        since = np.array([self._since_ns.get(dev, never) for dev in found.tolist()], np.int64)
        early = opens[times < since[places]] if len(found) else opens
        kinds: npt.NDArray[np.int64] = batch.numpy(MODE, 0)[early] & 0o170000
        return early[np.flatnonzero(kinds == stat.S_IFREG)]

    def add(self, device: int, inode: int, path: str, time_ns: int) -> None:
        """Such a file was opened.

        Args:
            device: Its device.
            inode: Its inode.
            path: Its path.
            time_ns: When.
        """
        if self._came.get((device, inode, path), -1) >= time_ns:
            return
        self._files[device, inode, path] = time.monotonic()
        if len(self._files) > FILES_MAX:
            self._files.popitem(last=False)
            self._missed += 1

    def came(self, device: int, inode: int, path: str, time_ns: int) -> None:
        """A file has come all the same.

        Args:
            device: Its device.
            inode: Its inode.
            path: Its path; one that was renamed meanwhile is taken for another.
            time_ns: When it was read.
        """
        self._files.pop((device, inode, path), None)
        self._came[device, inode, path] = time_ns
        self._came.move_to_end((device, inode, path))
        if len(self._came) > FILES_MAX:
            self._came.popitem(last=False)

    def missed(self, *, last: bool) -> int:
        """How many did not come, since the last time.

        Args:
            last: None comes any more.

        Returns:
            The number.
        """
        until_s = time.monotonic() - LATE_S
        while self._files and (last or next(iter(self._files.values())) < until_s):
            self._files.popitem(last=False)
            self._missed += 1
        missed, self._missed = self._missed, 0
        return missed
