"""What cat and replay share: a source through the pipeline to an output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypedDict, cast

import click

from kcap.errors import OutputError
from kcap.tools import common, logs, output, views

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Sink, Source
    from kcap.replay.artifacts import Artifacts
    from kcap.replay.pipeline import Stage, Summary
    from kcap.replay.span import Span
    from kcap.state import State
    from kcap.tools.outlets import Outlets
    from kcap.writers.views.view import View


class Chosen(TypedDict):
    """The options that say which events and columns are wanted."""

    where: Filter | None
    start: int | None
    end: int | None
    limit: int | None
    fields: str | None
    state: bool
    derived: bool


class Options(Chosen, views.ViewOptions):
    """The options that `common.input_options` and `output_options`, and `view_option` declare."""

    lenient: bool
    raw_pairs: bool
    output: str
    force: bool
    template: str | None
    template_file: str | None
    containers: bool
    color: str


class Output(NamedTuple):
    """An open output."""

    path: str
    stream: BinaryIO


@contextlib.contextmanager
def opened_output(form: str, options: Options) -> Iterator[Output]:
    """Open what the options name.

    Args:
        form: One of `common.FORMATS`, or ``arrow``.
        options: The verb's options.

    Yields:
        The output, for `playing`.

    Raises:
        OutputError: It exists, is a link, or can't be written.
    """
    binary = form in common.BINARY_FORMATS
    if binary:
        common.save_memory()
    path = output.capture_path(options["output"]) if form == "kcap" else options["output"]
    with naming(path), output.opened(path, force=options["force"], binary=binary) as stream:
        yield Output(path, stream)


def playing(
    source: Source,
    form: str,
    options: Options,
    out: Output,
    *,
    tracked: State | None = None,
    view: View | None = None,
    outlets: Outlets | None = None,
    around: Callable[[list[Stage]], list[Stage]] | None = None,
    after_batch: Callable[[Summary], bool] | None = None,
    span: Span | None = None,
    artifacts: Artifacts | None = None,
) -> Callable[[], Summary]:
    """Put together what sends a source's events to an output.

    Args:
        source: Where events come from; not closed.
        form: One of `common.FORMATS`, or ``arrow``.
        options: The verb's options.
        out: The output.
        tracked: The state to keep, None for none; it resolves the events of a foreign format.
        view: The form in place of ``form``, if any.
        outlets: What takes part beside the output, or in its place.
        around: Puts more stages around those that choose events.
        after_batch: See `Pipeline`.
        span: The part of the source that is wanted, where all of it is read; None for all.
        artifacts: Those that may go along into a capture; see `carried`.

    Returns:
        What does it, once.
    """
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.resolved import OWN

    follows = tracked is not None or view is not None
    taps = outlets.taps if outlets else []
    limit = options["limit"]
    if taps and limit is not None:
        from kcap.replay.limited import Limited

        # Else what a filament sees beyond the limit would depend on where batches end.
        source, limit = Limited(source, limit, span), None
    read, stages = narrowed(source, form, options, tracked=follows, around=around)
    sinks: list[Sink] = []
    if view is not None:
        sink, stages = views.viewing(view, out.stream, stages)
        sinks = [sink]
    elif outlets is None or outlets.console:
        sinks = [_printing(form, options, out, artifacts)]
    pipeline = Pipeline(
        read,
        [*sinks, *(outlets.sinks if outlets else ())],
        state=tracked,
        resolve=tracked is not None and source.info.format not in OWN,
        taps=taps,
        stages=stages,
        transforms=outlets.transforms if outlets else (),
        limit=limit,
        after_batch=after_batch,
    )

    def run() -> Summary:
        with naming(out.path):
            summary = pipeline.run()
            out.stream.flush()
        return summary

    return run


def carried(source: Source, form: str, options: Chosen) -> Artifacts | None:
    """The artifacts that go along with the events.

    Args:
        source: The input, as it was opened.
        form: One of `common.FORMATS`.
        options: What is wanted: all artifacts go along with all events, with some events their own.

    Returns:
        They; None where the output takes none.
    """
    if form != "kcap":
        return None
    from kcap.replay.artifacts import Artifacts

    names = columns(options)
    if names is not None and not {"origin", "ord"} <= set(names):
        _left_behind(source)
        return None
    bounds = (options["where"], options["start"], options["end"], options["limit"])
    return Artifacts([source], unnamed=all(bound is None for bound in bounds))


def _left_behind(source: Source) -> None:
    """Say that artifacts stay where they are: by these columns they would find their events."""
    from kcap.format.reader import CaptureReader
    from kcap.replay.artifacts import listed

    if isinstance(source, CaptureReader):
        there = source.window.seekable and next(iter(source.manifests()), None) is not None
    else:
        there = bool(listed(source))
    if there:
        logs.tell(
            "kcap: the artifacts stay behind: -F leaves out origin and ord, by which each finds"
            " its event",
            level="warning",
        )


def _printing(form: str, options: Options, out: Output, artifacts: Artifacts | None) -> Sink:
    """The sink of the output itself."""
    sink = common.sink_for(
        form,
        out.stream,
        file=out.path,
        state=options["state"],
        template=options["template"],
        template_file=options["template_file"],
        fields=columns(options),
        containers=options["containers"],
        color=common.wants_color(options["color"], out.stream),
    )
    if form != "kcap":
        return sink
    from kcap.replay.artifacts import Carrying
    from kcap.replay.stages import WithoutAlerts

    if artifacts is not None:
        sink = Carrying(cast("CaptureWriter", sink), artifacts)
    return WithoutAlerts(sink)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Give the errors of a sink, which knows only its stream, the output's name.

    Args:
        path: The output as the user named it.

    Yields:
        Nothing.
    """
    try:
        yield
    except OutputError as e:
        e.file = e.file or path
        raise


