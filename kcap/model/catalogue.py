"""The catalogue: which columns, arguments, events and actions kcap knows, as data.

The tables are the TSV files in ``kcap/model/data``; spec/kcap.md makes the classes in
``columns.tsv`` and ``arguments.tsv`` frozen: rows are added, never changed.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from kcap.model import naming
from kcap.model.classes import TypeClass

_DATA: Final = "kcap.model.data"


class ColumnInfo(NamedTuple):
    """What is known of a column."""

    name: str
    cls: TypeClass
    meaning: str
    decoder: str = ""
    """Name of the flag or enum table that gives its numbers text."""


class EventInfo(NamedTuple):
    """What is known of an event type."""

    name: str
    action: str | None
    category: str | None


class Call(NamedTuple):
    """What an event says of the threads and descriptors of its process."""

    event: str
    effect: str
    """What it does: ``open``, ``close``, ``fork`` …; ``use`` for nothing (`kcap.state.calls`)."""
    uses: tuple[str, ...]
    """Arguments with the descriptor that it is about; the first that has a value counts."""
    makes: tuple[str, ...]
    """Arguments with the descriptors that it makes; ``retval`` is the result."""
    type: str
    """What it makes; after an ``@``, the argument that says so."""
    name: str
    """Argument with the path, address or name."""
    at: str
    """Argument with the descriptor of the directory in which a path begins."""
    flags: str
    """Argument with the flags of what it makes."""
    when: str
    """An argument that must have one of the values behind it: ``cmd=F_DUPFD|F_DUPFD_CLOEXEC``."""


class Derived(NamedTuple):
    """A view of one event as another (`kcap.replay.derived`)."""

    event: str
    base: str
    """The event that it is a view of."""
    action: str | None
    category: str | None
    when: str
    """The condition; empty where every base event has the view."""
    arguments: tuple[tuple[str, str, str], ...]
    """Of each argument its name, the source's spelling of its type, and where its value is."""
    columns: tuple[tuple[str, str], ...]
    """Columns of the envelope that are not those of the base event, and where their values are."""
    note: str
    """How the view differs from the event that it stands for; empty where it does not."""


def _rows(table: str) -> list[list[str]]:
    """The rows of a data table, without its heading and comment lines."""
    text = resources.files(_DATA).joinpath(table).read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    width = lines[0].count("\t") + 1
    return [(line.split("\t") + [""] * width)[:width] for line in lines[1:]]


@cache
def envelope() -> dict[str, ColumnInfo]:
    """The envelope's columns, in the order people read them."""
    return {r[0]: ColumnInfo(r[0], TypeClass(r[1]), r[2]) for r in _rows("columns.tsv")}


@cache
def arguments() -> dict[str, ColumnInfo]:
    """The arguments with a home class, by the source's own name."""
    return {r[0]: ColumnInfo(r[0], TypeClass(r[1]), r[3], r[2]) for r in _rows("arguments.tsv")}


@cache
def events(family: str) -> dict[str, EventInfo]:
    """The event types of a family of sources.

    Args:
        family: ``tracee``, ``proc``.

    Returns:
        The event's own name to what is known of it; derived events are among them.
    """
    found = {d.event: EventInfo(d.event, d.action, d.category) for d in derived(family)}
    for name, event, action, category in _rows("events.tsv"):
        if name == family:
            found[event] = EventInfo(event, action or None, category or None)
    return found


_LIKE: Final = dict.fromkeys(
    ("kcap-packets", "kcap-perf", "kcap-tracefs", "pcap", "pcapng"), "kcap-bpf"
)
"""Collectors whose events have the names and arguments of another one's."""


def family(collector: str) -> str:
    """The family that the events of a source belong to.

    Args:
        collector: What produced them.

    Returns:
        The collector's own name, unless its events are like those of another.
    """
    return _LIKE.get(collector, collector)


@cache
def families() -> list[str]:
    """The families of sources whose events are known, by name."""
    return sorted({r[0] for r in _rows("events.tsv")})


