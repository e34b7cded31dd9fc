"""``kcap redact``: a copy of a capture that does not tell what must stay secret."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypedDict, Unpack

import click

from kcap.errors import KcapError, LimitError, OutputError
from kcap.tools import common, logs, output
from kcap.tools.cli import Verb
from kcap.tools.inputs import position
from kcap.tools.progress import Progress
from kcap.tools.spool import Input

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.format.writer import CaptureWriter
    from kcap.model.side import Loss
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Summary
    from kcap.transform.collect import Collector
    from kcap.transform.copies import Blobs
    from kcap.transform.redact import Rules
    from kcap.transform.tokens import Key

_WHOLE = "whole"
_COMPONENTS = "components"


class _Asked(TypedDict):
    """What is redacted, and how the input is read."""

    key_file: str | None
    columns: tuple[str, ...]
    pattern: tuple[str, ...]
    paths: str
    blobs: str
    columns_only: bool
    not_elsewhere: tuple[str, ...]
    where: Filter | None
    lenient: bool
    raw_pairs: bool


class _Plan(NamedTuple):
    """A redaction."""

    key: Key
    rules: Rules
    blobs: Blobs
    everywhere: bool
    """Look for the hidden values in all that the capture says."""
    asked: _Asked


def _new_key(path: str) -> None:
    """Write a key file."""
    import secrets

    from kcap.transform import tokens

    if path == "-":
        raise OutputError("a key is not written to standard output", hint="name a file")
    secret = secrets.token_bytes(tokens.KEY_BYTES)
    try:
        with output.opened(path) as stream:
            stream.write(tokens.written(secret))
    except OutputError as e:
        e.hint = "give another name: what was redacted with a key can be joined with it alone"
        raise
    click.echo(f"kcap: a new key, {tokens.Key(secret).id}: {path}", err=True)


def _show_patterns(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    """List the patterns, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    from kcap.tools.docs import table
    from kcap.transform import patterns

    rows = [(p.name, p.meaning) for p in patterns.KNOWN.values()]
    click.echo(table([*rows, (patterns.SECRETS, patterns.ALL_SECRETS)]))
    ctx.exit(0)