def narrowed(
    source: Source,
    form: str,
    options: Chosen,
    *,
    tracked: bool,
    around: Callable[[list[Stage]], list[Stage]] | None = None,
) -> tuple[Source, list[Stage]]:
    """The stages for a filter, a time range, events alone, and a choice of columns.

    Where events are all that is wanted, a capture reads just the chunks and columns they need.

    Args:
        source: Where events come from.
        form: One of `common.FORMATS`; ``kcap`` for every output that keeps all records.
        options: What is wanted.
        tracked: The state follows the events, so all of them are needed.
        around: Puts more stages around those that choose events.

    Returns:
        What to read, and the stages.

    Raises:
        click.UsageError: Derived events are to be stored, or a column is none.
    """
    from kcap.replay.chosen import chosen
    from kcap.replay.stages import Columns, EventsOnly

    if options["derived"] and form == "kcap":
        raise click.UsageError("derived events are never stored: --derived is for other formats")
    names = columns(options)
    read, made = chosen(
        source,
        columns=None if names is None else (*names, "ts", "kind"),
        start_ns=options["start"],
        end_ns=options["end"],
        where=options["where"],
        everything=tracked or form == "kcap" or options["state"],
        derived=derived(options),
        storing=form == "kcap",
    )
    if around is not None:
        made = around(made)
    if not options["state"] and (form != "kcap" or names):
        # Before columns are dropped, the kind among them, and before --limit counts.
        made.append(EventsOnly())
    if names:
        made.append(Columns(names))
    return read, made


def derived(options: Chosen) -> Collection[str]:
    """The derived events that ``--derived`` asks for.

    Args:
        options: What is wanted.

    Returns:
        Their names.
    """
    if not options["derived"]:
        return ()
    from kcap.replay.derived import names

    return names()


def columns(options: Chosen) -> tuple[str, ...] | None:
    """The columns that ``--fields`` names.

    Args:
        options: What is wanted.

    Returns:
        Their names in that order, each once; None for all.

    Raises:
        click.UsageError: One of them is no column's name.
    """
    from kcap.model import catalogue

    if not options["fields"]:
        return None
    names = tuple(dict.fromkeys(n.strip() for n in options["fields"].split(",")))
    for name in names:
        if catalogue.class_of(name) is None:
            import difflib

            near = difflib.get_close_matches(name, catalogue.envelope(), 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no column is called {name!r}.{meant} See 'kcap docs columns'.")
    return names


def opened_source(
    path: str, *, lenient: bool, resolve: bool = True, raw_pairs: bool = False
) -> contextlib.closing[Any]:
    """Open a capture for a ``with`` statement.

    Args:
        path: The input as the user named it.
        lenient: Go on past bad input.
        resolve: Find out who caused the events of a foreign format.
        raw_pairs: Keep the enter and the exit of a call as two events.

    Returns:
        A context manager that gives the source and closes it.
    """
    from kcap.opening import open_source

    return contextlib.closing(
        open_source(path, lenient=lenient, resolve=resolve, raw_pairs=raw_pairs)
    )
