"""What /proc did not say of a process, by which reason: for the recording."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from kcap.model.side import Loss
from kcap.state.processes import TIMEOUT

TOLD_MAX: Final = 64
"""Processes that are told one by one, until somebody asks for the losses."""

_ENDED: Final = "the process that reads /proc has ended: what only /proc has is missing"


class Who(NamedTuple):
    """A process."""

    pid: int
    name: str | None

    def __str__(self) -> str:
        """As a sentence has it."""
        return f"{self.name or 'a process'}, pid {self.pid},"


class Troubles:
    """Counts them."""

    def __init__(self) -> None:
        self._late: Counter[tuple[Who, str]] = Counter()
        self._hidden: dict[Who, int] = {}
        self._others = 0
        self._ended = 0
        self._told = False
        self.late = 0
        """Reads that hung, or were left out as one of that process had hung before."""

    def was_late(self, who: Who, what: str) -> None:
        """A read hung.

        Args:
            who: The process.
            what: The file.
        """
        self.late += 1
        if (who, what) in self._late or len(self._late) < TOLD_MAX:
            self._late[who, what] += 1
        else:
            self._others += 1

    def has_hidden(self, who: Who, count: int) -> None:
        """A process does not let its arguments be read.

        Args:
            who: The process.
            count: Bytes of them that are not known.
        """
        if who in self._hidden or len(self._hidden) < TOLD_MAX:
            self._hidden[who] = count
        else:
            self._others += 1

    def nobody_reads(self) -> None:
        """There is no reader any more."""
        self._ended += 1

    def losses(self, source: str, *, over: bool = False) -> list[Loss]:
        """What was noted since the last time.

        Args:
            source: Id of the source.
            over: There is nobody who reads any more, whether or not somebody has asked.

        Returns:
            A loss for each process; one for all of those beyond `TOLD_MAX`.
        """
        late, hidden, others, ended = self._late, self._hidden, self._others, self._ended
        self._late, self._hidden, self._others, self._ended = Counter(), {}, 0, 0
        found = [
            Loss("blind", count, f"{TIMEOUT}: reading {what} of {who} hung", source)
            for (who, what), count in late.items()
        ]
        for who, count in hidden.items():
            reason = f"{who} holds back memory: {count} bytes of cmdline can't be read"
            found.append(Loss("cut", 1, reason, source))
        if others:
            reason = f"{TIMEOUT}: the memory of other processes could not be read"
            found.append(Loss("blind", others, reason, source))
        if ended or (over and not self._told):
            self._told = True
            found.append(Loss("blind", ended or None, _ENDED, source))
        return found
