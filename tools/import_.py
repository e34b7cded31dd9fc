"""``kcap import``: turn foreign captures into a ``.kcap`` file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from kcap.tools import common
from kcap.tools.cli import Verb
from kcap.tools.combine import Writing, combine


@click.command(
    "import",
    cls=Verb,
    examples=(
        "kcap import events.jsonl.gz -o events.kcap",
        "kcap import host-*.jsonl other.kcap -o all.kcap",
        "tracee --output json | kcap import - -o tracee.kcap",
        "kcap import /tmp/tracee --events events.jsonl -o tracee.kcap",
        "kcap import --list",
    ),
)
@click.argument("captures", nargs=-1)
@click.option("-o", "--output", "target", help="The capture to write; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@common.capture_options
@common.lenient_option
@common.raw_pairs_option
@click.option(
    "--events", metavar="FILE", help="Tracee's events, where CAPTURES is its output directory."
)
@click.option("--list", "listing", is_flag=True, help="Say what each reader reads and needs.")
@click.option("--json", "as_json", is_flag=True, help="With --list: as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    captures: tuple[str, ...],
    target: str | None,
    force: bool,
    chunk_events: int,
    level: int,
    canonical: bool,
    lenient: bool,
    raw_pairs: bool,
    events: str | None,
    listing: bool,
    as_json: bool,
) -> None:
    """Turn CAPTURES into one .kcap file; '-' reads standard input.

    The format is told by the content; gzip and zstd are read as they are. A bad line ends the
    import with exit code 1, naming line and byte, and what came before it is in the output; with
    --lenient it is skipped and counted, exit code 3. An input that only ends early is read to its
    end, exit code 3.

    A Tracee output directory is a capture: its artifacts come along with the events that lie in
    it, or in the file that --events names.

    Several captures, kcap's own among them, are merged by time, in whatever order they are named.
    Each keeps its own order: an event that is earlier than the one before it stays behind that
    one. Times are never adjusted. One that can't be read ends the import before anything is
    written; with --lenient it is passed over and named, in the output as well, exit code 3.
    """
    if listing:
        _list_readers(as_json=as_json)
        return
    if as_json:
        raise click.UsageError("--json is for --list")
    if not captures or target is None:
        raise click.UsageError("give a capture to read, and -o FILE to write")
    writing: Writing = {"chunk_events": chunk_events, "level": level, "canonical": canonical}
    if events is not None and len(captures) > 1:
        raise click.UsageError("--events is for one directory")
    combine(
        ctx,
        captures,
        target,
        writing,
        force=force,
        lenient=lenient,
        raw_pairs=raw_pairs,
        events=events,
    )


def _list_readers(*, as_json: bool) -> None:
    """What each reader reads and needs, and whether it can be used here."""
    readers = list(_readers())
    if as_json:
        click.echo(json.dumps(readers, indent=1))
        return
    width = max(len(reader["name"]) for reader in readers)
    for reader in readers:
        needs = f"; needs {', '.join(reader['needs'])}" if reader["needs"] else ""
        why = f"; NOT AVAILABLE: {reader['why']}" if reader["why"] else ""
        click.echo(f"{reader['name']:<{width}}  {reader['reads']}{needs}{why}")


def _readers() -> Iterator[dict[str, Any]]:
    from kcap import plugins

    groups = plugins.READERS, plugins.FOLDERS
    everything = [
        (name, entry, group)
        for group in groups
        for name, entry in (plugins.found(group) | plugins.hidden(group)).items()
    ]
    for name, entry, group in sorted(everything):
        found: dict[str, Any] = {"name": name, "reads": "?", "needs": [], "why": None}
        if name not in plugins.found(group):
            found["why"] = f"root loads nothing but kcap's own: {plugins.whence(entry)}"
            yield found
            continue
        try:
            reader = plugins.load(group, name)
        except ImportError as error:
            found["why"] = f"{entry.value} can't be imported: {error}"
            yield found
            continue
        needs = [f"kcap[{extra}]" for extra in sorted(getattr(reader, "needs", {}))]
        missing = plugins.missing(reader)
        if missing:
            found["why"] = f"pip install 'kcap[{','.join(missing)}]'"
        yield found | {"reads": reader.reads, "needs": needs}
