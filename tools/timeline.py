"""``kcap timeline``: when things happened, as a histogram in the terminal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from kcap.tools import common
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Stage
    from kcap.tools.histogram import Bins, Histogram

WIDTH: Final = 80
"""Columns of an output that is no terminal."""

_BARS: Final = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS: Final = " .:-=+*%#"
_HEIGHT: Final = 8
_LABEL: Final = 20
_MARGIN: Final = 12
_BINS_MAX: Final = 10_000
_LOSSES_SHOWN: Final = 5


@click.command(
    "timeline",
    cls=Verb,
    examples=(
        "kcap timeline host.kcap",
        "kcap timeline --by event --top 5 host.kcap",
        "kcap timeline -w \"evt.category = 'network'\" host.kcap",
        "kcap timeline --start 2026-11-20T12:00:00Z --end 2026-11-20T12:05:00Z --bins 300 --json f",
    ),
)
@click.argument("capture")
@click.option("--by", "column", help="A row for each value of this column: event, category, pid …")
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="With --by: so many values, the most frequent ones; the rest is one row.",
)
@click.option(
    "--bins",
    type=click.IntRange(1, _BINS_MAX),
    help="Intervals at most; default: what the width has room for.",
)
@common.where_option
@click.option("--start", type=common.EventTime(), help="Only events at or after this time.")
@click.option("--end", type=common.EventTime(), help="Only events before this time.")
@click.option("--all", "everything", is_flag=True, help="Draw events of 1970 or 2077 too.")
@click.option("--json", "as_json", is_flag=True, help="The numbers as JSON.")
@click.option("--ascii", "plain", is_flag=True, help="Bars without Unicode.")
@common.lenient_option
@click.pass_context
def command(
    ctx: click.Context,
    capture: str,
    column: str | None,
    top: int,
    bins: int | None,
    where: Filter | None,
    start: int | None,
    end: int | None,
    everything: bool,
    as_json: bool,
    plain: bool,
    lenient: bool,
) -> None:
    """Show how many events CAPTURE has over time, and when some were lost.

    All times are UTC. The intervals are of one length. A few events that are ages away from all
    others are not drawn but said, unless --all asks for them. Losses are marked with '!' at the
    time they fall into, those that were recorded and those of this reading.
    """
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.stages import EventsOnly
    from kcap.tools.histogram import Histogram

    if column is not None:
        _check(column)
    width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
    margin = _MARGIN if column is None else _LABEL + _MARGIN
    most = bins or max(10, width - margin)
    histogram = Histogram(column, start, end)
    with opened_source(capture, lenient=lenient) as source:
        read, stages = _narrowed(source, column, start, end, where)
        summary = Pipeline(read, [histogram], stages=[*stages, EventsOnly()]).run()
    found = histogram.bins(most, None if column is None else top, everything=everything)
    if as_json:
        click.echo(json.dumps(_as_json(capture, histogram, found, column), indent=1))
    else:
        bars = _BARS if not plain and _can_show(_BARS) else _PLAIN_BARS
        click.echo("\n".join(_as_text(capture, histogram, found, column, bars)))
    common.finish(ctx, summary, capture)


def _check(column: str) -> None:
    """Refuse a column that is none, or whose values are no single values."""
    from kcap.model import catalogue

    cls = catalogue.class_of(column)
    if cls is None:
        raise click.UsageError(f"no column is called {column!r}; see 'kcap docs columns'")
    if cls.child is not None:
        raise click.UsageError(f"{column} holds lists; give a column of single values")


def _narrowed(
    source: Source, column: str | None, start: int | None, end: int | None, where: Filter | None
) -> tuple[Source, list[Stage]]:
    """Read just the columns and chunks that count, where no loss has to be found between them."""
    from kcap.format.reader import CaptureReader
    from kcap.replay.chosen import chosen

    footer = source.footer if isinstance(source, CaptureReader) else None
    whole = footer is None or bool(footer.totals["loss"])
    columns = ("ts", "kind") if column is None else ("ts", "kind", column)
    return chosen(
        source, columns=columns, start_ns=start, end_ns=end, where=where, everything=whole
    )


def _can_show(bars: str) -> bool:
    try:
        bars.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _as_text(
    capture: str, histogram: Histogram, bins: Bins | None, column: str | None, bars: str
) -> Iterator[str]:
    from kcap.model.text import printable

    if bins is None:
        yield f"{printable(capture)}: no events to draw"
        yield from _notes(histogram, bins)
        return
    end_ns = bins.start_ns + bins.width_ns * bins.count
    yield (
        f"{printable(capture)}: {common.counted(histogram.events, 'event')}, "
        f"{common.utc(bins.start_ns)[:23]} + "
        f"{common.duration_text(end_ns - bins.start_ns)}, "
        f"{common.duration_text(bins.width_ns)} a column"
    )
    if column is None:
        yield from _chart(bins.totals, bars)
        indent = _MARGIN
    else:
        for name, counts in bins.counts.items():
            label = _fitting(printable(name), _LABEL)
            yield f"{label:<{_LABEL}} {sum(counts):>{_MARGIN - 2},} {_row(counts, bars)}"
        indent = _LABEL + _MARGIN
    marks = {at for placed in histogram.placed for at in bins.place(placed)}
    if marks:
        line = "".join("!" if at in marks else " " for at in range(bins.count))
        yield f"{'lost':>{indent - 2}}  {line}".rstrip()
    yield from _axis(bins, indent)
    yield from _notes(histogram, bins)


def _chart(counts: Sequence[int], bars: str) -> Iterator[str]:
    """Columns of the height of their counts."""
    most = max(counts)
    steps = _HEIGHT * (len(bars) - 1)
    # Anything that is there is seen, however little it is.
    heights = [-(-count * steps // most) for count in counts]
    per_row = len(bars) - 1
    for row in range(_HEIGHT - 1, -1, -1):
        cells = "".join(bars[min(max(h - row * per_row, 0), per_row)] for h in heights)
        value = most * (row + 1) // _HEIGHT
        label = f"{value:,}" if row in {_HEIGHT - 1, _HEIGHT // 2 - 1} else ""
        yield f"{label:>{_MARGIN - 2}}  {cells}".rstrip()


def _row(counts: Sequence[int], bars: str) -> str:
    """One line, each value's most frequent interval at full height."""
    most = max(*counts, 1)
    return "".join(bars[-(-count * (len(bars) - 1) // most)] for count in counts).rstrip()


def _axis(bins: Bins, indent: int) -> Iterator[str]:
    """When the first and the last column begin, if the width has room for both."""
    last_ns = bins.start_ns + bins.width_ns * (bins.count - 1)
    first, last = (common.utc(t) for t in (bins.start_ns, last_ns))
    digits = slice(11, 23) if first[:10] == last[:10] else slice(0, 19)
    first, last = first[digits], last[digits]
    room = bins.count - len(first) - len(last)
    yield f"{'':{indent}}{first}{'':{room}}{last}" if room > 0 else f"{'':{indent}}{first}"


def _notes(histogram: Histogram, bins: Bins | None) -> Iterator[str]:
    """What the picture does not show."""
    from kcap.model.text import printable

    if bins is not None and (bins.before or bins.after):
        yield (
            f"not drawn: {common.counted(bins.before, 'event')} before and {bins.after:,} after "
            "this time, very far away; --all draws them"
        )
    if histogram.timeless:
        yield f"not drawn: {common.counted(histogram.timeless, 'event')} without a time"
    for placed in histogram.placed[:_LOSSES_SHOWN]:
        when = "" if placed.start_ns is None else f"{common.utc(placed.start_ns)[:23]} "
        yield f"! {when}{printable(common.describe(placed.loss))}"
    if len(histogram.placed) > _LOSSES_SHOWN:
        yield f"! and {len(histogram.placed) - _LOSSES_SHOWN:,} more; --json has all"


def _fitting(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}~"


def _as_json(
    capture: str, histogram: Histogram, bins: Bins | None, column: str | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "file": capture,
        "events": histogram.events,
        "timeless": histogram.timeless,
        "by": column,
        "start": None,
        "start_ns": None,
        "bin_ns": None,
        "counts": [],
        "before": 0,
        "after": 0,
        "losses": [],
    }
    if bins is not None:
        found |= {
            "start": common.utc(bins.start_ns),
            "start_ns": bins.start_ns,
            "bin_ns": bins.width_ns,
            "counts": bins.totals,
            "before": bins.before,
            "after": bins.after,
        }
        if column is not None:
            found["series"] = [
                {"value": name, "events": sum(counts), "counts": counts}
                for name, counts in bins.counts.items()
            ]
    for placed in histogram.placed:
        entry = {**placed.loss.to_json(), "recorded": placed.loss.recorded}
        entry |= {"start_ns": placed.start_ns, "end_ns": placed.end_ns}
        found["losses"].append(entry)
    return found
