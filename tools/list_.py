"""``kcap list``: what kcap knows by name: fields, events, columns."""

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
}


@click.command(
    "list",
    cls=Verb,
    examples=("kcap list", "kcap list events", "kcap list events 'Reg*'", "kcap list fields ps"),
)
@click.argument("what", required=False)
@click.argument("pattern", required=False)
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def command(what: str | None, pattern: str | None, as_json: bool) -> None:
    """List fields, events or columns; without a word, say what there is to list.

    PATTERN is a part of a name, or a wildcard pattern of the whole name.
    """
    if what is None:
        click.echo("\n".join(f"kcap list {name:<8} {text}" for name, text in _WHAT.items()))
    elif what == "fields":
        show(pattern, as_json=as_json)
    elif what in ("events", "kevents"):
        _events(pattern, as_json)
    elif what == "columns":
        _columns(pattern, as_json)
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


def _refuse_nothing(found: Iterable[object], one: str, pattern: str | None, what: str) -> None:
    if not found:
        raise click.UsageError(f"there is no {one} {pattern!r}. 'kcap list {what}' lists them.")
