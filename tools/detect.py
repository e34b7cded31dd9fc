"""``kcap detect``: let rules look at captures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn, Unpack

import click

from kcap.tools import alerting, common, logs, outlets, output, ruleset
from kcap.tools.cli import Verb
from kcap.tools.inputs import Announced, Inputs
from kcap.tools.play import naming

if TYPE_CHECKING:
    from kcap.detect.engine import Detections
    from kcap.detect.rule import Rule
    from kcap.filter import Filter
    from kcap.model.batch import Batch
    from kcap.model.stream import Sink, Source
    from kcap.replay.pipeline import Pipeline, Stage, Summary
    from kcap.state import State

EXIT_FOUND: Final = 4

FORMATS: Final = ("text", "jsonl", "template")
_STDIN: Final = "-"
_INPUT_FORMATS: Final = {"json": "tracee", "gob": "tracee-gob"}
"""Words of ``--input-tracee format:``, and the inputs that they mean."""


class _Options(ruleset.RuleOptions, outlets.SinkOptions):
    """The options of the verb."""

    where: Filter | None
    start: int | None
    end: int | None
    limit: int | None
    lenient: bool
    raw_pairs: bool
    output: str
    force: bool
    form: str | None
    input_tracee: tuple[str, ...]
    output_template: str | None


@click.command(
    "detect",
    cls=Verb,
    examples=(
        "kcap detect host.kcap",
        "kcap detect --signatures all --format jsonl host.kcap | jq .arg_rule",
        "kcap detect --rules TRC-3 --rules ./rules host-*.kcap",
        "kcap detect --rules sigma/ --exit-code host.kcap || echo found",
        'kcap record --events "$(kcap detect --list-events)" -o - | kcap detect -',
        "kcap detect --list",
    ),
)
@click.argument("captures", nargs=-1, metavar="[CAPTURE]...")
@ruleset.rule_options
@click.option("--list", "listing", is_flag=True, help="Print the rules, and exit.")
@click.option(
    "--list-events", is_flag=True, help="Print the events that must be recorded, and exit."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="text: as tracee-rules prints it, with the event's time; jsonl: one JSON object an alert;"
    " template: see --output-template.  [default: text]",
)
@click.option(
    "--output-template",
    type=click.Path(dir_okay=False),
    help="A file with a jinja2 template for an alert; see 'kcap docs templates'.",
)
@click.option(
    "--input-tracee",
    multiple=True,
    metavar="file:FILE|format:FORMAT",
    help="As of tracee-rules: file:stdin or file:PATH, format:json or format:gob.",
)
@common.where_option
@click.option("--start", type=common.EventTime(), help="Only alerts of this time or later.")
@click.option("--end", type=common.EventTime(), help="Only alerts of before this time.")
@click.option("-n", "--limit", type=click.IntRange(1), help="Stop after N alerts.")
@outlets.sink_options
@click.option("--exit-code", is_flag=True, help="Leave with 4 where a rule has matched.")
@click.option("-o", "--output", default=_STDIN, help="Output file; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@common.raw_pairs_option
@common.lenient_option
@click.pass_context
def command(
    ctx: click.Context,
    captures: tuple[str, ...],
    listing: bool,
    list_events: bool,
    exit_code: bool,
    **options: Unpack[_Options],
) -> None:
    """Let rules look at the events of CAPTUREs, and print their alerts; '-' is standard input.

    Rules are Tracee's first 14 signatures, or what --rules and --signatures name: kcap's own
    (YAML, Python), Fibratus's, Sigma's. 'kcap rules' says more of each. What a CAPTURE is, is told
    by its content. Several are one run, by time; parts of one recording in their order.

    An alert has the time of its event, and depends on the events and rules alone: the same comes
    live, from files and in parts. With --start, rules have seen what was before. With -w they look
    only at events of which that is true. A rule that can't run is told, the others run, and the
    exit code is 3.
    """
    if listing or list_events:
        _list(ctx, options, events=list_events)
    names = _inputs(captures, options["input_tracee"])
    form = _form(options)
    rules = ruleset.chosen(options)
    logs.tell(rules.loaded())
    rules.tell_problems()
    asked = outlets.wanted(ctx, options)
    with contextlib.ExitStack() as stack:
        inputs = Inputs(names, stack, lenient=options["lenient"], raw_pairs=options["raw_pairs"])
        _check_formats(inputs, options["input_tracee"])
        path = options["output"]
        stack.enter_context(naming(path))
        stream = stack.enter_context(output.opened(path, force=options["force"], binary=False))
        also = stack.enter_context(outlets.opened(asked, stream, live=False))
        console = asked.console or not also.sinks
        sinks = [*([_printing(form, stream, rules, options)] if console else []), *also.sinks]
        run = _Run(rules, options)
        summary = run.pipeline(inputs, sinks, also.transforms).run()
        stream.flush()
    run.tell(summary)
    also.report()
    _finish(ctx, summary, rules, names, found=exit_code and run.found > 0)


class _Run:
    """Rules over captures: a tap that keeps to what is asked for.

    Args:
        rules: The rules.
        options: The verb's options.
    """

    def __init__(self, rules: ruleset.Chosen, options: _Options) -> None:
        from kcap.replay.stages import Matching

        where = options["where"]
        self._where = None if where is None else where.inspector
        self._detections: Detections = rules.detections(
            start_ns=options["start"], where=None if where is None else Matching(where)
        )
        self._end_ns = options["end"]
        self._room = options["limit"]
        self.found = 0
        """Alerts so far."""

    def pipeline(self, inputs: Inputs, sinks: list[Sink], transforms: list[Stage]) -> Pipeline:
        """Put it together.

        Args:
            inputs: The captures.
            sinks: Where alerts go.
            transforms: What becomes of them before.

        Returns:
            What does it, once.
        """
        from kcap.replay.pipeline import Pipeline

        self._detections.bind(inputs.sources)
        if self._where is not None:
            self._where.bind(inputs.sources)
        source, state = _one_source(inputs)
        return Pipeline(
            source,
            sinks,
            state=state,
            taps=[self],
            stages=[_NoEvents()],
            transforms=transforms,
            after_batch=lambda _: self._done,
        )

    # the tap

    @property
    def losses(self) -> Iterable[Any]:
        """What rules did not look at, or forgot."""
        return self._detections.losses

    def see(self, batch: Batch) -> list[tuple[int, Batch]]:
        """See `kcap.replay.tap.Tap`."""
        from kcap.model import alert

        if self._done:
            return []
        # Nobody gets the events that stand between alerts: to cut a batch for each takes longer
        # than to find it.
        found = [one for _, one in self._detections.alerts(batch)]
        return self._kept([(batch.rows, alert.batch(found))]) if found else []

    def end(self) -> list[Batch]:
        """See `kcap.replay.tap.Tap`."""
        if self._done:
            return []
        return [batch for _, batch in self._kept([(0, one) for one in self._detections.end()])]

    def close(self) -> None:
        """See `kcap.replay.tap.Tap`."""
        self._detections.close()

    def tell(self, summary: Summary) -> None:
        """Say what came of it.

        Args:
            summary: What the run did.
        """
        alerting.suppressed(self._detections.suppressed)
        alerts = common.counted(self.found, "alert")
        logs.tell(f"kcap: {alerts} of {common.counted(summary.events_in, 'event')}")

    @property
    def _done(self) -> bool:
        """No alert is wanted any more."""
        if self._room is not None and self.found >= self._room:
            return True
        return self._end_ns is not None and self._detections.now_ns >= self._end_ns

    def _kept(self, found: list[tuple[int, Batch]]) -> list[tuple[int, Batch]]:
        """Those within the interval and the limit."""
        from kcap.replay.stages import TimeRange

        kept = []
        for row, batch in found:
            if self._end_ns is not None:
                batch = TimeRange(None, self._end_ns).process(batch)  # noqa: PLW2901
            if self._room is not None:
                batch = batch.slice(0, min(batch.rows, self._room - self.found))  # noqa: PLW2901
            self.found += batch.rows
            if batch.rows:
                kept.append((row, batch))
        return kept


class _NoEvents:
    """Leaves alerts alone: a stage."""

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        return batch.slice(0, 0)


class _Flushing:
    """A sink whose lines go out at once: somebody may wait for them.

    Args:
        sink: The sink.
        flush: Sends them.
    """

    def __init__(self, sink: Sink, flush: Callable[[], object]) -> None:
        self._sink = sink
        self._flush = flush

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        if batch.rows:
            self._sink.write(batch)
            self._flush()

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        self._sink.close()


def _one_source(inputs: Inputs) -> tuple[Source, State | None]:
    """The captures as one, and the state that follows them where there are several."""
    from kcap.replay.resolved import OWN, Resolved
    from kcap.state import State
    from kcap.tools import combine

    sources = combine.sources_of(inputs, canonical=False)
    state = State() if len(sources) > 1 else None
    source = combine.as_one(sources, State() if state is None else state, None)
    if len(inputs.sources) == 1 and source.info.format not in OWN:
        source = Resolved(source)
    return (Announced(source, inputs.losses) if inputs.losses else source), state


def _printing(form: str, stream: BinaryIO, rules: ruleset.Chosen, options: _Options) -> Sink:
    """The sink of the output itself."""
    if form == "text":
        return alerting.text(rules, stream)
    sink = common.sink_for(form, stream, template_file=options["output_template"])
    return _Flushing(sink, stream.flush)


def _form(options: _Options) -> str:
    """The form of the output."""
    form, template = options["form"], options["output_template"]
    if template is not None and form not in (None, "template"):
        raise click.UsageError(f"--output-template is no template of --format {form}")
    if template is None and form == "template":
        raise click.UsageError("--format template needs --output-template FILE")
    return form or ("text" if template is None else "template")


def _inputs(captures: tuple[str, ...], tracee: tuple[str, ...]) -> list[str]:
    """The inputs, however they are named."""
    from kcap.tools import combine

    names = list(captures)
    for word in tracee:
        key, _, value = word.partition(":")
        if key == "file" and value:
            names.append(_STDIN if value == "stdin" else value)
        elif key != "format" or value.lower() not in _INPUT_FORMATS:
            expected = "file:stdin, file:PATH, format:json or format:gob"
            raise click.UsageError(f"--input-tracee {word!r}: expected {expected}")
    if not names:
        raise click.UsageError("name a CAPTURE; - is standard input")
    combine.check_once(names)
    return names


def _check_formats(inputs: Inputs, tracee: tuple[str, ...]) -> None:
    """Refuse an input that is not what it was said to be."""
    from kcap.errors import BadInputError

    said = [word.partition(":")[2].lower() for word in tracee if word.startswith("format:")]
    for source in inputs.sources if said else ():
        if source.info.format != _INPUT_FORMATS[said[-1]]:
            raise BadInputError(
                f"this is a {source.info.format} input",
                file=source.info.file,
                expected=f"what --input-tracee format:{said[-1]} says",
                hint="leave format: out; what an input is, is told by its content",
            )


def _list(ctx: click.Context, options: _Options, *, events: bool) -> NoReturn:
    """Print the rules, or the events that they need, and leave."""
    rules = ruleset.chosen(options)
    rules.tell_problems()
    if events:
        needed, unknown = ruleset.needed_events(rules.rules)
        click.echo(",".join(sorted(needed)))
        if unknown:
            names = ", ".join(rule.about.id for rule in unknown)
            logs.tell(f"kcap: which events these need is not known: {names}", level="warning")
    else:
        logs.tell(rules.loaded())
        click.echo(f"{'ID':<10} {'NAME':<35} {'VERSION':<7} DESCRIPTION")
        for rule in rules.rules:
            click.echo(listed(rule))
    ctx.exit(exit_code_of(rules))


def listed(rule: Rule) -> str:
    """A rule as tracee-rules lists it.

    Args:
        rule: The rule.

    Returns:
        A line.
    """
    from kcap.model.text import printable

    about = rule.about
    text = " ".join(about.description.split())
    return printable(f"{about.id:<10} {about.name:<35} {about.version:<7} {text}".rstrip())


def exit_code_of(rules: ruleset.Chosen) -> int:
    """The exit code of what was done with rules.

    Args:
        rules: The rules.

    Returns:
        0; 3 where some can't run.
    """
    return 3 if rules.problems else 0


def _finish(
    ctx: click.Context, summary: Summary, rules: ruleset.Chosen, names: list[str], *, found: bool
) -> NoReturn:
    """Say what was lost, and leave with the run's exit code."""
    name = names[0] if len(names) == 1 else f"{len(names)} inputs"
    common.report_losses(summary.losses, name)
    logs.count(ctx, events_in=summary.events_in, alerts=summary.alerts)
    ctx.exit(EXIT_FOUND if found else summary.exit_code or exit_code_of(rules))
