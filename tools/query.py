"""``kcap query``: SQL over captures."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from typing import TYPE_CHECKING, cast

import click

from kcap.tools import common, logs, output
from kcap.tools.cli import Verb

if TYPE_CHECKING:
    from kcap.capture import Capture
    from kcap.filter import Filter
    from kcap.model.side import Loss
    from kcap.model.stream import Sink, Source

_FORMATS = ("table", "csv", "jsonl", "arrow", "parquet")


@click.command(
    "query",
    cls=Verb,
    examples=(
        'kcap query "SELECT event, count(*) FROM events GROUP BY ALL" host.kcap',
        "kcap query \"SELECT ts, cmdline FROM exec WHERE user = 'root'\" *.kcap",
        'kcap query "DESCRIBE events" host.kcap',
        "kcap query \"SELECT local_port, process_name FROM host.sockets WHERE state = 'listen'\" f",
        'kcap query "SELECT count(*) FROM events" -w "net.dip = 10.0.0.0/8" host.kcap',
        'kcap query "FROM events" --start 2026-11-20T12:00:00Z --format parquet -o noon.parquet f',
    ),
)
@click.argument("sql")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default="table",
    show_default=True,
    help="table: for people, long cells are cut; jsonl: one JSON object a row.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document: columns and rows.")
@click.option("-o", "--output", "target", default="-", help="Output file; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("-n", "--limit", type=click.IntRange(0), help="Stop after N rows of the result.")
@common.where_option
@click.option("--start", type=common.EventTime(), help="Only events at or after this time.")
@click.option("--end", type=common.EventTime(), help="Only events before this time.")
@click.option(
    "--memory",
    type=common.Size(),
    default="1G",
    show_default=True,
    help="What DuckDB may take; it sorts and joins more than that on disk.",
)
@common.lenient_option
@common.raw_pairs_option
@click.pass_context
def command(
    ctx: click.Context,
    sql: str,
    captures: tuple[str, ...],
    form: str,
    as_json: bool,
    target: str,
    force: bool,
    limit: int | None,
    where: Filter | None,
    start: int | None,
    end: int | None,
    memory: int,
    lenient: bool,
    raw_pairs: bool,
) -> None:
    """Run SQL (DuckDB's) over CAPTUREs of any format; '-' reads standard input.

    The table 'events' holds the events of all captures, one after another, columns united by
    name. Each type of event is a table too, with only its own columns: exec, "security_file_open".
    'all_rows' also holds the records that only describe what was there (kind = 'state').
    'host.sockets', 'host.mounts', 'host.processes' and more say what the recorded hosts were like
    when the recordings began; SHOW ALL TABLES lists them.

    'ts' is a timestamp in UTC with microseconds, 'ts_ns' the exact time as an integer. Conditions
    on ts, ts_ns, event, pid and on text (=, IN) let whole chunks of a .kcap file be unread. The
    query sees the captures and nothing else: no files, no network, no extensions. With -w the
    tables hold only the events for which that filter is true.
    """
    if captures.count("-") > 1:
        raise click.UsageError("standard input can be read only once")
    from kcap.opening import open_source
    from kcap.tools.results import Rows
    from kcap.tools.sql import Session

    form = "json" if as_json else form
    losses: dict[str, list[Loss]] = {}
    with contextlib.ExitStack() as stack:
        opened = []
        for path in captures:
            source = open_source(path, lenient=lenient, raw_pairs=raw_pairs)
            stack.callback(source.close)
            opened.append(_opened(source, path, stack, losses, where))
        session = stack.enter_context(
            Session(opened, start=start, end=end, where=where, memory=memory)
        )
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # what was lost is reported below, with the exit code
        rows = Rows(session.run(sql), limit)
        binary = form in ("arrow", "parquet")
        with output.opened(target, force=force, binary=binary) as stream:
            rows.write(form, stream)
            stream.flush()
        for path, capture in zip(captures, opened, strict=True):
            losses.setdefault(path, []).extend(capture.losses)
    if form == "table" or target != "-":
        logs.tell(f"kcap: {common.counted(rows.count, 'row')}")
    for path, found in losses.items():
        common.report_losses(found, path)
    ctx.exit(3 if any(losses.values()) else 0)


def _opened(
    source: Source,
    path: str,
    stack: contextlib.ExitStack,
    losses: dict[str, list[Loss]],
    where: Filter | None,
) -> Capture:
    """A capture with an index: of a stream or a foreign file a temporary one of the same events.

    It has the artifacts of a foreign input where the filter asks for some; those of a pipe it
    can't have.
    """
    from kcap.capture import Capture
    from kcap.format.reader import CaptureReader
    from kcap.format.writer import CaptureWriter
    from kcap.replay.artifacts import Artifacts, Carrying
    from kcap.replay.pipeline import Pipeline

    if isinstance(source, CaptureReader) and source.index() is not None:
        return Capture(source)
    spool = tempfile.TemporaryFile(prefix="kcap-")  # noqa: SIM115  (open as long as its capture)
    stack.callback(spool.close)
    sink: Sink = CaptureWriter(spool, file="the temporary copy")
    if where is not None and where.inspector is not None:
        where.bind([source])  # what is a pipe is a loss
        if not isinstance(source, CaptureReader):
            sink = Carrying(cast("CaptureWriter", sink), Artifacts([source], unnamed=True))
    summary = Pipeline(source, [sink]).run()
    losses[path] = summary.losses
    spool.seek(0)
    return Capture(CaptureReader(spool, path))
