"""``kcap diff``: the events that are in one capture only."""

from __future__ import annotations

import contextlib
import json
import secrets
import stat as st
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast

import click

from kcap.errors import KcapError
from kcap.tools import common, logs, output
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source

if TYPE_CHECKING:
    from kcap.comparison import Compared, Mask
    from kcap.filter import Filter
    from kcap.model.side import Loss
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Stage

FOUND: Final = 4
"""Exit code of ``--exit-code`` where captures differ."""

_SIDES: Final = ("A", "B")
_SIGNS: Final = ("-", "+")
_SIGN: Final = "ext_only_in"
"""A column for the sign; no source has one of that name."""

_COPY_BYTES: Final = 1 << 20


class _Asked(NamedTuple):
    """What is compared, of which events."""

    compared: Compared
    strict: bool
    deep: bool
    start: int | None
    end: int | None
    where: Filter | None
    lenient: bool
    raw_pairs: bool


class _Input(NamedTuple):
    """A capture to read, perhaps twice."""

    name: str
    """As the user gave it."""
    path: str


class _Result(NamedTuple):
    """What the comparison found."""

    events: list[int]
    only: list[Mask] | None
    """None where hashes said that nothing differs."""
    losses: list[list[Loss]]

    @property
    def counts(self) -> list[int]:
        """How many events are only in each."""
        return [0, 0] if self.only is None else [int(mask.sum()) for mask in self.only]


@click.command(
    "diff",
    cls=Verb,
    examples=(
        "kcap diff before.kcap after.kcap",
        "kcap diff dump.json dump.kcap --exit-code",
        "kcap diff --ignore ts,cpu --stat monday.kcap tuesday.kcap",
        "kcap diff --format jsonl -n 100 a.kcap b.kcap | jq .only_in",
    ),
)
@click.argument("a")
@click.argument("b")
@click.option("--columns", metavar="COLUMN,...", help="Compare by these alone.")
@click.option("--ignore", metavar="COLUMN,...", help="Leave these out of the comparison too.")
@click.option("--strict", is_flag=True, help="Compare origin, ord, seq, shape and source too.")
@click.option("--deep", is_flag=True, help="Read the events even where content hashes are equal.")
@click.option("--stat", is_flag=True, help="Only counts, by event.")
@click.option("--json", "as_json", is_flag=True, help="Only counts, by event, as JSON.")
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["line", "jsonl"]),
    default="line",
    show_default=True,
    help='line: with - or + before it; jsonl: each event has \'only_in\', "A" or "B".',
)
@click.option("--exit-code", is_flag=True, help=f"Exit with {FOUND} where the captures differ.")
@common.input_options
@click.pass_context
def command(
    ctx: click.Context,
    a: str,
    b: str,
    columns: str | None,
    ignore: str | None,
    strict: bool,
    deep: bool,
    stat: bool,
    as_json: bool,
    form: str,
    exit_code: bool,
    where: Filter | None,
    start: int | None,
    end: int | None,
    limit: int | None,
    lenient: bool,
    raw_pairs: bool,
) -> None:
    """Print the events that only A has (-) and those that only B has (+), in order of time.

    Events are compared by what they say: their order, and how a file is cut, compressed and
    numbered (origin, ord, seq, shape, source), makes no difference; how often they stand there
    does. State records are left out. A and B may be of different formats. A summary goes to
    standard error.

    Closed captures with equal content hashes are not read at all. Else both are read once, and
    once more as far as they differ (a stream is kept in a temporary file for that); 16 bytes of
    memory are kept of each event, some 100 of each that stands at another place in the other.
    """
    from kcap.comparison import IDENTITY, Compared

    ignored = {*(() if strict else IDENTITY), *_names(ignore or "")}
    compared = Compared(None if columns is None else _names(columns), ignored)
    asked = _Asked(compared, strict, deep, start, end, where, lenient, raw_pairs)
    if a == b == "-":
        raise click.UsageError("only one of A and B can be standard input")
    with contextlib.ExitStack() as stack:
        inputs = [_Input(name, stack.enter_context(_again(name))) for name in (a, b)]
        result = _compare(inputs, asked)
        if as_json:
            click.echo(json.dumps(_as_json(inputs, asked, result), indent=1, sort_keys=True))
        elif stat:
            _print_stat(inputs, asked, result)
        elif any(result.counts):
            _print(inputs, asked, result, form, limit)
    _summarise(inputs, result)
    for one, losses in zip(inputs, result.losses, strict=True):
        common.report_losses(losses, one.name)
    differs = FOUND if exit_code and any(result.counts) else 0
    ctx.exit(3 if any(result.losses) else differs)


