"""Going on with a replay: the output is safe before its place is noted."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from kcap.errors import KcapError
from kcap.tools import output
from kcap.tools.play import Output

if TYPE_CHECKING:
    from kcap.model.stream import Sink
    from kcap.replay.pipeline import Summary
    from kcap.replay.resume import Checkpoint, Place
    from kcap.replay.seek import Seeking, Whole
    from kcap.tools.outlets import Outlets

_SAVED_S: Final = 1.0
"""Seconds after which the place is noted again."""


@contextlib.contextmanager
def continued(path: str, size: int) -> Iterator[Output]:
    """Open an output that a run before has left, up to where it is certain.

    Args:
        path: The file; ``-`` for standard output.
        size: How many of its bytes are.

    Yields:
        The output.

    Raises:
        KcapError: It is not there any more, or shorter.
    """
    if path == "-" or (size == 0 and not Path(path).exists()):
        with output.opened(path, binary=False) as stream:
            yield Output(path, stream)
        return
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    hint = "without its --resume file the run begins anew"
    try:
        opened = os.fdopen(os.open(path, flags), "r+b")
    except OSError as e:
        raise KcapError(f"can't be written on: {e.strerror}", file=path, hint=hint) from e
    with opened:
        there = opened.seek(0, os.SEEK_END)
        if there < size:
            what = f"the output has {there:,} bytes"
            raise KcapError(what, file=path, expected=f"at least {size:,}", hint=hint)
        opened.truncate(size)
        opened.seek(size)
        yield Output(path, cast("BinaryIO", opened))


class Progress:
    """Notes how far a run has come, once what it has written is safe.

    Args:
        checkpoint: Keeps the place.
        place: Where the run begins.
        out: The output.
        also: The sinks beside it.
        source: Knows the rows; one that gives all gives those before the place once more.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        place: Place,
        out: Output,
        also: Outlets,
        source: Seeking | Whole,
    ) -> None:
        from kcap.replay.resume import Confirmed
        from kcap.replay.seek import Whole

        self._begun = place
        self._checkpoint = checkpoint
        self._out = out
        self._source = source
        self._again = place.row if isinstance(source, Whole) else 0
        """Rows that are read again, and were dealt with before."""
        self._sinks: list[Any] = [sink for sink in also.sinks if hasattr(sink, "confirmed")]
        self._confirmed = Confirmed([partial(_dealt_with, sink) for sink in self._sinks])
        self._due_s = time.monotonic() + _SAVED_S
        self._save(place)

    def __call__(self, summary: Summary) -> bool:
        """Is called after each batch; never ends the run.

        Args:
            summary: What the run has done so far.

        Returns:
            False.
        """
        self._confirmed.note([sink.sent for sink in self._sinks], self._reached(summary))
        # The clock decides when the place is noted, never what comes out.
        if time.monotonic() >= self._due_s:
            place = self._confirmed.place()
            if place is not None:
                self._save(place)
            self._due_s = time.monotonic() + _SAVED_S
        return False

    def end(self, summary: Summary) -> None:
        """Note that all is done: the sinks are closed, so they have everything.

        Args:
            summary: What the run did.
        """
        self._save(replace(self._reached(summary), done=True))

    def _save(self, place: Place) -> None:
        """Make the output safe, and note the place."""
        from kcap.replay.resume import Place

        stream = self._out.stream
        stream.flush()
        if self._out.path != "-" and stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            os.fsync(stream.fileno())
        assert isinstance(place, Place)
        self._checkpoint.save(replace(place, started=True))

    def _reached(self, summary: Summary) -> Place:
        from kcap.replay.resume import Place

        return Place(
            max(self._begun.row, self._source.row_behind(summary.events_in)),
            self._begun.events_in + max(0, summary.events_in - self._again),
            self._begun.events_out + summary.events_out,
            self._sizes(),
        )

    def _sizes(self) -> dict[str, int]:
        """How long the output is that has everything so far."""
        if self._out.path == "-":
            return {}
        self._out.stream.flush()
        return {self._out.path: os.fstat(self._out.stream.fileno()).st_size}


def _dealt_with(sink: Sink) -> int:
    """How many messages a sink has dealt with: the server has them, or refuses them for good."""
    status: dict[str, Any] = getattr(sink, "status", {})
    refused: dict[str, int] = status.get("refused", {})
    return int(getattr(sink, "confirmed", 0)) + sum(refused.values())
