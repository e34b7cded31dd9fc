r"""The catalogue of fields: what a name in a filter means, and where its value comes from.

Fields are the names in ``data/fields.tsv`` (Fibratus's names, and the short ones of Tracee), the
paths that Tracee's records have (``processName``), the columns of the envelope (``pid``), and the
columns of arguments and other fields (``arg_pathname``, ``ext_meta``). What stands in brackets is
cut off by the parser: ``evt.arg[NAME]``, ``args.NAME`` and ``data.NAME`` do not come here.

Fibratus gave some names another meaning on its way from 1.x to 3.x, so each has an era: ``1``,
``3``, or none where there is one meaning.

**Brackets.** A field with an argument picks one value of what its source gives: of a map the value
of that name, else of the first name that begins with it; of a list of maps the one with that
``name``; of a list the item with that number, from 0 (of ``ps.ancestor`` in era 1 from 1, and
``root`` is the last, ``any`` all of them). ``ps.ancestor[1].pid`` is looked up as
``ps.ancestor[].pid``. A map without an argument counts as the list of its names and of its
``NAME:value`` texts.

**Sources.** A field has alternatives, written ``A | B | C``; row by row, the first that has a value
counts. Each is a column, maybe in a function, maybe with a condition behind it:

======================= ========================================================================
``process_name``        a column of the envelope
``arg:NAME``            the argument NAME: all its columns, whatever their class
``ext:NAME``            the field NAME of the source's record outside the arguments, likewise
``state:process.FACT``  what is known then of the process of the event's ``pid``; FACT is a field
                        of `kcap.state.processes.Process`
``state:parent.FACT``   the same of its parent
``state:ancestors.FACT``  a list: of its parent, of the parent's parent, and so on
``state:lineage.FACT``  a list: of the process itself, then of its ancestors
``state:named.FACT``    of the process that the argument ``pid`` names
``X{event=A,B}``        X in rows whose column ``event`` is A or B, elsewhere missing
``X{event!=A,B}``       X in all other rows, those without an ``event`` too
``f(X)``                a function of the value; missing where X is, or where f gives nothing
======================= ========================================================================

**Functions.** Each is a pure function of one value, most of text; a list goes in item by item
unless the function is said to take lists.

======================= ========================================================================
``basename``            what is behind the last ``/`` or ``\`` of a path; nothing if that is empty
``dirname``             what is before it (``/`` of ``/a``, ``C:\`` of ``C:\a``); nothing without
``folder``              the basename of the dirname
``stem``                the path without the extension of its basename
``extension``           from the last dot of the basename on, unless that is its first character;
                        nothing without one
``account``             what is behind the first ``\`` of ``DOMAIN\user``, all of it without one
``domain``              what is before it; nothing without one
``sid``                 ``S-1-5-18``, ``-19``, ``-20`` of the accounts SYSTEM, LOCAL SERVICE and
                        NETWORK SERVICE of ``NT AUTHORITY``, in any case; any other text stays
``split``               a list: a command line cut at blanks that are not in double quotes, the
                        quotes taken away; ``\"`` is a quotation mark
``capitalized``         the first letter in upper case
``text``                a number as decimal text; text stays
``hex``                 a number as ``0x1fff``; text stays
``decoded``             of an argument's number the text that its event's decoder gives, else as
                        ``text``; text stays
``decoded_list``        likewise, the flags one by one as a list; a list stays
``create_disposition``  the text that the decoder of that name gives; text stays
``share_letters``       of a number ``rwd``, with ``-`` for each of the bits 1, 2, 4 that is not
                        set; text stays
``hour`` ...            of a time in UTC a number: ``year``, ``month`` (1 to 12), ``day``,
                        ``week`` (of ISO 8601), ``hour``, ``minute``, ``second``
``weekday``             ``Monday`` to ``Sunday``
``date``                ``2026-11-21``
``clock``               ``09:30:00``
``zone``                ``UTC``
``client_ip``           the left address of ``1.2.3.4:80->5.6.7.8:443`` or ``::1:80->::1:443``;
                        nothing of other text
``client_port``         its port, as a number
``server_ip``           the right address; of ``1.2.3.4:80`` without an arrow that one
``server_port``         its port, as a number
``socket_ip``           of a map the value of ``sin_addr`` or ``sin6_addr``
``socket_port``         of a map the number in ``sin_port`` or ``sin6_port``
``query_name``          of a DNS message the first question's name: ``questions[0].name``, or
                        ``query`` of the first item of a list (in ``query_data`` if it has that)
``query_type``          its type: ``type``, or ``query_type``
``answers``             a list: of each of ``answers`` the ``IP``, ``CNAME``, ``PTR``, ``NS`` or
                        ``data`` that it has, or ``answer`` of each of an item's ``dns_answer``
``response_code``       ``responseCode``
``value[KEY]``          of a map the value of KEY; of a list of maps that of each, as a list
``by_name[KEY]``        a map: of a list of maps from the ``name`` of each to its KEY
``names``               a list: of a map its names, of a list of maps the ``name`` of each
``variables``           a map: of a list of ``NAME=value``, cut at the first ``=``; a map stays
``count_args()``        how many arguments the event has; takes no value
======================= ========================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kcap.model.classes import TypeClass

_DATA: Final = "kcap.filter.data"

ERAS: Final = (1, 3)
"""The releases of Fibratus that differ in what names mean."""

TYPES: Final = ("text", "number", "bool", "ip", "time", "list", "map", "any")
"""Types of a field's values."""

