"""``kcap record``: record what happens on this host."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    status,
)
from kcap.tools.cli import Verb
from kcap.tools.progress import Progress

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.format.writer import CaptureWriter
    from kcap.model.batch import Batch
    from kcap.model.side import Loss
    from kcap.model.stream import LiveSource
    from kcap.readers.live.guard.channel import Channel
    from kcap.readers.live.selection import Selection
    from kcap.replay.pipeline import Summary


apart.settle()

NOTE_CHARS: Final = 4096
"""The longest case, operator or note."""


class _RecordOptions(live.LiveOptions, live_select.SelectOptions):
    """Options that record shares with run, and what it is told for whoever reads the capture."""

    case: str | None
    operator: str | None
    note: str | None
    user: str | None


@dataclass
class _Limits:
    """When a recording ends by itself, and when what it has is committed."""

    source: LiveSource
    writer: CaptureWriter
    path: str
    duration_s: float | None
    max_size: int | None
    durable: durability.Durability
    signs: notify.Signs

    def __post_init__(self) -> None:
        self._told = False
        self._deadline = live.Deadline(self.source, self.duration_s)
        self._committer = durability.Committer(self.writer, self.durable, time.monotonic())

    def check(self) -> bool:
        """After each batch: say that the recording runs, commit in time, stop at a limit.

        Returns:
            False: the source ends by itself then, with all that it has.
        """
        from kcap.model.text import printable

        if not self._told:
            self._told = True
            source = self.source.info.format
            click.echo(f"kcap: recording with {source}: {printable(self.path)}", err=True)
        now = time.monotonic()
        self._committer.check(now)
        self._deadline.check(now)
        self.signs.check(now)
        if self.max_size is not None and self.writer.expected_bytes >= self.max_size:
            self.source.stop()
        return False


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
    from kcap.format.writer import CaptureWriter
    from kcap.replay.pipeline import Pipeline
    from kcap.state import State

    where = common.filter_given(ctx, where, words)
    selection = live_select.chosen(options, where)
    told = _told(options, where)
    source = live.opened(options, interval_s=durable.tick_s, selection=selection, details=told)
    path = output.capture_path(target) if target else _default_name()
    with (
        contextlib.closing(source),
        notify.Notifier() as manager,
        live.stopping(source),
        control.opened() as asked,
        output.opened(path, force=force) as stream,
    ):
        state = State()
        writer = CaptureWriter(
            stream,
            file=path,
            snapshot=state.snapshot,
            chunk_rows=chunk_events,
            created_ns=time.time_ns(),
            level=level,
            sync=durability.syncing(stream, durable, path),
        )
        signs = notify.Signs(manager, lambda: _sign(writer, path))
        limits = _Limits(source, writer, path, options["duration"], max_size, durable, signs)
        kept = _Kept(writer, selection)
        attendant = attend.Attendant(source.info, kept.tell, asked)
        progress = Progress(lambda: writer.bytes_written)
        pipeline = Pipeline(
            source,
            [kept, attendant],
            state=state,
            resolve=True,
            stages=kept.stages,
            limit=options["count"],
            after_batch=lambda summary: (
                attendant.check(summary, status.Output.of(writer, path, stream))
                or limits.check()
                or progress.update(summary)
            ),
        )

        def work(channel: Channel | None) -> int:
            if channel is not None:
                manager.through(channel)
            with progress, contextlib.closing(attendant.begin()):
                summary = pipeline.run()
            stream.flush()
            _report(summary, writer, path)
            common.report_losses(summary.losses, source.info.file)
            return summary.exit_code

        code = apart.run(ctx, source, work, user=options["user"], answers=manager.answers())
    if durable.synced and force and path != "-":
        durability.sync_folder(path)  # a new file has taken the old one's name
    ctx.exit(code)


def _told(options: _RecordOptions, where: Filter | None) -> dict[str, str]:
    """What the capture says of its recording, beside what its source knows."""
    told = {
        "case": options["case"],
        "filter": None if where is None else where.text,
        "note": options["note"],
        "operator": options["operator"],
    }
    return {name: value for name, value in told.items() if value}


def _report(summary: Summary, writer: CaptureWriter, path: str) -> None:
    """Say what was recorded."""
    from kcap.model.text import printable

    lost = sum(summary.lost().values())
    size = common.size_text(writer.bytes_written)
    click.echo(f"kcap: sha256 {writer.file_hash}", err=True)
    click.echo(
        f"kcap: {common.counted(summary.events_out, 'event')}, {size}, {lost:,} lost, "
        f"exit code {summary.exit_code}: {printable(path)}",
        err=True,
    )


def _sign(writer: CaptureWriter, path: str) -> str:
    """How a recording does, in a line for the service manager."""
    return f"recording: {common.size_text(writer.bytes_written)} in {path}"


class _Kept:
    """A sink for what is wanted: the capture says how many events it has left out."""

    def __init__(self, writer: CaptureWriter, selection: Selection) -> None:
        from kcap.readers.live.tracking import Selected
        from kcap.replay.stages import Matching
        from kcap.replay.survivors import Selecting

        self._writer = writer
        self._wanted = selection.asked
        where = selection.where
        stages = [] if where is None else [Matching(where, storing=True)]
        found = Selected.around(selection, stages)
        self._selecting = Selecting(found, limit=None, state=True) if found else None
        self.stages = [] if self._selecting is None else [self._selecting]
        self.losses: list[Loss] = []

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        self._writer.write(batch)

    def tell(self, losses: Sequence[Loss]) -> None:
        """Take into the capture what happened to its recording."""
        from kcap.model.batch import EMPTY

        self._writer.write(EMPTY.with_before(losses))

    def close(self) -> None:
        """See `Sink.close`."""
        from kcap.model.batch import EMPTY
        from kcap.replay.survivors import left_out

        if self._selecting is not None:
            why = f"left out while recording, not: {self._wanted}"
            losses = left_out(self._selecting.dropped, whole=True)
            self._writer.write(EMPTY.with_before([replace(loss, reason=why) for loss in losses]))
        self._writer.close()
        self.losses += self._writer.losses


def _default_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "host"
    return f"{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.kcap"
