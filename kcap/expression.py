"""Reading a `pyarrow.compute.Expression`: Arrow evaluates it, but does not let it be looked into.

Arrow's serialised form of an expression is an IPC file. The metadata of its schema, in order, is
the program: ``call``, ``field_ref``, ``literal``, ``options`` and ``end``; the values of literals
and options are the columns of its one batch. `program` turns that around, into the steps of a
stack machine, so that whoever interprets an expression needs no recursion.

The metadata is taken from the schema's flatbuffer itself: the mapping that pyarrow gives keeps one
entry a key, and in its text a column's name could imitate an entry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class FieldStep:
    """Push the value of a column."""

    name: str


@dataclass(frozen=True, slots=True)
class LiteralStep:
    """Push a constant."""

    type: pa.DataType
    value: Any
    """As an int, bool or str, of a timestamp the int in its unit; None for null, and a
    `pyarrow.Scalar` where it is of any other type."""


@dataclass(frozen=True, slots=True)
class CallStep:
    """Pop the arguments of a function, push its result."""

    function: str
    arguments: int
    values: frozenset[Any] | None = field(default=None)
    """The set of an ``is_in`` that matches null with null, which may hold None."""
    type: pa.DataType | None = None
    """Arrow type of that set."""


Step = FieldStep | LiteralStep | CallStep


def program(expression: pc.Expression) -> tuple[Step, ...] | None:
    """Look into an expression.

    Args:
        expression: Any expression.

    Returns:
        Steps that compute it, arguments before the function; None where it can't be looked into.
    """
    try:
        _, (raw, *_) = expression.__reduce__()
        with pa.ipc.open_file(raw) as file:
            entries = list(_metadata(file.schema.serialize().to_pybytes()))
            batch = file.get_batch(0) if file.num_record_batches else None
        return _steps(entries, batch)
    # Columns by number have no serialised form, and another Arrow may have another one.
    except (pa.ArrowException, AttributeError, LookupError, TypeError, ValueError, struct.error):
        return None


def fields(steps: tuple[Step, ...]) -> frozenset[str]:
    """The columns that an expression refers to.

    Args:
        steps: Its program.

    Returns:
        Their names.
    """
    return frozenset(step.name for step in steps if isinstance(step, FieldStep))


def _steps(entries: list[tuple[str, str]], batch: pa.RecordBatch | None) -> tuple[Step, ...] | None:
    """The program of an expression's entries, None where one is not understood."""
    steps: list[Step] = []
    calls: list[tuple[str, int]] = []  # functions whose arguments are being read
    depth = 0
    options: pa.Scalar | None = None
    for kind, text in entries:
        if kind == "call":
            calls.append((text, depth))
        elif kind == "field_ref":
            steps.append(FieldStep(text))
            depth += 1
        elif kind == "literal" and batch is not None:
            steps.append(_literal(batch.column(int(text))[0]))
            depth += 1
        elif kind == "options" and batch is not None:
            options = batch.column(int(text))[0]
        elif kind == "end" and calls and calls[-1][0] == text:
            function, before = calls.pop()
            steps.append(_call(function, depth - before, options))
            depth, options = before + 1, None
        else:
            return None
    return tuple(steps) if depth == 1 and not calls else None


def _literal(scalar: pa.Scalar) -> LiteralStep:
    return LiteralStep(scalar.type, _value(scalar))


def _value(scalar: pa.Scalar) -> Any:  # noqa: ANN401
    if not scalar.is_valid:
        return None
    if pa.types.is_timestamp(scalar.type):
        return scalar.value  # as_py has microseconds at most
    plain = pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string
    return scalar.as_py() if any(fits(scalar.type) for fits in plain) else scalar


def _call(function: str, arguments: int, options: pa.Scalar | None) -> CallStep:
    if function != "is_in" or options is None:
        return CallStep(function, arguments)
    values = options["value_set"].values
    if options["null_matching_behavior"].as_py() or pa.types.is_dictionary(values.type):
        return CallStep(function, arguments)  # 0 is "match"
    return CallStep(function, arguments, frozenset(map(_value, values)), values.type)


class _Table:
    """A table of a flatbuffer."""

    def __init__(self, raw: bytes, at: int) -> None:
        self._raw = raw
        self._at = at
        self._vtable = at - struct.unpack_from("<i", raw, at)[0]

    def _field(self, number: int) -> int:
        """Where a field lies, 0 for one that is not there."""
        entry = 4 + 2 * number
        if entry >= struct.unpack_from("<H", self._raw, self._vtable)[0]:
            return 0
        offset = struct.unpack_from("<H", self._raw, self._vtable + entry)[0]
        return self._at + offset if offset else 0

    def _reference(self, at: int) -> int:
        return at + int(struct.unpack_from("<I", self._raw, at)[0])

    def table(self, number: int) -> _Table:
        """The table that a field refers to."""
        return _Table(self._raw, self._reference(self._field(number)))

    def tables(self, number: int) -> Iterator[_Table]:
        """The tables that a field lists."""
        if at := self._field(number):
            vector = self._reference(at)
            (count,) = struct.unpack_from("<I", self._raw, vector)
            for entry in range(vector + 4, vector + 4 + 4 * count, 4):
                yield _Table(self._raw, self._reference(entry))

    def text(self, number: int) -> str:
        """The string that a field refers to."""
        at = self._reference(self._field(number))
        (length,) = struct.unpack_from("<I", self._raw, at)
        return self._raw[at + 4 : at + 4 + length].decode()


def _metadata(message: bytes) -> Iterator[tuple[str, str]]:
    """The metadata of a serialised schema, in order and with repeated keys (Arrow's Schema.fbs)."""
    start = 8  # a marker and the length of the flatbuffer
    root = _Table(message, start + struct.unpack_from("<I", message, start)[0])
    header, custom_metadata = 2, 2
    for pair in root.table(header).tables(custom_metadata):
        yield pair.text(0), pair.text(1)
