"""Lines of text from columns: fragments are rendered once, then gathered line by line.

A column gives one text for each distinct value, not one for each event. A line is a row of
numbers that point at such texts, and one Arrow ``take`` over them lays out the bytes of many
lines, so that no step costs Python time for each event.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import lru_cache
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.errors import OutputError
from kcap.model import text
from kcap.model.batch import Column, Rows
from kcap.model.classes import TypeClass

Ids = npt.NDArray[np.int32]
"""Numbers of fragments in a `LineBuilder`."""

Scalar = Callable[[TypeClass, pa.Array], pa.Array]
"""Renders an array of one class, no list, as utf8."""

_FEWER: Final = 4
"""So many values an entry are far more than entries."""

_SAMPLE: Final = 256
"""Values that tell whether a column has few different ones; no more than these are few."""

_SECOND_NS: Final = 10**9


class Texts(NamedTuple):
    """The values of a column as text."""

    entries: pa.Array
    """Texts, utf8."""
    codes: Ids | None
    """The entry of each value; None where each value has its own, in order."""

    def select(self, wanted: npt.NDArray[np.bool_]) -> Texts:
        """Some of the values.

        Args:
            wanted: Which values to keep.

        Returns:
            Their texts.
        """
        if self.codes is None:
            return Texts(self.entries, np.flatnonzero(wanted).astype(np.int32))
        return Texts(self.entries, self.codes[wanted])


class Constants:
    """Fixed texts that lines share, numbered before the first line is made."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, fragment: str) -> int:
        """Number a text.

        Args:
            fragment: The text.

        Returns:
            Its number, for `LineBuilder.append`; the same for the same text.
        """
        return self._numbers.setdefault(fragment, len(self._numbers))

    def texts(self) -> pa.Array:
        """All texts in the order of their numbers, for `LineBuilder`."""
        return pa.array(list(self._numbers), pa.utf8())