def _names(text: str) -> list[str]:
    from kcap.keys import column

    try:
        return [column(name.strip()).name for name in text.split(",") if name.strip()]
    except KcapError as e:
        raise click.UsageError(f"{e.what}. {e.hint}") from None


@contextlib.contextmanager
def _again(name: str) -> Iterator[str]:
    """A path that can be read twice: a stream is kept in a temporary file meanwhile."""
    if name != "-" and not _is_stream(name):
        yield name
        return
    with tempfile.NamedTemporaryFile(prefix="kcap-diff-") as copy:
        from kcap.opening import open_stream

        with contextlib.ExitStack() as stack:
            stream = open_stream(name)
            if name != "-":
                stack.callback(stream.close)
            _copy(stream, cast("BinaryIO", copy), name)
        yield copy.name


def _copy(stream: BinaryIO, copy: BinaryIO, name: str) -> None:
    try:
        while data := stream.read(_COPY_BYTES):
            copy.write(data)
        copy.flush()
    except OSError as e:
        raise KcapError(f"can't be kept in a temporary file: {e.strerror}", file=name) from e


def _is_stream(name: str) -> bool:
    try:
        mode = Path(name).stat().st_mode
    except OSError:
        return False  # opening it will say why
    return st.S_ISFIFO(mode) or st.S_ISCHR(mode) or st.S_ISSOCK(mode)


@contextlib.contextmanager
def _opened(one: _Input, asked: _Asked) -> Iterator[Source]:
    """A source of an input; errors give the name that the user knows."""
    try:
        with opened_source(one.path, lenient=asked.lenient, raw_pairs=asked.raw_pairs) as source:
            yield source
    except KcapError as e:
        e.file = one.name if e.file == one.path else e.file
        raise


def _chosen(
    source: Source, asked: _Asked, counts: Callable[[str], bool] | None = None
) -> tuple[Source, list[Stage]]:
    """The events that are compared: what to read, and what it goes through.

    Args:
        source: An input.
        asked: Which events.
        counts: Whether a column is needed; None for all.
    """
    from kcap.format.reader import CaptureReader
    from kcap.replay.chosen import chosen
    from kcap.replay.stages import EventsOnly

    columns = None
    if counts is not None and isinstance(source, CaptureReader) and source.index() is not None:
        columns = sorted({*filter(counts, source.columns()), "ts", "kind"})
    read, stages = chosen(
        source, columns=columns, start_ns=asked.start, end_ns=asked.end, where=asked.where
    )
    return read, [*stages, EventsOnly()]


def _compare(inputs: list[_Input], asked: _Asked) -> _Result:
    """Compare by the hashes that captures have, else by their events."""
    from kcap.comparison import SECRET_BYTES, RowDigests, unmatched
    from kcap.replay.pipeline import Pipeline

    if not asked.deep and (events := _same(inputs, asked)) is not None:
        return _Result([events, events], None, [[], []])
    secret = secrets.token_bytes(SECRET_BYTES)
    digests, losses = [], []
    for one in inputs:
        sink = RowDigests(asked.compared, secret, one.name)
        with _opened(one, asked) as source:
            read, stages = _chosen(source, asked, asked.compared.has)
            losses.append(Pipeline(read, [sink], stages=stages).run().losses)
        digests.append(sink.digests())
    return _Result([len(d) for d in digests], list(unmatched(*digests)), losses)


def _same(inputs: list[_Input], asked: _Asked) -> int | None:
    """The number of events of two captures with equal content hashes; None for any others."""
    from kcap.format.content import IDENTITY
    from kcap.format.reader import CaptureReader

    kind = "content_hash_values" if asked.compared.within(IDENTITY) else "content_hash"
    found = set()
    for one in inputs:
        with _opened(one, asked) as source:
            if not isinstance(source, CaptureReader) or source.footer is None:
                return None
            totals = source.footer.totals
            found.add((totals.get(kind), totals["events"]))
    (said, events), *others = found
    return None if others or said is None else events


