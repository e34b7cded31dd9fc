"""Changing the texts of a column: each different one once, however many rows have it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model import text
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.naming import RAW, SIZE, parts

Texts = Callable[[Sequence[str]], list[str]]
"""Gives texts their new form, one each."""

Data = Callable[[Sequence[bytes]], list[bytes]]
"""Gives bytes their new form, one each."""

TEXTUAL: Final = frozenset({TypeClass.STR, TypeClass.JSON, TypeClass.BIN, TypeClass.LIST})
"""The classes that hold text, or may."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*(?:"|$)|-?[0-9][0-9A-Za-z.+-]*|[\[\]{},:]', re.DOTALL)


class Secret(NamedTuple):
    """What is hidden for its name alone."""

    is_name: Callable[[str], bool]
    """Whether a name says so."""
    whole: Callable[[str], str]
    """What becomes of the value."""


class Changed(NamedTuple):
    """A column with other texts."""

    column: Column
    cut: Column | None
    """True lengths of the texts that had to be cut, None where none had to."""


def recoded(codes: npt.NDArray[np.int32], entries: pa.Array) -> pa.DictionaryArray:
    """Coded values with other entries, of which some may have become equal.

    Args:
        codes: The entry of each value.
        entries: The new entries.

    Returns:
        The values; each entry is there once.
    """
    unique = pc.dictionary_encode(entries)
    found = np.asarray(unique.indices)[codes]
    return pa.DictionaryArray.from_arrays(pa.array(found, pa.int32()), unique.dictionary)


def mapped(column: Column, texts: Texts, data: Data | None = None) -> Changed:
    """Change the texts of a column.

    Args:
        column: A column of any class.
        texts: What becomes of texts, those in lists and JSON included.
        data: What becomes of bytes; None to leave them.

    Returns:
        The column; the same object where nothing changed.
    """
    if column.cls is TypeClass.LIST:
        return Changed(in_lists(column, texts), None)
    if column.cls is TypeClass.BIN:
        return Changed(column, None) if data is None else _in_dictionary(column, data)
    if column.cls is TypeClass.JSON:
        return _in_dictionary(column, lambda found: in_json(found, texts))
    if column.cls is TypeClass.STR:
        return _in_dictionary(column, texts)
    return Changed(column, None)


def _in_dictionary(column: Column, change: Callable[[Sequence[Any]], list[Any]]) -> Changed:
    used = column.compact()
    before = used.values.dictionary.to_pylist()
    after = change(before)
    if after == before:
        return Changed(column, None)
    kept, sizes = _within_limit(after)
    codes = used.codes()
    values = recoded(codes, pa.array(kept, used.values.type.value_type))
    cut = None
    if (sizes >= 0).any():
        at = np.flatnonzero(sizes[codes] >= 0).astype(np.int32)
        rows = at if used.rows is None else used.rows[at]
        cut = Column(TypeClass.I64, pa.array(sizes[codes[at]]), rows)
    return Changed(Column(column.cls, values, column.rows), cut)


def _within_limit(values: list[Any]) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """Values cut to what the format holds, and the true lengths of those that were."""
    from kcap import limits

    sizes = np.full(len(values), -1, np.int64)
    for i, value in enumerate(values):
        if len(value) * 4 <= limits.VALUE_BYTES:
            continue
        if isinstance(value, bytes):
            if len(value) > limits.VALUE_BYTES:
                values[i], sizes[i] = value[: limits.VALUE_BYTES], len(value)
        else:
            values[i], size = text.cut(value)
            sizes[i] = -1 if size is None else size
    return values, sizes


def in_lists(column: Column, texts: Texts) -> Column:
    """Change the items of lists of text.

    Args:
        column: A column of class ``list``.
        texts: What becomes of the items.

    Returns:
        The column.
    """
    items = pc.dictionary_encode(column.values.flatten())
    before = items.dictionary.to_pylist()
    after = texts(before)
    if after == before:
        return column
    return Column(column.cls, with_items(column.values, items.indices, after), column.rows)


