"""``kcap record``: record what happens on this host."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING, Final, Unpack

import click

from kcap.tools import (
    apart,
    attend,
    common,
    control,
    durability,
    live,
    live_select,
    notify,
    output,
    rotation,
)
from kcap.tools.cli import Verb
from kcap.tools.progress import Progress

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.model.stream import LiveSource
    from kcap.readers.live.guard.channel import Channel
    from kcap.readers.live.selection import Selection
    from kcap.tools.recorded import Recorded, Rotated
    from kcap.tools.recording import Place


NOTE_CHARS: Final = 4096
"""The longest case, operator or note."""


class _RecordOptions(live.LiveOptions, live_select.SelectOptions, rotation.RotationOptions):
    """Options that record shares with run, and what it is told for whoever reads the capture."""

    case: str | None
    operator: str | None
    note: str | None
    user: str | None


def _brief(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Refuse what is too long for a capture's description of its source."""
    if value is not None and len(value) > NOTE_CHARS:
        raise click.BadParameter(f"more than {NOTE_CHARS:,} characters")
    return value


@click.command(
    "record",
    cls=Verb,
    examples=(
        "kcap record -o host.kcap",
        "kcap record -o host --duration 60 --max-size 100M --durability 200ms",
        "kcap record --events process,net --scope comm=nginx --scope follow -o web",
        "kcap record -o host.kcap --case C-12 --operator ann --note 'before the reboot'",
        "ssh host kcap record -o - | tee host.kcap | kcap cat -",
    ),
)
@click.option("-o", "--output", "target", help="The capture; default HOST-TIME.kcap; - is stdout.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@live.live_options
@live_select.select_options
@click.option("--max-size", type=common.Size(), help="Stop when the file is about this large.")
@click.option(
    "--durability",
    "durable",
    type=durability.DurabilityType(),
    default="1s",
    show_default=True,
    help="The most that a crash may cost: what came within INTERVAL, the open chunk, or anything.",
)
@click.option(
    "--case", callback=_brief, help="The case it belongs to; 'kcap info --host' shows it."
)
@click.option("--operator", callback=_brief, help="Who records.")
@click.option("--note", callback=_brief, help="Anything else that a reader should know.")
@rotation.rotation_options
@apart.user_option
@common.chunk_options
@common.where_option
@click.argument("words", nargs=-1, metavar="[FILTER]...")
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    where: Filter | None,
    target: str | None,
    force: bool,
    max_size: int | None,
    durable: durability.Durability,
    chunk_events: int,
    level: int,
    **options: Unpack[_RecordOptions],
) -> None:
    """Record what happens on this host until Ctrl-C, a signal or a limit.

    By default that is executions with path and arguments, forks and ends of processes, files opened
    for writing, connections, and what matters to security; --list-events prints what else there
    is. Needs root; 'kcap doctor' says what a host can be recorded with.

    What the kernel had to drop is counted by event and process, written into the capture, and makes
    the exit code 3; so does what nobody could see, as what a program does through io_uring.

    What came is on the disk within INTERVAL, so neither a kill nor a power cut costs more; a pipe
    gets it as often. With 'chunk' the disk gets whole chunks only, full ones or of a minute, with
    'none' the system decides.

    What --events, --scope and a filter, behind -w or as words, leave out stays in the kernel as far
    as that can tell; 'kcap info' shows how much.
    """
    from kcap.tools.recording import Place

    where = common.filter_given(ctx, where, words)
    selection = live_select.chosen(options, where)
    place = Place(
        output.capture_path(target) if target else _default_name(),
        force,
        durable,
        rotation.chosen(options, target),
        {"chunk_rows": chunk_events, "level": level},
    )
    told = _told(options, where)
    source = live.opened(options, interval_s=durable.tick_s, selection=selection, details=told)
    code = _record(ctx, source, selection, place, max_size, options)
    if durable.synced and force and place.target != "-":
        durability.sync_folder(place.target)  # a new file has taken the old one's name
    ctx.exit(code)


def _record(
    ctx: click.Context,
    source: LiveSource,
    selection: Selection,
    place: Place,
    max_size: int | None,
    options: _RecordOptions,
) -> int:
    """Put the recording together with all its rights, then do it without.

    Returns:
        The exit code.
    """
    from kcap.model.batch import EMPTY
    from kcap.replay.pipeline import Pipeline
    from kcap.state import State
    from kcap.tools.recorded import Rotated
    from kcap.tools.recording import Limits, Wanted, opened, report, status_of

    state, wanted = State(), Wanted(selection)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        manager = stack.enter_context(notify.Notifier())
        asked = stack.enter_context(control.opened())
        sink, outputs = opened(place, stack, state, wanted)
        acts = {}
        if isinstance(sink, Rotated):
            acts["SIGHUP"] = sink.rotate
            if asked is not None:
                asked.on("rotate", lambda: _rotated(sink))
        stack.enter_context(live.stopping(source, acts=acts))
        limits = Limits(
            source,
            sink,
            notify.Signs(manager, lambda: _sign(sink)),
            duration_s=options["duration"],
            max_size=max_size,
        )
        attendant = attend.Attendant(
            source.info, lambda losses: sink.write(EMPTY.with_before(losses)), asked
        )
        progress = Progress(lambda: sink.expected_bytes)
        pipeline = Pipeline(
            source,
            [sink, attendant],
            state=state,
            resolve=True,
            stages=wanted.stages,
            limit=options["count"],
            after_batch=lambda summary: (
                attendant.check(summary, status_of(sink))
                or limits.check()
                or progress.update(summary)
            ),
        )

        def work(channel: Channel | None) -> int:
            if channel is not None:
                manager.through(channel)
                if outputs is not None:
                    outputs.through(channel)
            with progress, contextlib.closing(attendant.begin()):
                summary = pipeline.run()
            manager.stopping(f"ended with exit code {summary.exit_code}")
            lost = sum(summary.lost().values())
            report(summary.events_out, lost, summary.exit_code, sink)
            common.report_losses(summary.losses, source.info.file)
            return summary.exit_code

        answers = manager.answers() | ({} if outputs is None else outputs.answers())
        return apart.run(ctx, source, work, user=options["user"], answers=answers)


def _told(options: _RecordOptions, where: Filter | None) -> dict[str, str]:
    """What the capture says of its recording, beside what its source knows."""
    told = {
        "case": options["case"],
        "filter": None if where is None else where.text,
        "note": options["note"],
        "operator": options["operator"],
    }
    return {name: value for name, value in told.items() if value}


def _rotated(sink: Rotated) -> dict[str, str]:
    """Begin another file, when somebody asks for it."""
    sink.rotate()
    return {"after": sink.names[-1]}


def _sign(sink: Recorded) -> str:
    """How a recording does, in a line for the service manager."""
    return f"recording: {common.size_text(sink.expected_bytes)} in {sink.names[-1]}"


def _default_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "host"
    return f"{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.kcap"
