"""What becomes of events beside the console: filaments, transformers, sinks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypedDict, TypeVar
from urllib.parse import quote, urlencode

import click

from kcap.errors import KcapError
from kcap.tools import logs, output

if TYPE_CHECKING:
    from kcap.filament.limits import Limits
    from kcap.filament.source import Filament
    from kcap.filament.table import Display
    from kcap.filament.tap import Filaments
    from kcap.filter import Filter
    from kcap.guard.rights import User
    from kcap.model.batch import Batch
    from kcap.model.side import Loss
    from kcap.model.stream import Sink
    from kcap.replay.pipeline import Stage
    from kcap.replay.span import Span
    from kcap.replay.tap import Tap
    from kcap.tools.ruleset import Chosen, RuleOptions
    from kcap.tools.settings.model import TransformerSpec
    from kcap.writers.sinks.dry import Dry
    from kcap.writers.sinks.spec import Spec

_F = TypeVar("_F", bound=Callable[..., Any])

HELPERS_MAX: Final = 4
"""Filaments and sinks over a network in one live run: as many as the kernel leaves out."""

_CONSOLE: Final = ("form", "view", "fields", "template", "template_file")
"""Options that say that events are to be printed."""


class SinkOptions(TypedDict):
    """The options that `sink_options` declares."""

    sinks: tuple[str, ...]
    transforms: tuple[str, ...]


class FilamentOptions(TypedDict):
    """The options that `filament_options` declares."""

    filaments: tuple[str, ...]
    filament_path: tuple[str, ...]


class OutletOptions(SinkOptions, FilamentOptions):
    """All of them."""


def sink_options(function: _F) -> _F:
    """``--sink``, ``--transform``."""
    for option in (
        click.option(
            "--transform",
            "transforms",
            multiple=True,
            metavar="NAME=ARGS",
            help="Change events before they go anywhere: remove, rename, replace, trim, tags,"
            " redact; see 'kcap docs transform'.",
        ),
        click.option(
            "--sink",
            "sinks",
            multiple=True,
            metavar="URL",
            help="Send events to a server, as amqp://HOST or https://HOST; several are possible;"
            " see 'kcap docs sinks'.",
        ),
    ):
        function = option(function)
    return function


def filament_options(function: _F) -> _F:
    """``-f``, ``--filament.path``."""
    for option in (
        click.option(
            "--filament.path",
            "filament_path",
            multiple=True,
            metavar="DIR",
            help="Where filaments are looked for before those that come with kcap.",
        ),
        click.option(
            "-f",
            "--filament",
            "filaments",
            multiple=True,
            metavar="NAME[,ARG]...",
            help="Run a filament, by its name or its .py file; see 'kcap list filaments'.",
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class Wanted:
    """What settings and the command line ask for; nothing is open yet."""

    console: bool = True
    """Events are printed, or written to the output."""
    sinks: tuple[Spec, ...] = ()
    transforms: tuple[Stage, ...] = ()
    filaments: tuple[Filament, ...] = ()
    limits: Limits | None = None
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The options that say all of it, whatever said it: names and values, without secrets."""
    parts: Sequence[Mapping[str, str]] = ()
    """What the output depends on beside options: kinds, names, digests."""
    rules: Chosen | None = None


@dataclass
class Outlets:
    """What takes part in a run."""

    console: bool = True
    taps: list[Tap] = field(default_factory=list)
    filters: list[Filter | None] = field(default_factory=list)
    """What each filament looks at; None for all events."""
    transforms: list[Stage] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    dry: list[Dry] = field(default_factory=list)
    """The same sinks, where the run is described: they only hash."""

    def described(self) -> list[dict[str, Any]]:
        """What the sinks were given, for a manifest; once the run has ended."""
        return [one.described() for one in self.dry]

    def looking(self, where: Filter | None) -> Filter | None:
        """What must be recorded so that everybody gets what they look at.

        Args:
            where: The filter of the command line.

        Returns:
            A filter that is true of all of it; None where that is everything.
        """
        from kcap.filter import Filter

        found = list(self.filters)
        if self.console or self.sinks or not found:
            found.append(where)
        known = {one.text: one for one in found if one is not None}
        if None in found or len({one.checked.era for one in known.values()}) > 1:
            return None
        if len(known) == 1:
            return next(iter(known.values()))
        text = " or ".join(f"({one})" for one in known)
        return Filter.of(text, next(iter(known.values())).checked.era)

    @property
    def pids(self) -> list[int]:
        """The processes that work for it."""
        ends: list[object] = [*self.taps, *self.sinks]
        return [pid for end in ends for pid in getattr(end, "pids", ())]

    def status(self) -> list[dict[str, Any]]:
        """How the sinks do.

        Returns:
            Of each that can tell its name and its counts.
        """
        found = [(getattr(s, "name", ""), getattr(s, "status", None)) for s in self.sinks]
        return [{"sink": name, **status} for name, status in found if status is not None]

    def report(self) -> None:
        """Say what the sinks have delivered, and what rules have found."""
        for tap in self.taps:
            getattr(tap, "report", lambda: None)()
        for said in self.status():
            refused = sum(said.get("refused", {}).values())
            also = f", {refused:,} refused" if refused else ""
            logs.tell(f"kcap: {said['sink']}: {said.get('taken', 0):,} delivered{also}")


