"""``kcap export``: events for other programs."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Unpack, cast

import click

from kcap.errors import KcapError, OutputError
from kcap.tools import common, logs, output
from kcap.tools.cli import Verb
from kcap.tools.play import Chosen, columns, derived, naming, narrowed, opened_source

if TYPE_CHECKING:
    from kcap.model.classes import TypeClass
    from kcap.model.stream import Sink, Source
    from kcap.replay.pipeline import Stage, Summary
    from kcap.writers.about import About

FORMATS: Final = ("parquet", "arrow", "csv", "jsonl", "tracee-json", "pcapng", "pcap")
TABLES: Final = ("parquet", "arrow", "csv")
PACKETS: Final = ("pcapng", "pcap")
_SUFFIXES: Final = {f".{form}": form for form in FORMATS if form != "tracee-json"}
_HASH_STEP: Final = 1 << 20


class Options(Chosen):
    """The options of the verb."""

    lenient: bool
    raw_pairs: bool
    output: str
    force: bool
    form: str | None
    schema: str | None
    profile: str | None
    partition_by: str | None
    split: str | None
    guard: bool | None


@click.command(
    "export",
    cls=Verb,
    examples=(
        "kcap export host.kcap -o host.parquet",
        "kcap export host.kcap -o lake --format parquet --partition-by date,host,category",
        "kcap export host.kcap -o packets --format pcapng --split single,process",
        "kcap export --format csv --fields ts,event,process_name,cmdline host.kcap | head",
    ),
)
@click.argument("capture")
@click.option("-f", "--format", "form", type=click.Choice(FORMATS), help="Else told by -o's name.")
@click.option(
    "--schema",
    type=click.Choice(["wide", "narrow", "map"]),
    help="Tables. wide (default): a column for each of the capture's; narrow: a row for each "
    "argument; map: an event's arguments in one column.",
)
@click.option(
    "--profile",
    type=click.Choice(["portable", "full"]),
    help="portable (default of parquet): types that every reader has; full (of arrow): ns, uint64.",
)
@click.option("--partition-by", help="parquet: a folder with a branch a value: date,host,category.")
@click.option(
    "--split",
    help="pcapng, pcap: a folder with a file each: single,process,container,command.",
)
@click.option(
    "--guard/--no-guard",
    default=None,
    help="csv: put ' before text that a spreadsheet would run as a formula (default), or not.",
)
@common.input_options
@common.derived_option
@click.option("--state", is_flag=True, help="State records too; arrow has them anyway.")
@click.option("-F", "--fields", help="Only these columns, separated by commas.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-o", "--output", default="-", help="Output; - is standard output.")
@click.pass_context
def command(ctx: click.Context, capture: str, **options: Unpack[Options]) -> None:
    """Write the events of CAPTURE for other programs; '-' reads standard input.

    Any format that kcap can read will do. An output appears under its name when it is complete;
    until then it is NAME.partial. A column's type depends on its name alone, so exports of
    different sources can be queried together. 'kcap import' reads arrow back without any loss.
    docs/export.md describes columns, types and metadata.
    """
    form = _format(options)
    _check(form, options)
    columns(options)
    with opened_source(
        capture, lenient=options["lenient"], raw_pairs=options["raw_pairs"]
    ) as source:
        summary = _export(source, form, capture, options)
    common.finish(ctx, summary, capture)


def _format(options: Options) -> str:
    """The format asked for, else what the output's name says."""
    form = options["form"] or _SUFFIXES.get(Path(options["output"]).suffix)
    if form is None:
        raise click.UsageError(f"give --format: one of {', '.join(FORMATS)}")
    return form


def _check(form: str, options: Options) -> None:
    """Refuse options that this format has no use for."""
    uses = {
        "schema": TABLES,
        "profile": ("parquet", "arrow"),
        "partition_by": ("parquet",),
        "guard": ("csv",),
        "split": PACKETS,
    }
    for name, forms in uses.items():
        if options[name] is not None and form not in forms:  # type: ignore[literal-required]
            raise click.UsageError(f"--{name.replace('_', '-')} is for {' and '.join(forms)}")
    if form == "csv" and options["schema"] == "map":
        raise click.UsageError("CSV has no maps: --schema wide or narrow")
    if options["partition_by"] is not None and options["output"] == "-":
        raise click.UsageError("--partition-by needs a folder: -o NAME")
    if options["split"] is not None and options["output"] == "-":
        raise click.UsageError("--split needs a folder: -o NAME")
    if form in PACKETS and options["fields"]:
        raise click.UsageError("--fields is not for packets: they are whole")


