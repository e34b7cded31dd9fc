"""How much of a recording the end of its process, or of the power, may cost."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from kcap.errors import OutputError
from kcap.tools import common

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter

CHUNK_S: Final = 60.0
"""Longest time that events wait for their chunk."""

_LEAST_S: Final = 0.01
_TICK_S: Final = 0.5
_TICKS: Final = 2
_LATE: Final = 0.1
"""Wakeups of the source in an interval, at least, and how much of one they are too early: so that
the last one, a little late, still is within it."""


@dataclass(frozen=True, slots=True)
class Durability:
    """What a user asked for."""

    interval_s: float | None = None
    """Longest time that an event is not durable; None where only whole chunks are."""
    synced: bool = True
    """What was written is on the disk, not just with the system."""

    @property
    def tick_s(self) -> float:
        """How often to look whether something is to be committed."""
        if self.interval_s is None:
            return _TICK_S
        ticks = max(_TICKS, math.ceil(self.interval_s / _TICK_S))
        return self.interval_s / (ticks + _LATE)


class DurabilityType(click.ParamType[Durability]):
    """An interval, ``chunk`` or ``none``."""

    name = "durability"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for it in the help."""
        return "INTERVAL|chunk|none"

    def convert(
        self,
        value: Any,  # noqa: ANN401  (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Durability:
        """Parse what the user gave."""
        if isinstance(value, Durability):
            return value
        if value in ("chunk", "none"):
            return Durability(synced=value == "chunk")
        interval_s = common.Duration().convert(value, param, ctx)
        if interval_s < _LEAST_S:
            self.fail(f"{value!r} is too short: give 10ms or more, 'chunk' or 'none'", param, ctx)
        return Durability(interval_s)


class Committer:
    """Commits what was recorded in time, and closes chunks that wait too long.

    Args:
        writer: What to commit.
        durability: What was asked for.
        now_s: The time, by a clock that never goes back.
    """

    def __init__(self, writer: CaptureWriter, durability: Durability, now_s: float) -> None:
        self._writer = writer
        self._durability = durability
        self._committed_s = self._closed_s = now_s
        self._chunks = writer.chunks

    def check(self, now_s: float) -> None:
        """After each batch: commit or close a chunk where the next batch would be too late.

        Args:
            now_s: The time.
        """
        if self._writer.chunks != self._chunks:
            self._closed_s = now_s
        elif now_s - self._closed_s >= CHUNK_S:
            self._writer.flush()
            self._closed_s = self._committed_s = now_s
        interval_s = self._durability.interval_s
        if interval_s is not None and now_s + self._durability.tick_s > (
            self._committed_s + interval_s
        ):
            self._writer.commit()
            self._committed_s = now_s
        self._chunks = self._writer.chunks


def syncing(stream: BinaryIO, durability: Durability, path: str) -> Callable[[], None] | None:
    """What makes a stream's bytes durable.

    Args:
        stream: The output.
        durability: What was asked for.
        path: The output's name.

    Returns:
        What to call behind a flush; None where nobody asked, or the output is no file.

    Raises:
        OutputError: The folder can't be made durable.
    """
    sync = syncing_file(stream, durability)
    if sync is not None and path != "-":
        sync_folder(path)
    return sync


def syncing_file(stream: BinaryIO, durability: Durability) -> Callable[[], None] | None:
    """What makes a stream's bytes durable, but not its name.

    Args:
        stream: The output.
        durability: What was asked for.

    Returns:
        What to call behind a flush; None where nobody asked, or the output is no file.
    """
    try:
        number = stream.fileno()
    except io.UnsupportedOperation:
        return None  # it is in memory
    if not durability.synced or not stat.S_ISREG(os.fstat(number).st_mode):
        return None
    sync = getattr(os, "fdatasync", os.fsync)
    return lambda: sync(number)


def sync_folder(path: str) -> None:
    """Make it durable that a file has its name.

    Args:
        path: The file.

    Raises:
        OutputError: The system refuses.
    """
    flags = getattr(os, "O_DIRECTORY", None)
    if flags is None:
        return  # Windows has no such thing
    folder = Path(path).absolute().parent
    try:
        fd = os.open(folder, os.O_RDONLY | flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise OutputError(
            f"its folder can't be made durable: {e.strerror}",
            file=path,
            hint="--durability none records all the same",
        ) from e
