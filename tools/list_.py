"""``kcap list``: what kcap knows by name: fields, events, columns, filaments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

import click

from kcap.tools.cli import Verb
from kcap.tools.docs import table
from kcap.tools.fields import matches, show

_WHAT = {
    "fields": "the fields of filters, as 'kcap fields' lists them",
    "events": "the events of all sources, with action and category",
    "kevents": "the same: the word of Fibratus 1.x",
    "columns": "the columns of every event, with class and meaning",
    "filaments": "the filaments that 'kcap run -f' and 'kcap replay -f' can run",
}


@click.command(
    "list",
    cls=Verb,
    examples=(
        "kcap list",
        "kcap list events",
        "kcap list events 'Reg*'",
        "kcap list fields ps",
        "kcap list filaments --filament.path ~/filaments",
    ),
)
@click.argument("what", required=False)
@click.argument("pattern", required=False)
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
@click.option(
    "--filament.path",
    "folders",
    multiple=True,
    metavar="DIR",
    help="Where filaments are looked for before those that come with kcap.",
)
@click.pass_context
def command(
    ctx: click.Context,
    what: str | None,
    pattern: str | None,
    as_json: bool,
    folders: tuple[str, ...],
) -> None:
    """List fields, events, columns or filaments; without a word, say what there is to list.

    PATTERN is a part of a name, or a wildcard pattern of the whole name.
    """
    if what is None:
        click.echo("\n".join(f"kcap list {name:<9} {text}" for name, text in _WHAT.items()))
    elif what == "fields":
        show(pattern, as_json=as_json)
    elif what in ("events", "kevents"):
        _events(pattern, as_json)
    elif what == "columns":
        _columns(pattern, as_json)
    elif what == "filaments":
        _filaments(ctx, pattern, folders, as_json)
    else:
        import difflib

        near = difflib.get_close_matches(what, _WHAT, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"there is no list of {what!r}.{meant} 'kcap list' says what is.")


def _events(pattern: str | None, as_json: bool) -> None:
    from kcap.model import catalogue

    found = [
        (family, event.name, event.action, event.category)
        for family in catalogue.families()
        for event in catalogue.events(family).values()
        if matches(pattern, event.name)
    ]
    _refuse_nothing(found, "event", pattern, "events")
    if as_json:
        names = ("family", "event", "action", "category")
        rows = [dict(zip(names, row, strict=True)) for row in found]
        click.echo(json.dumps({"events": rows}, indent=1))
        return
    parts = []
    for family, events in groupby(found, itemgetter(0)):
        cells = [(f"  {e}", action or "-", category or "-") for _, e, action, category in events]
        parts.append(f"{family}\n{table(cells)}")
    click.echo("\n\n".join(parts))


def _columns(pattern: str | None, as_json: bool) -> None:
    from kcap.model import catalogue

    found = [c for c in catalogue.envelope().values() if matches(pattern, c.name)]
    _refuse_nothing(found, "column", pattern, "columns")
    if as_json:
        rows = [{"column": c.name, "class": str(c.cls), "meaning": c.meaning} for c in found]
        click.echo(json.dumps({"columns": rows}, indent=1))
    else:
        click.echo(table([(c.name, str(c.cls), c.meaning) for c in found]))


def _filaments(
    ctx: click.Context, pattern: str | None, folders: tuple[str, ...], as_json: bool
) -> None:
    from kcap.filament import source
    from kcap.model.text import printable
    from kcap.tools import settings

    every = source.listed((*folders, *settings.of(ctx).filament.path))
    found = [one for one in every if matches(pattern, one.name)]
    _refuse_nothing(found, "filament", pattern, "filaments")
    if as_json:
        rows = [one._asdict() | {"path": str(one.path)} for one in found]
        click.echo(json.dumps({"filaments": rows}, indent=1))
        return
    cells = [
        (one.name, f"can't be started: {one.error}" if one.error else one.summary, str(one.path))
        for one in found
    ]
    click.echo(table([tuple(map(printable, row)) for row in cells]))


def _refuse_nothing(found: Iterable[object], one: str, pattern: str | None, what: str) -> None:
    if not found:
        raise click.UsageError(f"there is no {one} {pattern!r}. 'kcap list {what}' lists them.")