@cache
def actions() -> dict[str, str]:
    """kcap's taxonomy: an action to its category."""
    return {r[0]: r[1] for r in _rows("taxonomy.tsv")}


@cache
def aliases(family: str) -> dict[str, str]:
    """The names that another tool has for our columns.

    Args:
        family: The tool and dialect, as ``tracee`` or ``tracee-v1beta1``.

    Returns:
        Its own path of a field to our column.
    """
    return {r[1]: r[2] for r in _rows("aliases.tsv") if r[0] == family}


@cache
def decoder(name: str) -> dict[int, str]:
    """A flag or enum table.

    Args:
        name: The table's name, as in `ColumnInfo.decoder`.

    Returns:
        Number to text; for flags the numbers are single bits or masks.
    """
    return {int(r[1], 0): r[2] for r in _rows("decoders.tsv") if r[0] == name}


@cache
def _decoded() -> dict[tuple[str, str, str], str]:
    """Decoders of arguments whose numbers mean what their event says, by family and event."""
    return {(r[0], r[1], r[2]): r[3] for r in _rows("decoded.tsv")}


@cache
def decoder_of(collector: str, event: str, argument: str) -> str:
    """The flag or enum table of an event's argument.

    Args:
        collector: What produced it, or the family of that: ``tracee``, ``scap``.
        event: The event's own name.
        argument: The argument's own name.

    Returns:
        The table's name: that of the event's argument; else that of every such argument of the
        family, else that of the name in all families. Empty where there is none.
    """
    tables, of = _decoded(), family(collector)
    for name in (event, "*"):
        if (of, name, argument) in tables:
            return tables[of, name, argument]
    known = arguments().get(argument)
    return known.decoder if known else ""


@cache
def calls(family: str) -> dict[str, list[Call]]:
    """The events of a family of sources that concern threads or descriptors.

    Args:
        family: ``scap``.

    Returns:
        The event's own name to what it does; of several entries the first counts whose condition
        holds.
    """
    found: dict[str, list[Call]] = {}
    for name, event, effect, uses, makes, *texts in _rows("calls.tsv"):
        if name == family:
            split = [tuple(filter(None, part.split("|"))) for part in (uses, makes)]
            found.setdefault(event, []).append(Call(event, effect, split[0], split[1], *texts))
    return found


@cache
def derived(family: str) -> tuple[Derived, ...]:
    """The views of the events of a family of sources.

    Args:
        family: ``kcap-bpf``.

    Returns:
        The views, in the order in which they follow their base event.
    """
    found = []
    for name, event, base, action, category, when, arguments, columns, note in _rows("derived.tsv"):
        if name == family:
            known = (action or None, category or None)
            named = [(*left.partition(":"), right) for left, right in _pairs(arguments)]
            typed = tuple((argument, kind, right) for argument, _, kind, right in named)
            found.append(Derived(event, base, *known, when, typed, tuple(_pairs(columns)), note))
    return tuple(found)


def _pairs(text: str) -> list[tuple[str, str]]:
    """The sides of ``LEFT=RIGHT; LEFT=RIGHT``."""
    pairs = [part.partition("=") for part in text.split("; ") if part]
    return [(left, right) for left, _, right in pairs]


@cache
def info(base: str) -> ColumnInfo | None:
    """What is known of a column base.

    Args:
        base: A column's name without suffixes.

    Returns:
        The entry, None for a name that is not known.
    """
    known = envelope().get(base)
    if known is None and base.startswith(naming.ARGUMENT + "_"):
        return arguments().get(naming.source_name(base))
    return known


@cache
def home(base: str) -> TypeClass | None:
    """The home class of a column base.

    Args:
        base: A column's name without suffixes.

    Returns:
        The class, None for a name that is not known.
    """
    known = info(base)
    return known.cls if known else None


def class_of(column: str) -> TypeClass | None:
    """The class of any column, by its name alone.

    Args:
        column: A column's name.

    Returns:
        The class, None where the name is not one that kcap gives.
    """
    base, _ = naming.parts(column)
    return naming.class_of(column, home(base))
