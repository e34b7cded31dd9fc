"""Batches that wait for the hashes of what was executed in them, in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from kcap.model.batch import Batch
from kcap.readers.live.artifacts.companion_hashes import Executions

HOLD_S: Final = 3.0
"""The longest that a batch waits."""

HOLD_ROWS: Final = 1 << 17
"""Events that wait; beyond, the oldest go without what they wait for."""


class Waiting(NamedTuple):
    """A batch that waits."""

    batch: Batch
    found: Executions | None
    """None where nothing was executed in it."""
    came_ns: int
    since_s: float


class Held:
    """The batches.

    Args:
        known: Whether all is known that executions wait for, or does not come.
    """

    def __init__(self, known: Callable[[Executions], bool]) -> None:
        self._known = known
        self._waiting: deque[Waiting] = deque()
        self._rows = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._waiting)

    def add(self, batch: Batch, found: Executions | None) -> None:
        """Take a batch.

        Args:
            batch: The batch.
            found: What was executed in it.
        """
        self._waiting.append(Waiting(batch, found, time.time_ns(), time.monotonic()))
        self._rows += batch.rows

    @property
    def ready(self) -> bool:
        """Whether the first of them waits for nothing any more."""
        if not self._waiting:
            return False
        first = self._waiting[0]
        late = time.monotonic() - first.since_s > HOLD_S or self._rows > HOLD_ROWS
        return first.found is None or self._known(first.found) or late

    def holds(self, pid: int, dev: int, inode: int) -> bool:
        """Whether the execution of a file is in one of them.

        Args:
            pid: The process.
            dev: The device, as the kernel has it.
            inode: The inode.

        Returns:
            True where it is.
        """
        file = (pid, dev, inode)
        return any(each.found is not None and file in each.found.files for each in self._waiting)

    def pop(self) -> Waiting:
        """Give the first of them, of which there is one."""
        first = self._waiting.popleft()
        self._rows -= first.batch.rows
        return first
