"""``kcap merge``: several captures as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kcap.tools import common
from kcap.tools.cli import Verb
from kcap.tools.combine import Writing, combine

if TYPE_CHECKING:
    from kcap.replay.pipeline import Stage


@click.command(
    "merge",
    cls=Verb,
    examples=(
        "kcap merge web.kcap db.kcap -o all.kcap",
        "kcap merge part-*.kcap -o whole.kcap",
        "kcap merge --start 2026-11-20T12:00:00Z --end 2026-11-20T12:05:00Z *.kcap -o five.kcap",
    ),
)
@click.argument("captures", nargs=-1, required=True)
@click.option("-o", "--output", "target", required=True, help="The capture to write; - is stdout.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@common.capture_options
@common.lenient_option
@common.raw_pairs_option
@click.option("--start", type=common.EventTime(), help="Only events at or after this time.")
@click.option("--end", type=common.EventTime(), help="Only events before this time.")
@click.pass_context
def command(
    ctx: click.Context,
    captures: tuple[str, ...],
    target: str,
    force: bool,
    chunk_events: int,
    level: int,
    canonical: bool,
    lenient: bool,
    raw_pairs: bool,
    start: int | None,
    end: int | None,
) -> None:
    """Merge CAPTURES into one .kcap file, by time; the order in which they are named is no matter.

    Each keeps its own order: an event that is earlier than the one before it stays behind that
    one. Times are never adjusted. Hosts, losses, states and blobs are those of all.

    Parts of one recording or import are put together as it was, whatever the times of its events
    say: the content hash of what was split is that of its parts merged. Only where parts of
    values, or filtered copies, have events that came late may those end up elsewhere. A part from
    a pipe is placed by time. Blobs of a pipe stay behind, and are counted.

    Every format that kcap reads can be merged. A capture that can't be read ends the merge before
    anything is written; with --lenient it is passed over and named, exit code 3.
    """
    from kcap.replay.stages import TimeRange

    writing: Writing = {"chunk_events": chunk_events, "level": level, "canonical": canonical}
    stages: list[Stage] = []
    if start is not None or end is not None:
        stages.append(TimeRange(start, end))
    combine(
        ctx,
        captures,
        target,
        writing,
        force=force,
        lenient=lenient,
        raw_pairs=raw_pairs,
        stages=stages,
    )