@click.command(
    "redact",
    cls=Verb,
    examples=(
        "kcap redact --new-key host.key",
        "kcap redact host.kcap -o safe.kcap --key-file host.key",
        "kcap redact host.kcap -o safe.kcap --key-file host.key --columns user,host,cmdline",
        "kcap redact host.kcap -o safe.kcap --key-file host.key --columns exe --paths components",
        "kcap redact host.kcap -o safe.kcap --key-file host.key --pattern ip --pattern 'acme-\\w+'",
    ),
)
@click.argument("capture", required=False)
@click.option("-o", "--output", "target", help="The copy; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("--key-file", metavar="FILE", help="The key; never in the copy.")
@click.option(
    "--new-key",
    metavar="FILE",
    help="Make a key in a new file that only you can read, and do nothing else.",
)
@click.option(
    "--columns",
    multiple=True,
    metavar="NAMES",
    help="Hide all values of these columns or parameters, separated by commas.",
)
@click.option(
    "--pattern",
    multiple=True,
    metavar="NAME|REGEX",
    help="Hide what looks like this, in any text. Default without --columns: secrets.",
)
@click.option(
    "--list-patterns",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_patterns,
    help="Print the patterns that have a name, and do nothing else.",
)
@click.option(
    "--paths",
    type=click.Choice([_WHOLE, _COMPONENTS]),
    default=_WHOLE,
    show_default=True,
    help="components: of a path hide each part, but not how many there are, nor its extension.",
)
@click.option(
    "--blobs",
    type=click.Choice(["drop", "hash", "keep"]),
    default="drop",
    show_default=True,
    help="Artifacts: leave them out; keep size and a token of the content; or keep them as they "
    "are, secrets included.",
)
@click.option(
    "--columns-only",
    is_flag=True,
    help="Leave the same values where they stand in other columns and texts.",
)
@click.option(
    "--not-elsewhere",
    multiple=True,
    metavar="WORDS",
    help="Hide these values in their columns only, as it is with root, bin, daemon and the like.",
)
@common.where_option
@common.lenient_option
@common.raw_pairs_option
@common.capture_options
@click.pass_context
def command(
    ctx: click.Context,
    capture: str | None,
    target: str | None,
    new_key: str | None,
    force: bool,
    chunk_events: int,
    level: int,
    canonical: bool,
    **asked: Unpack[_Asked],
) -> None:
    """Copy CAPTURE to a .kcap file with tokens in place of what must stay secret.

    A token is 'redacted:' and 16 digits that only who has the key can make: the same for the same
    value, so that events can still be joined, counted and compared, also with other captures that
    were redacted with this key. All events keep their identity, order and times.

    What is hidden in one column is hidden wherever it stands in the copy: in other columns, in
    command lines, in the state, the index, what is said of host and recorder. For this the input is
    read twice; a pipe is kept in a temporary file. With -w only values of the events that it
    chooses are hidden, but those everywhere too. Numbers, as of uid, get other numbers.
    """
    from kcap.model.text import printable

    if new_key is not None:
        _new_key(new_key)
        return
    if capture is None or target is None or asked["key_file"] is None:
        raise click.UsageError("give CAPTURE, -o FILE and --key-file FILE; or --new-key FILE")
    plan = _plan(asked, asked["key_file"])
    path = output.capture_path(target)
    common.save_memory()
    with contextlib.ExitStack() as stack:
        source = Input(capture, stack)
        found = _found(source, plan) if plan.everywhere else None
        if found is not None:
            _check_names(plan)
        with output.opened(path, force=force) as stream:
            writing = {"file": path, "level": level, "chunk_rows": chunk_events}
            writing |= {"canonical": canonical, "created_ns": 0 if canonical else time.time_ns()}
            summary, sink, left_out = _copied(source, plan, found, stream, writing)
    _check_names(plan)
    events = common.counted(summary.events_out, "event")
    hidden = "" if found is None else f", {common.counted(len(found.only), 'value')} hidden"
    size = common.size_text(sink.bytes_written)
    logs.tell(f"kcap: {events}{hidden}, key {plan.key.id}, {size}: {printable(path)}")
    if left_out:
        logs.tell(f"kcap: {common.counted(left_out, 'blob')} left out")
    if asked["blobs"] == "keep":
        logs.tell("kcap: THE CONTENTS OF BLOBS ARE NOT REDACTED (--blobs keep)")
    common.finish(ctx, summary, capture)


def _plan(asked: _Asked, key_file: str) -> _Plan:
    """Understand what is asked for."""
    from kcap.transform import patterns, tokens
    from kcap.transform.copies import Blobs
    from kcap.transform.names import Names
    from kcap.transform.redact import Rules
    from kcap.transform.tokens import Key

    columns = [name for names in asked["columns"] for name in names.split(",")]
    given = asked["pattern"] or (() if columns else (patterns.SECRETS,))
    rules = Rules(
        Names(columns, "redact", both=True),
        patterns.chosen(given),
        components=asked["paths"] == _COMPONENTS,
        where=asked["where"],
    )
    key = Key(tokens.load(key_file))
    return _Plan(key, rules, Blobs(asked["blobs"]), not asked["columns_only"], asked)


def _found(source: Input, plan: _Plan) -> Collector:
    """Read the input once to see what is to be hidden.

    Args:
        source: The input.
        plan: The redaction.

    Returns:
        The values.
    """
    from kcap.replay.pipeline import Pipeline
    from kcap.transform.collect import COMMON, Collector

    plain = [w for words in plan.asked["not_elsewhere"] for w in words.split(",")]
    found = Collector(plan.key, plan.rules, COMMON.union(plain))
    streams: list[BinaryIO] = []
    with (
        contextlib.closing(_opened(source, plan, streams)) as events,
        Progress(read=lambda: position(streams)) as progress,
    ):
        try:
            Pipeline(events, [], stages=[found], after_batch=progress.update).run()
        except LimitError:
            raise
        except KcapError:
            pass  # ends the next pass at the same place, with all before it in the copy
    return found


def _copied(
    source: Input,
    plan: _Plan,
    found: Collector | None,
    stream: BinaryIO,
    writing: dict[str, Any],
) -> tuple[Summary, CaptureWriter, int]:
    """Write the copy.

    Args:
        source: The input.
        plan: The redaction.
        found: What is to be hidden.
        stream: Where the copy goes.
        writing: How it is written.

    Returns:
        What was done, the closed writer, and how many blobs were left out.
    """
    from kcap.format.writer import CaptureWriter
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.rebatch import Reproducible
    from kcap.transform.copies import Blobs, Copy, RedactedArtifacts
    from kcap.transform.redact import Redact

    streams: list[BinaryIO] = []
    with contextlib.closing(_opened(source, plan, streams)) as events:
        stage = Redact(plan.key, _second(plan, found))
        artifacts = RedactedArtifacts([events], stage.hider, plan.blobs)
        dropped = artifacts.number if plan.blobs is Blobs.DROP else 0
        writer = CaptureWriter(stream, **writing)
        sink = Copy(
            writer,
            artifacts,
            rows=writing["chunk_rows"] if writing["canonical"] else None,
            ending=_left_out(dropped),
        )
        given = Reproducible(events) if writing["canonical"] else events
        with Progress(read=lambda: position(streams)) as progress:
            summary = Pipeline(given, [sink], stages=[stage], after_batch=progress.update).run()
    if plan.rules.where is not None:
        # What could not be looked at may hide an event whose values had to be hidden.
        summary.losses += plan.rules.where.losses
    return summary, writer, dropped


def _second(plan: _Plan, found: Collector | None) -> Rules:
    """What the copy is written by: what was asked for, and the values that it meant."""
    from dataclasses import replace

    rules = replace(plan.rules, note=_note(plan))
    if found is None:
        return rules
    if rules.where is None:
        return replace(rules, literals=found.literals)
    return replace(rules, where=None, patterns=(), literals=found.literals, only=found.only)


def _note(plan: _Plan) -> dict[str, Any]:
    """What the copy says of its redaction: names of what was hidden, and nothing of its values."""
    return {
        "blobs": str(plan.blobs),
        "columns": sorted(plan.rules.columns.given),
        "columns_only": not plan.everywhere,
        "key": plan.key.id,
        "paths": plan.asked["paths"],
        "patterns": sorted({p.name for p in plan.rules.patterns}),
        "where": plan.rules.where is not None,
    }


def _left_out(blobs: int) -> list[Loss]:
    from kcap.model.side import Loss
    from kcap.replay.pipeline import FILTERED

    if not blobs:
        return []
    return [Loss(FILTERED, None, f"{common.counted(blobs, 'blob')} left out of this redacted copy")]


def _check_names(plan: _Plan) -> None:
    """Refuse a name that means nothing here: whoever misspells it wants something hidden.

    Args:
        plan: The redaction, when all events have been seen.

    Raises:
        KcapError: No event has such a column or parameter, and kcap knows none.
    """
    import difflib

    from kcap.model import catalogue

    known = {*catalogue.envelope(), *catalogue.arguments()}
    for name in plan.rules.columns.unmet():
        if name in known or name.removeprefix("arg_") in known:
            continue
        near = difflib.get_close_matches(name, sorted(known), 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        hint = f"{meant}'kcap list columns' shows those that it has"
        raise KcapError(f"no event has a column or parameter {name!r}", hint=hint)


def _opened(source: Input, plan: _Plan, streams: list[BinaryIO]) -> Source:
    """Open the input for a pass over it."""
    made = source.open(
        lenient=plan.asked["lenient"], raw_pairs=plan.asked["raw_pairs"], opened=streams.append
    )
    if plan.rules.where is not None:
        plan.rules.where.bind([made])
    return made