_SOURCE: Final = re.compile(
    r"(?:(?P<function>\w+(?:\[\w+\])?)\((?P<inner>[\w:.*]*)\)|(?P<column>[\w:.*]+))"
    r"(?:\{(?P<key>\w+)(?P<unless>!?)=(?P<values>[\w,]+)\})?"
)

_DIALECTS: Final = ("tracee", "tracee-grpc", "tracee-v1beta1")
"""Whose paths are fields; those without a dot only of the first: ``id`` and ``name`` say little."""


class When(NamedTuple):
    """A condition on the row."""

    column: str
    """``event``, ``action``, ``category``, ``fd_type`` or ``kind``."""
    values: tuple[str, ...]
    unless: bool = False
    """Whether it holds in all rows but those."""


@dataclass(frozen=True, slots=True)
class Source:
    """One place where a value may be found."""

    column: str
    """As in the table above; empty for a function that takes no value."""
    function: str = ""
    when: When | None = None

    def __str__(self) -> str:
        """As it stands in the table."""
        text = f"{self.function}({self.column})" if self.function else self.column
        if self.when is None:
            return text
        sign = "!=" if self.when.unless else "="
        return f"{text}{{{self.when.column}{sign}{','.join(self.when.values)}}}"


@dataclass(frozen=True, slots=True)
class Field:
    """A field."""

    name: str
    type: str
    """One of `TYPES`."""
    sources: tuple[Source, ...]
    """Empty where nothing that kcap reads has it yet: it is always missing."""
    argument: str
    """``required`` or ``optional`` brackets; empty for none."""
    replaced_by: str
    """The name to use instead, where this is an old one."""
    meaning: str
    era: str
    """``1``, ``3``, or empty for both."""


def lookup(name: str, era: int) -> Field | None:
    """Find a field.

    Args:
        name: Its name; upper and lower case are one in Fibratus's names.
        era: The era of the expression. A field that only the other era has is found too.

    Returns:
        The field, None for an unknown name.
    """
    found = _tabled().get(name) or _tabled().get(name.lower())
    if not found:
        return _columns().get(name) or _argument(name)
    by_era = {field.era: field for field in found}
    return by_era.get(str(era)) or by_era.get("") or found[0]


def all_fields() -> list[Field]:
    """Every field that has a name of its own.

    Returns:
        Those of the table in its order, Tracee's, then the envelope's columns; not the columns of
        arguments. A name with a meaning in each era is there twice.
    """
    return [field for fields in _tabled().values() for field in fields] + list(_columns().values())


def near(name: str) -> list[str]:
    """Names that may have been meant.

    Args:
        name: An unknown name.

    Returns:
        At most three, the best first.
    """
    import difflib

    folded = name.lower()
    known = _foreign().get(folded)
    names: dict[str, str] = {}
    for field in all_fields():
        if not field.replaced_by and "[]" not in field.name:
            names.setdefault(field.name.lower(), field.name)
    bare = {re.sub(r"[._]", "", key): shown for key, shown in names.items()}
    found = [known] if known else []
    same = bare.get(re.sub(r"[._]", "", folded))
    found += [same] if same else []
    found += [names[key] for key in difflib.get_close_matches(folded, names, 3, 0.7)]
    return list(dict.fromkeys(found))[:3]


