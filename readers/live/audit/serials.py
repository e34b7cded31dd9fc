"""Which audit events were lost as a whole: the numbers that never came."""

from __future__ import annotations

from typing import Final

SPAN_MAX: Final = 1 << 20
"""Numbers further ahead than this are not those of the same count."""


class Serials:
    """Keeps account of the serial numbers of events.

    The kernel numbers all events, and all records of all rules come; so a number that does not
    come is an event that was lost, if something was lost at all. Records of several processors
    overtake each other: a number is given up at the second look after a later one came.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        """The first number that came: what came before we listened is not ours."""
        self._seen: set[int] = set()
        self.highest = -1
        """The highest number that came."""
        self._next = 0
        self._closing = -1

    def add(self, serial: int) -> None:
        """Take note of a number.

        Args:
            serial: The number of a record.
        """
        if self.first is None or serial > self.highest + SPAN_MAX:
            self.first = serial
            self._next, self._seen = serial, set()
        if serial >= self._next:
            self._seen.add(serial)
            self.highest = max(self.highest, serial)

    def missing(self, *, last: bool = False) -> int:
        """Close the account up to the highest number of the last time.

        Args:
            last: No more numbers come: up to the highest.

        Returns:
            How many numbers up to there did not come.
        """
        until = self.highest if last else self._closing
        count = 0
        if until >= self._next:
            closed = {serial for serial in self._seen if serial <= until}
            count = until - self._next + 1 - len(closed)
            self._seen -= closed
            self._next = until + 1
        self._closing = self.highest
        return count
