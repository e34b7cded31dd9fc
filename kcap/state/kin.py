"""What the state knows of an event's process and of its ancestors, as columns."""

from __future__ import annotations

from collections.abc import Collection

from kcap.model.batch import Batch


class Kin:
    """Adds to batches what the state knows of the processes in them.

    Args:
        names: The columns wanted, as `kcap.filter.fields` names them.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def update(self, batch: Batch) -> Batch:
        """Follow a batch.

        Args:
            batch: The next events.

        Returns:
            It, with the columns.
        """
        return batch
