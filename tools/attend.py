"""What a recorder does beside recording: answer who asks, and notice what is done to it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from kcap.tools import common, logs
from kcap.tools.status import Status

if TYPE_CHECKING:
    from kcap.model.batch import Batch
    from kcap.model.side import Loss
    from kcap.model.stream import StreamInfo
    from kcap.readers.live.guard.watch import Watch
    from kcap.replay.pipeline import Summary
    from kcap.tools.control import Control
    from kcap.tools.status import Output


_TRIM_S: Final = 5.0
"""Seconds for which memory that was freed is kept for what comes next."""


class Attendant:
    """Attends to a recording: a sink of its pipeline that keeps nothing.

    Made by the process that the user started. `begin` is called in the one that records, by its
    main thread, and `check` after each batch.

    Args:
        info: The source.
        tell: Takes findings into the capture.
        control: Who asks there is answered; None where there is no socket.
        sinks: Gives how each sink does.
    """

    def __init__(
        self,
        info: StreamInfo,
        tell: Callable[[Sequence[Loss]], None],
        control: Control | None,
        sinks: Callable[[], Sequence[Mapping[str, Any]]] = list,
    ) -> None:
        # Loaded here: who has no rights may not be allowed to read Python's folders.
        from kcap.readers.live.guard.collector import give_back
        from kcap.readers.live.guard.watch import Watch

        self._watching = Watch
        self._give_back = give_back
        self._given_s = time.monotonic()
        self._pid = os.getpid()
        self._tell = tell
        self._control = control
        self._status = Status(
            info, pid=self._pid, pids=self._pids, since_ns=time.time_ns(), sinks=sinks
        )
        self._watch: Watch | None = None
        self._output_fd: int | None = None

    def begin(self) -> Self:
        """Watch from now on what is done to the recorder."""
        self._watch = self._watching(self._pids, lambda: self._output_fd)
        return self

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        self._status.write(batch)

    def check(self, summary: Summary, output: Output) -> bool:
        """After each batch, before anything more is written: look, tell, answer.

        Args:
            summary: Of the pipeline; gets what was noticed.
            output: Where the recording goes now.

        Returns:
            False: it goes on.
        """
        self._output_fd = output.fd
        found = [] if self._watch is None else self._watch.check(time.time_ns())
        if found:
            summary.losses += found
            for loss in found:
                logs.tell(f"kcap: {common.describe(loss)}")
            self._tell(found)
        self._status.tick(summary, output)
        if time.monotonic() > self._given_s + _TRIM_S:
            self._give_back()
            self._given_s = time.monotonic()
        if self._control is not None:
            self._control.serve(self._status.report)
        return False

    def close(self) -> None:
        """See `Sink.close`: attend no more."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _pids(self) -> set[int]:
        return {os.getpid(), *family(self._pid)}


def family(pid: int) -> set[int]:
    """A process and all that come from it, as far as their parents live.

    Args:
        pid: The process.

    Returns:
        Those that there are; the process alone where the kernel does not tell its children.
    """
    found, fresh = {pid}, [pid]
    while fresh:
        children = {child for parent in fresh for child in _children(parent)}
        fresh = sorted(children - found)
        found |= children
    return found


def _children(pid: int) -> list[int]:
    """Children of each of its threads, of those that have not ended meanwhile."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_bytes().split())
    return found
