"""Foreign sources: who did it is found out as their events come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from kcap.model.artifact import Artifact
from kcap.model.batch import Batch
from kcap.model.stream import Source, StreamInfo
from kcap.replay.artifacts import listed
from kcap.state import State

OWN: Final = frozenset({"arrow", "kcap"})
"""Formats that kcap wrote: who did it was found out when they were recorded or imported."""


class Resolved:
    """A foreign source whose events are told who did them, by that source alone.

    Args:
        source: The source.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._state = State()

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    @property
    def artifacts(self) -> Sequence[Artifact]:
        """See `kcap.replay.artifacts.listed`."""
        return listed(self._source)

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for batch in self._source.batches():
            yield self._state.update(batch, resolve=True)

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()
