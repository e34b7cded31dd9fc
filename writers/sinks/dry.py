"""A sink over a network that is not asked for anything: the messages are made, and not sent."""

from __future__ import annotations

import hashlib

from kcap.model.batch import Batch
from kcap.writers.sinks import spec
from kcap.writers.sinks.delivery import renderer


class DryRun:
    """Makes the messages that a `Delivery` would send, to compare them with those it has sent.

    Args:
        of: The sink as it was asked for; its server need not be there.

    Raises:
        KcapError: Its settings are wrong.
    """

    def __init__(self, of: spec.Spec) -> None:
        self.name = of.shown
        """Where they would go, without secrets."""
        self.sent = 0
        """Messages."""
        self._renderer, _ = renderer(of)
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """See `Delivery.digest`."""
        return self._digest.hexdigest()

    def write(self, batch: Batch) -> None:
        """Make the messages of a batch.

        Args:
            batch: Events; side records are not sent.
        """
        for made in self._renderer.render(batch):
            self._digest.update(made.bodies)
            self.sent += made.count

    def close(self) -> None:
        """Nothing is open."""
