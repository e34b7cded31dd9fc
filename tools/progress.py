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

    def __init__(
        self,
        written: Callable[[], int] | None = None,
        *,
        read: Callable[[], tuple[int, int | None]] | None = None,
    ) -> None:
        """Prepare the line.

        Args:
            written: Gives the bytes of output so far.
            read: Gives the bytes of input so far, and how many there are where that is known.
        """
        self._written = written
        self._read = read
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
            ``00:01:12  48,201 events  3.1 MiB  0 lost``; with the bytes of input
            ``00:00:12  48,201 events  45 % of 1.2 GiB  46.1 MiB/s  00:00:15 left  0 lost``.
        """
        parts = [_clock(elapsed_s), common.counted(summary.events_out, "event")]
        if self._written is not None:
            parts.append(common.size_text(self._written()))
        if self._read is not None:
            parts += _rate(*self._read(), elapsed_s)
        parts.append(f"{sum(summary.lost().values()):,} lost")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    """``00:01:12``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02}"


def _rate(done: int, total: int | None, elapsed_s: float) -> list[str]:
    """How far an input is read, how quickly, and how long the rest will take."""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    speed = f"{common.size_text(int(rate))}/s"
    if not total:
        return [common.size_text(done), speed]
    parts = [f"{min(100, done * 100 // total)} % of {common.size_text(total)}", speed]
    if rate > 0:
        parts.append(f"{_clock(max(0, total - done) / rate)} left")
    return parts