class LineBuilder:
    """Puts lines together from fragments, all lines at the same time.

    Args:
        count: How many lines.
        constants: The texts that have a number already.

    Example:
        >>> constants = Constants()
        >>> pid = constants.number("pid ")
        >>> lines = LineBuilder(2, constants.texts())
        >>> lines.append(pid)
        >>> lines.append_texts(Texts(pa.array(["7", "42"]), None))
        >>> bytes(lines.finish())
        b'pid 7pid 42'
    """

    def __init__(self, count: int, constants: pa.Array) -> None:
        self._count = count
        self._constants = constants
        self._pool = [constants]
        self._pooled = len(constants)
        self._cells: list[tuple[int | Ids, Rows | None]] = []
        self._waiting: list[int] = []
        """Constants that the next values may begin with."""
        self._waiting_rows: Rows | None = None

    def append(self, ids: int | Ids, rows: Rows | None = None) -> None:
        """Append one fragment to each of some lines.

        Args:
            ids: The fragment for all of them, or one number a line.
            rows: The lines; None for all.
        """
        if isinstance(ids, int):
            if self._waiting and rows is not self._waiting_rows:
                self._settle()
            self._waiting.append(ids)
            self._waiting_rows = rows
            return
        self._settle()
        self._cells.append((ids, rows))

    def append_texts(self, texts: Texts, rows: Rows | None = None) -> None:
        """Append a column's values.

        Args:
            texts: The values, one a line.
            rows: The lines; None for all.
        """
        entries, codes = texts
        # A fragment costs by the line, an entry once: what stands before all values of a column
        # becomes part of its entries where these are far fewer.
        if self._waiting and rows is self._waiting_rows and _is_coded(texts):
            entries = around(self._waited(), entries, "")
        else:
            self._settle()
        first = self._pool_of(entries)
        if codes is None:
            ids = np.arange(first, first + len(entries), dtype=np.int32)
        else:
            ids = codes + np.int32(first)
        self._cells.append((ids, rows))

    def _pool_of(self, entries: pa.Array) -> int:
        """Number texts; gives the first one's."""
        first = self._pooled
        self._pool.append(entries)
        self._pooled += len(entries)
        return first

    def _waited(self) -> str:
        """The constants that wait, as one text."""
        found = "".join(self._constants[number].as_py() for number in self._waiting)
        self._waiting = []
        return found

    def _settle(self) -> None:
        """Append the constants that wait."""
        if not self._waiting:
            return
        if len(self._waiting) == 1:
            number = self._waiting.pop()
        else:
            number = self._pool_of(pa.array([self._waited()], pa.utf8()))
        self._cells.append((number, self._waiting_rows))

    def finish(self) -> memoryview:
        """Lay out the lines.

        Returns:
            The text of all lines, one after another, as UTF-8.
        """
        gathered, _ = self._gathered()
        if not len(gathered):
            return memoryview(b"")
        return text_bytes(pa.concat_arrays(self._pool).take(pa.array(gathered))).data

    def texts(self) -> pa.Array:
        """Lay out the lines.

        Returns:
            The text of each line, utf8.
        """
        gathered, ends = self._gathered()
        pieces = pa.concat_arrays(self._pool).take(pa.array(gathered))
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        return pc.binary_join(pa.ListArray.from_arrays(offsets, pieces), _word(""))

    def _gathered(self) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The fragments of all lines, and where each line ends among them."""
        self._settle()
        lengths = np.zeros(self._count, np.int64)
        for _, rows in self._cells:
            lengths[slice(None) if rows is None else rows] += 1
        ends = np.cumsum(lengths)
        place = ends - lengths
        gathered = np.empty(int(lengths.sum()), np.int32)
        for ids, rows in self._cells:
            where = slice(None) if rows is None else rows
            gathered[place[where]] = ids
            place[where] += 1
        return gathered, ends


def _is_coded(texts: Texts) -> bool:
    """Whether values have far fewer entries than there are."""
    return texts.codes is not None and _FEWER * len(texts.entries) <= len(texts.codes)


def append_item(
    lines: LineBuilder,
    column: Column,
    texts: Texts,
    heads: tuple[int, int],
    seen: npt.NDArray[np.bool_],
) -> None:
    """Append an item of a list whose members differ from line to line.

    Args:
        lines: The lines.
        column: The column that the item comes from.
        texts: Its values.
        heads: The constants before a value: for the first item of a line, and for others.
        seen: Lines that have an item already; updated.
    """
    where = slice(None) if column.rows is None else column.rows
    first, other = heads
    before = seen[where]
    if before.all():
        lines.append(other, column.rows)
    elif not before.any():
        lines.append(first, column.rows)
    else:
        lines.append(np.where(before, other, first), column.rows)
    lines.append_texts(texts, column.rows)
    seen[where] = True


def distinct(column: Column) -> tuple[pa.Array, Ids]:
    """The dictionary of a text or binary column, of a size that fits its values.

    Args:
        column: The column; its dictionary may serve far more rows than it has.

    Returns:
        Entries and the code of each value.
    """
    entries, codes = column.values.dictionary, column.codes()
    if len(entries) <= len(column) and entries.nbytes <= 64 * len(column) + 4096:
        return entries, codes
    if len(codes) > _SAMPLE:
        column = column.compact()
        return column.values.dictionary, column.codes()
    # The same for the few values of a live batch, in less steps.
    used, found = np.unique(codes, return_inverse=True)
    return entries.take(pa.array(used)), found.astype(np.int32)


def render(column: Column, scalar: Scalar, separator: str = ", ") -> Texts:
    """Render a column; lists stand in brackets.

    Args:
        column: The column.
        scalar: Renders an array of a class that is no list.
        separator: What stands between the items of a list.

    Returns:
        The texts.
    """
    if pa.types.is_dictionary(column.values.type):
        entries, codes = distinct(column)
        return Texts(scalar(column.cls, entries), codes)
    child = column.cls.child
    if child is None:
        return _numbers(column, scalar)
    lengths = np.asarray(pc.list_value_length(column.values))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    items = scalar(child, column.values.flatten())
    flat = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), items), pa.scalar(separator))
    return Texts(around("[", flat, "]"), None)


def _numbers(column: Column, scalar: Scalar) -> Texts:
    """Render numbers: those that come again and again once."""
    values = column.values
    sample = values.slice(0, _SAMPLE)
    if len(values) > _SAMPLE and _FEWER * pc.count_distinct(sample).as_py() <= _SAMPLE:
        coded = values.dictionary_encode()
        if _FEWER * len(coded.dictionary) <= len(values):
            return Texts(scalar(column.cls, coded.dictionary), np.asarray(coded.indices))
    return Texts(scalar(column.cls, values), None)


def around(left: str, texts: pa.Array, right: str) -> pa.Array:
    """Put each of many texts between two others.

    Args:
        left: What stands before each.
        texts: Texts, utf8.
        right: What stands behind each.

    Returns:
        The longer texts.
    """
    return joined(_word(left), texts, _word(right))


def joined(*texts: pa.Array | pa.Scalar) -> pa.Array:
    """Join arrays of texts, element by element.

    Args:
        texts: Arrays of the same length, and single texts.

    Returns:
        The longer texts.
    """
    return pc.binary_join_element_wise(*texts, _word(""))


@lru_cache(maxsize=1024)
def _word(value: str) -> pa.Scalar:
    # With its type: without, pyarrow looks for pandas each time, which costs more than a join.
    return pa.scalar(value, pa.utf8())


def number_texts(values: pa.Array) -> pa.Array:
    """Render integers, floats or booleans.

    Args:
        values: An array of such a class.

    Returns:
        Integers exact; floats as the shortest text that reads back as the same float, always
        recognisable as a float, else ``NaN``, ``Infinity``, ``-Infinity``.
    """
    texts = values.cast(pa.utf8())
    if not pa.types.is_floating(values.type):
        return texts
    whole = pc.match_substring_regex(texts, "^-?[0-9]+$")
    texts = pc.if_else(whole, around("", texts, ".0"), texts)
    infinite = pc.if_else(pc.less(values, 0.0), _word("-Infinity"), _word("Infinity"))
    texts = pc.if_else(pc.is_inf(values), infinite, texts)
    return pc.if_else(pc.is_nan(values), _word("NaN"), texts)


def time_texts(values: pa.Array) -> pa.Array:
    """Render times.

    Args:
        values: ns since 1970, int64.

    Returns:
        RFC 3339 in UTC with nine digits.
    """
    # A text a second, not an event: a third of the time that Arrow takes for each.
    seconds, ns = np.divmod(np.asarray(values), _SECOND_NS)
    whole, codes = np.unique(seconds, return_inverse=True)
    dates = pc.strftime(pa.array(whole).cast(pa.timestamp("s")), format="%Y-%m-%dT%H:%M:%S.")
    digits = pc.ascii_lpad(pa.array(ns).cast(pa.utf8()), width=9, padding="0")
    return joined(dates.take(pa.array(codes)), digits, _word("Z"))


def base64_texts(values: pa.Array) -> pa.Array:
    """Render bytes as base64.

    Args:
        values: A binary array.

    Returns:
        The texts.
    """
    return pa.array([base64.b64encode(v).decode() for v in values.to_pylist()], pa.utf8())


def text_bytes(texts: pa.Array) -> npt.NDArray[np.uint8]:
    """The bytes of an array of texts, one text after another.

    Args:
        texts: A utf8 or binary array without nulls.

    Returns:
        A view of them.
    """
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return np.empty(0, np.uint8)
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]


def escape_unsafe(values: pa.Array, rendered: pa.Array, escape: Callable[[str], str]) -> pa.Array:
    """Replace the rendering of those values that could steer a terminal; they are rare.

    Args:
        values: Texts, utf8.
        rendered: How the safe ones are to be rendered.
        escape: Renders an unsafe one.

    Returns:
        The rendered texts.
    """
    data = text_bytes(values)
    # Printable ASCII throughout is the common case, and this look costs a tenth of the pattern.
    if not len(data) or (data.min() >= ord(" ") and data.max() <= ord("~")):
        return rendered
    unsafe = pc.match_substring_regex(values, text.UNSAFE)
    if not pc.any(unsafe).as_py():
        return rendered
    escaped = [escape(value) for value in values.filter(unsafe).to_pylist()]
    return pc.replace_with_mask(rendered, unsafe, pa.array(escaped, pa.utf8()))


def write_all(stream: BinaryIO, data: memoryview) -> None:
    """Write all of a text.

    Args:
        stream: A binary stream, buffered or not.
        data: The bytes.

    Raises:
        OutputError: The stream takes no more. A reader that went away stays BrokenPipeError.
    """
    try:
        while data:
            # An unbuffered stream may take a part, a non-blocking one nothing.
            taken = stream.write(data)
            if taken is None:
                raise OutputError("the output would block", hint="give it a blocking stream")
            data = data[taken:]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"writing failed: {error.strerror or error}") from error


def flush(stream: BinaryIO) -> None:
    """Hand on what a stream buffers.

    Args:
        stream: A binary stream.

    Raises:
        OutputError: The stream takes no more. A reader that went away stays BrokenPipeError.
    """
    try:
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"writing failed: {error.strerror or error}") from error
