"""What several verbs share: options, formats, times, and how a run ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import click

from kcap import limits
from kcap.tools import forms, logs

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.model.side import Loss
    from kcap.replay.pipeline import Summary

_F = TypeVar("_F", bound=Callable[..., Any])
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = re.compile(r"(.*?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.DOTALL)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SHOWN: Final = 5
_ERA: Final = "kcap.era"
_BINARIES: Final = "kcap.binaries"

TEXT_FORMATS: Final = forms.TEXT_FORMATS
FORMATS: Final = forms.FORMATS
BINARY_FORMATS: Final = forms.BINARY_FORMATS
sink_for: Final = forms.sink_for


class EventTime(click.ParamType[int]):
    """A point in time: RFC 3339, or integer ns since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Parse to ns UTC; what has no zone is UTC."""
        if isinstance(value, int):
            return value
        try:
            if re.fullmatch(r"-?\d{6,}", value):
                return int(value)
            match = _TIME.fullmatch(value)
            assert match is not None
            base = datetime.fromisoformat(match[1] + (match[3] or "").replace("Z", "+00:00"))
            base = base if base.tzinfo else base.replace(tzinfo=UTC)
            whole = (base - _EPOCH) // timedelta(seconds=1)
            return whole * 10**9 + int((match[2] or "").ljust(9, "0"))
        except ValueError:
            self.fail(
                f"{value!r} is no time: give 2026-11-20T12:00:00Z or ns since 1970", param, ctx
            )


class Duration(click.ParamType[float]):
    """A duration: seconds, or with a unit (500ms, 10s, 5m, 2h)."""

    name = "duration"
    _units: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    def convert(
        self,
        value: Any,  # noqa: ANN401  (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Parse to seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", value)
        if match is None:
            self.fail(f"{value!r} is no duration: give 30, 500ms, 10s, 5m or 2h", param, ctx)
        return float(match[1]) * self._units[match[2] or ""]


class Size(click.ParamType[int]):
    """A size in bytes, or with a unit (100K, 20M, 1G; powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Parse to bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is no size: give 500000, 100K, 20M or 1G", param, ctx)
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


class Switch(click.Option):
    """A flag that may be spelled ``--NAME=true`` and ``--NAME=false``, as Fibratus's are."""

    def plain(self, word: str) -> str:
        """A word of the command line as click understands it.

        Args:
            word: Any word.

        Returns:
            The flag, or the one that says no; any other word as it is.
        """
        name, _, value = word.partition("=")
        if name not in self.opts or value.lower() not in ("true", "false"):
            return word
        return name if value.lower() == "true" else self.secondary_opts[0]


class FilterText(click.ParamType["Filter"]):
    """A filter expression, checked as soon as it is read."""

    name = "filter"

    def convert(
        self,
        value: Any,  # noqa: ANN401  (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Filter:
        """Parse it; what is wrong with it is a KcapError with a caret."""
        from kcap.filter import Filter

        if isinstance(value, Filter):
            return value
        if ctx is None:
            return filter_of(value)
        return filter_of(value, era_of(ctx), binaries=looks_into_binaries(ctx))


def filter_of(text: str, era: int | None = None, *, binaries: bool = False) -> Filter:
    """Parse a filter; say which of its fields no capture has.

    Args:
        text: The filter.
        era: 1 or 3, None for what its names tell.
        binaries: Answer ``pe.*`` and ``elf.*`` from artifacts.

    Returns:
        The filter.

    Raises:
        FilterError: It can't be understood.
    """
    from kcap.filter import Filter

    found = Filter.of(text, era)
    found.inspect(binaries=binaries)
    if found.sourceless:
        names = ", ".join(found.sourceless)
        logs.tell(f"kcap: the filter: no capture has a value for {names} yet")
    return found


def where_option(function: _F) -> _F:
    """``-w/--where``, ``--era``, ``--pe.enabled``."""
    for option in (
        click.option(
            "--pe.enabled/--no-pe.enabled",
            "pe_enabled",
            cls=Switch,
            is_eager=True,
            expose_value=False,
            callback=_note_binaries,
            help="Answer pe.* and elf.* fields of filters and rules from the capture's artifacts.",
        ),
        click.option(
            "-w",
            "--where",
            type=FilterText(),
            metavar="FILTER",
            help="Only events for which this is true: \"ps.name = 'bash'\"; see 'kcap fields'.",
        ),
        click.option(
            "--era",
            type=click.Choice(["1", "3"]),
            is_eager=True,
            expose_value=False,
            callback=_note_era,
            help="What names in a filter mean: as in Fibratus 1.x, or 3.x. Default: told by them.",
        ),
    ):
        function = option(function)
    return function


def filter_given(ctx: click.Context, where: Filter | None, words: Sequence[str]) -> Filter | None:
    """The filter of a verb that takes it behind -w or as words.

    Args:
        ctx: The verb's context.
        where: What stands behind -w.
        words: The words.

    Returns:
        The filter, None for none.

    Raises:
        click.UsageError: It is given both ways.
        FilterError: It can't be understood.
    """
    text = " ".join(words)
    if not text:
        return where
    if where is not None:
        raise click.UsageError("give the filter once: behind -w, or as words")
    return filter_of(text, era_of(ctx), binaries=looks_into_binaries(ctx))


def era_of(ctx: click.Context) -> int | None:
    """The era that ``--era`` names.

    Args:
        ctx: The verb's context.

    Returns:
        1 or 3, None where the names in a filter are to tell.
    """
    era: int | None = ctx.meta.get(_ERA)
    return era


def looks_into_binaries(ctx: click.Context) -> bool:
    """Whether ``--pe.enabled`` is given.

    Args:
        ctx: The verb's context.

    Returns:
        True where filters and rules are answered from artifacts.
    """
    return bool(ctx.meta.get(_BINARIES))


def _note_binaries(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[_BINARIES] = value


def _note_era(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    # Filters are read later than eager options, and look here for it.
    ctx.meta[_ERA] = None if value is None else int(value)


def input_options(function: _F) -> _F:
    """``-w``, ``--era``, ``--lenient``, ``--raw-pairs``, ``--start``, ``--end``, ``-n``."""
    return input_options_at(EventTime(), "this time")(function)


def input_options_at(kind: click.ParamType[Any], what: str) -> Callable[[_F], _F]:
    """As `input_options`, with a choice of what a run begins and ends at.

    Args:
        kind: What ``--start`` and ``--end`` are.
        what: The same in words.

    Returns:
        The decorator.
    """
    return partial(_input_options, kind, what)


def _input_options(kind: click.ParamType[Any], what: str, function: _F) -> _F:
    function = where_option(function)
    for option in (
        click.option("-n", "--limit", type=click.IntRange(0), help="Stop after N events."),
        click.option("--end", type=kind, help=f"Only events before {what}."),
        click.option("--start", type=kind, help=f"Only events at or after {what}."),
        raw_pairs_option,
        lenient_option,
    ):
        function = option(function)
    return function


def lenient_option(function: _F) -> _F:
    """``--lenient``."""
    text = "Go on past bad input; what was passed over is counted, the exit code is 3."
    return click.option("--lenient", is_flag=True, help=text)(function)


def raw_pairs_option(function: _F) -> _F:
    """``--raw-pairs``."""
    text = "sysdig captures: keep the enter and the exit of a call as two events."
    return click.option("--raw-pairs", is_flag=True, help=text)(function)


def derived_option(function: _F) -> _F:
    """``--derived``."""
    text = "Events derived of others too, as security_file_open; else only those that -w names."
    return click.option("--derived", is_flag=True, help=text)(function)


def output_options(function: _F) -> _F:
    """Those of an output: ``-o``, ``--force``, ``--fields``, those of its form and so on."""
    function = forms.form_options(derived_option(function))
    for option in (
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            show_default=True,
            help="Colour console lines; auto: on a terminal, unless NO_COLOR is set.",
        ),
        click.option("--state", is_flag=True, help="Print state records too."),
        click.option("-F", "--fields", help="Only these columns, separated by commas."),
        click.option("--force", is_flag=True, help="Replace an existing output file."),
        click.option("-o", "--output", default="-", help="Output file; - is standard output."),
    ):
        function = option(function)
    return function


def capture_options(function: _F) -> _F:
    """``--chunk-events``, ``--level``, ``--canonical``: how a capture is written."""
    text = "Equal input gives equal bytes; no times."
    return chunk_options(click.option("--canonical", is_flag=True, help=text)(function))


def chunk_options(function: _F) -> _F:
    """``--chunk-events``, ``--level``: how chunks are written."""
    for option in (
        click.option(
            "--level",
            type=click.IntRange(1, 22),
            default=3,
            show_default=True,
            help="zstd's level: higher is smaller and slower.",
        ),
        click.option(
            "--chunk-events",
            type=click.IntRange(1, limits.CHUNK_ROWS),
            default=limits.CHUNK_ROWS,
            show_default=True,
            help="Events of a chunk: fewer make a search quicker, more the file smaller.",
        ),
    ):
        function = option(function)
    return function


def wants_color(choice: str, stream: BinaryIO) -> bool:
    """Whether console lines get colours.

    Args:
        choice: ``auto``, ``always`` or ``never``.
        stream: Where they go.

    Returns:
        True for colours.
    """
    import os

    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR")


def finish(ctx: click.Context, summary: Summary, file: str) -> None:
    """Say what was lost and leave with the run's exit code.

    Args:
        ctx: The verb's context.
        summary: What the run did.
        file: The input's name.
    """
    report_losses(summary.losses, file)
    logs.count(ctx, events_in=summary.events_in, events_out=summary.events_out)
    ctx.exit(summary.exit_code)


def save_memory() -> None:
    """Let Arrow give back what it frees: its own allocator keeps 40 MiB at chunks of 32."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


def report_losses(losses: list[Loss], file: str) -> None:
    """Say on standard error what was lost, skipped or damaged.

    Args:
        losses: The losses of a run.
        file: The input's name.
    """
    from kcap.model.text import printable

    for loss in losses[:_SHOWN]:
        logs.tell(f"kcap: {printable(file)}: {describe(loss)}", level="warning")
    if len(losses) > _SHOWN:
        logs.tell(f"kcap: {printable(file)}: and {len(losses) - _SHOWN} more", level="warning")


def counted(count: int, what: str) -> str:
    """A number of things for people.

    Args:
        count: How many.
        what: One of them.

    Returns:
        ``1 event``, ``12,345 events``, ``2 processes``.
    """
    plural = "es" if what.endswith("s") else "s"
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}{plural}"


def describe(loss: Loss) -> str:
    """A loss in a line.

    Args:
        loss: The loss.

    Returns:
        ``lost: 12 events: why``.
    """
    from kcap.model.text import printable

    what = {"cut": "value", "evicted": "state"}.get(loss.kind, "event")
    count = "" if loss.count is None else f" {counted(loss.count, what)}"
    cpu = "" if loss.cpu is None else f" on cpu {loss.cpu}"
    when = ""
    if loss.kind == "blind" and loss.start_ns is not None and loss.end_ns is not None:
        when = f" from {utc(loss.start_ns)} to {utc(loss.end_ns)}"
    return printable(f"{loss.kind}{count}{cpu}{when}: {loss.reason}")


def utc(ns: int) -> str:
    """A time for people.

    Args:
        ns: ns since 1970.

    Returns:
        RFC 3339 in UTC with nine digits.
    """
    seconds, rest = divmod(ns, 10**9)
    return f"{(_EPOCH + timedelta(seconds=seconds)):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def duration_text(ns: int) -> str:
    """A duration for people.

    Args:
        ns: Nanoseconds.

    Returns:
        ``0.412 ms``, ``3.214 s``, ``5m12s``, ``3h05m``, ``2d04h``.
    """
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    seconds = ns // 10**9
    if ns < 10**9:
        return f"{sign}{ns / 1e6:.3f} ms"
    if seconds < 60:  # noqa: PLR2004
        return f"{sign}{ns / 1e9:.3f} s"
    parts = (seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m")
    shown = [*parts, (seconds % 60, "s")]
    while not shown[0][0]:
        shown.pop(0)
    (first, unit), (second, below) = shown[:2]
    return f"{sign}{first}{unit}{second:02}{below}"


def size_text(count: int) -> str:
    """A number of bytes for people.

    Args:
        count: Bytes.

    Returns:
        ``3.1 MiB``.
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":  # noqa: PLR2004
            break
        value /= 1024
    return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