def _export(source: Source, form: str, capture: str, options: Options) -> Summary:
    """Send a source's events to an output in a format."""
    target = options["output"]
    if form in TABLES:
        summary = _export_table(source, form, capture, options)
    elif form in PACKETS:
        from kcap.tools import packets

        summary = packets.export(source, form, options)
    else:
        with naming(target), _opened(options, binary=False) as stream:
            sink = common.sink_for(form, stream, file=target, state=options["state"])
            read, chosen = narrowed(source, form, options, tracked=False)
            summary = _run(read, sink, chosen, options["limit"])
            stream.flush()
    if target != "-":
        _report(target, form, summary)
    return summary


def _report(target: str, form: str, summary: Summary) -> None:
    from kcap.model.text import printable

    path = Path(target)
    files = list(path.rglob(f"*.{form}")) if path.is_dir() else [path]
    size = common.size_text(sum(p.stat().st_size for p in files))
    where = (
        f"{printable(target)}, {common.counted(len(files), 'file')}"
        if path.is_dir()
        else printable(target)
    )
    logs.tell(f"kcap: {common.counted(summary.events_out, 'event')}, {size}: {where}")


def _run(source: Source, sink: Sink, chosen: list[Stage], limit: int | None) -> Summary:
    from kcap.replay.pipeline import Pipeline
    from kcap.tools.progress import Progress

    with Progress() as progress:
        pipeline = Pipeline(source, [sink], stages=chosen, limit=limit, after_batch=progress.update)
        return pipeline.run()


def _opened(
    options: Options, *, binary: bool = True
) -> contextlib.AbstractContextManager[BinaryIO]:
    return output.opened(options["output"], force=options["force"], binary=binary, whole=True)


class _Table(NamedTuple):
    """Events whose columns are known."""

    source: Source
    stages: list[Stage]
    limit: int | None
    columns: dict[str, TypeClass]
    about: Callable[[], About]
    summary: Summary | None
    """What the run that found out the columns did."""
    failure: KcapError | None
    """What ended it."""


def _export_table(source: Source, form: str, capture: str, options: Options) -> Summary:
    """Send events to an output that needs to know all its columns first."""
    with _known(source, form, capture, options) as table:
        _warn_of_case(form, table.columns)
        with naming(options["output"]), _sink(form, table, options) as sink:
            summary = _run(table.source, sink, table.stages, table.limit)
            if table.failure is not None:
                raise table.failure
    if table.summary is not None:
        # Losses read from our own spool are known from the run that wrote it.
        table.summary.losses += getattr(sink, "losses", ())
        return table.summary
    return summary


@contextlib.contextmanager
def _known(source: Source, form: str, capture: str, options: Options) -> Iterator[_Table]:
    """Find out the columns: from the options or the capture's end, else by a first run."""
    from kcap.replay.rebatch import Rebatched

    # Arrow is a capture in other clothes: it keeps all records, as .kcap does.
    kept = "kcap" if form == "arrow" else form
    about = _about(source, form, capture, options)
    columns = _columns(source, options)
    source, chosen = narrowed(source, kept, _with_keys(options), tracked=False)
    if source.info.format != "kcap" and form != "csv":
        # How the events of a pipe arrive must not show in the output.
        source = Rebatched(source)
    if columns is not None:
        yield _Table(source, chosen, options["limit"], columns, about, None, None)
        return
    with _spool(options["output"]) as stream:
        from kcap.format.reader import CaptureReader
        from kcap.format.writer import CaptureWriter

        failure = summary = None
        name = "the temporary capture"
        writer = CaptureWriter(stream, file=name)
        try:
            summary = _run(source, writer, chosen, options["limit"])
        except KcapError as e:
            failure = e
        stream.seek(0)
        reader = CaptureReader(stream, name)
        found = _ordered(reader.columns())
        yield _Table(reader, [], None, found, about, summary, failure)


def _columns(source: Source, options: Options) -> dict[str, TypeClass] | None:
    """The columns of the events, None where only reading them tells."""
    from kcap.format.reader import CaptureReader
    from kcap.model import catalogue
    from kcap.replay.derived import derivation
    from kcap.writers import layout

    names = columns(options)
    if options["schema"] in {"narrow", "map"}:
        envelope = layout.envelope()
        return {n: c for n, c in envelope.items() if names is None or n in names}
    if names is not None:
        return {n: cls for n in names if (cls := catalogue.class_of(n)) is not None}
    if isinstance(source, CaptureReader) and source.state == "closed":
        found = source.columns()
        viewing = derivation([options["where"]] if options["where"] else [], derived(options))
        if viewing is not None and _format(options) != "arrow":  # which stores what was recorded
            found = {**found, **viewing.types(found)}
        return _ordered(found)
    return None


