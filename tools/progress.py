"""The status line on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self

import click

from kcap.tools import common

if TYPE_CHECKING:
    from kcap.replay.pipeline import Summary

_EVERY_S: Final = 0.25


class Progress:
    """One line on standard error that is written over; nothing where that is no terminal."""

    def __init__(self, written: Callable[[], int] | None = None) -> None:
        """Prepare the line.

        Args:
            written: Gives the bytes of output so far.
        """
        self._written = written
        self._shown = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._last = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the line."""
        if self._shown and self._last:
            click.echo("\r\x1b[K", nl=False, err=True)

    def update(self, summary: Summary) -> bool:
        """Show where a run is.

        Args:
            summary: What it did so far.

        Returns:
            False: the run goes on.
        """
        now = time.monotonic()
        if self._shown and now - self._last >= _EVERY_S:
            self._last = now
            click.echo(f"\r\x1b[K{self.line(summary, now - self._begun)}", nl=False, err=True)
        return False

    def line(self, summary: Summary, elapsed_s: float) -> str:
        """The text of the line.

        Args:
            summary: What the run did so far.
            elapsed_s: Its age in seconds.

        Returns:
            ``00:01:12  48,201 events  3.1 MiB  0 lost``.
        """
        minutes, seconds = divmod(int(elapsed_s), 60)
        hours, minutes = divmod(minutes, 60)
        parts = [f"{hours:02}:{minutes:02}:{seconds:02}", f"{summary.events_out:,} events"]
        if self._written is not None:
            parts.append(common.size_text(self._written()))
        parts.append(f"{sum(summary.lost().values()):,} lost")
        return "  ".join(parts)
