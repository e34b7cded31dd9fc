"""The signs of life that a recorder gives, one a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from kcap.model.side import Heartbeat

BEAT_NS: Final = 10**9


class Beats:
    """Says when a heartbeat is due, and makes it.

    Args:
        source: Id of the source.

    Example:
        >>> beats = Beats("0123456789abcdef")
        >>> [beat.events for beat in beats.due(7, dict)]
        [7]
        >>> beats.due(8, dict)
        []
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._last_ns: int | None = None

    def due(
        self, events: int, details: Callable[[], Mapping[str, Any]], *, last: bool = False
    ) -> list[Heartbeat]:
        """A heartbeat where a second has passed; also the first, and the last.

        Args:
            events: Events that the source gave so far.
            details: Gives counters and the like; asked only where a heartbeat is due.
            last: The recording ends.

        Returns:
            One heartbeat, or none.
        """
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if not last and self._last_ns is not None and boot_ns - self._last_ns < BEAT_NS:
            return []
        self._last_ns = boot_ns
        now_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        return [Heartbeat(now_ns, boot_ns, events, self._source, dict(details()))]
