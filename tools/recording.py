"""A recording put together: a source, what is wanted of it, where it goes, and when it ends."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from kcap.format.writer import CaptureWriter
from kcap.guard.rights import FILES
from kcap.model.batch import EMPTY
from kcap.model.text import printable
from kcap.readers.live.tracking import Selected
from kcap.replay.pipeline import Pipeline
from kcap.replay.stages import Matching, WithoutAlerts
from kcap.replay.survivors import Selecting, left_out
from kcap.state import State
from kcap.tools import (
    alerting,
    attend,
    common,
    control,
    durability,
    live,
    logs,
    notify,
    outlets,
    output,
    rotation,
)
from kcap.tools.apart import PartedOutputs
from kcap.tools.artifact_stage import WithArtifacts
from kcap.tools.outputs import LocalOutputs
from kcap.tools.progress import Progress
from kcap.tools.recorded import OneFile, Rotated, room_of
from kcap.tools.ring import Asked, Ring
from kcap.tools.series import Series
from kcap.tools.status import Output

if TYPE_CHECKING:
    from kcap.model.side import Loss
    from kcap.model.stream import LiveSource, Sink
    from kcap.readers.live.guard.channel import Channel, Serve
    from kcap.readers.live.selection import Selection
    from kcap.replay.pipeline import Stage, Summary
    from kcap.tools.artifact_options import Asked as Artifacts
    from kcap.tools.control import Control
    from kcap.tools.recorded import Recorded, Rotation


class Wanted:
    """The stages that leave out what is not wanted, and what they have left out.

    Args:
        selection: What is wanted.
        artifacts: What is kept beside events, None for nothing.
    """

    def __init__(self, selection: Selection, artifacts: Artifacts | None = None) -> None:
        self._wanted = selection.asked
        where = selection.where
        found = Selected.around(selection, [Matching(where, storing=True)] if where else [])
        selecting = Selecting(found, limit=None, state=True, unchanged=True) if found else None
        self._selecting = selecting
        self._told: Counter[str | None] = Counter()
        self.stages: list[Stage] = [] if self._selecting is None else [self._selecting]
        """The stages, for a pipeline."""
        self.beside: WithArtifacts | None = None
        """What keeps artifacts, where any are wanted."""
        if artifacts is not None:
            self.beside = WithArtifacts(
                self.stages,
                _of_packets(artifacts),
                alone=artifacts.alone,
                tracked=selection.scope.tracks and where is None,
            )
            self.stages = [self.beside]

    def left_out(self) -> list[Loss]:
        """How many events were left out since this was asked last."""
        found = [] if self.beside is None else self.beside.left_out()
        if self._selecting is None:
            return found
        dropped = Counter(self._selecting.dropped)
        fresh, self._told = dropped - self._told, dropped
        why = f"left out while recording, not: {self._wanted}"
        return [*found, *(replace(loss, reason=why) for loss in left_out(fresh, whole=True))]


def _of_packets(artifacts: Artifacts) -> list[Stage] | None:
    """What packets must pass beside what events must; None where all are kept."""
    network = artifacts.wanted.network
    if network is None or not network.filtered:
        return None
    chosen = artifacts.packets
    return [] if chosen is None else [Matching(chosen, storing=True)]


class Place(NamedTuple):
    """Where a recording goes."""

    target: str
    """As the user named it."""
    force: bool
    durable: durability.Durability
    rotation: Rotation | Asked | None
    """When it goes on in another file, or what is held and written; None to stay in one."""
    writing: Mapping[str, Any]
    """More options for the writer of a file."""


class Opened(NamedTuple):
    """An output that was opened."""

    sink: Recorded
    outputs: PartedOutputs | None = None
    """Who makes further files; None where there are none."""


def opened(
    place: Place,
    stack: contextlib.ExitStack,
    state: State,
    wanted: Wanted,
    again: Callable[[], object] = lambda: None,
) -> Opened:
    """Open where a recording goes.

    Args:
        place: Where.
        stack: Completes the files, or leaves them as they have to be left.
        state: The pipeline's state.
        wanted: Says at the end of each file what was left out.
        again: Asks for artifacts that were given before, when they come again.

    Returns:
        The sink.

    Raises:
        KcapError: It can't be written there.
    """
    if place.rotation is not None:
        return _in_series(place, place.rotation, stack, state, wanted, again)
    path, durable = place.target, place.durable
    stream = stack.enter_context(output.opened(path, force=place.force, buffered=False))
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


def _in_series(
    place: Place,
    how: Rotation | Asked,
    stack: contextlib.ExitStack,
    state: State,
    wanted: Wanted,
    again: Callable[[], object],
) -> Opened:
    """A recording in several files."""
    template, existing = rotation.parts_of(place.target)
    former = [] if how.keep is None else [name for _, name in existing]
    outputs = PartedOutputs(LocalOutputs(synced=place.durable.synced), template.names, former)
    series = Series(template, existing, outputs, how.keep)
    now_s = time.monotonic()
    if isinstance(how, Asked):
        ring = Ring(
            series,
            state,
            how,
            place.durable,
            now_s,
            writing=place.writing,
            ending=wanted.left_out,
            told=_tell,
            again=again,
        )
        return Opened(ring, outputs)
    sink = Rotated(
        series,
        state,
        how,
        place.durable,
        now_s,
        writing=place.writing,
        ending=wanted.left_out,
        told=_tell,
        again=again,
    )
    return Opened(stack.enter_context(sink), outputs)


def _tell(name: str, writer: CaptureWriter) -> None:
    """Say that a file is complete."""
    size = common.size_text(writer.bytes_written)
    logs.tell(f"kcap: sha256 {writer.file_hash}, {size}: {printable(name)}")


class Limits(NamedTuple):
    """When a recording ends by itself; None for never."""

    duration_s: float | None = None
    """Seconds from the first batch on."""
    events: int | None = None
    max_bytes: int | None = None


class Asking(TypedDict):
    """Arguments of `apart.run`."""

    helpers: Collection[int]
    answers: Mapping[str, Serve]
    keep: Collection[str]


class Recording:
    """A recording that is put together with all rights, and then done without.

    Args:
        source: What is recorded; stopped at the end, so that what it has by then goes out.
        selection: What is wanted of it.
        place: Where it goes.
        stack: Undoes what was begun.
        limits: When it ends by itself.
        also: Who else gets the events: sinks, and what becomes of events before these get them.
        on_alert: Rules whose alerts make a ring write.
        artifacts: What is kept beside events, None for nothing.

    Raises:
        KcapError: It can't be written there.
    """

    def __init__(
        self,
        source: LiveSource,
        selection: Selection,
        place: Place,
        stack: contextlib.ExitStack,
        limits: Limits,
        also: outlets.Outlets,
        on_alert: Sequence[str] = (),
        artifacts: Artifacts | None = None,
    ) -> None:
        state, wanted = State(), Wanted(selection, artifacts)
        self._beside = wanted.beside
        self._lays_out = artifacts is not None and artifacts.folder is not None
        self._source = source
        self._max_size = limits.max_bytes
        self._keep = None if place.rotation is None else place.rotation.keep
        self._manager = stack.enter_context(notify.Notifier())
        asked = stack.enter_context(control.opened())
        self._sink, self._outputs = opened(
            place, stack, state, wanted, getattr(source, "again", lambda: None)
        )
        stack.enter_context(live.stopping(source, acts=self._acts(asked)))
        self._deadline = live.Deadline(source, limits.duration_s)
        self._signs = notify.Signs(self._manager, self._sign)
        self._attendant = attend.Attendant(source.info, self._tell, asked, also.status)
        self._progress = Progress(lambda: self._sink.expected_bytes)
        self._begun = False
        self._also = also
        # The capture has what was seen; what others get may leave things out, and has alerts.
        kept = WithoutAlerts(self._sink) if also.taps else self._sink
        sinks: list[Sink] = [kept, self._attendant, outlets.Aside(also)]
        if isinstance(self._sink, Ring) and on_alert:
            sinks.append(alerting.OnAlert(on_alert, self._sink.trigger))
        self._pipeline = Pipeline(
            source,
            sinks,
            state=state,
            resolve=True,
            taps=also.taps,
            stages=wanted.stages,
            limit=limits.events,
            after_batch=self._check,
        )

    def asked(self) -> Asking:
        """What the process with the rights answers while another one does `work`, and by which."""
        answers = self._manager.answers()
        if self._outputs is not None:
            answers = {**answers, **self._outputs.answers()}
        keep = tuple(FILES) if self._outputs is not None or self._lays_out else ()
        return {"answers": answers, "keep": keep, "helpers": self._also.pids}

    @property
    def files(self) -> list[str]:
        """The files that there are: those that it made, and that were not removed since."""
        return [self._sink.place] if self._outputs is None else self._outputs.made

    def work(self, channel: Channel | None) -> int:
        """Record until the source ends.

        Args:
            channel: Leads to the process with the rights; None in that.

        Returns:
            The exit code.
        """
        if channel is not None:
            self._manager.through(channel)
            if self._outputs is not None:
                self._outputs.through(channel)
        with self._progress, contextlib.closing(self._attendant.begin()):
            summary = self._pipeline.run()
        self._manager.stopping(f"ended with exit code {summary.exit_code}")
        report(summary, self._sink, self._keep, self._beside)
        self._also.report()
        common.report_losses(summary.losses, self._source.info.file)
        return summary.exit_code

    def _acts(self, asked: Control | None) -> dict[str, Callable[[], object]]:
        """What signals mean beside the end; whoever asks at the control socket gets the same."""
        sink = self._sink
        if isinstance(sink, Rotated):
            if asked is not None:
                asked.on("rotate", lambda: _done(sink.rotate, sink))
            return {"SIGHUP": sink.rotate}
        if isinstance(sink, Ring):
            if asked is not None:
                asked.on("trigger", lambda: _done(lambda: sink.trigger("control socket"), sink))
            return {"SIGUSR1": lambda: sink.trigger("SIGUSR1")}
        return {}

    def _tell(self, losses: Sequence[Loss]) -> None:
        """Take into the capture what was done to its recording."""
        self._sink.write(EMPTY.with_before(losses))

    def _sign(self) -> str:
        """How it does, in a line for the service manager."""
        size = common.size_text(self._sink.expected_bytes)
        return f"recording: {size} in {self._sink.place}"

    def _check(self, summary: Summary) -> bool:
        """After each batch: attend to it, commit in time, stop the source at a limit."""
        self._attendant.check(summary, status_of(self._sink, self._beside))
        if not self._begun:
            self._begun = True
            path = printable(self._sink.place)
            logs.tell(f"kcap: recording with {self._source.info.format}: {path}")
        now_s = time.monotonic()
        self._sink.check(now_s)
        self._deadline.check(now_s)
        self._signs.check(now_s)
        large = self._max_size is not None and self._sink.expected_bytes >= self._max_size
        if large or self._sink.full:
            self._source.stop()
        return self._progress.update(summary)


def _done(act: Callable[[], object], sink: Recorded) -> dict[str, str]:
    """Do what was asked for at the control socket."""
    act()
    return {"after": sink.names[-1] if sink.names else ""}


def status_of(sink: Recorded, beside: WithArtifacts | None = None) -> Output:
    """Where a recording stands.

    Args:
        sink: Where it goes.
        beside: What keeps artifacts, where any are wanted.

    Returns:
        What the attendant watches, and the control socket tells.
    """
    path, writer = sink.place, sink.writer
    fd = None
    if writer is not None:
        with contextlib.suppress(OSError):  # it is in memory
            fd = writer.fileno()
    return Output(
        path if path == "-" or writer is None else str(Path(path).absolute()),
        sink.bytes_written,
        fd,
        len(sink.names),
        0 if writer is None else writer.waiting_rows,
        *((0, 0) if beside is None else (beside.artifacts, beside.artifact_bytes)),
    )


def report(
    summary: Summary, sink: Recorded, keep: int | None, beside: WithArtifacts | None = None
) -> None:
    """Say what was recorded.

    Args:
        summary: What the run did.
        sink: Where it went.
        keep: Files of it that are still there at most; None for all.
        beside: What kept artifacts, where any were wanted.
    """
    size = common.size_text(sink.expected_bytes)
    names: Sequence[str] = sink.names[-(keep or 0) :] or ["no file"]
    place = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names):,} files)"
    if isinstance(sink, OneFile):
        logs.tell(f"kcap: sha256 {sink.writer.file_hash}")
    kept = "" if beside is None else f", {common.counted(beside.artifacts, 'artifact')}"
    logs.tell(
        f"kcap: {common.counted(summary.events_out, 'event')}{kept}, {size},"
        f" {sum(summary.lost().values()):,} lost, exit code {summary.exit_code}:"
        f" {printable(place)}"
    )
