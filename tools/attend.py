"""What a recorder does beside recording: answer who asks, and notice what is done to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from kcap.tools import common

if TYPE_CHECKING:
    from kcap.model.side import Loss
    from kcap.readers.live.guard.watch import Watch
    from kcap.replay.pipeline import Summary
    from kcap.tools.control import Control
    from kcap.tools.status import Output, Status


class Attendant:
    """Attends to a recording, as often as batches come.

    Args:
        status: Also a sink of the pipeline.
        watch: Says what is done to the recorder; made by the process that writes.
        control: Who asks there is answered; None where there is no socket.
        tell: Takes findings into the capture.
    """

    def __init__(
        self,
        status: Status,
        watch: Watch,
        control: Control | None,
        tell: Callable[[Sequence[Loss]], None],
    ) -> None:
        self._status = status
        self._watch = watch
        self._control = control
        self._tell = tell

    def check(self, summary: Summary, output: Output) -> None:
        """After each batch, before anything more is written: look, tell, answer.

        Args:
            summary: Of the pipeline; gets what was noticed.
            output: Where the recording goes now.
        """
        found = self._watch.check(time.time_ns())
        if found:
            summary.losses += found
            for loss in found:
                click.echo(f"kcap: {common.describe(loss)}", err=True)
            self._tell(found)
        self._status.tick(summary, output)
        if self._control is not None:
            self._control.serve(self._status.report)

    def close(self) -> None:
        """Attend no more."""
        self._watch.close()
