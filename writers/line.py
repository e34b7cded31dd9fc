"""Console lines: an event as a line of text, in Fibratus's form and with its template fields."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.errors import KcapError
from kcap.model import catalogue, decode, text
from kcap.model.batch import Batch, Column, without_state
from kcap.model.kinds import DECIDING, Kinds
from kcap.model.side import SourceInfo
from kcap.writers import arguments, blocks, fragments
from kcap.writers.fragments import LineBuilder, Texts

TEMPLATE: Final = (
    "{{ .Seq }} {{ .Timestamp }} - {{ .CPU }} {{ .Process }} ({{ .Pid }}) - "
    "{{ .Type }} ({{ .Kparams }})"
)
"""The template of Fibratus's console output."""

DELIMITER: Final = "➜ "
"""What stands between the name of a parameter and its value."""

_RESULTS: Final = ("fd_name", "retval")
"""Columns that stand behind the parameters: what file or socket it was about, and the result."""

PLACEHOLDER: Final = "-"
"""What stands for a value that an event does not have."""

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "CPU": ("cpu",),
    "Callstack": ("stack_addresses",),
    "Category": ("category",),
    "Cmd": ("cmdline",),
    "Comm": ("cmdline",),
    "Cwd": (),
    "Description": (),
    "Exe": ("exe",),
    "Host": ("host",),
    "Meta": (),
    "PE": (),
    "Pcmd": (),
    "Pcomm": (),
    "Pexe": (),
    "Pid": ("pid",),
    "Pname": ("parent_name",),
    "Ppid": ("ppid",),
    "Process": ("process_name",),
    "Seq": ("seq", "ord"),
    "Sid": ("user",),
    "Tid": ("tid",),
    "Timestamp": ("ts", "ts_raw"),
    "Type": ("event",),
}
"""Fibratus's template fields to the columns that may hold them, the best first.

Fields without a column are known to Fibratus only: a template may name them, kcap has no value.
"""

_PARAMETERS: Final = ("Kparams", "Params")
_PARAMETER: Final = re.compile(r"(?:Kp|P)arams\.(.+)", re.DOTALL)
_TAG: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_NAME: Final = re.compile(r"\.([^\s{}|()]+)")
_COLORS: Final = {"Process": "\x1b[36m", "Type": "\x1b[33m"}
_RESET: Final = "\x1b[0m"
_SECOND_NS: Final = 1_000_000_000

Render = Callable[[Kinds, Column], Texts]


class _Field(NamedTuple):
    """A tag of a template."""

    name: str


class _Value(NamedTuple):
    """A field as a batch has it: columns to look into, in this order."""

    columns: list[tuple[str, Render]]


class _Parameters(NamedTuple):
    """All parameters as a batch has them: columns, and what stands before a value."""

    columns: list[tuple[str, tuple[int, int], Render]]


class ConsoleLines:
    r"""A sink that writes one line of text an event.

    A tag of the template is one of Fibratus's fields, ``.Kparams.NAME`` for one parameter, or
    a column of ours: ``{{ .container_id }}``, ``{{ .arg_pathname }}``; without a class suffix it
    stands for the column of any class. A value that an event does not have is ``-``. Text is
    escaped so that it cannot steer a terminal.

    Args:
        stream: Where the lines go; stays open.
        template: The form of a line, None for Fibratus's default.
        delimiter: What stands between the name of a parameter and its value.
        state: Whether rows that only describe what was there (``kind`` is ``state``) are written.
        color: Whether process and type are coloured; for terminals only.

    Raises:
        KcapError: The template is malformed or names an unknown field.

    Example:
        >>> sink = ConsoleLines(sys.stdout.buffer, template="{{ .Pid }} {{ .Type }} {{ .Params }}")
        >>> sink.write(batch)
        6328 CreateFile file_name➜ C:\x, operation➜ open
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        template: str | None = None,
        delimiter: str = DELIMITER,
        state: bool = False,
        color: bool = False,
    ) -> None:
        self._stream = stream
        self._delimiter = text.clean(delimiter)[0]
        self._state = state
        self._color = color
        self._closed = False
        self._families: dict[str, str] = {}
        self._template = _parse(TEMPLATE if template is None else text.clean(template)[0])

    def write(self, batch: Batch) -> None:
        """Write the events of a batch.

        Args:
            batch: Events; side records have no place in console lines.

        Raises:
            OutputError: The stream takes no more.
        """
        for side in batch.before:
            if isinstance(side, SourceInfo):
                self._families[side.id] = side.collector
        if not self._state:
            batch = without_state(batch)
        constants = fragments.Constants()
        placeholder = constants.number(PLACEHOLDER)
        parts = self._resolve(batch, constants)
        shared = constants.texts()
        named = {c[0] for part in parts if not isinstance(part, int) for c in part.columns}
        for block in blocks.of(batch.select(named | DECIDING)):
            kinds = Kinds(block, self._families)
            lines = LineBuilder(block.rows, shared)
            for part in parts:
                if isinstance(part, int):
                    lines.append(part)
                elif isinstance(part, _Value):
                    _append_value(lines, block, kinds, part, placeholder)
                else:
                    _append_parameters(lines, block, kinds, part)
            fragments.write_all(self._stream, lines.finish())
        fragments.flush(self._stream)  # Who watches a live source sees each batch as it comes.

    def close(self) -> None:
        """Flush the stream, which stays open.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._closed:
            self._closed = True
            fragments.flush(self._stream)

    def _resolve(
        self, batch: Batch, constants: fragments.Constants
    ) -> list[int | _Value | _Parameters]:
        """The template, with the columns that this batch has for its fields."""
        out: list[int | _Value | _Parameters] = []
        for part in self._template:
            if isinstance(part, str):
                out.append(constants.number(part))
            elif part.name in _PARAMETERS:
                out.append(_parameters(batch, self._delimiter, constants))
            elif self._color and part.name in _COLORS:
                before, after = constants.number(_COLORS[part.name]), constants.number(_RESET)
                out += [before, _value(batch, part.name), after]
            else:
                out.append(_value(batch, part.name))
        return [*out, constants.number("\n")]


