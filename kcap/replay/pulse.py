"""Times in which a recorder gave no sign of life: nobody looked then."""

from __future__ import annotations

from typing import Final

from kcap.model.batch import Batch
from kcap.model.side import Heartbeat, Loss, Side

GAP_NS: Final = 3 * 10**9
"""A longer time between two heartbeats, of which there is one a second, is a blind one."""

BLIND: Final = "blind"
"""Kind of loss: what happened was not looked at, or could not be."""


class Pulse:
    """Follows the heartbeats of a live source, and says where they stopped."""

    def __init__(self) -> None:
        self._last: dict[str | None, Heartbeat] = {}

    def take(self, batch: Batch) -> Batch:
        """Look at the heartbeats that come with a batch.

        Args:
            batch: Events and side records.

        Returns:
            The batch, with a loss before each heartbeat that came too late.
        """
        before: list[Side] = []
        for side in batch.before:
            if isinstance(side, Heartbeat):
                last = self._last.get(side.source)
                self._last[side.source] = side
                # Not by the wall clock, which may be set: that is neither a gap nor the end of one.
                if last is not None and side.boot_ns - last.boot_ns > GAP_NS:
                    before.append(_gap(last, side.ts_ns))
            before.append(side)
        return batch if len(before) == len(batch.before) else batch.with_before(before)

    def end(self, now_ns: int | None) -> list[Loss]:
        """Say that the recording has ended.

        Args:
            now_ns: Time of its last event, None where it has none.

        Returns:
            A loss for each source whose last heartbeat is too long before that.
        """
        if now_ns is None:
            return []
        late = [last for last in self._last.values() if now_ns - last.ts_ns > GAP_NS]
        return [_gap(last, now_ns) for last in late]


def _gap(last: Heartbeat, end_ns: int) -> Loss:
    # To the nanosecond: losses of one reason are added up, and their intervals would be one.
    reason = f"no heartbeat of the recorder for {(end_ns - last.ts_ns) / 10**9:.9f} s"
    return Loss(BLIND, None, reason, last.source, start_ns=last.ts_ns, end_ns=end_ns)
