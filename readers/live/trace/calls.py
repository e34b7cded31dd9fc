"""System calls: what a thread asked for, brought together with what came of it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.readers.live.trace.points import CALL_ARGUMENTS, Points, Role
from kcap.readers.live.trace.samples import Int64s, Samples

_ENTER: Final = np.dtype(
    {"names": ["arguments"], "formats": [("<u8", (CALL_ARGUMENTS,))], "offsets": [16]}
)
_LEAVE: Final = np.dtype({"names": ["result"], "formats": ["<i8"], "offsets": [16]})


class Returned(NamedTuple):
    """Calls that ended."""

    rows: Int64s
    """Their records, ascending."""
    result: Int64s
    matched: npt.NDArray[np.bool_]
    """Whether their beginning was seen."""
    counts: Int64s
    """How many of the arguments there are; 0 for a call whose beginning was not seen."""
    arguments: npt.NDArray[np.uint64]
    """One row of them each."""


class _Pending(NamedTuple):
    """Calls that have not ended."""

    tids: Int64s
    events: Int64s
    counts: Int64s
    arguments: npt.NDArray[np.uint64]

    def take(self, which: npt.NDArray[Any]) -> _Pending:
        """Some of them."""
        tids, events, counts, arguments = self
        return _Pending(tids[which], events[which], counts[which], arguments[which])


class Calls:
    """Matches ends of calls with their beginnings, also over batches.

    A thread makes one call at a time: what ends is what it began last, if that is the same call.

    Args:
        points: The tracepoints.
    """

    def __init__(self, points: Points) -> None:
        self._points = points
        none = np.zeros(0, np.int64)
        self._pending = _Pending(none, none, none, np.zeros((0, CALL_ARGUMENTS), np.uint64))

    def match(
        self, samples: Samples, kind: Int64s, role: npt.NDArray[np.int8], tids: Int64s
    ) -> Returned:
        """Find the calls that ended.

        Args:
            samples: The records of a batch, in order of time.
            kind: The type of each.
            role: What each is for.
            tids: The thread of each.

        Returns:
            The calls.
        """
        enters, leaves = (np.flatnonzero(role == r) for r in (Role.ENTER, Role.LEAVE))
        old = self._pending
        begun = _Pending(
            np.concatenate([old.tids, tids[enters]]),
            np.concatenate([old.events, self._points.events[kind[enters]]]),
            np.concatenate([old.counts, self._points.arguments[kind[enters]]]),
            np.concatenate([old.arguments, samples.field(_ENTER, "arguments", enters)]),
        )
        # All together by thread, then in order; those of earlier batches come first.
        waiting = len(old.tids)
        places = np.concatenate([np.arange(waiting), enters + waiting, leaves + waiting])
        every = np.concatenate([begun.tids, tids[leaves]])
        order = np.lexsort((places, every))
        is_end = order >= len(begun.tids)
        before = np.roll(order, 1)
        follows = is_end & ~np.roll(is_end, 1) & (every[order] == every[before])
        follows[:1] = False
        end, begin = order[follows] - len(begun.tids), before[follows]
        same = begun.events[begin] == self._points.events[kind[leaves[end]]]
        end, begin = end[same], begin[same]

        matched = np.zeros(len(leaves), np.bool_)
        matched[end] = True
        counts = np.zeros(len(leaves), np.int64)
        counts[end] = begun.counts[begin]
        arguments = np.zeros((len(leaves), CALL_ARGUMENTS), np.uint64)
        arguments[end] = begun.arguments[begin]
        # What a thread began last, and has not ended, waits.
        last = np.ones(len(order), np.bool_)
        last[:-1] = every[order][1:] != every[order][:-1]
        left = np.sort(order[last & ~is_end])
        self._pending = begun.take(left)
        result = samples.field(_LEAVE, "result", leaves).astype(np.int64)
        return Returned(leaves, result, matched, counts, arguments)

    def forget(self, tids: Int64s) -> None:
        """Forget what threads began that are gone.

        Args:
            tids: The threads.
        """
        if len(tids) and len(self._pending.tids):
            self._pending = self._pending.take(~np.isin(self._pending.tids, tids))
