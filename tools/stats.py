"""``kcap stats``: how many events, by event, process, user, destination or any column."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, Unpack

import click

from kcap.errors import KcapError
from kcap.tools import common, stats_live
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source

_R = TypeVar("_R", "Group", "Others")

if TYPE_CHECKING:
    from kcap.counting import Group, Others
    from kcap.filter import Filter
    from kcap.keys import Key, Value
    from kcap.model.side import Loss
    from kcap.model.stream import Sink, Source

REPORT: Final = ("event", "process", "user", "destination")
"""The tables that are shown where none is asked for."""

_REPORT_TOP: Final = 10
_TOP: Final = 20
_CELL: Final = 80
_MISSING: Final = "-"


class _Asked(NamedTuple):
    """What is to be counted, of which events."""

    names: list[tuple[str, ...]]
    """What each table is by."""
    keys: list[list[Key]]
    start: int | None
    end: int | None
    where: Filter | None
    timed: bool
    """First and last times are wanted."""
    lenient: bool
    raw_pairs: bool


class _Found:
    """What was counted so far."""

    def __init__(self, asked: _Asked) -> None:
        from kcap.counting import Counts, Rate

        self.tables = [Counts(keys) for keys in asked.keys]
        self.total = Counts([])
        self.rate = Rate()
        self.losses: dict[str, list[Loss]] = {}


class _Table(NamedTuple):
    """A table as it is shown."""

    names: tuple[str, ...]
    groups: int
    rows: list[Group]
    others: Others | None


@click.command(
    "stats",
    cls=Verb,
    examples=(
        "kcap stats host.kcap",
        "kcap stats --by process,event -n 5 host.kcap",
        "kcap stats --by path -w \"ps.name = 'sshd'\" host.kcap",
        "kcap stats --by destination --json monday.kcap tuesday.kcap",
        "ssh host kcap record -o - --duration 10 | kcap stats --by path -",
        "kcap stats --live",
        "kcap stats --live 4711 --json --interval 10s | jq .events_per_s",
        "kcap stats --live --listen 9099",
    ),
)
@click.argument("captures", nargs=-1, metavar="CAPTURE...")
@click.option(
    "--by",
    "names",
    metavar="COLUMN,...",
    help="Count by these together; default: a report by event, process, user, destination, time.",
)
@click.option(
    "-n",
    "--top",
    type=click.IntRange(0),
    help="Rows of a table, 0 for all; with --live: end after so many readings."
    f"  [default: {_TOP}, in the report {_REPORT_TOP}, no end]",
)
@click.option(
    "--sort",
    type=click.Choice(["count", "name"]),
    help="Order of the rows.  [default: count; by an interval of time: name]",
)
@click.option("--times", is_flag=True, help="First and last time also with --by event.")
@common.where_option
@click.option("--start", type=common.EventTime(), help="Only events at or after this time.")
@click.option("--end", type=common.EventTime(), help="Only events before this time.")
@click.option("--json", "as_json", is_flag=True, help="The numbers as JSON.")
@stats_live.live_options
@common.lenient_option
@common.raw_pairs_option
@click.pass_context
def command(
    ctx: click.Context,
    captures: tuple[str, ...],
    names: str | None,
    top: int | None,
    sort: str | None,
    times: bool,
    where: Filter | None,
    start: int | None,
    end: int | None,
    as_json: bool,
    lenient: bool,
    raw_pairs: bool,
    **live: Unpack[stats_live.LiveOptions],
) -> None:
    """Count the events of all CAPTUREs together: how many, what share, when first and last.

    COLUMN is any column ('kcap docs columns'; arg_NAME for an argument), or one of the words
    process, user (its name, else uid), container, path, destination (address:port or path of the
    far end), dns (name asked for), second, minute, hour, day. Events without a value are counted
    as '-'. State records are not counted. Rows that are not shown add up in the last one.

    By event alone the index of a closed capture has the counts: no event is read, and no times are
    shown unless --times asks for them.

    With --live, CAPTURE is the process id of a recorder, or its control socket; none is needed
    where only one runs. It tells what it has recorded and lost, and what that costs.
    """
    if live["live"]:
        if names or sort or times or where or start is not None or end is not None:
            raise click.UsageError("--live counts nothing: it goes with -n, --interval and forms")
        stats_live.show(captures, top, live, as_json=as_json)
        return
    as_json = stats_live.without(live) or as_json
    if not captures:
        raise click.UsageError("a CAPTURE is missing; --live shows a recorder that runs")
    from kcap.counting import INTERVALS_MAX
    from kcap.keys import INTERVALS_NS

    chosen = None if names is None else _names(names)
    tables: list[tuple[str, ...]] = [chosen] if chosen else [(name,) for name in REPORT]
    keys = [_keys(table) for table in tables]
    timed = times or chosen != ("event",)
    asked = _Asked(tables, keys, start, end, where, timed, lenient, raw_pairs)
    found = _Found(asked)
    for capture in captures:
        _read(capture, asked, found)
    by_time = chosen is not None and all(name in INTERVALS_NS for name in chosen)
    by_value = sort == "name" or (sort is None and by_time)
    most = top if top is not None else _REPORT_TOP if chosen is None else _TOP
    shown = [
        _Table(table, counts.groups, *counts.ranked(most or None, by_value=by_value))
        for table, counts in zip(tables, found.tables, strict=True)
    ]
    rate = found.rate.intervals(most or INTERVALS_MAX) if chosen is None else None
    total = found.total.total()
    if not timed and start is None and end is None:
        # The index would not tell: what is said must not depend on how the events were read.
        shown = [_untimed(table) for table in shown]
        total = total if where is None else _without_times(total)
    if as_json:
        report = _as_json(captures, found, total, shown, rate)
        click.echo(json.dumps(report, indent=1, sort_keys=True))
    else:
        click.echo("\n".join(_as_text(captures, found, total, shown, rate, timed=timed)))
    for capture, losses in found.losses.items():
        common.report_losses(losses, capture)
    ctx.exit(3 if any(found.losses.values()) else 0)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise click.UsageError("--by: a name between two commas is missing")
    return names


def _keys(names: tuple[str, ...]) -> list[Key]:
    """What a table counts by."""
    from kcap.keys import key

    try:
        return [key(name) for name in names]
    except KcapError as e:
        raise click.UsageError(f"--by: {e.what}. {e.hint}") from None


def _read(capture: str, asked: _Asked, found: _Found) -> None:
    """Count the events of a capture."""
    from kcap.replay.chosen import chosen
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.stages import EventsOnly

    losses = found.losses.setdefault(capture, [])
    if asked.where is not None:
        asked.where.release()
    with opened_source(capture, lenient=asked.lenient, raw_pairs=asked.raw_pairs) as source:
        if _take_index(source, asked, found, losses):
            return
        read, stages = chosen(
            source,
            columns=_columns(source, asked),
            start_ns=asked.start,
            end_ns=asked.end,
            where=asked.where,
        )
        sinks: list[Sink] = [found.total, *found.tables, found.rate]
        losses += Pipeline(read, sinks, stages=[*stages, EventsOnly()]).run().losses


def _take_index(source: Source, asked: _Asked, found: _Found, losses: list[Loss]) -> bool:
    """Take the counts by event from the index of a capture, if they are all that is asked for.

    An index counts state records with the events, and has only the most frequent names. A filter
    that looks at the name of the event alone is asked about each name once.
    """
    from kcap.format.reader import CaptureReader
    from kcap.replay.derived import named

    restricted = asked.start is not None or asked.end is not None
    deeper = asked.where is not None and (
        asked.where.follows
        or not asked.where.columns <= {"event"}
        or bool(named([asked.where]))  # no index counts derived events
    )
    if asked.timed or restricted or deeper or not isinstance(source, CaptureReader):
        return False
    index = source.index()
    if index is None or index.totals["state_rows"] or "(others)" in index.totals["types"]:
        return False
    types, events = index.totals["types"], index.totals["events"]
    unnamed = events - sum(types.values())
    if unnamed < 0:
        return False  # whoever wrote this counted otherwise
    counts: dict[str | None, int] = dict(types)
    if unnamed:
        counts[None] = unnamed
    times = index.totals["ts"]
    if asked.where is not None:
        counts = {name: counts[name] for name in _kept(asked.where, list(counts))}
        times = None  # those of the others are among them
    found.tables[0].add((((name,), count) for name, count in counts.items()))
    found.total.add([((None,), sum(counts.values()))], times)
    losses += index.losses
    return True


def _kept(where: Filter, names: list[str | None]) -> list[str | None]:
    """The names of events for which a filter that looks at nothing else is true."""
    import numpy as np
    import pyarrow as pa

    from kcap.model.batch import Batch, Column
    from kcap.model.classes import TypeClass

    rows = np.array([i for i, name in enumerate(names) if name is not None], np.int32)
    values = pa.array([name for name in names if name is not None], pa.utf8()).dictionary_encode()
    found = where.rows(Batch(len(names), {"event": Column(TypeClass.STR, values, rows)}))
    return [names[row] for row in found.tolist()]


def _columns(source: Source, asked: _Asked) -> list[str] | None:
    """The columns of a capture in a file that count; None where they are not known beforehand."""
    from kcap.format.reader import CaptureReader

    index = source.index() if isinstance(source, CaptureReader) else None
    if index is None or not isinstance(source, CaptureReader):
        return None
    known = source.columns()
    needed = {name for keys in asked.keys for key in keys for name in key.columns(known)}
    if asked.timed or asked.where is None or asked.start is not None or asked.end is not None:
        needed.add("ts")
    if index.totals["state_rows"]:
        needed.add("kind")
    return sorted(needed)


def _as_text(
    captures: Sequence[str],
    found: _Found,
    total: Others,
    tables: list[_Table],
    rate: dict[int, int] | None,
    *,
    timed: bool,
) -> Iterator[str]:
    yield _heading(captures, total)
    for table in tables:
        if not table.rows:
            continue
        yield ""
        if len(tables) > 1 and [row.values for row in table.rows] == [(None,)]:
            yield f"{table.names[0]}: no event has one"
        else:
            yield from _aligned(_cells(table, total.count, timed=timed), len(table.names))
    if rate:
        yield ""
        yield from _aligned(_rates(rate, found), 1)


def _untimed(table: _Table) -> _Table:
    """A table without first and last times."""
    others = None if table.others is None else _without_times(table.others)
    return table._replace(rows=[_without_times(row) for row in table.rows], others=others)


def _without_times(row: _R) -> _R:
    return replace(row, first_ns=None, last_ns=None)


def _heading(captures: Sequence[str], total: Others) -> str:
    """What was read, and how much in which time."""
    from kcap.model.text import printable

    what = captures[0] if len(captures) == 1 else common.counted(len(captures), "capture")
    line = f"{printable(what)}: {common.counted(total.count, 'event')}"
    rate = _rate(total)
    if total.first_ns is None or total.last_ns is None:
        return line
    duration = common.duration_text(total.last_ns - total.first_ns)
    line += f", {common.utc(total.first_ns)[:23]} + {duration}"
    return line if rate is None else f"{line}, {rate:,.1f} events/s"


def _rate(total: Others) -> float | None:
    """Events a second; None where no time passed."""
    if total.first_ns is None or total.last_ns is None or total.first_ns == total.last_ns:
        return None
    return total.count * 1e9 / (total.last_ns - total.first_ns)


def _cells(table: _Table, events: int, *, timed: bool) -> list[list[str]]:
    """A table with its heading."""
    heads = ["count", "percent", *(["first", "last"] if timed else []), *table.names]
    lines = [heads]
    lines += [[*_counted(row, events, timed=timed), *map(_shown, row.values)] for row in table.rows]
    if table.others is not None:
        told = [f"(others: {table.others.groups:,})", *[""] * (len(table.names) - 1)]
        lines.append([*_counted(table.others, events, timed=timed), *told])
    return lines


def _counted(row: Group | Others, events: int, *, timed: bool) -> list[str]:
    cells = [f"{row.count:,}", _percent(row.count, events)]
    return [*cells, _time(row.first_ns), _time(row.last_ns)] if timed else cells


def _rates(rate: dict[int, int], found: _Found) -> list[list[str]]:
    """Events over time, with their heading."""
    length_ns = found.rate.length_ns
    lines = [["count", "percent", "events/s", f"{_length_text(length_ns)} from"]]
    for start_ns, count in rate.items():
        share = _percent(count, found.total.events)
        lines.append([f"{count:,}", share, f"{count * 1e9 / length_ns:,.1f}", _time(start_ns)])
    return lines


def _aligned(lines: list[list[str]], left: int) -> Iterator[str]:
    """Columns under each other, the last ones flush left; a rule below the heading."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    right = len(widths) - left
    for cells in lines:
        padded = [
            cell.rjust(width) if at < right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()


def _percent(count: int, events: int) -> str:
    share = f"{100 * count / events:.1f}"
    return "<0.1" if share == "0.0" else share


def _time(ns: int | None) -> str:
    return _MISSING if ns is None else f"{common.utc(ns)[:23]}Z"


def _length_text(ns: int) -> str:
    seconds = ns // 10**9
    for unit, length in (("day", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _shown(value: Value) -> str:
    """A value in a cell of a table."""
    from kcap.model.text import printable

    if value is None:
        return _MISSING
    if isinstance(value, tuple):
        text = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    else:
        text = value if isinstance(value, str) else str(_plain(value))
    text = printable(text)
    if text in ("", _MISSING):
        return f'"{text}"'  # not to be taken for no value
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"


def _plain(value: Value) -> Any:  # noqa: ANN401  (what JSON has)
    """A value as JSON has it: bytes are base64, floats that are no number are text."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _as_json(
    captures: Sequence[str],
    found: _Found,
    total: Others,
    tables: list[_Table],
    rate: dict[int, int] | None,
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "events": total.count,
        "events_per_second": _rate(total),
        "files": list(captures),
        "first_ns": total.first_ns,
        "last_ns": total.last_ns,
        "losses": {
            name: [loss.to_json() for loss in losses]
            for name, losses in found.losses.items()
            if losses
        },
        "tables": [],
    }
    for table in tables:
        entry: dict[str, Any] = {"by": list(table.names), "groups": table.groups}
        entry["rows"] = [
            {"values": _plain(row.values), **_numbers(row, total.count)} for row in table.rows
        ]
        others = table.others
        entry["others"] = others and {"groups": others.groups, **_numbers(others, total.count)}
        report["tables"].append(entry)
    if rate is not None:
        report["interval_ns"] = found.rate.length_ns
        report["intervals"] = [{"count": c, "start_ns": start} for start, c in rate.items()]
    return report


def _numbers(row: Group | Others, events: int) -> dict[str, Any]:
    return {
        "count": row.count,
        "first_ns": row.first_ns,
        "last_ns": row.last_ns,
        "percent": round(100 * row.count / events, 3),
    }