def with_items(lists: pa.ListArray, codes: pa.Array, entries: Sequence[str]) -> pa.ListArray:
    """Lists of the same lengths with other items.

    Args:
        lists: The lists.
        codes: The entry of each item of them all.
        entries: The entries.

    Returns:
        The lists.
    """
    lengths = np.asarray(pc.list_value_length(lists)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    items = pa.array(entries, pa.utf8()).take(codes)
    return pa.ListArray.from_arrays(pa.array(offsets), items)


def in_json(values: Sequence[str], texts: Texts, secret: Secret | None = None) -> list[str]:
    """Change the texts in JSON texts; all else stays as it is spelled.

    Args:
        values: JSON texts, which may have been cut.
        texts: What becomes of strings, of names and of numbers; one that it changes becomes a
            string.
        secret: Whether what has a name is hidden for that, and what becomes of it then; None where
            names tell nothing.

    Returns:
        As many texts.
    """
    parsed = [_parts(value) for value in values]
    before = list(dict.fromkeys(part.text for parts_ in parsed for part in parts_))
    after = dict(zip(before, texts(before), strict=True))
    return [
        _joined(value, found, after, secret) for value, found in zip(values, parsed, strict=True)
    ]


class _Part(NamedTuple):
    """A string or a number in JSON text."""

    start: int
    end: int
    text: str
    is_name: bool
    follows_name: bool


def _parts(value: str) -> list[_Part]:
    found = []
    signs = [(m.start(), m.end(), m[0]) for m in _TOKEN.finditer(value)]
    last = ""
    following_ = [sign for _, _, sign in signs[1:]] + [""]
    for (start, end, sign), following in zip(signs, following_, strict=False):
        text_ = _literal(sign)
        if text_ is not None:
            found.append(_Part(start, end, text_, following == ":", last == ":"))
        last = sign
    return found


def _joined(value: str, found: list[_Part], after: dict[str, str], secret: Secret | None) -> str:
    """JSON text with other strings."""
    out, at = [], 0
    name: str | None = None
    for part in found:
        new = after[part.text]
        if part.follows_name and name is not None and secret is not None and secret.is_name(name):
            new = secret.whole(part.text)
        name = part.text if part.is_name else name if not part.follows_name else None
        if new != part.text:
            out += [value[at : part.start], text.json_string(new)]
            at = part.end
    return "".join([*out, value[at:]]) if out else value


def _literal(literal: str) -> str | None:
    """The text of a string or number, None for a sign between them."""
    if literal[0] != '"':
        return None if literal in "[]{},:" else literal
    if "\\" not in literal:
        return literal[1:-1] if len(literal) > 1 and literal[-1] == '"' else literal[1:]
    try:
        found = json.loads(literal)
    except ValueError:  # the end of a text that was cut
        return literal[1:]
    return found if _is_text(found) else literal[1:-1]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate is looked at as it is spelled
        return False
    return True


def put(batch: Batch, name: str, changed: Changed) -> Batch:
    """Put a changed column in the place of the old one.

    Args:
        batch: Events.
        name: The column's name.
        changed: What became of it.

    Returns:
        The events; with the true lengths of texts that were cut.
    """
    if changed.cut is None:
        return batch.adding({name: changed.column})
    size = f"{name}__{SIZE}"
    known = batch.get(size)
    cut = changed.cut if known is None else merged(known, changed.cut, batch.rows)
    return batch.adding({name: changed.column, size: cut})


def merged(first: Column, second: Column, count: int) -> Column:
    """Two columns of one class as one.

    Args:
        first: A column.
        second: Another, whose values win.
        count: Rows of the batch.

    Returns:
        The column.
    """
    if second.rows is None:
        return second
    kept = without(first, second.rows, count)
    if kept is None:
        return second
    ours = np.arange(count, dtype=np.int32) if kept.rows is None else kept.rows
    rows = np.concatenate([ours, second.rows])
    order = np.argsort(rows, kind="stable")
    values = pa.concat_arrays(_alike([kept.values, second.values])).take(pa.array(order))
    return Column(first.cls, values, None if len(rows) == count else rows[order].astype(np.int32))


def _alike(parts_: list[pa.Array]) -> list[pa.Array]:
    """Arrays that can be joined: of one dictionary, where they have any."""
    if not pa.types.is_dictionary(parts_[0].type):
        return parts_
    return list(pa.chunked_array(parts_).unify_dictionaries().chunks)


def without(column: Column, rows: npt.NDArray[np.int32], count: int) -> Column | None:
    """A column without the values of some rows.

    Args:
        column: The column.
        rows: Ascending row numbers.
        count: Rows of the batch.

    Returns:
        What is left, None for nothing.
    """
    gone = np.zeros(count, np.bool_)
    gone[rows] = True
    at = np.arange(count, dtype=np.int32) if column.rows is None else column.rows
    kept = np.flatnonzero(~gone[at]).astype(np.int32)
    if len(kept) == len(at):
        return column
    if not len(kept):
        return None
    return Column(column.cls, column.values.take(pa.array(kept)), at[kept])


def is_twin(column: str) -> bool:
    """Whether a column only tells of another: its exact bytes, or the length that it had.

    Args:
        column: Its name.

    Returns:
        True for ``NAME__raw`` and ``NAME__size``.
    """
    return bool({RAW, SIZE} & set(parts(column)[1][-1:]))
