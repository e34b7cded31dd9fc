"""``kcap import``: turn a foreign capture into a ``.kcap`` file."""

from __future__ import annotations

import time

import click

from kcap.tools import common, output
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source
from kcap.tools.progress import Progress


@click.command(
    "import",
    cls=Verb,
    examples=(
        "kcap import events.jsonl.gz -o events.kcap",
        "tracee --output json | kcap import - -o tracee.kcap",
        "kcap import --list",
    ),
)
@click.argument("capture", required=False)
@click.option("-o", "--output", "target", help="The capture to write; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("--list", "listing", is_flag=True, help="Say what each reader reads.")
@common.lenient_option
@click.pass_context
def command(
    ctx: click.Context,
    capture: str | None,
    target: str | None,
    force: bool,
    listing: bool,
    lenient: bool,
) -> None:
    """Turn CAPTURE into a .kcap file; '-' reads standard input.

    The format is told by the content; gzip and zstd are read as they are. A bad line ends the
    import with exit code 1, naming line and byte, and what came before it is in the output; with
    --lenient it is skipped and counted, exit code 3. An input that only ends early is read to its
    end, exit code 3.
    """
    if listing:
        _list_readers()
        return
    if capture is None or target is None:
        raise click.UsageError("give a capture to read, and -o FILE to write")
    from kcap.format.writer import CaptureWriter
    from kcap.model.text import printable
    from kcap.replay.pipeline import Pipeline
    from kcap.state import State

    with opened_source(capture, lenient=lenient) as source:
        path = output.capture_path(target)
        foreign = source.info.format != "kcap"
        state = State()
        with output.opened(path, force=force) as stream:
            sink = CaptureWriter(
                stream,
                file=path,
                snapshot=state.snapshot if foreign else None,
                created_ns=time.time_ns(),
            )
            with Progress() as progress:
                pipeline = Pipeline(
                    source, [sink], state=state, resolve=foreign, after_batch=progress.update
                )
                summary = pipeline.run()
        size = common.size_text(sink.bytes_written)
        click.echo(f"kcap: {summary.events_out:,} events, {size}: {printable(path)}", err=True)
    common.finish(ctx, summary, capture)


def _list_readers() -> None:
    """One line a reader."""
    from kcap import plugins

    for name in plugins.found(plugins.READERS):
        reader = plugins.load(plugins.READERS, name)
        click.echo(f"{name:<10} {reader.reads}")