def synonyms(name: str, value: str) -> tuple[str, ...]:
    """Values that a field's constant stands for.

    Fibratus calls a category ``net`` that is ``network`` here, and an event ``LoadImage`` in 1.x
    that is ``LoadModule`` in 3.x; a filter finds both by either name.

    Args:
        name: The field.
        value: A constant that it is compared with.

    Returns:
        The constant, then the others.
    """
    return (value, *_synonyms().get((name.lower(), value), ()))


@cache
def _rows(table: str) -> list[list[str]]:
    """The rows of a data table, without its heading."""
    text = resources.files(_DATA).joinpath(table).read_text("utf-8")
    return [line.split("\t") for line in text.splitlines()[1:]]


def parse_sources(text: str) -> tuple[Source, ...]:
    """Read the sources of a field.

    Args:
        text: Alternatives, as in the table.

    Returns:
        The sources, the first choice first.

    Raises:
        ValueError: One of them can't be read.
    """
    return tuple(_source(part) for part in text.split(" | ")) if text else ()


def _source(text: str) -> Source:
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no source of a field")
    when = None
    if match["key"]:
        when = When(match["key"], tuple(match["values"].split(",")), bool(match["unless"]))
    return Source(match["column"] or match["inner"] or "", match["function"] or "", when)


@cache
def _tabled() -> dict[str, list[Field]]:
    """The fields of the table by name; an old name without a type of its own is its new one."""
    found: dict[str, list[Field]] = {}
    old: list[Field] = []
    for name, era, kind, source, argument, replaced_by, meaning in _rows("fields.tsv"):
        field = Field(name, kind, parse_sources(source), argument, replaced_by, meaning, era)
        found.setdefault(name, [])
        if kind:
            found[name].append(field)
        else:
            old.append(field)
    for field in old:
        for new in found[field.replaced_by]:
            made = replace(
                new, name=field.name, era=field.era or new.era, replaced_by=field.replaced_by
            )
            found[field.name].append(made)
    return found


@cache
def _columns() -> dict[str, Field]:
    """Tracee's paths, and the columns of the envelope."""
    from kcap.model import catalogue

    envelope = catalogue.envelope()
    found: dict[str, Field] = {}
    for dialect in _DIALECTS:
        for path, column in catalogue.aliases(dialect).items():
            if path not in envelope and ("." in path or dialect == _DIALECTS[0]):
                info = envelope[column]
                found.setdefault(path, _column(path, column, info.cls, info.meaning))
    for name, info in envelope.items():
        found[name] = _column(name, name, info.cls, info.meaning)
    return found


def _column(name: str, column: str, cls: TypeClass | None, meaning: str) -> Field:
    kind = "time" if column == "ts" else _type(cls)
    return Field(name, kind, (Source(column),), "", "", meaning, "")


def _type(cls: TypeClass | None) -> str:
    """The type of a class's values."""
    if cls is None:
        return "any"
    if cls.child is not None:
        return "list"
    kinds = {"i64": "number", "u64": "number", "f64": "number", "bool": "bool", "json": "map"}
    return kinds.get(cls.value, "text")


def _argument(name: str) -> Field | None:
    """The column of an argument; without a class in its name all columns of that argument."""
    from kcap.model import catalogue, naming

    base, suffixes = naming.parts(name)
    for prefix in (naming.ARGUMENT, naming.EXTENSION):
        if not base.startswith(f"{prefix}_"):
            continue
        info = catalogue.info(base)
        meaning = info.meaning if info else ""
        if suffixes:
            cls = catalogue.class_of(name)
            return _column(name, name, cls, meaning) if cls else None
        source = Source(f"{prefix}:{naming.source_name(base)}")
        return Field(name, "any", (source,), "", "", meaning, "")
    return None


@cache
def _foreign() -> dict[str, str]:
    """Names of other tools to the field that says the same; to be suggested, not understood."""
    return dict(_rows("foreign.tsv"))


@cache
def _synonyms() -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for name, *values in _rows("synonyms.tsv"):
        for value in values:
            found[name, value] = tuple(other for other in values if other != value)
    return found
