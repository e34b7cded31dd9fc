"""``kcap run``: what happens on this host, as it happens."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Unpack

import click

from kcap.tools import (
    apart,
    attend,
    common,
    companions,
    forms,
    live,
    live_select,
    logs,
    needs,
    outlets,
    ruleset,
    views,
)
from kcap.tools.cli import Verb
from kcap.tools.play import Options, opened_output, playing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from kcap.model.stream import LiveSource
    from kcap.readers.live.guard.channel import Channel
    from kcap.readers.live.selection import Selection
    from kcap.replay.pipeline import Summary
    from kcap.tools import artifact_options

_INTERVAL_S: Final = 0.1
"""Seconds that an event waits for others at most: what a reader takes for at once."""
_SENT_INTERVAL_S: Final = 0.5
"""The same where nobody reads along: each batch costs as much as some hundred events."""


class _RunOptions(
    live.LiveOptions, live_select.SelectOptions, outlets.OutletOptions, Options, ruleset.RuleOptions
):
    """The options of the verb."""

    user: str | None


@click.command(
    "run",
    cls=Verb,
    examples=(
        "kcap run",
        "kcap run \"ps.name = 'sshd' or ps.parent.name = 'sshd'\"",
        "kcap run --view forkstat -e fork,exec,exit,core",
        "kcap run --view 'execsnoop -T' --duration 10m",
        "kcap run --format jsonl -n 1000 | jq .cmdline",
        "kcap run -f watch_files",
        "kcap run --rules TRC-3 --rules ./rules",
        "kcap run --sink 'amqp://localhost/%2f?exchange=kcap'",
    ),
)
@click.option(
    "--format",
    "form",
    type=click.Choice([*common.TEXT_FORMATS, "arrow"]),
    metavar="FORMAT",
    default="line",
    show_default=True,
    help=f"{forms.FORMAT_HELP[:-1]}; arrow: an Arrow stream, arguments in columns of maps.",
)
@views.view_option
@outlets.filament_options
@ruleset.rule_options
@outlets.sink_options
@live.live_options
@live_select.select_options
@apart.user_option
@common.where_option
@common.output_options
@click.argument("words", nargs=-1, metavar="[FILTER]...")
@click.pass_context
def command(
    ctx: click.Context, words: tuple[str, ...], form: str, **options: Unpack[_RunOptions]
) -> None:
    """Print what happens on this host until Ctrl-C, a signal or a limit; nothing is stored.

    Sees what 'kcap record' sees. The words are a filter, as with -w: best in one pair of double
    quotes. A second Ctrl-C does not wait for output that nobody takes.

    An output that is slow, or stopped with Ctrl-S, holds up no process of this host: events wait
    in the kernel's buffer, those for which it has no room are counted, and make the exit code 3.

    With --rules or --signatures alerts are printed, and events where -o or --format ask for them.
    The events that the rules need are recorded, too, unless --events says which; so are executed
    files, where rules, or a filter with --pe.enabled, look at artifacts.
    """
    from kcap.readers.live.tracking import Selected

    options["where"] = common.filter_given(ctx, options["where"], words)
    options |= {
        "start": None,
        "end": None,
        "limit": options["count"],
        "lenient": False,
        "raw_pairs": False,
    }
    view = views.chosen(ctx, options)
    if view is not None and not (options["wanted"] or options["sets"]):
        options["wanted"] = tuple(view.recorded)
    asked = outlets.wanted(
        ctx, options, options["filaments"], options["filament_path"], rules=options
    )
    needed = needs.turn_on(options, asked.rules)
    artifacts = needs.artifacts(asked.rules, None, options, options["where"])
    with (
        live.undoing(),
        opened_output(form, options) as out,
        outlets.prints(asked, out.stream) as prints,
        outlets.opened(
            asked,
            prints,
            live=True,
            redraws=True,
            where=options["where"],
            user=options["user"],
        ) as also,
        contextlib.closing(
            _source(options, selection := _selection(options, also, needed), also, artifacts)
        ) as source,
        live.stopping(source, twice=True),
    ):
        around = partial(Selected.around, selection)
        play = partial(playing, source, form, options, out, view=view, outlets=also, around=around)
        out.stream.flush()
        code = _run(ctx, source, options, play, also, companions.PACKAGES if artifacts else ())
    ctx.exit(code)


def _run(
    ctx: click.Context,
    source: LiveSource,
    options: _RunOptions,
    play: Callable[..., Callable[[], Summary]],
    also: outlets.Outlets,
    packages: Collection[str],
) -> int:
    """Let the events come, and attend to that; the exit code."""
    from kcap.state import State
    from kcap.tools.status import Output

    deadline = live.Deadline(source, options["duration"])
    # Who asks how a recorder does means one that stores; what is done to this one shows, too.
    attendant = attend.Attendant(source.info, lambda _: None, None)

    def after_batch(summary: Summary) -> bool:
        attendant.check(summary, Output("-", 0))
        deadline.check(time.monotonic())
        return False

    run = play(tracked=State(), after_batch=after_batch)

    def work(_: Channel | None) -> int:
        with contextlib.closing(attendant.begin()):
            summary = run()
        logs.count(ctx, events_in=summary.events_in, events_out=summary.events_out)
        _report(summary)
        also.report()
        common.report_losses(summary.losses, source.info.file)
        return summary.exit_code

    return apart.run(ctx, source, work, user=options["user"], helpers=also.pids, packages=packages)


def _selection(
    options: _RunOptions, also: outlets.Outlets, needed: needs.Needs | None
) -> Selection:
    selection = live_select.chosen(options, also.looking(options["where"]))
    needs.tell_lacking(needed, selection)
    return selection


def _source(
    options: _RunOptions,
    selection: Selection,
    also: outlets.Outlets,
    artifacts: artifact_options.Asked | None,
) -> LiveSource:
    interval_s = _INTERVAL_S if also.console or also.taps else _SENT_INTERVAL_S
    source = live.opened(
        options,
        interval_s=interval_s,
        selection=selection,
        accompanied=artifacts is not None,
    )
    return companions.accompanied(source, artifacts, "-")


def _report(summary: Summary) -> None:
    """Say what was seen."""
    kept = common.counted(summary.events_out, "event")
    seen = f" of {summary.events_in:,}" if summary.events_out < summary.events_in else ""
    lost = sum(summary.lost().values())
    logs.tell(f"kcap: {kept}{seen}, {lost:,} lost, exit code {summary.exit_code}")
