"""``kcap replay``: run a capture through the pipeline again."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

import click

from kcap.tools import common, logs, outlets, output, repeat, views
from kcap.tools.cli import Verb
from kcap.tools.play import Options, Output, opened_source, playing

if TYPE_CHECKING:
    from kcap.model.batch import Batch
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Stage, Summary
    from kcap.replay.resume import Checkpoint, Place
    from kcap.replay.seek import Seeking
    from kcap.replay.span import Bound, Span
    from kcap.state import State
    from kcap.writers.views.view import View

_SAVED_S: Final = 1.0
"""Seconds after which a run that can be resumed notes its place again."""

_RATED_S: Final = 2.0
"""A shorter run says nothing of its speed."""


class Position(click.ParamType[Any]):
    """A point in time, a row of the input, or an event."""

    name = "position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Parse it."""
        from kcap.replay.span import AtTime, parsed

        if not isinstance(value, str):
            return value
        return parsed(value) or AtTime(common.EventTime().convert(value, param, ctx))


class _Options(Options):
    """The options of the verb that others share."""

    speed: float | None
    manifest: str | None
    resume: str | None


@click.command(
    "replay",
    cls=Verb,
    examples=(
        "kcap replay host.kcap",
        "kcap replay --speed 10 host.kcap",
        "kcap replay --speed 1 --view execsnoop host.kcap",
        "kcap replay -k host --format jsonl -o host.jsonl",
        "kcap replay \"evt.category = 'file' and ps.name = 'bash'\" -k host",
        "kcap replay --start 2026-11-20T12:00:00Z --end '#250000' host.kcap",
        "kcap replay --format jsonl -o host.jsonl --manifest run.json host.kcap",
        "kcap replay --verify run.json",
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
@click.option(
    "--manifest",
    metavar="FILE",
    help="Say in FILE what went into the run and what came out, for --verify.",
)
@click.option(
    "--verify",
    metavar="FILE",
    help="Run what the manifest FILE says again; exit code 1 where anything differs.",
)
@click.option(
    "--resume",
    metavar="FILE",
    help="Keep in FILE how far the run has come, and where it is there, go on from there.",
)
@common.input_options_at(Position(), "a time, '#ROW' or ORIGIN:ORD")
@common.output_options
@views.view_option
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    name: str | None,
    form: str,
    verify: str | None,
    **options: Unpack[_Options],
) -> None:
    """Run the events of CAPTURE through the pipeline, as if they happened now.

    The words behind CAPTURE, with -k all words, are a filter, as with -w: best in one pair of
    double quotes. The output depends on the capture and the options alone: no clock, locale or
    host file is read. A summary goes to standard error.

    With --start the run begins in the middle and knows what was known there: who the processes
    were, their ancestors, their open files. What it prints is the end of what a whole run prints.
    """
    if verify is not None:
        _check_alone(ctx)
        ctx.exit(repeat.verified(ctx, command, verify))
    if name is None and not words:
        raise click.UsageError("give one capture: CAPTURE, or -k NAME")
    path = output.existing_path(name) if name else words[0]
    options["where"] = common.filter_given(ctx, options["where"], words if name else words[1:])
    view = views.chosen(ctx, options)
    _check(path, form, options, view)
    with opened_source(
        path, lenient=options["lenient"], resolve=False, raw_pairs=options["raw_pairs"]
    ) as opened:
        run = _Run(ctx, path, form, options, view)
        summary = run.replayed(opened)
    common.finish(ctx, summary, path)


def _check_alone(ctx: click.Context) -> None:
    """Refuse other arguments beside --verify: the manifest says them all."""
    given = [
        param.name
        for param in ctx.command.params
        if param.name not in ("verify", None) and _is_given(ctx, str(param.name))
    ]
    if given:
        raise click.UsageError("--verify takes everything from the manifest: give nothing else")


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _check(path: str, form: str, options: _Options, view: View | None) -> None:
    """Refuse what can't be done together."""
    if options["manifest"] and path == "-":
        raise click.UsageError("--manifest is for a file: a stream can't be read again")
    if options["resume"] is None:
        return
    if path == "-":
        raise click.UsageError("--resume is for a file: a stream can't be read again")
    if options["manifest"]:
        raise click.UsageError("--manifest is for a run from its beginning: not with --resume")
    if options["force"]:
        raise click.UsageError("--force begins the output anew, --resume goes on with it: give one")
    if form == "kcap" or view is not None:
        what = "--view" if view is not None else "--format kcap"
        raise click.UsageError(f"{what} can't be gone on with: not with --resume")


@dataclass
class _Run:
    """One run of the verb."""

    ctx: click.Context
    path: str
    form: str
    options: _Options
    view: View | None

    def replayed(self, opened: Source) -> Summary:
        """Run it.

        Args:
            opened: The capture.

        Returns:
            What it did.
        """
        again = repeat.rerun(self.ctx)
        if self.options["resume"] is not None:
            return self._resumed(opened, self.options["resume"])
        kept = self.options["manifest"]
        described = kept is not None or again is not None
        captured = _described(self.path, opened) if described else {}
        with repeat.opened(self.form, self.options, again, digest=described) as (out, outputs):
            color = "always" if self._colored(out) else "never"
            summary = self._play(opened, out, quiet=again is not None)
        if described:
            from kcap.replay import manifest

            options = repeat.options_of(self.ctx, self.options["where"], color=color)
            if again is not None:
                captured["name"] = again.manifest["capture"]["name"]
            made = manifest.made(captured, options, [], outputs, summary, summary.exit_code)
            if again is not None:
                again.made = made
            if kept is not None:
                with output.opened(kept, force=self.options["force"], binary=False) as stream:
                    stream.write(manifest.packed(made))
        return summary

    def _colored(self, out: Output) -> bool:
        return common.wants_color(self.options["color"], out.stream)

    def _play(
        self, opened: Source, out: Output, *, quiet: bool = False, progress: _Progress | None = None
    ) -> Summary:
        """Put the pipeline together and run it."""
        from kcap.replay.span import Span
        from kcap.state import State

        state = State()
        options = self.options
        start, end = (cast("Bound | None", options[name]) for name in ("start", "end"))
        span = Span(start, end, progress.place.row if progress else 0)
        options = options | {"start": None, "end": None}
        source, seeking, stages = self._spanned(opened, span, state)
        if progress is not None:
            progress.begin(seeking)
        times = _Times()
        begun = time.monotonic()
        summary = playing(
            source,
            self.form,
            options,
            out,
            tracked=state,
            view=self.view,
            outlets=outlets.Outlets(transforms=[times]),
            around=lambda made: [*stages, *made],
            after_batch=progress,
        )()
        if progress is not None:
            progress.end(summary)
        if not quiet:
            _report(summary, times, time.monotonic() - begun)
        return summary

    def _spanned(
        self, opened: Source, span: Span, state: State
    ) -> tuple[Source, Seeking | None, list[Stage]]:
        """What to read, and the stages that choose among it before all others."""
        from kcap.replay.seek import Seeking
        from kcap.replay.span import AtTime, Within

        stages: list[Stage] = []
        seeking: Seeking | None = None
        source: Source = opened
        since_ns: int | None = None
        if self.view is not None and not span.whole:
            # A view tells how long something ran: it has to see it begin.
            stages = [Within(span)]
            if isinstance(span.start, AtTime):
                since_ns = span.start.ns
            elif span.start is not None and self.options["speed"] is not None:
                raise click.UsageError("--view with --speed begins at a time: give --start one")
        else:
            source = seeking = Seeking(opened, span, state, host=self.form == "kcap")
        if self.options["speed"] is not None:
            from kcap.tools.pace import Paced

            source = Paced(source, self.options["speed"], since_ns=since_ns)
        return source, seeking, stages

    def _resumed(self, opened: Source, file: str) -> Summary:
        """Run it from the place that a run before has come to."""
        from kcap.replay.pipeline import Summary
        from kcap.replay.resume import Checkpoint, Run

        options = repeat.options_of(self.ctx, self.options["where"])
        options["output"] = self.options["output"]
        digest = partial(_file_digest, self.path, opened)
        checkpoint = Checkpoint(file, Run.of(opened, digest, options))
        place = checkpoint.load()
        if place.done:
            logs.tell(f"kcap: {file}: this run was finished: nothing is left to do")
            return Summary()
        if self.options["limit"] is not None:
            self.options["limit"] -= place.events_out
        with self._continued(place) as out:
            progress = _Progress(checkpoint, place, out)
            progress.save(place)
            return self._play(opened, out, progress=progress)

    @contextlib.contextmanager
    def _continued(self, place: Place) -> Iterator[Output]:
        path = self.options["output"]
        if place.started:
            with repeat.continued(path, place.sizes.get(path, 0)) as out:
                yield out
        else:
            with repeat.opened(self.form, self.options, None, digest=False) as (out, _):
                yield out


def _described(path: str, source: Source) -> dict[str, Any]:
    from kcap.replay import manifest

    return manifest.capture(path, source)


def _file_digest(path: str, source: Source) -> str:
    digest: str = _described(path, source)["sha256"]
    return digest


class _Progress:
    """Notes how far a run has come, once what it has written is safe.

    Args:
        checkpoint: Keeps the place.
        place: Where the run begins.
        out: The output.
    """

    def __init__(self, checkpoint: Checkpoint, place: Place, out: Output) -> None:
        self.place = place
        self._checkpoint = checkpoint
        self._out = out
        self._seeking: Seeking | None = None
        self._due = time.monotonic() + _SAVED_S

    def begin(self, seeking: Seeking | None) -> None:
        """Take the source, which knows the rows.

        Args:
            seeking: The source.
        """
        self._seeking = seeking

    def __call__(self, summary: Summary) -> bool:
        """Is called after each batch; never ends the run."""
        # The clock decides when the place is noted, never what comes out.
        if time.monotonic() >= self._due:
            self.save(self._reached(summary))
            self._due = time.monotonic() + _SAVED_S
        return False

    def end(self, summary: Summary) -> None:
        """Note that all is done.

        Args:
            summary: What the run did.
        """
        self.save(self._reached(summary, done=True))

    def save(self, place: Place) -> None:
        """Make the output safe, and note the place.

        Args:
            place: Everything before it was written.
        """
        from dataclasses import replace

        sizes = {}
        stream = self._out.stream
        stream.flush()
        if self._out.path != "-" and stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            os.fsync(stream.fileno())
            sizes[self._out.path] = os.fstat(stream.fileno()).st_size
        self._checkpoint.save(replace(place, sizes=sizes, started=True))

    def _reached(self, summary: Summary, *, done: bool = False) -> Place:
        from kcap.replay.resume import Place

        assert self._seeking is not None
        return Place(
            self._seeking.row_behind(summary.events_in),
            self.place.events_in + summary.events_in,
            self.place.events_out + summary.events_out,
            done=done,
        )


class _Times:
    """Notes the times of the events that pass: a stage."""

    def __init__(self) -> None:
        self.first_ns: int | None = None
        self.last_ns: int | None = None

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        from kcap.format.chunk import bounds
        from kcap.model.batch import without_state

        low, high = bounds(without_state(batch), "ts")
        if low <= high:
            self.first_ns = low if self.first_ns is None else min(self.first_ns, low)
            self.last_ns = high if self.last_ns is None else max(self.last_ns, high)
        return batch


def _report(summary: Summary, times: _Times, taken_s: float) -> None:
    """Say what was replayed; who waits long for it also learns how fast that was."""
    kept = f" of {summary.events_in:,}" if summary.events_out < summary.events_in else ""
    speed = ""
    if taken_s >= _RATED_S:
        rate = summary.events_in / taken_s
        speed = f" in {taken_s:,.1f} s, {rate:,.0f} a second"
    logs.tell(f"kcap: {summary.events_out:,}{kept} events replayed{speed}")
    if times.first_ns is not None and times.last_ns is not None:
        first, last = common.utc(times.first_ns), common.utc(times.last_ns)
        length = common.duration_text(times.last_ns - times.first_ns)
        logs.tell(f"kcap: from {first} to {last}, {length}")
