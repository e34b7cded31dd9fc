"""How long a process or thread had lived when it ended: the one thing events do not say."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.side import SourceInfo
from kcap.state.kin import Kin
from kcap.writers.views.view import Told, candidates

DURATION: Final = "view:duration_ns"
"""The column with the time from a task's start to the end that its row tells of, ns."""

TASKS_MAX: Final = 131_072
"""Running tasks whose start was seen and is kept; beyond, the oldest are forgotten."""

_STARTING: Final = frozenset({"process_fork", "thread_start", "process_start"})
_STOPPING: Final = frozenset({"process_stop", "thread_stop"})
_EPOCH_NS: Final = 100_000_000 * 10**9
"""A start time below is one since boot: three years without one, or 1973."""
_STARTED: Final = "state:process.start_ns"


class Lifetimes:
    """Adds `DURATION` to the rows in which something ends.

    It has to see all events of a stream, so it stands before every filter. A start is the time of
    the event that told of it; else what the source or the state says, where its clock is known.
    Of what started before, and of which nobody says when, there is no duration: none is guessed.
    """

    def __init__(self) -> None:
        self._kin = Kin([_STARTED])
        self._boots_ns: dict[str, int] = {}
        self._starts: dict[tuple[str, int], int] = {}

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        for side in batch.before:
            if isinstance(side, SourceInfo) and side.clocks:
                real_ns, boot_ns = side.clocks[-1]
                self._boots_ns[side.id] = real_ns - boot_ns
        batch = self._kin.update(batch)
        rows = candidates(batch, _STARTING | _STOPPING, frozenset())
        if not len(rows):
            return batch
        told = Told(batch, rows)
        found: dict[int, int] = {}
        # Python per row, as in the state's own loop: what starts and ends is rare beside the rest.
        for i, row in enumerate(rows.tolist()):
            if told.column("action")[i] in _STARTING:
                self._start(told, i)
            elif (lived_ns := self._stop(told, i)) is not None:
                found[row] = lived_ns
        if not found:
            return batch
        at = np.fromiter(found, np.int32, len(found))
        values = pa.array(np.fromiter(found.values(), np.int64, len(found)))
        return batch.adding({DURATION: Column(TypeClass.I64, values, at)})

    def _start(self, told: Told, i: int) -> None:
        ts, source = told.column("ts")[i], told.column("source")[i] or ""
        retval = told.column("retval")[i]
        if ts is None or (retval is not None and retval < 0):
            return
        if told.column("action")[i] == "process_start":
            tid = described(told, i)  # a fork and an exec in one, as on Windows
        elif retval == 0 and told.number(i, "child_tid") is None:
            tid = told.column("tid")[i]  # the return of fork in the child
            self._starts.pop((source, tid), None)
        else:
            tid = started(told, i)
        if tid is None:
            return
        if len(self._starts) >= TASKS_MAX:
            del self._starts[next(iter(self._starts))]
        # vfork returns in the parent when the child has executed something: that is no start.
        if retval and told.number(i, "child_tid") is None:
            self._starts.setdefault((source, tid), ts)
        else:
            self._starts[source, tid] = ts

    def _stop(self, told: Told, i: int) -> int | None:
        """The age of what ends, ns."""
        ts, source = told.column("ts")[i], told.column("source")[i] or ""
        tid, pid = ended(told, i)
        start_ns = self._starts.pop((source, tid), None)
        if start_ns is None:
            start_ns = self._since_1970(source, _own_start(told, i, first=tid == pid))
        return None if ts is None or start_ns is None else int(max(0, ts - start_ns))

    def _since_1970(self, source: str, start_ns: int | None) -> int | None:
        if start_ns is None or start_ns >= _EPOCH_NS:
            return start_ns
        boot_ns = self._boots_ns.get(source)
        return None if boot_ns is None else start_ns + boot_ns


def _own_start(told: Told, i: int, *, first: bool) -> int | None:
    """When what ends has started, as its row or the state has it."""
    names = ("process_start_ns", _STARTED) if first else ()
    values = (told.column(name)[i] for name in ("thread_start_ns", *names))
    return next((value for value in values if value is not None), None)


def described(told: Told, i: int) -> int | None:
    """The process that a row describes in its arguments, which need not be its own.

    On Windows a start is an event of the process that asked for it.

    Args:
        told: The rows.
        i: Which of them.

    Returns:
        Its id, None where the row is about its own process.
    """
    return None if told.number(i, "ppid") is None else told.number(i, "pid")


def started(told: Told, i: int) -> int | None:
    """The task that a fork or the start of a thread has made.

    Args:
        told: The rows.
        i: Which of them.

    Returns:
        Its thread id, None where the row does not tell.
    """
    child = told.number(i, "child_tid", "child_pid")
    if child is not None:
        return child
    if told.column("action")[i] == "thread_start":
        own = told.number(i, "tid")
        return told.column("tid")[i] if own is None else own
    retval: int | None = told.column("retval")[i]
    return retval


def ended(told: Told, i: int) -> tuple[Any, Any]:
    """The task that has ended.

    Args:
        told: The rows.
        i: Which of them.

    Returns:
        Its thread id and its process id; they are equal for the first thread of a process, and
        where a process ends as a whole.
    """
    pid, tid = told.column("pid")[i], told.column("tid")[i]
    whole = described(told, i)
    if whole is not None:
        return whole, whole
    if told.column("action")[i] == "thread_stop":
        own = told.number(i, "tid")
        tid = tid if own is None else own
        pid = told.number(i, "pid") or pid
    return (pid if tid is None else tid), pid
