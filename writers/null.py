"""A sink that keeps nothing: to count, to measure, to see what a filament or a rule says alone."""

from __future__ import annotations

from typing import BinaryIO

from kcap.model.batch import Batch, without_state


class Null:
    """A sink that discards events and counts them.

    Args:
        stream: Gets nothing; may be left out.
        state: Whether rows that only describe what was there are counted.
    """

    def __init__(self, stream: BinaryIO | None = None, *, state: bool = False) -> None:
        self._state = state
        self.events = 0
        """Events that were discarded."""

    def write(self, batch: Batch) -> None:
        """Count the events of a batch.

        Args:
            batch: Events.
        """
        self.events += (batch if self._state else without_state(batch)).rows

    def close(self) -> None:
        """Do nothing: there is nothing to close."""