def _print(
    inputs: list[_Input], asked: _Asked, result: _Result, form: str, limit: int | None
) -> None:
    """Print the events of both sides in order of time."""
    from kcap.comparison import Only
    from kcap.replay.merge import Merged
    from kcap.replay.pipeline import Pipeline
    from kcap.state import State
    from kcap.writers.line import TEMPLATE

    assert result.only is not None
    template = f"{{{{ .{_SIGN} }}}} {TEMPLATE}"
    marks = [{f"{_SIGN}__str": sign} for sign in _SIGNS]
    if form == "jsonl":
        marks = [{"only_in": side} for side in _SIDES]
    with contextlib.ExitStack() as stack:
        sources: list[Source] = []
        for one, mask, side, mark in zip(inputs, result.only, _SIDES, marks, strict=True):
            source = stack.enter_context(_opened(one, asked))
            if mask.any():
                # Two imports differ in it, and it would decide the order of events of one time.
                left_out = () if asked.strict else ("origin",)
                read, stages = _chosen(source, asked)
                sources.append(Only(read, stages, mask, side, marks=mark, left_out=left_out))
        stream = stack.enter_context(output.opened("-", binary=False))
        sink = common.sink_for(form, stream, template=template if form == "line" else None)
        Pipeline(Merged(sources, State()), [sink], limit=limit).run()
        stream.flush()


def _by_event(inputs: list[_Input], asked: _Asked, result: _Result) -> list[tuple[Any, int, int]]:
    """Events by name that are only in A and only in B, the most frequent first."""
    from kcap.comparison import Only
    from kcap.counting import Counts
    from kcap.keys import key
    from kcap.replay.pipeline import Pipeline

    found: dict[Any, list[int]] = {}
    for place, (one, mask) in enumerate(zip(inputs, result.only or (), strict=False)):
        counts = Counts([key("event")])
        with _opened(one, asked) as source:
            read, stages = _chosen(source, asked, "event".__eq__)
            Pipeline(Only(read, stages, mask, one.name, marks={}), [counts]).run()
        for group in counts.ranked()[0]:
            found.setdefault(group.values[0], [0, 0])[place] = group.count
    rows = [(name, only_a, only_b) for name, (only_a, only_b) in found.items()]
    return sorted(rows, key=lambda row: (-row[1] - row[2], row[0] is None, row[0] or ""))


def _print_stat(inputs: list[_Input], asked: _Asked, result: _Result) -> None:
    from kcap.model.text import printable

    rows = [
        (f"{only_a:,}", f"{only_b:,}", "-" if name is None else printable(name) or '""')
        for name, only_a, only_b in _by_event(inputs, asked, result)
    ]
    if not rows:
        return
    for only_a, only_b, name in (
        ("only in A", "only in B", "event"),
        ("-" * 9, "-" * 9, "-----"),
        *rows,
    ):
        click.echo(f"{only_a:>12}  {only_b:>12}  {name}")


def _as_json(inputs: list[_Input], asked: _Asked, result: _Result) -> dict[str, Any]:
    sides = {
        side: {
            "events": events,
            "file": one.name,
            "losses": [loss.to_json() for loss in losses],
            "only": only,
        }
        for side, one, events, only, losses in zip(
            _SIDES, inputs, result.events, result.counts, result.losses, strict=True
        )
    }
    return {
        **sides,
        "by_event": [
            {"event": name, "only_in_A": only_a, "only_in_B": only_b}
            for name, only_a, only_b in _by_event(inputs, asked, result)
        ],
        "compared": "content hashes" if result.only is None else "events",
        "equal": not any(result.counts),
    }


def _summarise(inputs: list[_Input], result: _Result) -> None:
    """Say on standard error what came out."""
    from kcap.model.text import printable

    if not any(result.counts):
        how = " by their content hashes (--deep reads the events)" if result.only is None else ""
        events = common.counted(result.events[0], "event")
        logs.tell(f"kcap: no difference: {events} in both{how}")
        return
    for place, one in enumerate(inputs):
        events = common.counted(result.events[place], "event")
        only = f"{result.counts[place]:,} only there"
        logs.tell(f"kcap: {_SIDES[place]}, {printable(one.name)}: {events}, {only}")