def _parse(template: str) -> list[str | _Field]:
    """Take a template apart into text and fields."""
    parts: list[str | _Field] = []
    at = 0
    for match in _TAG.finditer(template):
        parts.append(_literal(template[at : match.start()]))
        name = _NAME.fullmatch(match[1].strip())
        if not name:
            what = f"{text.printable(match[0])} in the template is no field"
            raise KcapError(what, expected="{{ .Field }}", hint="write {{ .Seq }} or {{ .pid }}")
        _check(name[1])
        parts.append(_Field(name[1]))
        at = match.end()
    parts.append(_literal(template[at:]))
    if not any(isinstance(part, _Field) for part in parts):
        raise KcapError(
            "the template has no field", expected="{{ .Field }}", hint=f"the default is {TEMPLATE}"
        )
    return parts


def _literal(part: str) -> str:
    for brace, missing in (("{{", "}}"), ("}}", "{{")):
        if brace in part:
            what = f"{brace} in the template has no {missing}"
            raise KcapError(what, expected="{{ .Field }}")
    return part


def _check(name: str) -> None:
    """Whether a field is known to Fibratus or to us."""
    if name in FIELDS or name in _PARAMETERS or _PARAMETER.fullmatch(name):
        return
    if arguments.is_column(name):
        return
    every = {n.lower(): n for n in (*catalogue.envelope(), *FIELDS, *_PARAMETERS)}
    near = difflib.get_close_matches(name.lower(), every, 1)
    raise KcapError(
        f"unknown field .{text.printable(name)} in the template",
        expected=f"one of .{' .'.join(sorted((*FIELDS, *_PARAMETERS)))} .Kparams.NAME or a column,"
        " as .exe or .arg_NAME",
        hint=f"did you mean .{every[near[0]]}?" if near else None,
    )


def _value(batch: Batch, field: str) -> _Value:
    """Where a batch may have a field that is no list of parameters."""
    match = _PARAMETER.fullmatch(field)
    if match:
        # Fibratus capitalises the name, so its case says nothing.
        wanted = match[1].casefold()
        found = [n for label, _, n in arguments.found(batch) if label.casefold() == wanted]
        return _Value([(name, _plain_render(name)) for name in found])
    columns: list[tuple[str, Render]] = []
    for source in FIELDS.get(field, (field,)):
        for name in arguments.spellings(batch, source):
            render = _plain_render(name)
            if field == "Timestamp" and name == "ts":
                render = _times
            elif field == "Callstack":
                render = _hex
            columns.append((name, render))
    return _Value(columns)


def _parameters(batch: Batch, delimiter: str, constants: fragments.Constants) -> _Parameters:
    columns = []
    for label, _, column in arguments.found(batch):
        head = f"{text.printable(label)}{delimiter}"
        heads = constants.number(head), constants.number(f", {head}")
        columns.append((column, heads, _plain_render(column)))
    for column in _RESULTS:
        if column in batch.columns:
            head = f"{column}{delimiter}"
            heads = constants.number(head), constants.number(f", {head}")
            columns.append((column, heads, _plain_render(column)))
    return _Parameters(columns)


def _append_value(
    lines: LineBuilder, block: Batch, kinds: Kinds, value: _Value, placeholder: int
) -> None:
    """Append the first value that an event has, or the placeholder."""
    found = ((column, render) for name, render in value.columns if (column := block.get(name)))
    made = ((column, render(kinds, column)) for column, render in found)
    arguments.append_first(lines, block.rows, made, placeholder)


def _append_parameters(
    lines: LineBuilder, block: Batch, kinds: Kinds, parameters: _Parameters
) -> None:
    """Append all parameters that an event has; none is not a missing value."""
    seen = np.zeros(block.rows, np.bool_)
    for name, heads, render in parameters.columns:
        column = block.get(name)
        if column is not None and len(column):
            fragments.append_item(lines, column, render(kinds, column), heads, seen)


def _plain_render(column: str) -> Render:
    """How the values of a column become text."""
    return partial(arguments.texts, arguments.argument_of(column))


def _hex(_: Kinds, column: Column) -> Texts:
    """Addresses."""
    return arguments.decoded(decode.HEX, column)


def _times(_: Kinds, column: Column) -> Texts:
    """Times as Go prints them: UTC, the fraction without the zeros at its end."""
    seconds, ns = np.divmod(np.asarray(column.values), _SECOND_NS)
    whole, codes = np.unique(seconds, return_inverse=True)
    stamps = pa.array(whole).cast(pa.timestamp("s"))
    dates = pc.strftime(stamps, format="%Y-%m-%d %H:%M:%S").take(pa.array(codes))
    digits = pc.ascii_lpad(pa.array(ns).cast(pa.utf8()), width=9, padding="0")
    fractions = pc.ascii_rtrim(fragments.around(".", digits, ""), characters="0")
    # A whole second has no fraction: its point goes as well.
    fractions = pc.ascii_rtrim(fractions, characters=".")
    return Texts(fragments.around("", fragments.joined(dates, fractions), " +0000 UTC"), None)
