"""``kcap record``: record what happens on this host."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Unpack

import click

from kcap.guard.rights import FILES
from kcap.tools import (
    alerting,
    apart,
    artifact_folder,
    artifact_options,
    common,
    companions,
    durability,
    live,
    live_select,
    needs,
    outlets,
    output,
    rotation,
    ruleset,
)
from kcap.tools.cli import Verb

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.tools.recording import Place


NOTE_CHARS: Final = 4096
"""The longest case, operator or note."""


class _RecordOptions(
    live.LiveOptions,
    live_select.SelectOptions,
    artifact_options.ArtifactOptions,
    rotation.RotationOptions,
    outlets.SinkOptions,
    ruleset.RuleOptions,
):
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
        "kcap record -o host --split-time 1h --split-size 256M --keep 48",
        "kcap record -o incident --ring 60s --on-signal --after 10s",
        "kcap record -o incident --ring 60s --rules TRC-3 --on-alert any",
        "kcap record --events process,net --scope comm=nginx --scope follow -o web",
        "kcap record -o host.kcap --case C-12 --operator ann --note 'before the reboot'",
        "kcap record --artifacts exec,write='/tmp/*',mem -o incident",
        "kcap record --artifacts network,pcap:process,dir:/srv/out --scope comm=sh",
        "ssh host kcap record -o - | tee host.kcap | kcap cat -",
    ),
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    help="The capture; default HOST-TIME.kcap; - is stdout; none: artifacts alone, no events.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@live.live_options
@live_select.select_options
@artifact_options.artifact_options
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
@ruleset.rule_options
@outlets.sink_options
@apart.user_option
@common.chunk_options
@common.where_option
@click.argument("words", nargs=-1, metavar="[FILTER]...")
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    where: Filter | None,
    outputs: tuple[str, ...],
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

    With --split-size, --split-time or --keep a recording goes on in further files, HOST-000001.kcap
    and so on or as {n}, {n:04} and {time} in the name say, also when SIGHUP asks for one; without
    them SIGHUP ends it. Each file is a capture of its own; 'kcap merge' makes them one. Numbers go
    on behind the files that there are. With --ring nothing is written until SIGUSR1 asks for what
    is held; another signal lets a file that is being written go on, or begins the next.

    With --rules or --signatures the events that these rules need are recorded, too, with --env,
    --stack and --opens as they need them, and --artifacts exec where they, or a filter with
    --pe.enabled, look at artifacts: all is said on standard error, and what of it can't be had.
    Alerts go to each --sink; with --ring and --on-alert one writes what is held.

    With --artifacts the files, streams, memory and programs behind the events are kept, too, in the
    capture: 'kcap artifacts' lists them and takes them out. Packets are events of their own. Needs
    root. What is over a limit, or came too fast, is counted; its hash stays where it is known.

    Where the disk is full the recording ends, exit code 3: the file is closed, and says how much is
    missing. With --keep the oldest files go instead. A --sink that fails ends nothing.
    """
    from kcap.tools.recording import Place

    where = common.filter_given(ctx, where, words)
    target, alone = artifact_options.target(outputs)
    place = Place(
        output.capture_path(target) if target else _default_name(),
        force,
        durable,
        rotation.chosen(options, target, force=force),
        {"chunk_rows": chunk_events, "level": level},
    )
    artifacts = artifact_options.read(options, options, place.target, alone=alone)
    code, files = _record(ctx, options, where, place, artifacts, max_size)
    if durable.synced and force and place.target != "-":
        durability.sync_folder(place.target)  # a new file has taken the old one's name
    if artifacts is not None and artifacts.folder is not None:
        apart.settle(ctx, tuple(FILES))
    ctx.exit(max(code, artifact_folder.lay_out(artifacts, files)))


def _record(
    ctx: click.Context,
    options: _RecordOptions,
    where: Filter | None,
    place: Place,
    artifacts: artifact_options.Asked | None,
    max_bytes: int | None,
) -> tuple[int, list[str]]:
    """Record until the end; the exit code, and the files that there are."""
    from kcap.tools.recording import Limits, Recording

    asked, on_alert = _alerting(ctx, options)
    companions.check(options["source"], artifacts)
    needed = needs.turn_on(options, asked.rules)
    artifact_options.turn_on(options, artifacts)
    artifacts = needs.artifacts(asked.rules, artifacts, options, where)
    selection = live_select.chosen(options, where)
    needs.tell_lacking(needed, selection)
    told = _told(options, where, artifacts)
    if not (asked.sinks or on_alert):
        asked = replace(asked, rules=None)  # nobody would get their alerts
    artifact_folder.prepare(artifacts)
    with live.undoing(), contextlib.ExitStack() as stack:
        # Before anything is recorded: how they begin is nobody's business.
        also = stack.enter_context(
            outlets.opened(asked, sys.stdout.buffer, live=True, user=options["user"])
        )
        interval_s = place.durable.tick_s
        source = live.opened(
            options,
            interval_s=interval_s,
            selection=selection,
            details=told,
            accompanied=artifacts is not None,
        )
        source = companions.accompanied(source, artifacts, place.target)
        stack.callback(source.close)
        limits = Limits(options["duration"], options["count"], max_bytes)
        recording = Recording(source, selection, place, stack, limits, also, on_alert, artifacts)
        code = apart.run(
            ctx,
            source,
            recording.work,
            user=options["user"],
            packages=companions.PACKAGES if artifacts else (),
            **recording.asked(),
        )
    return code, recording.files


def _alerting(
    ctx: click.Context, options: _RecordOptions
) -> tuple[outlets.Wanted, tuple[str, ...]]:
    """Sinks and rules; and the rules whose alerts make a ring write."""
    named = options["on_alert"]
    if named and not ruleset.given(options):
        # Their names are enough.
        options["rules"] = tuple(name for name in named if name != alerting.ANY)
    # Alerts are not printed: what is recorded may go to standard output.
    asked = replace(outlets.wanted(ctx, options, rules=options), console=True)
    if not named:
        return asked, ()
    if asked.rules is None:
        raise click.UsageError("--on-alert any: of which rules? Give --rules or --signatures")
    return asked, alerting.triggers(named, asked.rules)


def _told(
    options: _RecordOptions, where: Filter | None, artifacts: artifact_options.Asked | None
) -> dict[str, str]:
    """What the capture says of its recording, beside what its source knows."""
    told = {
        "artifacts": None if artifacts is None else artifacts.text,
        "case": options["case"],
        "filter": None if where is None else where.text,
        "note": options["note"],
        "operator": options["operator"],
    }
    return {name: value for name, value in told.items() if value}


def _default_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "host"
    return f"{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.kcap"
