"""``kcap filter``: a copy of a capture with some of its events."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, Unpack

import click

from kcap.errors import KcapError
from kcap.tools import common, logs, output
from kcap.tools.cli import Verb
from kcap.tools.inputs import position
from kcap.tools.progress import Progress
from kcap.tools.spool import Input

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source
    from kcap.replay.needed import Needed
    from kcap.replay.pipeline import Summary
    from kcap.replay.survivors import Selecting

NEEDED = "needed"
ALL = "all"
NONE = "none"


class Options(TypedDict):
    """Which events are wanted, and how the input is read."""

    where: Filter | None
    start: int | None
    end: int | None
    limit: int | None
    state: str
    lenient: bool
    raw_pairs: bool


@click.command(
    "filter",
    cls=Verb,
    examples=(
        "kcap filter -w \"ps.name = 'curl'\" host.kcap -o curl.kcap",
        "kcap filter -w \"not file.path startswith '/home/'\" --state none host.kcap -o out.kcap",
        "kcap filter --start 2026-11-20T12:00:00Z -n 1000 host.kcap -o noon.kcap",
    ),
)
@click.argument("capture")
@click.option("-o", "--output", "target", required=True, help="The copy; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option(
    "--state",
    type=click.Choice([NEEDED, ALL, NONE]),
    default=NEEDED,
    show_default=True,
    help="What the copy says of processes beside the events: needed: those that its events refer "
    "to and their ancestors; all: every state record of the input; none: nothing.",
)
@common.capture_options
@common.input_options
@click.pass_context
def command(
    ctx: click.Context,
    capture: str,
    target: str,
    force: bool,
    chunk_events: int,
    level: int,
    canonical: bool,
    **asked: Unpack[Options],
) -> None:
    """Copy the events of CAPTURE that are wanted, and nothing else, to a .kcap file.

    Every event keeps all of its values and its identity; who did it is said in the copy as in the
    input. No value of an event that was left out is in the copy: not in its dictionaries, its
    index, its state or its blobs. How many were left out is: 'kcap info' shows it. What was lost
    before is still counted as lost.

    With --state needed a process is as it was just before the first event that refers to it, and
    without its environment, threads, descriptors and handles; for this the input is read twice. A
    pipe is kept in a temporary file first. Blobs go along with their event.
    """
    from kcap.model.text import printable

    path = output.capture_path(target)
    common.save_memory()
    with contextlib.ExitStack() as stack:
        source = Input(capture, stack)
        needed = _needed(source, asked) if asked["state"] == NEEDED else None
        with output.opened(path, force=force) as stream:
            writing = {"file": path, "level": level, "chunk_rows": chunk_events}
            writing |= {"canonical": canonical, "created_ns": 0 if canonical else time.time_ns()}
            summary, sink, dropped = _copied(source, asked, needed, stream, writing)
    events = common.counted(summary.events_out, "event")
    if dropped is not None:
        events += f", {dropped:,} left out"
    size = common.size_text(sink.bytes_written)
    logs.tell(f"kcap: {events}, {size}: {printable(path)}")
    common.finish(ctx, summary, capture)


def _needed(source: Input, asked: Options) -> Needed:
    """Read the input once to see which processes the wanted events refer to.

    Args:
        source: The input.
        asked: What is wanted.

    Returns:
        The processes.
    """
    from kcap.replay.needed import Needed
    from kcap.replay.pipeline import Pipeline

    needed = Needed()
    streams: list[BinaryIO] = []
    with contextlib.closing(_opened(source, asked, streams)) as events:
        selecting = _selecting(events, asked)
        # What ends this pass ends the next one at the same place, with all before it in the copy.
        with Progress(read=lambda: position(streams)) as progress, contextlib.suppress(KcapError):
            Pipeline(
                events,
                [needed],
                state=needed.state,
                stages=[needed, selecting],
                after_batch=lambda summary: progress.update(summary) or selecting.done,
            ).run()
    return needed


def _copied(
    source: Input,
    asked: Options,
    needed: Needed | None,
    stream: BinaryIO,
    writing: dict[str, Any],
) -> tuple[Summary, CaptureWriter, int | None]:
    """Write the copy.

    Args:
        source: The input.
        asked: What is wanted of it.
        needed: The processes that the copy describes.
        stream: Where the copy goes.
        writing: How it is written.

    Returns:
        What was done, the closed writer, and how many events were left out; None where the input
        was not read to its end.
    """
    from kcap.format.writer import CaptureWriter
    from kcap.model.side import Loss
    from kcap.replay.artifacts import Artifacts
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.rebatch import Reproducible
    from kcap.replay.survivors import Survivors, left_out

    streams: list[BinaryIO] = []
    everything = asked["state"] == ALL
    with contextlib.closing(_opened(source, asked, streams)) as events:
        selecting = _selecting(events, asked)
        writer = CaptureWriter(stream, **writing)
        lost = []
        if needed is not None and needed.left_out:
            what = f"{common.counted(needed.left_out, 'process')} found no room in the state"
            lost.append(Loss("skipped", None, what))
        sink = Survivors(
            writer,
            Artifacts([events], unnamed=everything),
            snapshots=() if needed is None else needed.snapshots(),
            states=everything,
            rows=writing["chunk_rows"] if writing["canonical"] else None,
            ending=lambda: [*lost, *left_out(selecting.dropped, whole=not selecting.done)],
        )
        given = Reproducible(events) if writing["canonical"] else events
        with Progress(read=lambda: position(streams)) as progress:
            summary = Pipeline(
                given,
                [sink],
                stages=[selecting],
                after_batch=lambda summary: (
                    progress.update(summary) or (selecting.done and not everything)
                ),
            ).run()
    summary.losses += lost
    return summary, writer, None if selecting.done else selecting.dropped.total()


def _opened(source: Input, asked: Options, streams: list[BinaryIO]) -> Source:
    """Open the input for a pass over it."""
    return source.open(
        lenient=asked["lenient"], raw_pairs=asked["raw_pairs"], opened=streams.append
    )


def _selecting(source: Source, asked: Options) -> Selecting:
    """What selects the wanted events."""
    from kcap.replay.chosen import chosen
    from kcap.replay.survivors import Selecting

    _, stages = chosen(
        source,
        start_ns=asked["start"],
        end_ns=asked["end"],
        where=asked["where"],
        everything=True,
        storing=True,
    )
    return Selecting(stages, limit=asked["limit"], state=asked["state"] == ALL)
