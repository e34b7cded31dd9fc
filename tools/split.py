"""``kcap split``: a capture in parts."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import click

from kcap.errors import OutputError
from kcap.tools import common, logs
from kcap.tools.cli import Verb
from kcap.tools.progress import Progress
from kcap.tools.spool import Input

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.side import Snapshot
    from kcap.model.stream import Source
    from kcap.replay.artifacts import Artifacts
    from kcap.replay.pipeline import Summary
    from kcap.state import State
    from kcap.tools.part_files import Parts
    from kcap.tools.parts import Rule, Template

_SHOWN = 3


@click.command(
    "split",
    cls=Verb,
    examples=(
        "kcap split --events 1000000 host.kcap -o 'host-{n:03}.kcap'",
        "kcap split --every 1h host.kcap -o 'host-{n}.kcap'",
        "kcap split --by container_id host.kcap -o '{value}.kcap'",
        "kcap record -o - | kcap split - --bytes 100M -o 'live-{n:05}.kcap'",
    ),
)
@click.argument("capture")
@click.option(
    "-o",
    "--output",
    "target",
    required=True,
    help="The parts' names: {n} or {n:03} for the number, {value} for that of --by.",
)
@click.option("--events", type=click.IntRange(1), help="Parts of this many events.")
@click.option("--bytes", "size", type=common.Size(), help="Parts of this size, or a little more.")
@click.option(
    "--every",
    type=common.Duration(),
    help="Parts of this event time, from the first event on: 500ms, 10s, 5m, 2h.",
)
@click.option("--parts", "count", type=click.IntRange(1), help="This many parts, equally large.")
@click.option("--by", help="A part for each value of this column, or for each date.")
@click.option("--force", is_flag=True, help="Replace existing output files.")
@common.chunk_options
@common.lenient_option
@common.raw_pairs_option
@click.pass_context
def command(
    ctx: click.Context,
    capture: str,
    target: str,
    events: int | None,
    size: int | None,
    every: float | None,
    count: int | None,
    by: str | None,
    force: bool,
    chunk_events: int,
    level: int,
    lenient: bool,
    raw_pairs: bool,
) -> None:
    """Divide CAPTURE into parts, each of which is a complete capture.

    A part begins with the state at its start: which processes there are, and what they have open.
    Events keep their values and identity, so 'kcap merge' makes the whole again, with the same
    content hash; of parts --by a value where no event came late.

    Time is that of the events: the greatest so far counts, and a part without events has no file.
    Blobs go along with their event, those of no event with the first part. Those of a pipe stay
    behind and are counted, exit code 3, but for --by and --parts, which keep a pipe in a temporary
    file first.
    """
    from kcap.tools.parts import Template
    from kcap.writers import partition

    if [events, size, every, count, by].count(None) != 4:  # noqa: PLR2004
        raise click.UsageError("give one of --events, --bytes, --every, --parts and --by")
    if size == 0 or every == 0:
        raise click.UsageError("a part can't be of no size")
    if by is not None:
        partition.keys([by])
    template = Template(target, by=by is not None)
    old = [] if by is not None else template.existing()
    _check_free(capture, old, force=force)
    asked = _Asked(events, size, every, count)
    writing = {"chunk_rows": chunk_events, "level": level, "created_ns": time.time_ns()}
    reading = {"lenient": lenient, "raw_pairs": raw_pairs, "resolve": False}
    common.save_memory()
    with contextlib.ExitStack() as stack:
        source = Input(capture, stack, keep=count is not None or by is not None)
        run = _Run(source, reading, template, force=force, writing=writing)
        summary = run.in_a_row(asked) if by is None else run.by_value(by)
    _report(summary, run.names, old)
    common.finish(ctx, summary, capture)


def _check_free(capture: str, found: Sequence[Path], *, force: bool) -> None:
    """Refuse to write over what is there, and over the input in any case."""
    for path in found:
        with contextlib.suppress(OSError):  # opening the input says what is wrong
            if path.samefile(capture):
                raise OutputError("a part would replace the input", file=str(path))
    if found and not force:
        hint = "give another name, or --force to replace it"
        raise OutputError("the output exists already", file=str(found[0]), hint=hint)


class _Asked(NamedTuple):
    """Where parts begin that follow one another: one of these."""

    events: int | None
    size: int | None
    every: float | None
    parts: int | None


def _events(source: Input, reading: dict[str, Any]) -> int:
    """How many events an input has.

    Args:
        source: The input.
        reading: How it is read.

    Returns:
        Their number: of a capture what its index says, of any other input they are counted.
    """
    from kcap.format.reader import CaptureReader
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.stages import EventsOnly

    with contextlib.closing(source.open(**reading)) as given:
        index = given.index() if isinstance(given, CaptureReader) else None
        if index is not None:
            return int(index.totals["events"])
        return Pipeline(given, [], stages=[EventsOnly()]).run().events_out


class _Run:
    """Writes the parts of a capture.

    Args:
        source: The capture.
        reading: How it is read.
        template: The parts' names.
        force: Replace existing files.
        writing: How the parts are written.
    """

    def __init__(
        self,
        source: Input,
        reading: dict[str, Any],
        template: Template,
        *,
        force: bool,
        writing: dict[str, Any],
    ) -> None:
        self.names: list[str] = []
        """The parts, in order of their number."""
        self._source = source
        self._reading = reading
        self._template = template
        self._force = force
        self._writing = writing

    def in_a_row(self, asked: _Asked) -> Summary:
        """Write parts that follow one another.

        Args:
            asked: Where each begins.

        Returns:
            What was done.
        """
        from kcap.replay.resolved import OWN
        from kcap.state import State
        from kcap.tools.part_files import Parts

        total = _events(self._source, self._reading) if asked.parts else 0
        state = State()
        with contextlib.closing(self._source.open(**self._reading)) as source:
            # A recording has states between its events; of any other input they are made.
            snapshot = None if source.info.format in OWN else state.snapshot
            make = functools.partial(self._writer, snapshot=snapshot)
            with Parts(self._template, make, self._blobs(source), force=self._force) as parts:
                summary = self._through(source, parts, _rule(asked, total, parts), state)
        self.names = parts.names
        return summary

    def by_value(self, key: str) -> Summary:
        """Write a part for each value of a column.

        What a writer holds until it is closed bounds how many there can be at a time, so the
        input is read once to see what there is, and then once for each group of values.

        Args:
            key: The column.

        Returns:
            What was done.
        """
        from kcap.replay.pipeline import Pipeline
        from kcap.replay.resolved import OWN
        from kcap.state import State
        from kcap.tools.part_files import PartsByValue, Survey, spelled
        from kcap.tools.parts import EachValue

        survey = Survey(key)
        with contextlib.closing(self._source.open(**self._reading)) as source:
            foreign = source.info.format not in OWN
            state = State() if foreign else None
            summary = Pipeline(source, [survey], state=state, resolve=foreign).run()
        groups = survey.groups()
        names = [self._template.name(n, spelled(v)) for g in groups for v, n in g.items()]
        found = [path for path in map(Path, names) if path.exists()]
        _check_free(self._source.name, found, force=self._force)
        for group in groups:
            with contextlib.closing(self._source.open(**self._reading)) as source:
                parts = PartsByValue(
                    self._template,
                    self._writer,
                    self._blobs(source),
                    key=key,
                    numbers=group,
                    force=self._force,
                )
                with parts:
                    self._through(source, parts, EachValue(key, group), State())
            summary.losses += parts.losses
            self.names += parts.names
        return summary

    def _through(self, source: Source, parts: Parts, rule: Rule, state: State) -> Summary:
        """Send the events to their parts."""
        from kcap.replay.pipeline import Pipeline
        from kcap.replay.resolved import OWN
        from kcap.tools.parts import Divided

        with Progress() as progress:
            return Pipeline(
                Divided(source, state, rule, parts.begin),
                [parts],
                state=state,
                resolve=source.info.format not in OWN,
                after_batch=progress.update,
            ).run()

    def _writer(
        self, stream: BinaryIO, name: str, snapshot: Callable[[], Snapshot] | None = None
    ) -> CaptureWriter:
        from kcap.format.writer import CaptureWriter

        return CaptureWriter(stream, file=name, snapshot=snapshot, **self._writing)

    def _blobs(self, source: Source) -> Artifacts:
        from kcap.replay.artifacts import Artifacts

        return Artifacts([source], unnamed=True)


def _rule(asked: _Asked, total: int, parts: Parts) -> Rule:
    """Where parts begin."""
    from kcap.tools.parts import EveryBytes, EveryEvents, EveryNs

    if asked.events is not None:
        return EveryEvents(itertools.count(asked.events, asked.events))
    if asked.parts is not None:
        ends = {total * i // asked.parts for i in range(1, asked.parts)} - {0, total}
        return EveryEvents(iter(sorted(ends)))
    if asked.size is not None:
        return EveryBytes(asked.size, lambda: parts.writer)
    assert asked.every is not None
    return EveryNs(max(1, round(asked.every * 1e9)))


def _report(summary: Summary, parts: Sequence[str], old: Sequence[Path]) -> None:
    """Say which parts there are, and which files of such names are no parts of this capture."""
    from kcap.model.text import printable

    names = [printable(name) for name in parts]
    shown = names if len(names) <= _SHOWN else [names[0], "…", names[-1]]
    what = f"{common.counted(len(names), 'part')}, {common.counted(summary.events_out, 'event')}"
    logs.tell(f"kcap: {what}: {' '.join(shown)}")
    stale = [str(path) for path in old if str(path) not in {str(Path(n)) for n in parts}]
    if stale:
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        logs.tell(f"kcap: warning: from another time: {printable(stale[0])}{more}", level="warning")
