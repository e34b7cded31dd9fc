"""``kcap fields``: what a filter can ask for, and where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import click

from kcap.tools.cli import Verb
from kcap.tools.docs import table

if TYPE_CHECKING:
    from kcap.filter.fields import Field

_TRACEE: Final = "names of Tracee"
_COLUMNS: Final = "kcap's own columns"
_PREFIXES: Final = {
    "evt": "the event",
    "kevt": "the event, as 1.x has it",
    "ps": "the process",
    "pe": "its executable, as 1.x has it",
    "elf": "its executable, where that is an ELF file",
    "artifact": "the capture's artifacts",
    "file": "the file",
    "module": "the library or driver",
    "dll": "the library",
    "image": "the library or driver, as 1.x has it",
    "mem": "memory",
    "net": "the connection",
    "dns": "the DNS message",
    "registry": "the registry",
    "handle": "the handle",
    "thread": "the thread",
    "threadpool": "the thread pool",
}
"""First words of Fibratus's names, and what they are about."""


@click.command(
    "fields",
    cls=Verb,
    examples=(
        "kcap fields",
        "kcap fields file --sources",
        "kcap fields 'ps.*name' --era 3",
        "kcap fields net.dip",
        "kcap fields --sourceless --json",
    ),
)
@click.argument("pattern", required=False)
@click.option(
    "--era",
    type=click.Choice(["1", "3"]),
    help="Only what names mean in this era: of Fibratus 1.x or 3.x.",
)
@click.option("--sourceless", is_flag=True, help="Only those that nothing fills yet.")
@click.option("--sources", is_flag=True, help="Say of each where it comes from.")
@click.option("--json", "as_json", is_flag=True, help="The fields as JSON.")
def command(
    pattern: str | None, era: str | None, sourceless: bool, sources: bool, as_json: bool
) -> None:
    """List the fields of filters; of one field say all that is known.

    PATTERN is a part of the name, or a wildcard pattern of the whole name.
    """
    show(pattern, era=era, sourceless=sourceless, sources=sources, as_json=as_json)


def show(
    pattern: str | None,
    *,
    era: str | None = None,
    sourceless: bool = False,
    sources: bool = False,
    as_json: bool = False,
) -> None:
    """Print fields.

    Args:
        pattern: A part of the name, or a wildcard pattern; None for all.
        era: Only what names mean in this era.
        sourceless: Only those that are always missing.
        sources: Say where each comes from.
        as_json: As JSON.

    Raises:
        click.UsageError: No field is like that.
    """
    from kcap.filter import fields

    exact = _exact(pattern) if pattern else []
    found = exact or [f for f in fields.all_fields() if matches(pattern, spelled(f), f.name)]
    found = [f for f in found if era is None or f.era in ("", era)]
    found = [f for f in found if not (sourceless and f.sources)]
    if not found:
        raise click.UsageError(_nothing(pattern, fields.near(pattern) if pattern else []))
    if as_json:
        click.echo(json.dumps({"fields": [_as_json(f) for f in found]}, indent=1))
    elif exact:
        click.echo("\n\n".join("\n".join(_described(f)) for f in found))
    else:
        click.echo("\n".join(_listed(found, sources=sources)))


def matches(pattern: str | None, *names: str) -> bool:
    """Whether a name is wanted.

    Args:
        pattern: A part of it, or a wildcard pattern of all of it, in any case; None for any name.
        names: The name, maybe in several spellings.

    Returns:
        True if one of them is.
    """
    if pattern is None:
        return True
    folded = pattern.lower()
    if any(char in folded for char in "*?"):
        # Brackets belong to names here: they are no set of characters.
        plain = folded.replace("[", "[[]")
        return any(fnmatchcase(name.lower(), plain) for name in names)
    return any(folded in name.lower() for name in names)


def spelled(field: Field) -> str:
    """A field as a filter has it.

    Args:
        field: The field.

    Returns:
        Its name, with ``[X]`` where brackets belong: ``evt.arg[X]``, ``ps.ancestor[X].pid``.
    """
    if "[]" in field.name:
        head, _, tail = field.name.partition("[]")
        pseudo = head.rpartition(".")[2].startswith("_")
        return f"{head} $x{tail}" if pseudo else f"{head}[X]{tail}"
    return f"{field.name}[X]" if field.argument == "required" else field.name


def _exact(name: str) -> list[Field]:
    """The meanings of one field: one, or one for each era."""
    from kcap.filter import fields

    found = (fields.lookup(name.replace("[X]", ""), era) for era in fields.ERAS)
    return list(dict.fromkeys(field for field in found if field is not None))


def _nothing(pattern: str | None, near: list[str]) -> str:
    if pattern is None:
        return "there is no such field"
    meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"there is no field {pattern!r}.{meant} 'kcap fields' lists them."


def _group(field: Field) -> str:
    from kcap.model import catalogue

    if field.name in catalogue.envelope():
        return _COLUMNS
    first = re.split(r"[.\[]", field.name)[0]
    return first if "." in field.name and first in _PREFIXES else _TRACEE


def _listed(found: Iterable[Field], *, sources: bool) -> Iterator[str]:
    """A line a field, in groups."""
    titles = {name: f"{name}: {text}" for name, text in _PREFIXES.items()}
    before = ""
    for group, rows in groupby(found, _group):
        yield f"{before}{titles.get(group, group)}"
        before = "\n"
        fields = list(rows)
        lines = table([(f"  {spelled(f)}", f.type, _remark(f)) for f in fields]).splitlines()
        for field, line in zip(fields, lines, strict=True):
            yield line
            if sources and field.sources:
                yield f"      from {' | '.join(map(str, field.sources))}"


def _remark(field: Field) -> str:
    """The meaning, and what else is to be known."""
    remarks = []
    if field.era:
        remarks.append(f"era {field.era}")
    if field.replaced_by:
        remarks.append(f"old name of {field.replaced_by.replace(',', ', ')}")
    if not field.sources:
        remarks.append("no source yet")
    return f"{field.meaning} ({'; '.join(remarks)})" if remarks else field.meaning


def _described(field: Field) -> Iterator[str]:
    """All about one field."""
    eras = {"": "the same in 1 and 3", "1": "1: Fibratus 1.x", "3": "3: Fibratus 3.x"}
    yield spelled(field)
    yield f"  meaning   {field.meaning or '-'}"
    yield f"  type      {field.type}"
    yield f"  era       {eras[field.era]}"
    if field.argument:
        yield f"  argument  {field.argument}, as {field.name}[X]"
    if field.replaced_by:
        yield f"  use       {field.replaced_by.replace(',', ', ')}; this is an old name"
    sources = [str(source) for source in field.sources] or ["no source yet: always missing"]
    for place, source in enumerate(sources):
        yield f"  {'' if place else 'from':<9} {source}"


def _as_json(field: Field) -> dict[str, Any]:
    return {
        "field": field.name,
        "type": field.type,
        "era": int(field.era) if field.era else None,
        "argument": field.argument or None,
        "replaced_by": field.replaced_by.split(",") if field.replaced_by else [],
        "sources": [str(source) for source in field.sources],
        "meaning": field.meaning,
    }