def _ordered(found: dict[str, TypeClass]) -> dict[str, TypeClass]:
    """Columns in order; of a capture without any those that every capture may have."""
    from kcap.writers import layout

    known = found or layout.envelope()
    return {n: known[n] for n in layout.in_order(known)}


def _keys(options: Options) -> list[str]:
    from kcap.writers import partition

    by = options["partition_by"]
    return [] if by is None else partition.keys([n.strip() for n in by.split(",")])


def _with_keys(options: Options) -> Options:
    """The options with the columns that the partition keys come from."""
    from kcap.writers import partition

    if not options["fields"]:
        return options
    keys = ["ts" if key == partition.DATE else key for key in _keys(options)]
    return {**options, "fields": ",".join([options["fields"], *keys])}


def _about(source: Source, form: str, capture: str, options: Options) -> Callable[[], About]:
    """What makes the metadata of an output."""
    from kcap.format.reader import CaptureReader
    from kcap.model.side import Loss
    from kcap.writers.about import About

    recorded = None
    described: dict[str, Any] = {"format": source.info.format}
    restricted = {
        name: value
        for name in ("start", "end", "limit", "fields")
        if (value := options[name]) is not None
    }
    if isinstance(source, CaptureReader) and source.footer is not None:
        totals = source.footer.totals
        hashes = ("content_hash", "content_hash_values")
        described |= {name: totals[name] for name in hashes if name in totals}
        recorded = [Loss.from_json(loss) for loss in totals["loss"]]
    if not restricted:
        # Whoever reads it all anyway can hash it for little more.
        described |= _digest(capture)
    layout = options["schema"] or "wide"
    profile = _profile(form, options)
    said = {**restricted, "state": options["state"] or form == "arrow"}

    def make() -> About:
        return About(layout, profile, described, said, recorded)

    return make


def _digest(capture: str) -> dict[str, str]:
    """The SHA-256 of a file; nothing for what can be read only once."""
    path = Path(capture)
    if capture == "-" or not path.is_file():
        return {}
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while step := stream.read(_HASH_STEP):
            digest.update(step)
    return {"sha256": digest.hexdigest()}


def _profile(form: str, options: Options) -> str:
    return options["profile"] or ("full" if form == "arrow" else "portable")


@contextlib.contextmanager
def _sink(form: str, table: _Table, options: Options) -> Iterator[Sink]:
    """The sink of a table."""
    from kcap import plugins
    from kcap.writers import partition
    from kcap.writers.layout import LAYOUTS, Profile

    keys = _keys(options)
    columns = {n: c for n, c in table.columns.items() if n not in keys}
    made = LAYOUTS[options["schema"] or "wide"](columns, Profile(_profile(form, options)))
    if keys:
        from kcap.tools import folder

        target = options["output"]
        mark = partition.MANIFEST
        with folder.written(target, force=options["force"], mark=mark) as opened:
            yield partition.PartitionedParquet(
                opened.create, keys, made, table.about(), table.about
            )
        return
    writer = plugins.load(plugins.WRITERS, form)
    with _opened(options) as stream:
        if form == "csv":
            yield writer(stream, made, guard=options["guard"] is not False)
        elif form == "arrow":
            yield writer(stream, made, table.about(), file=options["output"] != "-")
        else:
            yield writer(stream, made, table.about())
        stream.flush()


def _spool(target: str) -> BinaryIO:
    """A file without a name, beside the output."""
    folder = None if target == "-" else Path(target).parent
    try:
        return cast("BinaryIO", tempfile.TemporaryFile(dir=folder))
    except OSError as e:
        raise OutputError(f"can't be written: {e.strerror}", file=target) from e


def _warn_of_case(form: str, columns: dict[str, TypeClass]) -> None:
    """Name columns that databases, for which case does not count, take for one."""
    from kcap.model.text import printable

    seen: dict[str, str] = {}
    for name in columns:
        other = seen.setdefault(name.lower(), name)
        if other != name and form != "arrow":
            text = f"columns {other} and {name} differ in case alone: DuckDB and Spark rename one"
            logs.tell(f"kcap: {printable(text)}; --schema map keeps both apart")