class Aside:
    """The sinks beside a recording: one that fails does not end it.

    Args:
        also: The sinks, and what becomes of events before these get them.
    """

    def __init__(self, also: Outlets) -> None:
        self._sinks = list(also.sinks)
        self._transforms = also.transforms
        self._failed: list[Loss] = []
        self._all = also.sinks

    @property
    def losses(self) -> list[Loss]:
        """What the sinks could not take."""
        return [*self._failed, *(loss for s in self._all for loss in getattr(s, "losses", ()))]

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        if not self._sinks:
            return
        for stage in self._transforms:
            batch = stage.process(batch)
        for sink in tuple(self._sinks):
            self._try(sink, partial(sink.write, batch))

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        for sink in tuple(self._sinks):
            self._try(sink, sink.close)
        self._sinks = []

    def _try(self, sink: Sink, act: Callable[[], None]) -> None:
        from kcap.model.side import Loss

        try:
            act()
        except KcapError as e:
            self._sinks.remove(sink)
            self._failed.append(Loss("skipped", None, f"a sink gets nothing more: {e}"))
            logs.tell(f"kcap: {e}; the recording goes on", level="error")
            if e.hint:
                logs.tell(f"hint: {e.hint}")


def wanted(
    ctx: click.Context,
    options: SinkOptions,
    filaments: Sequence[str] = (),
    folders: Sequence[str] = (),
    *,
    alone: bool = False,
    rules: RuleOptions | None = None,
) -> Wanted:
    """Understand what is asked for.

    Args:
        ctx: The verb's context.
        options: Its options.
        filaments: The filaments.
        folders: Where they are looked for first.
        alone: The options say all of it: sinks and transformers of settings are others.
        rules: Options that may name rules.

    Returns:
        What to open.

    Raises:
        KcapError: A sink, a transformer or a filament is wrong.
        click.UsageError: The options contradict each other.
    """
    from kcap.tools import settings

    given = settings.of(ctx)
    if alone:
        given = replace(given, sinks=(), transformers=())
    given = given.with_sinks(options["sinks"])
    found: tuple[Filament, ...] = ()
    searched: tuple[str, ...] = ()
    if filaments:
        from kcap.filament import source

        searched = tuple(dict.fromkeys((*folders, *given.filament.path)))
        found = tuple(source.find(name, searched) for name in filaments)
    specs: tuple[Spec, ...] = ()
    if given.sinks:
        from kcap.writers.sinks import spec

        specs = tuple(spec.parse(sink.url, sink.options) for sink in given.sinks)
    if specs and ctx.params.get("view"):
        raise click.UsageError("--view is for the console: a sink gets events, not its lines")
    chosen = None if rules is None else _rules(rules)
    prints = _prints(ctx)
    if found and chosen is not None and not (prints or specs):
        raise click.UsageError("a filament prints to standard output: give alerts a --sink, or -o")
    console = prints and ctx.params.get("output") == "-"
    if found and (console or any(one.scheme == "console" for one in specs)):
        # Which of them comes first would depend on how the stream is cut into batches.
        raise click.UsageError("a filament prints to standard output: send events to -o FILE")
    return Wanted(
        prints or not (found or specs or chosen),
        specs,
        tuple(_transforms(options["transforms"], given.transformers)),
        found,
        given.filament.limits,
        _words(ctx, specs, given.transformers, options["transforms"], searched),
        [
            *({"kind": "filament", "name": one.name, "sha256": _digest(one)} for one in found),
            *(() if chosen is None else chosen.parts()),
        ],
        chosen,
    )


def _rules(options: RuleOptions) -> Chosen | None:
    from kcap.tools import ruleset

    return ruleset.asked(options)


def _words(
    ctx: click.Context,
    specs: Sequence[Spec],
    transformers: Sequence[TransformerSpec],
    transforms: Sequence[str],
    folders: Sequence[str],
) -> dict[str, list[str]]:
    """The options that would say all that settings and options say."""
    from kcap.tools.settings.secrets import masked_url

    set_ = [f"{one.name}={json.dumps(one.arguments, sort_keys=True)}" for one in transformers]
    found = {
        "filament": list(ctx.params.get("filaments", ())),
        "filament.path": list(folders),
        "sink": [masked_url(_spelled(one)) for one in specs],
        "transform": [*set_, *transforms],
    }
    return {name: values for name, values in found.items() if values}


