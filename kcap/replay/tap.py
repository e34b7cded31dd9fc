"""What looks at every event on its way, before any filter: filaments, and rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kcap.model.batch import Batch


class Tap(Protocol):
    """Looks at events, and may raise alerts; the events go on as they are."""

    def see(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        """Look at the next events.

        What is done must not depend on how the stream was cut into batches.

        Args:
            batch: The events, with the side records before them, as the state has completed them.

        Returns:
            Alerts (`kcap.model.alert.batch`), each with the number of the batch's rows that it
            comes behind, ascending.
        """

    def end(self) -> Iterable[Batch]:
        """Say that no event follows.

        Returns:
            The last alerts.
        """

    def close(self) -> None:
        """Let go of processes and files; may be called twice, and after an error."""
