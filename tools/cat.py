"""``kcap cat``: print events."""

from __future__ import annotations

from typing import Unpack

import click

from kcap.tools import common, forms, views
from kcap.tools.cli import Verb
from kcap.tools.play import Options, carried, opened_output, opened_source, playing


@click.command(
    "cat",
    cls=Verb,
    examples=(
        "kcap cat host.kcap",
        "kcap cat --format jsonl host.kcap | jq .process_name",
        "kcap cat --view forkstat -e fork,exec,exit,core host.kcap",
        "kcap cat --view 'execsnoop -xT' host.kcap",
        "ssh host kcap record -o - | tee host.kcap | kcap cat -",
    ),
)
@click.argument("capture")
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(common.FORMATS),
    metavar="FORMAT",
    default="line",
    show_default=True,
    help=f"{forms.FORMAT_HELP[:-1]}; kcap: a new capture.",
)
@common.input_options
@common.output_options
@views.view_option
@click.pass_context
def command(ctx: click.Context, capture: str, form: str, **options: Unpack[Options]) -> None:
    """Print the events of CAPTURE in file order; '-' reads standard input.

    Any format that kcap can read will do. State records are left out unless --state is given.
    To the events of a foreign format it adds who did it (process_name, exe, cmdline, parent_name,
    user ...), as far as the input tells.
    """
    view = views.chosen(ctx, options)
    with (
        opened_source(
            capture, lenient=options["lenient"], raw_pairs=options["raw_pairs"]
        ) as source,
        opened_output(form, options) as out,
    ):
        summary = playing(
            source, form, options, out, view=view, artifacts=carried(source, form, options)
        )()
    common.finish(ctx, summary, capture)
