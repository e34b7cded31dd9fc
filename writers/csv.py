"""CSV as RFC 4180 has it: for spreadsheets, and for what reads nothing better (docs/export.md)."""

from __future__ import annotations

from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model import text
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.writers import blocks, fragments
from kcap.writers.layout import Layout, texts

CELLS: Final = 1 << 21
"""Cells that are laid out at a time: an empty one takes memory too."""

_TIME: Final = "ts"
_END: Final = "\r\n"
_SPECIAL: Final = '[",\r\n]|^$'
"""What a cell of text has quotes for. An empty text has them too: a cell without is no value."""

_FORMULA: Final = "^['=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]"
"""How text begins that spreadsheets take for a formula, and what marks it as none."""

_TEXTS: Final = frozenset(TypeClass) - {
    *(TypeClass.I64, TypeClass.U64, TypeClass.F64, TypeClass.BOOL),
}


class Csv:
    """A sink that writes CSV: a line of names, then a line a row, with CRLF behind each.

    Times are RFC 3339 in UTC with nine digits, bytes base64, lists and structures JSON. A missing
    value is nothing, an empty text is ``""``. Text is as it was, in a terminal without what could
    steer it.

    Args:
        stream: Where the lines go; stays open.
        layout: Which columns there are; not ``map``.
        guard: Put ``'`` before text that a spreadsheet would take for a formula, and before text
            that begins with ``'``, so that it can be taken away again.

    Example:
        >>> sink = Csv(sys.stdout.buffer, Layout({"pid": TypeClass.I64}, Profile.PORTABLE))
        >>> sink.write(batch)
        pid
        6328
    """

    def __init__(self, stream: BinaryIO, layout: Layout, *, guard: bool = True) -> None:
        self._stream = stream
        self._layout = layout
        self._guard = guard
        self._closed = False
        self._safe = stream.isatty()
        self._rows = max(1, CELLS // max(1, len(layout.columns)))
        head = self._shown(pa.array(list(layout.columns), pa.utf8()))
        line = ",".join(_quoted(head).to_pylist()) + _END
        fragments.write_all(stream, memoryview(line.encode()))

    def write(self, batch: Batch) -> None:
        """Write the events of a batch.

        Args:
            batch: Events; side records have no place in CSV.

        Raises:
            OutputError: The stream takes no more.
        """
        for rows in self._layout.rows(batch):
            for block in blocks.of(rows):
                for start in range(0, block.rows, self._rows):
                    lines = self._lines(block.slice(start, start + self._rows))
                    fragments.write_all(self._stream, lines)
        fragments.flush(self._stream)

    def close(self) -> None:
        """Flush the stream, which stays open.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._closed:
            self._closed = True
            fragments.flush(self._stream)

    def _lines(self, block: Batch) -> memoryview:
        constants = fragments.Constants()
        names = list(self._layout.columns)
        found = [n for n in names if (column := block.get(n)) is not None and len(column)]
        places = [names.index(n) for n in found]
        gaps = np.diff(places, prepend=0)
        heads = [constants.number("," * int(gap)) for gap in gaps]
        last = places[-1] if places else 0
        end = constants.number("," * (len(names) - 1 - last) + _END)
        missing = constants.number('""')
        lines = fragments.LineBuilder(block.rows, constants.texts())
        for name, head in zip(found, heads, strict=True):
            column = block.columns[name]
            lines.append(head)
            lines.append_texts(self._cells(name, column), column.rows)
        if len(names) == 1:
            # A line of nothing would be taken for no line at all.
            lines.append(missing, np.flatnonzero(~block.mask(names[0])).astype(np.int32))
        lines.append(end)
        return lines.finish()

    def _cells(self, name: str, column: Column) -> fragments.Texts:
        if name == _TIME and column.cls is TypeClass.I64:
            return fragments.Texts(fragments.time_texts(column.values), None)
        found = texts(column)
        if column.cls not in _TEXTS:
            return found
        entries = self._shown(found.entries)
        if self._guard:
            risky = pc.match_substring_regex(entries, _FORMULA)
            if pc.any(risky).as_py():
                entries = pc.if_else(risky, fragments.around("'", entries, ""), entries)
        return fragments.Texts(_quoted(entries), found.codes)

    def _shown(self, cells: pa.Array) -> pa.Array:
        return fragments.escape_unsafe(cells, cells, text.printable) if self._safe else cells


def _quoted(cells: pa.Array) -> pa.Array:
    """Cells with quotes where they need them."""
    special = pc.match_substring_regex(cells, _SPECIAL)
    if not pc.any(special).as_py():
        return cells
    doubled = pc.replace_substring(cells, '"', '""')
    return pc.if_else(special, fragments.around('"', doubled, '"'), cells)
