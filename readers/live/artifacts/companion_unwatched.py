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
        self._files: OrderedDict[tuple[int, int], float] = OrderedDict()
        self._missed = 0

    def watch(self, device: int, time_ns: int) -> None:
        """A file system is watched, or has no files that are kept.

        Args:
            device: Its number, as the kernel has it.
            time_ns: Since when.
        """
        self._since_ns[device] = time_ns

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

    def add(self, device: int, inode: int) -> None:
        """Such a file was opened.

        Args:
            device: Its device.
            inode: Its inode.
        """
        self._files[device, inode] = time.monotonic()
        if len(self._files) > FILES_MAX:
            self._files.popitem(last=False)
            self._missed += 1

    def came(self, device: int, inode: int) -> None:
        """A file has come all the same.

        Args:
            device: Its device.
            inode: Its inode.
        """
        self._files.pop((device, inode), None)

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
