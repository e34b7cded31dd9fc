"""``kcap split``: a capture in parts."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import click

from kcap.errors import OutputError
from kcap.tools import common
from kcap.tools.cli import Verb
from kcap.tools.progress import Progress
from kcap.tools.spool import Input

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Summary
    from kcap.tools.parts import Parts, Rule, Template

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
    content hash.

    Time is that of the events: the greatest so far counts, and a part without events has no file.
    Blobs go along with their event, those of no event with the first part; of a pipe none do.
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
    old = template.existing()
    if old and not force:
        hint = "give another name, or --force to replace it"
        raise OutputError("the output exists already", file=str(old[0]), hint=hint)
    asked = _Asked(events, size, every, count, by)
    writing = {"chunk_rows": chunk_events, "level": level, "created_ns": time.time_ns()}
    with contextlib.ExitStack() as stack:
        source = Input(capture, stack, keep=count is not None)
        reading: dict[str, Any] = {"lenient": lenient, "raw_pairs": raw_pairs, "resolve": False}
        total = _events(source, reading) if count is not None else 0
        given = stack.enter_context(contextlib.closing(source.open(**reading)))
        summary, parts = _divided(given, template, asked, total, force=force, writing=writing)
    _report(summary, parts, old)
    common.finish(ctx, summary, capture)


class _Asked(NamedTuple):
    """By what the capture is divided: one of these."""

    events: int | None
    size: int | None
    every: float | None
    parts: int | None
    key: str | None


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


def _divided(
    source: Source,
    template: Template,
    asked: _Asked,
    total: int,
    *,
    force: bool,
    writing: dict[str, Any],
) -> tuple[Summary, Parts]:
    """Write the parts.

    Args:
        source: The capture.
        template: Their names.
        asked: By what it is divided.
        total: Events of the capture, where their number counts.
        force: Replace existing files.
        writing: How the parts are written.

    Returns:
        What was done, and the parts.
    """
    from kcap.format.writer import CaptureWriter
    from kcap.replay.artifacts import Artifacts
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.resolved import OWN
    from kcap.state import State
    from kcap.tools.parts import Divided, Parts

    state = State()
    foreign = source.info.format not in OWN
    # A recording has states between its events; where they are made they are a sequence's.
    snapshot = state.snapshot if foreign and asked.key is None else None

    def writer(stream: BinaryIO, name: str) -> CaptureWriter:
        return CaptureWriter(stream, file=name, snapshot=snapshot, **writing)

    artifacts = Artifacts([source], unnamed=True)
    with (
        Parts(template, writer, artifacts, key=asked.key, force=force) as parts,
        Progress() as progress,
    ):
        divided = Divided(source, state, _rule(asked, total, parts), parts.begin)
        summary = Pipeline(
            divided, [parts], state=state, resolve=foreign, after_batch=progress.update
        ).run()
    return summary, parts


def _rule(asked: _Asked, total: int, parts: Parts) -> Rule:
    """Where parts begin."""
    from kcap.tools.parts import EachValue, EveryBytes, EveryEvents, EveryNs

    if asked.events is not None:
        return EveryEvents(itertools.count(asked.events, asked.events))
    if asked.parts is not None:
        ends = {total * i // asked.parts for i in range(1, asked.parts)} - {0, total}
        return EveryEvents(iter(sorted(ends)))
    if asked.size is not None:
        return EveryBytes(asked.size, lambda: parts.writer)
    if asked.every is not None:
        return EveryNs(round(asked.every * 1e9))
    assert asked.key is not None
    return EachValue(asked.key)


def _report(summary: Summary, parts: Parts, old: Sequence[Path]) -> None:
    """Say which parts there are, and which files of such names are no parts of this capture."""
    from kcap.model.text import printable

    names = [printable(name) for name in parts.names]
    shown = names if len(names) <= _SHOWN else [names[0], "…", names[-1]]
    what = f"{common.counted(len(names), 'part')}, {common.counted(summary.events_out, 'event')}"
    click.echo(f"kcap: {what}: {' '.join(shown)}", err=True)
    stale = [str(path) for path in old if str(path) not in {str(Path(n)) for n in parts.names}]
    if stale:
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        click.echo(f"kcap: warning: from another time: {printable(stale[0])}{more}", err=True)
