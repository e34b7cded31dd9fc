"""``kcap replay``: run a capture through the pipeline again."""

from __future__ import annotations

from typing import Unpack

import click

from kcap.tools import common, output, views
from kcap.tools.cli import Verb
from kcap.tools.play import Options, opened_output, opened_source, playing


@click.command(
    "replay",
    cls=Verb,
    examples=(
        "kcap replay host.kcap",
        "kcap replay --speed 10 host.kcap",
        "kcap replay --speed 1 --view execsnoop host.kcap",
        "kcap replay -k host --format jsonl -o host.jsonl",
        "kcap replay \"evt.category = 'file' and ps.name = 'bash'\" -k host",
    ),
)
@click.argument("words", nargs=-1, metavar="[CAPTURE] [FILTER]...")
@click.option("-k", "--kcap", "name", help="The capture; 'events' also means events.kcap.")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    help="Keep the events' own time: 1 as recorded, 10 ten times as fast. Else: no waiting.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(common.FORMATS),
    default="line",
    show_default=True,
    help="line: for people; jsonl: one JSON object an event; kcap: a new capture.",
)
@common.input_options
@common.output_options
@views.view_option
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    name: str | None,
    speed: float | None,
    form: str,
    **options: Unpack[Options],
) -> None:
    """Run the events of CAPTURE through the pipeline, as if they happened now.

    The words behind CAPTURE, with -k all words, are a filter, as with -w: best in one pair of
    double quotes. The output depends on the capture and the options alone: no clock, locale or
    host file is read. A summary goes to standard error.
    """
    from kcap.state import State

    if name is None and not words:
        raise click.UsageError("give one capture: CAPTURE, or -k NAME")
    view = views.chosen(ctx, options)
    path = output.existing_path(name) if name else words[0]
    options["where"] = common.filter_given(ctx, options["where"], words if name else words[1:])
    with (
        opened_source(
            path, lenient=options["lenient"], resolve=False, raw_pairs=options["raw_pairs"]
        ) as opened,
        opened_output(form, options) as out,
    ):
        source = opened
        if speed is not None:
            from kcap.tools.pace import Paced

            source = Paced(opened, speed)
        state = State()
        summary = playing(source, form, options, out, tracked=state, view=view)()
    _report(summary.events_in, summary.events_out)
    common.finish(ctx, summary, path)


def _report(events_in: int, events_out: int) -> None:
    kept = f" of {events_in:,}" if events_out < events_in else ""
    click.echo(f"kcap: {events_out:,}{kept} events replayed", err=True)
