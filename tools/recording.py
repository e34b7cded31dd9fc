"""A recording put together: a source, what is wanted of it, where it goes, and when it ends."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kcap.tools import common, durability, live, output, rotation
from kcap.tools.apart import PartedOutputs
from kcap.tools.outputs import LocalOutputs
from kcap.tools.recorded import OneFile, Rotated, Series, room_of

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.side import Loss
    from kcap.model.stream import LiveSource
    from kcap.readers.live.selection import Selection
    from kcap.replay.pipeline import Stage
    from kcap.state import State
    from kcap.tools.notify import Signs
    from kcap.tools.recorded import Recorded, Rotation
    from kcap.tools.status import Output


class Wanted:
    """The stages that leave out what is not wanted, and what they have left out.

    Args:
        selection: What is wanted.
    """

    def __init__(self, selection: Selection) -> None:
        from kcap.readers.live.tracking import Selected
        from kcap.replay.stages import Matching
        from kcap.replay.survivors import Selecting

        self._wanted = selection.asked
        where = selection.where
        found = Selected.around(selection, [Matching(where, storing=True)] if where else [])
        self._selecting = Selecting(found, limit=None, state=True) if found else None
        self._told: Counter[str | None] = Counter()
        self.stages: list[Stage] = [] if self._selecting is None else [self._selecting]
        """The stages, for a pipeline."""

    def left_out(self) -> list[Loss]:
        """How many events were left out since this was asked last."""
        from kcap.replay.survivors import left_out

        if self._selecting is None:
            return []
        dropped = Counter(self._selecting.dropped)
        fresh, self._told = dropped - self._told, dropped
        why = f"left out while recording, not: {self._wanted}"
        return [replace(loss, reason=why) for loss in left_out(fresh, whole=True)]


class Place(NamedTuple):
    """Where a recording goes."""

    target: str
    """As the user named it."""
    force: bool
    durable: durability.Durability
    rotation: Rotation | None
    """When it goes on in another file; None to stay in one."""
    writing: Mapping[str, Any]
    """More options for the writer of a file."""


class Opened(NamedTuple):
    """An output that was opened."""

    sink: Recorded
    outputs: PartedOutputs | None = None
    """Who makes further files; None where there are none."""


def opened(place: Place, stack: contextlib.ExitStack, state: State, wanted: Wanted) -> Opened:
    """Open where a recording goes.

    Args:
        place: Where.
        stack: Completes the files, or leaves them as they have to be left.
        state: The pipeline's state.
        wanted: Says at the end of each file what was left out.

    Returns:
        The sink.

    Raises:
        KcapError: It can't be written there.
    """
    if place.rotation is not None:
        return _rotated(place, place.rotation, stack, state, wanted)
    path, durable = place.target, place.durable
    stream = stack.enter_context(output.opened(path, force=place.force, buffered=False))
    from kcap.format.writer import CaptureWriter

    writer = CaptureWriter(
        stream,
        file=path,
        snapshot=state.snapshot,
        created_ns=time.time_ns(),
        sync=durability.syncing(stream, durable, path),
        room=room_of(stream, path),
        **place.writing,
    )
    return Opened(OneFile(writer, path, durable, time.monotonic(), wanted.left_out))


def _rotated(
    place: Place,
    when: Rotation,
    stack: contextlib.ExitStack,
    state: State,
    wanted: Wanted,
) -> Opened:
    template, existing = rotation.parts_of(place.target)
    local = LocalOutputs(synced=place.durable.synced)
    outputs = PartedOutputs(local, template.names)
    sink = Rotated(
        Series(template, existing, outputs, when.keep),
        state,
        when,
        place.durable,
        time.monotonic(),
        writing=place.writing,
        ending=wanted.left_out,
        told=_tell,
    )
    return Opened(stack.enter_context(sink), outputs)


def _tell(name: str, writer: CaptureWriter) -> None:
    """Say that a file is complete."""
    from kcap.model.text import printable

    size = common.size_text(writer.bytes_written)
    click.echo(f"kcap: sha256 {writer.file_hash}, {size}: {printable(name)}", err=True)


class Limits:
    """When a recording ends by itself, and what is to be done while it goes on.

    Args:
        source: Stopped at the end: what it has by then goes out.
        sink: Where it goes.
        signs: Tells the service manager.
        duration_s: Seconds from the first batch on, None for ever.
        max_size: Bytes, None for any.
    """

    def __init__(
        self,
        source: LiveSource,
        sink: Recorded,
        signs: Signs,
        *,
        duration_s: float | None,
        max_size: int | None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._signs = signs
        self._max_size = max_size
        self._deadline = live.Deadline(source, duration_s)
        self._told = False

    def check(self) -> bool:
        """After each batch: say that the recording runs, commit in time, stop at a limit.

        Returns:
            False: the source ends by itself then, with all that it has.
        """
        from kcap.model.text import printable

        if not self._told:
            self._told = True
            path = printable(self._sink.names[-1])
            click.echo(f"kcap: recording with {self._source.info.format}: {path}", err=True)
        now_s = time.monotonic()
        self._sink.check(now_s)
        self._deadline.check(now_s)
        self._signs.check(now_s)
        large = self._max_size is not None and self._sink.expected_bytes >= self._max_size
        if large or self._sink.full:
            self._source.stop()
        return False


def status_of(sink: Recorded) -> Output:
    """Where a recording stands.

    Args:
        sink: Where it goes.

    Returns:
        What the attendant watches, and the control socket tells.
    """
    from kcap.tools.status import Output

    path, writer = sink.names[-1], sink.writer
    fd = None
    if writer is not None:
        with contextlib.suppress(OSError):  # it is in memory
            fd = writer.fileno()
    return Output(
        path if path == "-" else str(Path(path).absolute()),
        sink.bytes_written,
        fd,
        len(sink.names),
        0 if writer is None else writer.waiting_rows,
    )


def report(events: int, lost: int, exit_code: int, sink: Recorded) -> None:
    """Say what was recorded.

    Args:
        events: Events that are in it.
        lost: Events that are not.
        exit_code: The recording's exit code.
        sink: Where it went.
    """
    from kcap.model.text import printable

    size = common.size_text(sink.expected_bytes)
    names: Sequence[str] = sink.names
    place = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names):,} files)"
    if isinstance(sink, OneFile):
        click.echo(f"kcap: sha256 {sink.writer.file_hash}", err=True)
    click.echo(
        f"kcap: {common.counted(events, 'event')}, {size}, {lost:,} lost, exit code {exit_code}: "
        f"{printable(place)}",
        err=True,
    )
