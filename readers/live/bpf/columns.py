"""Columns out of values that several kinds of events give.

A text is known by its number among the different values of a batch, so whatever has to be done
to texts is done once for each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model import catalogue, naming, text
from kcap.model.batch import Column, coded, constant, dictionary
from kcap.model.classes import TypeClass
from kcap.readers.live.bpf.records import Int64s, Mask

_TOO_GREAT: Final = 1 << 63


Codes = npt.NDArray[np.int32]
_Numbers = tuple[Int64s | None, npt.NDArray[Any]]
"""Numbers and the row of each; None where all rows have one."""


class Texts(NamedTuple):
    """Texts, lists of them or bytes of some rows, as numbers of values."""

    rows: Int64s
    codes: Int64s
    """Which of the entries each row has; below zero for none."""
    entries: pa.BinaryArray
    """The values; null for none."""

    def present(self) -> Mask:
        """Which of the rows have a value."""
        if not self.entries.null_count:
            return self.codes >= 0
        some = np.append(np.asarray(self.entries.is_valid()), False)  # where -1 leads
        found: Mask = some[self.codes]
        return found


class Lists(NamedTuple):
    """Lists of texts, as numbers of lists."""

    rows: Int64s
    codes: Int64s
    entries: Sequence[Sequence[bytes]]


class Columns:
    """Collects values, and makes columns of them.

    Numbers are given by row. Texts, words and lists are given by kind, where rows are of kinds.

    Args:
        count: Rows of the batch.
        which: The kind of each row; None where each is a kind of its own.
        kinds: How many kinds there are.
    """

    def __init__(self, count: int, which: Int64s | None = None, kinds: int = 0) -> None:
        self.count = count
        self._which = which
        self._kinds = count if which is None else kinds
        self.made: dict[str, Column] = {}
        self.cuts = 0
        """Values that were cut because they are too long."""
        self._numbers: dict[str, list[_Numbers]] = defaultdict(list)
        self._great: dict[str, list[_Numbers]] = defaultdict(list)
        """Integers that only the unsigned class holds."""
        self._texts: dict[tuple[str, TypeClass], list[Texts]] = defaultdict(list)
        self._lists: dict[str, list[Lists]] = defaultdict(list)

    def numbers(self, base: str, values: npt.NDArray[Any], rows: Int64s | None = None) -> None:
        """Add integers or truth values.

        Args:
            base: Column base.
            values: The values.
            rows: The row of each, ascending; None where all rows have one.
        """
        if values.dtype == np.uint64:
            # As signed ones they are below zero, which one pass tells.
            if len(values) and values.view(np.int64).min() < 0:
                great = values >= _TOO_GREAT
                rows = np.arange(self.count) if rows is None else rows
                self._great[base].append((rows[great], values[great]))
                rows, values = rows[~great], values[~great]
            values = values.view(np.int64)
        if len(values):
            kind = np.bool_ if values.dtype == np.bool_ else np.int64
            self._numbers[base].append((rows, values.astype(kind, copy=False)))

    def some(self, base: str, values: npt.NDArray[Any], present: Mask) -> None:
        """Add integers of the rows that have one.

        Args:
            base: Column base.
            values: One value a row of the batch.
            present: Which of them count.
        """
        if present.all():
            self.numbers(base, values)
        else:
            rows = np.flatnonzero(present)
            self.numbers(base, values[rows], rows)

    def texts(self, base: str, texts: Texts, cls: TypeClass = TypeClass.STR) -> None:
        """Add texts, JSON or bytes.

        Args:
            base: Column base.
            texts: The values, rows - or kinds - ascending.
            cls: Their class.
        """
        present = texts.present()
        if present.all():
            found = texts
        else:
            found = Texts(texts.rows[present], texts.codes[present], texts.entries)
        if len(found.rows):
            self._texts[base, cls].append(found)

    def lists(self, base: str, lists: Lists) -> None:
        """Add lists of texts.

        Args:
            base: Column base.
            lists: The values, rows - or kinds - ascending.
        """
        if len(lists.rows):
            self._lists[base].append(lists)

    def words(self, name: str, words: Sequence[str | None], codes: npt.NDArray[Any]) -> None:
        """Add a column of a few words.

        Args:
            name: The column.
            words: The words, None for no value.
            codes: Which of them each row of the batch has, or each kind.
        """
        if len(words) == 1 and words[0] is not None:
            self.made[name] = constant(TypeClass.STR, words[0], self.count)
            return
        column = coded(words, self.by_row(codes))
        if column is not None:
            self.made[name] = column

    def by_row(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What rows have, by what their kinds have.

        Args:
            values: One of each kind; or of each row, which stay as they are.

        Returns:
            One of each row.
        """
        if self._which is None or len(values) == self.count:
            return values
        return values[self._which]

    def spread(self, kinds: Int64s, codes: Int64s) -> tuple[Int64s, Codes]:
        """What rows have, by what some of their kinds have.

        Args:
            kinds: These kinds, ascending.
            codes: Which of some entries each has.

        Returns:
            The rows of these kinds, ascending, and which of the entries each has.
        """
        if self._which is None:
            return kinds, codes.astype(np.int32)
        code_of = np.full(self._kinds, -1, np.int32)
        code_of[kinds] = codes
        found = code_of[self._which]
        if len(kinds) == self._kinds:
            return np.arange(self.count), found
        rows = np.flatnonzero(found >= 0)
        return rows, found[rows]

    def finish(self) -> dict[str, Column]:
        """Make the columns."""
        for base, parts in self._numbers.items():
            is_bool = parts[0][1].dtype == np.bool_
            self._put_numbers(base, TypeClass.BOOL if is_bool else TypeClass.I64, parts)
        for base, parts in self._great.items():
            self._put_numbers(base, TypeClass.U64, parts)
        for (base, cls), texts in self._texts.items():
            self._put_texts(base, cls, texts)
        for base, lists in self._lists.items():
            self._put_lists(base, lists)
        return self.made

    def _some(self, rows: Int64s) -> npt.NDArray[np.int32] | None:
        return None if len(rows) == self.count else rows.astype(np.int32)

    def _put_numbers(self, base: str, cls: TypeClass, parts: list[_Numbers]) -> None:
        rows, values = parts[0]
        if len(parts) > 1:
            every = [np.arange(self.count) if r is None else r for r, _ in parts]
            rows = np.concatenate(every)
            order = np.argsort(rows, kind="stable")
            rows = rows[order]
            values = np.concatenate([v for _, v in parts])[order]
        name = naming.column_name(base, cls, catalogue.home(base))
        where = None if rows is None else self._some(rows)
        self.made[name] = Column(cls, pa.array(values), where)

    def _put_texts(self, base: str, cls: TypeClass, parts: list[Texts]) -> None:
        kinds, kind_codes, entries = _merged(parts)
        rows, codes = self.spread(kinds, kind_codes)
        name = naming.column_name(base, cls, catalogue.home(base))
        if cls is TypeClass.BIN:
            values = pa.DictionaryArray.from_arrays(pa.array(codes), entries, safe=False)
            self.made[name] = Column(cls, values, self._some(rows))
            return
        try:
            good = entries.cast(pa.utf8())
            longest = pc.max(pc.binary_length(good)).as_py()
        except pa.ArrowInvalid:
            longest = limits.VALUE_BYTES + 1
        if longest <= limits.VALUE_BYTES:
            values = pa.DictionaryArray.from_arrays(pa.array(codes), good, safe=False)
            self.made[name] = Column(cls, values, self._some(rows))
        else:
            self._put_careful(name, cls, rows, codes, entries.to_pylist())

    def _put_careful(
        self, name: str, cls: TypeClass, rows: Int64s, codes: Codes, entries: list[bytes]
    ) -> None:
        """Texts of which some are too long, or are none: their exact bytes beside them."""
        kept: list[str] = []
        raws: list[bytes | None] = []
        sizes = np.zeros(len(entries), np.int64)
        for at, entry in enumerate(entries):
            clean, raw = text.clean(entry)
            cut, size = text.cut(clean)
            if raw is not None and (size is not None or len(raw) > limits.VALUE_BYTES):
                size = len(raw)
            kept.append(cut)
            raws.append(None if raw is None else raw[: limits.VALUE_BYTES])
            sizes[at] = size or 0
        unique = dictionary(pa.array(kept, pa.utf8()))
        at_unique = np.asarray(unique.indices)[codes]
        values = pa.DictionaryArray.from_arrays(pa.array(at_unique), unique.dictionary)
        self.made[name] = Column(cls, values, self._some(rows))
        self._put_raw(name, rows, codes, raws)
        cut_rows = sizes[codes] > 0
        if cut_rows.any():
            self.cuts += int(cut_rows.sum())
            column = pa.array(sizes[codes][cut_rows])
            where = self._some(rows[cut_rows])
            self.made[f"{name}__{naming.SIZE}"] = Column(TypeClass.I64, column, where)

    def _put_raw(self, name: str, rows: Int64s, codes: Codes, raws: Sequence[bytes | None]) -> None:
        """The exact bytes of what is no text."""
        odd = np.array([raw is not None for raw in raws], np.bool_)[codes]
        if odd.any():
            encoded = dictionary(pa.array(raws, pa.binary()))
            at = np.asarray(encoded.indices.fill_null(0))[codes[odd]]
            column = pa.DictionaryArray.from_arrays(pa.array(at), encoded.dictionary)
            self.made[f"{name}__{naming.RAW}"] = Column(
                TypeClass.BIN, column, self._some(rows[odd])
            )

    def _put_lists(self, base: str, parts: list[Lists]) -> None:
        entries: list[Sequence[bytes]] = []
        of_kinds, codes = [], []
        for part in parts:
            of_kinds.append(part.rows)
            codes.append(part.codes + len(entries))
            entries += part.entries
        kinds, kind_codes = np.concatenate(of_kinds), np.concatenate(codes)
        if len(parts) > 1:
            order = np.argsort(kinds, kind="stable")
            kinds, kind_codes = kinds[order], kind_codes[order]
        every_row, every_code = self.spread(kinds, kind_codes)
        cleaned = [[text.clean(item) for item in entry] for entry in entries]
        lists = pa.array([[item for item, _ in entry] for entry in cleaned], TypeClass.LIST.arrow)
        name = naming.column_name(base, TypeClass.LIST, catalogue.home(base))
        values = lists.take(pa.array(every_code))
        self.made[name] = Column(TypeClass.LIST, values, self._some(every_row))
        raws = [
            b"\0".join(entry) if any(raw is not None for _, raw in clean) else None
            for entry, clean in zip(entries, cleaned, strict=True)
        ]
        self._put_raw(name, every_row, every_code, raws)


def _merged(parts: list[Texts]) -> tuple[Int64s, Int64s, pa.BinaryArray]:
    """The texts of several parts as one, each entry once."""
    first = parts[0]
    if len(parts) == 1 and not first.entries.null_count:
        return first.rows, first.codes, first.entries
    arrays = [part.entries.fill_null(b"") for part in parts]
    starts = np.cumsum([0] + [len(a) for a in arrays])
    unique = pc.dictionary_encode(pa.concat_arrays(arrays))
    at_unique = np.asarray(unique.indices).astype(np.int64)
    codes = np.concatenate([p.codes + s for p, s in zip(parts, starts, strict=False)])
    rows = np.concatenate([part.rows for part in parts])
    if len(parts) > 1:
        order = np.argsort(rows, kind="stable")
        rows, codes = rows[order], codes[order]
    return rows, at_unique[codes], unique.dictionary