def _spelled(spec: Spec) -> str:
    """A sink as far as what it is given depends on it."""
    from kcap.writers.sinks.spec import said

    query = urlencode(said(spec), doseq=True, quote_via=quote)
    return f"{spec.shown.partition('?')[0]}?{query}"


def _digest(filament: Filament) -> str:
    """What a filament is, the modules beside it included."""
    texts = [filament.text, *(f"{m.name}\n{m.text}" for m in filament.modules)]
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _prints(ctx: click.Context) -> bool:
    """Whether it was said how events are to be printed now, or where to, in settings too."""
    default = (click.core.ParameterSource.DEFAULT, None)
    return ctx.get_parameter_source("output") not in default or any(
        ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        for name in _CONSOLE
    )


def _transforms(texts: Sequence[str], settings: Sequence[TransformerSpec]) -> Iterator[Stage]:
    """Those of the settings, which may be there so that nothing leaks, come first."""
    if not (texts or settings):
        return
    from kcap import transform

    for one in settings:
        yield transform.parse(one.name, one.arguments, environ=os.environ)
    for text in texts:
        yield transform.parse_text(text, environ=os.environ)


def worker_user(name: str | None = None) -> User | None:
    """Who a filament or the courier of a sink becomes.

    Args:
        name: A user's name; None for the default.

    Returns:
        The user; None where this process can become nobody else.
    """
    if not sys.platform.startswith("linux"):
        return None
    from kcap.guard import rights

    return rights.chosen(name) if rights.may_become() else None


@contextlib.contextmanager
def prints(asked: Wanted, out: BinaryIO) -> Iterator[BinaryIO]:
    """Where filaments print: standard output is theirs, where events go into a file.

    Args:
        asked: What `wanted` gave.
        out: The output of the verb.

    Yields:
        The stream.
    """
    if not (asked.filaments and asked.console):
        yield out
        return
    with output.opened("-", binary=False) as stream:
        yield stream
        stream.flush()


@contextlib.contextmanager
def opened(
    asked: Wanted,
    stream: BinaryIO,
    *,
    live: bool,
    redraws: bool = False,
    where: Filter | None = None,
    user: str | None = None,
    described: bool = False,
    dry: bool = False,
    span: Span | None = None,
) -> Iterator[Outlets]:
    """Start filaments and sinks: before this process gives up its rights.

    Args:
        asked: What `wanted` gave.
        stream: Where filaments print.
        live: The run records: a sink never gives up.
        redraws: On a terminal, tables of filaments are drawn over each other.
        where: The filter of filaments that set none.
        user: Who they become where this is root; None for the default.
        described: Hash what sinks are given (`Outlets.described`).
        dry: Do only that, and send nothing.
        span: The part of the stream that is wanted, where the run reads all of it; None for all.

    Yields:
        What to put into the pipeline.

    Raises:
        KcapError: Something can't be started.
    """
    with contextlib.ExitStack() as stack:
        made = Outlets(asked.console, transforms=list(asked.transforms))
        become = worker_user(user) if asked.sinks and not dry else None
        if described:
            from kcap.writers.sinks.dry import Dry

            made.dry = [Dry(one) for one in asked.sinks]
        for one in () if dry else asked.sinks:
            from kcap.writers.sinks import spec

            made.sinks.append(spec.opened(one, live=live, user=become))
            # Who ran the pipeline has closed it; nothing is delivered of a run that never began.
            stack.callback(getattr(made.sinks[-1], "abandon", made.sinks[-1].close))
        if asked.filaments:
            from kcap.replay.passing import Partly

            filaments = _started(stack, asked, _display(stream, redraws=redraws), where, user)
            made.taps.append(filaments if span is None or span.whole else Partly(filaments, span))
            made.filters += filaments.filters
        if asked.rules is not None:
            from kcap.tools import alerting

            made.taps.append(alerting.Rules(asked.rules, span))
            made.filters.append(None)
            if not (asked.console or asked.sinks):
                made.sinks.append(alerting.text(asked.rules, stream))
        if live and len(made.pids) > HELPERS_MAX:
            raise KcapError(
                f"{len(made.pids)} filaments and sinks over a network in one live run",
                expected=f"at most {HELPERS_MAX}: more would see what they do themselves",
                hint="record a capture, and replay it",
            )
        yield made


def _display(stream: BinaryIO, *, redraws: bool) -> Display:
    """Where filaments print and draw."""
    from kcap.filament import table

    if redraws and stream.isatty():
        return table.Screen(stream, partial(shutil.get_terminal_size))
    return table.Plain(stream)


def _started(
    stack: contextlib.ExitStack,
    asked: Wanted,
    display: Display,
    where: Filter | None,
    user: str | None,
) -> Filaments:
    """The filaments, in processes of their own."""
    from kcap.filament.tap import Filaments

    stack.callback(display.close)
    become = None if user is None else worker_user(user)
    made = Filaments(asked.filaments, display, where=where, limits=asked.limits, user=become)
    stack.callback(made.close)
    return made
