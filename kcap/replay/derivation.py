"""Where the arguments of a derived event have their values, and which events have the view.

``derived.tsv`` says it in two small notations. A *place* is the name of an argument of the base
event, ``$COLUMN`` of the envelope, an integer, ``-`` where nothing tells the value, or a function
of such places. A *condition* is one of these, or several with ``and`` between them:

========================== ===============================================================
``PLACE exists``           the event has a value there
``PLACE = A B``            the value is A or B: integers, or words where it is text
``PLACE != A B``           it is neither; true of an event without a value, too
``PLACE > A``, ``>=``      it is greater; ``<`` and ``<=`` likewise
``PLACE & MASK = A B``     of the number's bits those in MASK; false of one from 2^63 on
========================== ===============================================================

======================= ==================================================================
``file_flags(F, C)``    flags as the file has them: without ``O_CLOEXEC``, and with
                        ``O_LARGEFILE`` unless C says that the call was a 32-bit one
``socket_type(T)``      without ``SOCK_CLOEXEC`` and ``SOCK_NONBLOCK``
``base64(BYTES)``       as text
``packet_metadata(D)``  which way a packet went, as Tracee says it
``packet_PROTO(B, …)``  the header of a protocol in a packet's bytes, as JSON; it needs
                        ``$event`` and ``link_type`` beside them
======================= ==================================================================
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model import catalogue, naming, shape
from kcap.model.batch import Batch, Column, coded, constant
from kcap.model.classes import TypeClass
from kcap.packets.views import FUNCTIONS as PACKET_FUNCTIONS

Mask = npt.NDArray[np.bool_]
Found = dict[tuple[TypeClass, str], Column]
"""The columns of one field by the class of the value and ``raw``, ``size`` or nothing."""

_CALL: Final = re.compile(r"(\w+)\((.*)\)")
_INTEGER: Final = re.compile(r"-?\d+")
_CONDITION: Final = re.compile(
    r"(?P<place>\$?\w+) "
    r"(?:(?P<exists>exists)|(?:& (?P<mask>\w+) )?(?P<op>!=|[<>]?=|[<>]) (?P<right>.+))"
)
_O_CLOEXEC: Final = 0o2000000
_O_LARGEFILE: Final = 0o100000
_SOCKET_TYPE: Final = 0xF


class View:
    """One row of the catalogue, ready to be looked at.

    Args:
        entry: The row.
    """

    def __init__(self, entry: catalogue.Derived) -> None:
        self.entry = entry
        self.event = entry.event
        self.base = entry.base
        self.terms = [_term(text) for text in entry.when.split(" and ")] if entry.when else []
        """The parts of its condition, all of which must hold."""

    def columns(self, wanted: Collection[str] | None = None) -> set[str]:
        """The columns of base events that the view needs.

        Args:
            wanted: The columns of the view that matter; None for all.

        Returns:
            Their names; of an argument the columns of all classes.
        """
        places = [match["place"] for match in self.terms]
        for base, place in self._fields():
            own = {name for name, _, _ in _spelled(f"${base}")}
            if wanted is None or not own.isdisjoint(wanted):
                places.append(place)
        spelled = [_spelled(operand) for place in places for operand in operands(place)]
        return {name for names in spelled for name, _, _ in names}

    def types(self, known: Collection[str]) -> dict[str, TypeClass]:
        """The columns that the view's own values stand in.

        Args:
            known: The columns of its base events.

        Returns:
            Their names and classes.
        """
        found: dict[str, TypeClass] = {}
        for base, place in self._fields():
            home = catalogue.home(base)
            for cls, ending in _results(place, known):
                name = naming.column_name(base, cls, home)
                full = f"{name}__{ending}" if ending else name
                found[full] = naming.class_of(full, home) or cls
        return found

    def shape(self, batch: Batch) -> Column:
        """The shapes of events of the view.

        Args:
            batch: The events, with its `values`.

        Returns:
            The column: which arguments there are, and which of them have no value.
        """
        code = np.zeros(batch.rows, np.int64)
        for at, (name, _, _) in enumerate(self.entry.arguments):
            columns = [column for column, _, ending in _spelled(name) if not ending]
            found = [column for column in map(batch.get, columns) if column is not None]
            if any(column.rows is None for column in found):
                continue
            missing = np.ones(batch.rows, np.bool_)
            for column in found:
                missing[column.rows] = False
            code |= missing.astype(np.int64) << at
        if batch.rows and (code == code[0]).all():
            return constant(TypeClass.STR, self._spelled(int(code[0])), batch.rows)
        different, which = np.unique(code, return_inverse=True)
        made = coded([self._spelled(nulls) for nulls in different.tolist()], which)
        assert made is not None
        return made

    def _spelled(self, nulls: int) -> str:
        named = enumerate(self.entry.arguments)
        return shape.encode(
            [shape.Item(name, kind, bool(nulls >> at & 1)) for at, (name, kind, _) in named]
        )

    def _fields(self) -> list[tuple[str, str]]:
        """The bases of all that the view has of its own, and where their values are."""
        arguments = [(naming.argument(name), place) for name, _, place in self.entry.arguments]
        return [*arguments, *self.entry.columns]

    def made(self) -> set[str]:
        """The columns in which the view may have other values than its base event."""
        bases = [base for base, place in self._fields() if base != naming.argument(place)]
        return {name for base in bases for name, _, _ in _spelled(f"${base}")}

    def holds(self, batch: Batch) -> Mask:
        """Which events have the view.

        Args:
            batch: Base events.

        Returns:
            One verdict a row.
        """
        kept = np.ones(batch.rows, np.bool_)
        for term in self.terms:
            kept &= _verdicts(batch, term)
        return kept

    def values(self, batch: Batch) -> dict[str, Column]:
        """What the view has of its own.

        Args:
            batch: Base events that have it.

        Returns:
            The columns by name.
        """
        found: dict[str, Column] = {}
        for base, place in self._fields():
            home = catalogue.home(base)
            for (cls, ending), column in _evaluated(batch, place).items():
                column_name = naming.column_name(base, cls, home)
                found[f"{column_name}__{ending}" if ending else column_name] = column
        return found


def _term(text: str) -> re.Match[str]:
    match = _CONDITION.fullmatch(text)
    assert match is not None, text
    return match


@cache
def operands(place: str) -> tuple[str, ...]:
    """The arguments (``pathname``) and columns (``$retval``) that a place looks at.

    Args:
        place: The place.

    Returns:
        Their names; none of a constant.
    """
    call = _CALL.fullmatch(place)
    parts = call[2].split(", ") if call else [place]
    return tuple(part for part in parts if part != "-" and not _INTEGER.fullmatch(part))


@cache
def _spelled(operand: str) -> tuple[tuple[str, TypeClass, str], ...]:
    """The columns that an operand may stand in: name, class of the value, ending."""
    base = operand[1:] if operand.startswith("$") else naming.argument(operand)
    home = catalogue.home(base)
    names = [(naming.column_name(base, cls, home), cls) for cls in TypeClass]
    endings = ("", naming.RAW, naming.SIZE)
    return tuple((f"{n}__{end}" if end else n, cls, end) for n, cls in names for end in endings)


def _field(batch: Batch, operand: str) -> Found:
    """The columns of an operand."""
    found: Found = {}
    for name, cls, ending in _spelled(operand):
        column = batch.get(name)
        if column is not None and len(column):
            found[cls, ending] = column
    return found


def _results(place: str, known: Collection[str]) -> list[tuple[TypeClass, str]]:
    """Class and ending of the columns that a place may give."""
    if place == "-":
        return []
    if _INTEGER.fullmatch(place):
        return [(TypeClass.I64, "")]
    call = _CALL.fullmatch(place)
    spelled = [part for operand in operands(place) for part in _spelled(operand)]
    there = [(cls, ending) for name, cls, ending in spelled if name in known]
    if call is None or not there:
        return there
    numeric = call[1] in {"file_flags", "socket_type"}
    made = TypeClass.JSON if call[1] in PACKET_FUNCTIONS else TypeClass.STR
    return [(TypeClass.I64 if numeric else made, "")]


def _verdicts(batch: Batch, term: re.Match[str]) -> Mask:
    """For which events one part of a condition holds."""
    found = _field(batch, term["place"])
    columns = [(cls, column) for (cls, ending), column in found.items() if not ending]
    kept = np.zeros(batch.rows, np.bool_)
    op = term["op"]
    for cls, column in columns:
        at: slice | npt.NDArray[np.int32] = slice(None) if column.rows is None else column.rows
        if term["exists"]:
            kept[at] = True
        elif cls in (TypeClass.I64, TypeClass.STR):
            kept[at] = _compared(column, cls, op.replace("!", ""), term["mask"], term["right"])
    return ~kept if op == "!=" else kept


_COMPARISONS: Final[Mapping[str, Callable[..., Mask]]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


def _compared(column: Column, cls: TypeClass, op: str, mask: str | None, right: str) -> Mask:
    words = right.split(" ")
    if cls is TypeClass.STR:
        entries = column.values.dictionary.to_pylist()
        return np.array([entry in words for entry in entries], np.bool_)[column.codes()]
    numbers = np.asarray(column.values)
    if mask is not None:
        numbers = numbers & int(mask, 0)
    constants = [int(word, 0) for word in words]
    if op == "=":
        return np.isin(numbers, constants)
    return _COMPARISONS[op](numbers, constants[0])


def _evaluated(batch: Batch, place: str) -> Found:
    """The values of a place."""
    if place == "-":
        return {}
    if _INTEGER.fullmatch(place):
        return {(TypeClass.I64, ""): constant(TypeClass.I64, int(place), batch.rows)}
    call = _CALL.fullmatch(place)
    if call is None:
        return _field(batch, place)
    return _FUNCTIONS[call[1]](batch, call[2].split(", "))


def _file_flags(batch: Batch, operands: Sequence[str]) -> Found:
    flags, compat = operands
    column = _evaluated(batch, flags).get((TypeClass.I64, ""))
    if column is None:
        return {}
    large = np.full(batch.rows, _O_LARGEFILE, np.int64)
    said = _field(batch, compat).get((TypeClass.BOOL, ""))
    if said is not None:
        at = slice(None) if said.rows is None else said.rows
        large[at] = np.where(said.values.to_numpy(zero_copy_only=False), 0, _O_LARGEFILE)
    large = large if column.rows is None else large[column.rows]
    return _number(column, np.asarray(column.values) & ~_O_CLOEXEC | large)


def _socket_type(batch: Batch, operands: Sequence[str]) -> Found:
    column = _field(batch, operands[0]).get((TypeClass.I64, ""))
    return {} if column is None else _number(column, np.asarray(column.values) & _SOCKET_TYPE)


def _number(like: Column, values: npt.NDArray[np.int64]) -> Found:
    return {(TypeClass.I64, ""): Column(TypeClass.I64, pa.array(values), like.rows)}


def _base64(batch: Batch, operands: Sequence[str]) -> Found:
    column = _field(batch, operands[0]).get((TypeClass.BIN, ""))
    if column is None:
        return {}
    entries = [base64.b64encode(entry).decode() for entry in column.values.dictionary.to_pylist()]
    values = pa.DictionaryArray.from_arrays(column.values.indices, pa.array(entries, pa.utf8()))
    return {(TypeClass.STR, ""): Column(TypeClass.STR, values, column.rows)}


_FUNCTIONS: Final[Mapping[str, Callable[[Batch, Sequence[str]], Found]]] = {
    "file_flags": _file_flags,
    "socket_type": _socket_type,
    "base64": _base64,
    **PACKET_FUNCTIONS,
}
