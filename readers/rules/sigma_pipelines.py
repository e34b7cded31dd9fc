"""Which events a logsource means, and where Sigma's fields are found in them.

A *pipeline* is one way of recording: ``sysmon`` and ``security`` are events of Windows whose
arguments are the fields of the event log, with ``Channel`` and ``EventID`` among them; ``windows``
are its other channels; ``fibratus`` and ``linux`` are what kcap reads and records itself. A rule
runs on all pipelines that know its logsource.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from kcap.errors import BadInputError
from kcap.filter.parser import parse
from kcap.filter.syntax import And, Expr, FieldRef
from kcap.filter.syntax import Sequence as Steps

_DATA: Final = "kcap.readers.rules.data"
_SOURCES: Final = "sigma_sources.tsv"
_FIELDS: Final = "sigma_fields.tsv"

_ANYWHERE: Final = "*"
"""The row of the table with the fields that words without a field are looked for in."""

_UNSPELLED: Final = frozenset("[]\n")
"""What brackets can't hold."""


class Logsource(NamedTuple):
    """What a rule says of where its events come from."""

    product: str | None = None
    category: str | None = None
    service: str | None = None

    def __str__(self) -> str:
        """As rules have it."""
        pairs = zip(self._fields, self, strict=True)
        return ", ".join(f"{name}: {value}" for name, value in pairs if value) or "nothing"


@dataclass(frozen=True, slots=True)
class Target:
    """Events of one pipeline that a logsource means."""

    pipeline: str
    condition: Expr
    """True of these events."""
    fields: Mapping[str, tuple[FieldRef, ...]]
    """By their names in lower case."""
    events: frozenset[str] | None = None
    """What kcap's own recorder has to record for them; None where it records none of them."""

    def names(self, field: str) -> tuple[FieldRef, ...]:
        """Where a field is found.

        Args:
            field: Its name in the rule.

        Returns:
            The fields, one at least: what the table does not have is an argument of that name.

        Raises:
            BadInputError: No argument can have the name.
        """
        known = self.fields.get(field.lower())
        if known is not None:
            return known
        if not field.strip() or _UNSPELLED.intersection(field):
            raise BadInputError(f"{field!r} can be no field", expected="a name without brackets")
        return (FieldRef("evt.arg", field),)

    @property
    def anywhere(self) -> tuple[FieldRef, ...]:
        """The fields that words without a field are looked for in."""
        return self.fields[_ANYWHERE]


def targets(source: Logsource) -> list[Target]:
    """The events that a logsource means.

    Args:
        source: The logsource.

    Returns:
        One for each pipeline that knows it, in the order of the table.
    """
    found = []
    for pipeline, product, category, service, condition, events in _rows(_SOURCES):
        row = (category, service)
        if source.product in (None, product) and row == (
            source.category or "",
            source.service or "",
        ):
            fields = _fields(pipeline, category)
            found.append(
                Target(pipeline, _parsed(condition), fields, frozenset(events.split()) or None)
            )
    return found


def logsources() -> list[Logsource]:
    """All logsources that some pipeline knows.

    Returns:
        Each once, in the order of the table.
    """
    rows = (Logsource(*(part or None for part in row[1:4])) for row in _rows(_SOURCES))
    return list(dict.fromkeys(rows))


def described() -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """What is known of logsources and of fields, for people.

    Returns:
        Pipeline, logsource and condition; and pipeline, category, Sigma's field and kcap's. Each
        with a heading.
    """
    sources = [
        (row[0], str(Logsource(*(part or None for part in row[1:4]))), row[4])
        for row in _rows(_SOURCES)
    ]
    fields = [(row[0], row[1] or "any", row[2], row[3]) for row in _rows(_FIELDS)]
    return (
        [("PIPELINE", "LOGSOURCE", "EVENTS"), *sources],
        [("PIPELINE", "CATEGORY", "FIELD", "FOUND IN"), *fields],
    )


def parts(condition: Expr) -> Sequence[Expr]:
    """What all must hold for a condition.

    Args:
        condition: The condition.

    Returns:
        The parts of its outermost ``and``, or itself.
    """
    return condition.parts if isinstance(condition, And) else (condition,)


@cache
def _rows(table: str) -> list[list[str]]:
    """The rows of a table, without its heading."""
    text = resources.files(_DATA).joinpath(table).read_text("utf-8")
    return [line.split("\t") for line in text.splitlines()[1:]]


@cache
def _parsed(text: str) -> Expr:
    found = parse(text)
    assert not isinstance(found, Steps)
    return found


@cache
def _fields(pipeline: str, category: str) -> Mapping[str, tuple[FieldRef, ...]]:
    """The fields of a pipeline, those of a category before those of all."""
    found: dict[str, tuple[FieldRef, ...]] = {}
    for of, only, field, names in sorted(_rows(_FIELDS), key=lambda row: row[1]):
        if of == pipeline and only in ("", category):
            refs = [_parsed(name) for name in names.split()]
            found[field.lower()] = tuple(ref for ref in refs if isinstance(ref, FieldRef))
    return found
