"""``kcap import``: turn foreign captures into a ``.kcap`` file."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from kcap.tools import common, output
from kcap.tools.cli import Verb
from kcap.tools.inputs import Announced, Inputs
from kcap.tools.progress import Progress

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Summary
    from kcap.state import State


@click.command(
    "import",
    cls=Verb,
    examples=(
        "kcap import events.jsonl.gz -o events.kcap",
        "kcap import host-*.jsonl other.kcap -o all.kcap",
        "tracee --output json | kcap import - -o tracee.kcap",
        "kcap import --list",
    ),
)
@click.argument("captures", nargs=-1)
@click.option("-o", "--output", "target", help="The capture to write; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@common.capture_options
@common.lenient_option
@common.raw_pairs_option
@click.option("--list", "listing", is_flag=True, help="Say what each reader reads and needs.")
@click.option("--json", "as_json", is_flag=True, help="With --list: as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    captures: tuple[str, ...],
    target: str | None,
    force: bool,
    chunk_events: int,
    level: int,
    canonical: bool,
    lenient: bool,
    raw_pairs: bool,
    listing: bool,
    as_json: bool,
) -> None:
    """Turn CAPTURES into one .kcap file; '-' reads standard input.

    The format is told by the content; gzip and zstd are read as they are. A bad line ends the
    import with exit code 1, naming line and byte, and what came before it is in the output; with
    --lenient it is skipped and counted, exit code 3. An input that only ends early is read to its
    end, exit code 3.

    Several captures, kcap's own among them, are merged by time, in whatever order they are named.
    Each keeps its own order: an event that is earlier than the one before it stays behind that
    one. Times are never adjusted. One that can't be read ends the import before anything is
    written; with --lenient it is passed over and named, in the output as well, exit code 3.
    """
    if listing:
        _list_readers(as_json=as_json)
        return
    if as_json:
        raise click.UsageError("--json is for --list")
    if not captures or target is None:
        raise click.UsageError("give a capture to read, and -o FILE to write")
    _check_once(captures)
    from kcap.model.text import printable

    path = output.capture_path(target)
    with contextlib.ExitStack() as stack:
        inputs = Inputs(captures, stack, lenient=lenient, raw_pairs=raw_pairs)
        _warn_of_copies(inputs.sources)
        with output.opened(path, force=force) as stream:
            writing = {"file": path, "level": level, "chunk_rows": chunk_events}
            summary, sink = _import(inputs, stream, canonical=canonical, writing=writing)
    size = common.size_text(sink.bytes_written)
    click.echo(f"kcap: sha256 {sink.file_hash}", err=True)
    events = common.counted(summary.events_out, "event")
    click.echo(f"kcap: {events}, {size}: {printable(path)}", err=True)
    common.finish(ctx, summary, captures[0] if len(captures) == 1 else f"{len(captures)} inputs")


def _import(
    inputs: Inputs, stream: BinaryIO, *, canonical: bool, writing: dict[str, Any]
) -> tuple[Summary, CaptureWriter]:
    """Write the inputs as one capture.

    Args:
        inputs: The inputs.
        stream: Where the capture goes.
        canonical: Equal input gives equal bytes.
        writing: How the capture is written.

    Returns:
        What was done, and the closed writer.
    """
    from kcap.format.writer import CaptureWriter
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.resolved import OWN
    from kcap.state import State

    state = State()
    source = _as_one(inputs.sources, state, writing["chunk_rows"] if canonical else None)
    if inputs.losses:
        source = Announced(source, inputs.losses)
    alone = len(inputs.sources) == 1
    foreign = source.info.format not in OWN
    sink = CaptureWriter(
        stream,
        snapshot=state.snapshot if foreign or not alone else None,
        created_ns=0 if canonical else time.time_ns(),
        canonical=canonical,
        **writing,
    )
    with Progress(read=inputs.position) as progress:
        pipeline = Pipeline(
            source,
            [sink],
            state=state,
            resolve=alone and foreign,
            after_batch=progress.update,
        )
        return pipeline.run(), sink


def _as_one(sources: Sequence[Source], state: State, rows: int | None) -> Source:
    """The inputs as one source.

    Args:
        sources: The inputs.
        state: The state that follows them.
        rows: Where not None, nothing may show how the events came: rows of the batches.
    """
    from kcap.replay.merge import Merged
    from kcap.replay.rebatch import Rebatched, Reproducible
    from kcap.replay.resolved import OWN, Resolved

    if rows is not None:
        sources = [Reproducible(source) for source in sources]
    if len(sources) == 1:
        return sources[0] if rows is None else Rebatched(sources[0], rows)
    own = [s if s.info.format in OWN else Resolved(s) for s in sources]
    return Merged(own, state) if rows is None else Merged(own, state, rows=rows)


def _check_once(captures: Sequence[str]) -> None:
    """Refuse an input that is named twice: its events would have no identity of their own."""
    seen: dict[object, str] = {}
    for name in captures:
        with contextlib.suppress(OSError):  # opening it will say what is wrong
            at = None if name == "-" else Path(name).stat()
            key = at and (at.st_dev, at.st_ino)
            if key in seen:
                raise click.UsageError(f"the same input is given twice: {seen[key]} and {name}")
            seen[key] = name


def _warn_of_copies(sources: Sequence[Source]) -> None:
    """Say so where inputs look like copies of one."""
    from kcap.format.reader import CaptureReader
    from kcap.model.text import printable

    found: dict[object, list[str]] = {}
    for source in sources:
        if isinstance(source, CaptureReader):
            key: object = source.header.file_id
        else:
            key = tuple(s.id for s in source.info.sources) or source
        found.setdefault(key, []).append(source.info.file)
    for first, *others in found.values():
        if others:
            what = others[0] if len(others) == 1 else f"{len(others)} other inputs"
            text = f"kcap: warning: {first} and {what} look like copies; each event comes again"
            click.echo(printable(text), err=True)


def _list_readers(*, as_json: bool) -> None:
    """What each reader reads and needs, and whether it can be used here."""
    readers = list(_readers())
    if as_json:
        click.echo(json.dumps(readers, indent=1))
        return
    width = max(len(reader["name"]) for reader in readers)
    for reader in readers:
        needs = f"; needs {', '.join(reader['needs'])}" if reader["needs"] else ""
        why = f"; NOT AVAILABLE: {reader['why']}" if reader["why"] else ""
        click.echo(f"{reader['name']:<{width}}  {reader['reads']}{needs}{why}")


def _readers() -> Iterator[dict[str, Any]]:
    from kcap import plugins

    for name, entry in sorted(
        (plugins.found(plugins.READERS) | plugins.hidden(plugins.READERS)).items()
    ):
        found: dict[str, Any] = {"name": name, "reads": "?", "needs": [], "why": None}
        if name not in plugins.found(plugins.READERS):
            found["why"] = f"{entry.value} is not kcap's own, and root loads nothing else"
            yield found
            continue
        try:
            reader = plugins.load(plugins.READERS, name)
        except ImportError as error:
            found["why"] = f"{entry.value} can't be imported: {error}"
            yield found
            continue
        needs = [f"kcap[{extra}]" for extra in sorted(getattr(reader, "needs", {}))]
        missing = plugins.missing(reader)
        if missing:
            found["why"] = f"pip install 'kcap[{','.join(missing)}]'"
        yield found | {"reads": reader.reads, "needs": needs}
