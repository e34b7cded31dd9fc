"""``kcap replay``: run a capture through the pipeline again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

import click

from kcap.tools import alerting, common, forms, logs, outlets, output, repeat, ruleset, views
from kcap.tools.cli import Verb
from kcap.tools.play import (
    Options,
    Output,
    carried,
    opened_output,
    opened_source,
    playing,
)

if TYPE_CHECKING:
    from kcap.model.batch import Batch
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Stage, Summary
    from kcap.replay.seek import Seeking, Whole
    from kcap.replay.span import Bound, Span
    from kcap.state import State
    from kcap.tools.resuming import Progress
    from kcap.writers.views.view import View

_RATED_S: Final = 2.0
"""A shorter run says nothing of its speed."""


_OF_ONE_PIECE: Final = ("csv", "kcap", "table", "table-verbose")
"""Formats that begin or end with something of their own."""


class Position(click.ParamType[Any]):
    """A point in time, a row of the input, or an event."""

    name = "position"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Parse it."""
        from kcap.replay.span import AtTime, parsed

        if not isinstance(value, str):
            return value
        return parsed(value) or AtTime(common.EventTime().convert(value, param, ctx))


class _Options(outlets.OutletOptions, ruleset.RuleOptions, Options):
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
        "kcap replay --rules ./rules --format jsonl host.kcap",
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
    metavar="FORMAT",
    default="line",
    show_default=True,
    help=f"{forms.FORMAT_HELP[:-1]}; kcap: a new capture.",
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
@outlets.filament_options
@ruleset.rule_options
@outlets.sink_options
@views.view_option
@common.output_options
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

    With --rules or --signatures alerts are printed, and events where -o or --format ask for them.
    """
    if verify is not None:
        _check_alone(ctx)
        ctx.exit(repeat.verified(ctx, command, verify))
    if name is None and not words:
        raise click.UsageError("give one capture: CAPTURE, or -k NAME")
    path = output.existing_path(name) if name else words[0]
    options["where"] = common.filter_given(ctx, options["where"], words if name else words[1:])
    run = _Run.asked(ctx, path, form, options)
    with opened_source(
        path, lenient=options["lenient"], resolve=False, raw_pairs=options["raw_pairs"]
    ) as opened:
        summary = run.resumed(opened) if options["resume"] else run.replayed(opened)
    common.finish(ctx, summary, path)


def _check_alone(ctx: click.Context) -> None:
    """Refuse other arguments beside --verify: the manifest says them all."""
    given = [
        param.name
        for param in ctx.command.params
        if param.name not in ("verify", "verbose", None) and _is_given(ctx, str(param.name))
    ]
    if given:
        raise click.UsageError("--verify takes everything from the manifest: give nothing else")


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


@dataclass
class _Run:
    """One run of the verb."""

    ctx: click.Context
    path: str
    form: str
    options: _Options
    view: View | None
    wanted: outlets.Wanted
    again: repeat.Rerun | None
    """The comparison that it is made for."""

    @classmethod
    def asked(cls, ctx: click.Context, path: str, form: str, options: _Options) -> _Run:
        """Understand what is asked for, and refuse what can't be done together."""
        view = views.chosen(ctx, options)
        again = repeat.rerun(ctx)
        wanted = outlets.wanted(
            ctx,
            options,
            options["filaments"],
            options["filament_path"],
            alone=again is not None,
            rules=options,
        )
        made = cls(ctx, path, form, options, view, wanted, again)
        if again is None and path == "-" and (options["manifest"] or options["resume"]):
            what = "--manifest" if options["manifest"] else "--resume"
            raise click.UsageError(f"{what} is for a file: a stream can't be read again")
        if options["resume"]:
            made._check_resumable()
        return made

    def _check_resumable(self) -> None:
        if self.options["manifest"]:
            raise click.UsageError("--manifest is for a run from its beginning: not with --resume")
        if self.options["force"]:
            raise click.UsageError("--force begins anew, --resume goes on: give one of them")
        files = [one.shown for one in self.wanted.sinks if one.scheme == "file"]
        refused = {
            f"--format {self.form}": self.form in _OF_ONE_PIECE and self.wanted.console,
            "--view": self.view is not None,
            "a filament": bool(self.wanted.filaments),
            "rules with --speed": bool(self.wanted.rules and self.options["speed"]),
            f"--sink {''.join(files[:1])}": bool(files),
        }
        for what, given in refused.items():
            if given:
                raise click.UsageError(f"{what} can't be gone on with: not with --resume")

    def replayed(self, opened: Source) -> Summary:
        """Run it.

        Args:
            opened: The capture.

        Returns:
            What it did.
        """
        kept = self.options["manifest"]
        if kept is None and self.again is None:
            with opened_output(self.form, self.options) as out, self._outlets(out) as also:
                return self._play(opened, out, also)
        from kcap.replay import manifest

        captured = manifest.capture(self.path, opened)
        outputs = repeat.Outputs(self.again)
        with (
            outputs.opened(self.form, self.options) as out,
            self._outlets(out, outputs) as also,
        ):
            color = "always" if common.wants_color(self.options["color"], out.stream) else "never"
            summary = self._play(opened, out, also)
        outputs.found += also.described()
        options = repeat.options_of(self.ctx, self.options["where"], self.wanted, color=color)
        parts = repeat.parts_of(self.wanted)
        if self.again is not None:
            captured["name"] = self.again.says["capture"]["name"]
            options = self.again.says["options"]
        made = manifest.made(captured, options, parts, outputs.found, summary)
        if self.again is not None:
            self.again.made = made
        if kept is not None:
            with output.opened(kept, force=self.options["force"], binary=False) as stream:
                stream.write(manifest.packed(made))
        return summary

    def resumed(self, opened: Source) -> Summary:
        """Run it from the place that a run before has come to.

        Args:
            opened: The capture.

        Returns:
            What it did.
        """
        from kcap.replay.manifest import file_digest
        from kcap.replay.pipeline import Summary
        from kcap.replay.resume import Checkpoint, Run
        from kcap.tools import resuming

        options = repeat.options_of(self.ctx, self.options["where"], self.wanted)
        options["output"] = self.options["output"]
        if keys := repeat.keys_of(self.wanted):
            options["transform"] = [options.get("transform"), *keys]
        if self.wanted.rules is not None:
            options["rules"] = [options.get("rules"), self.wanted.rules.parts()]
        file = str(self.options["resume"])
        run = Run.of(opened, lambda: file_digest(self.path)[1], options)
        checkpoint = Checkpoint(file, run)
        place = checkpoint.load()
        if place.done:
            logs.tell(f"kcap: {file}: this run has come to its end: nothing is left to do")
            return Summary()
        if self.options["limit"] is not None and not self._reads_all:
            self.options["limit"] -= place.events_out
        path = self.options["output"]
        size = place.sizes.get(path, 0)
        with (
            resuming.continued(path, size)
            if place.started
            else opened_output(self.form, self.options) as out,
            self._outlets(out, behind=place.row) as also,
        ):
            begin = partial(resuming.Progress, checkpoint, place, out, also)
            return self._play(opened, out, also, behind=place.row, begin=begin)

    @contextlib.contextmanager
    def _outlets(
        self, out: Output, outputs: repeat.Outputs | None = None, *, behind: int = 0
    ) -> Iterator[outlets.Outlets]:
        with contextlib.ExitStack() as stack:
            prints = stack.enter_context(outlets.prints(self.wanted, out.stream))
            if outputs is not None and prints is not out.stream:
                prints = stack.enter_context(outputs.printed(prints))
            yield stack.enter_context(
                outlets.opened(
                    self.wanted,
                    prints,
                    live=False,
                    redraws=self.options["speed"] is not None,
                    where=self.options["where"],
                    described=outputs is not None,
                    dry=self.again is not None,
                    span=self._span(behind) if self._reads_all else None,
                )
            )

    def _play(
        self,
        opened: Source,
        out: Output,
        also: outlets.Outlets,
        *,
        behind: int = 0,
        begin: Callable[[Seeking | Whole], Progress] | None = None,
    ) -> Summary:
        """Put the pipeline together and run it."""
        from kcap.state import State

        state = State()
        options = self.options
        alerting.bind(also, options["where"], [opened])
        span = self._span(behind)
        source, stages = self._spanned(opened, span, state)
        progress = None if begin is None else begin(source)
        paced = self._paced(source, span)
        times = _Times()
        begun_s = time.monotonic()
        summary = playing(
            paced,
            self.form,
            options | {"start": None, "end": None},
            out,
            tracked=state,
            view=self.view,
            outlets=replace(
                also,
                transforms=[times, *also.transforms],
                sinks=[*also.dry, *also.sinks],
            ),
            around=lambda made: [*stages, *made],
            after_batch=progress,
            span=span._replace(behind=0) if self._reads_all else None,
            artifacts=carried(opened, self.form, options),
        )()
        if progress is not None:
            progress.end(summary)
        if self.again is None:
            _report(summary, times, time.monotonic() - begun_s)
            also.report()
        return summary

    @property
    def _reads_all(self) -> bool:
        """Whether what is not wanted is read, too.

        A view tells how long something ran: it has to see it begin. So do rules.
        """
        return self.view is not None or self.wanted.rules is not None

    def _span(self, behind: int = 0) -> Span:
        """The part that is wanted."""
        from kcap.replay.span import Span

        start, end = (cast("Bound | None", self.options[name]) for name in ("start", "end"))
        return Span(start, end, behind)

    def _spanned(
        self, opened: Source, span: Span, state: State
    ) -> tuple[Seeking | Whole, list[Stage]]:
        """What to read, and the stages that choose among it before all others."""
        from kcap.replay.seek import Seeking, Whole
        from kcap.replay.span import Within

        if not self._reads_all:
            return Seeking(opened, span, state, host=self.form == "kcap"), []
        return Whole(opened, span), [] if span.whole else [Within(span)]

    def _paced(self, source: Source, span: Span) -> Source:
        """The source at the speed that is asked for."""
        from kcap.replay.span import AtTime

        if self.options["speed"] is None:
            return source
        since_ns: int | None = None
        if self._reads_all and span.start is not None:
            if not isinstance(span.start, AtTime):
                what = "--view" if self.view is not None else "--rules"
                raise click.UsageError(f"{what} with --speed begins at a time: give --start one")
            since_ns = span.start.ns
        from kcap.tools.pace import Paced

        return Paced(source, self.options["speed"], since_ns=since_ns)


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
