"""Lists of arguments as the line that they are: what hides something may stand in another item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model.batch import Column
from kcap.transform import texts
from kcap.transform.hiding import Hider, replaced
from kcap.transform.literals import Span

_GAP = " "


def hidden(hider: Hider, before: Column, after: Column) -> Column:
    """Hide in the items of lists what patterns match in the lines that they make.

    ``["curl", "-u", "me:secret"]`` has a password as ``curl -u me:secret`` has.

    Args:
        hider: Knows the patterns.
        before: Lists of text.
        after: The same, with what is to be hidden in single items hidden.

    Returns:
        The second column with that hidden, too; the same object where nothing is.
    """
    lines = pc.dictionary_encode(pc.binary_join(before.values, _GAP))
    spans = hider.matched(lines.dictionary.to_pylist())
    # The last one is for a list without a line.
    marked = np.array([*map(bool, spans), False], np.bool_)
    line_of = np.asarray(pc.fill_null(lines.indices, len(spans)))
    rows = np.flatnonzero(marked[line_of])
    if not len(rows):
        return after
    lengths = np.asarray(pc.fill_null(pc.list_value_length(before.values), 0)).astype(np.int64)
    firsts = np.cumsum(lengths) - lengths
    items, made = before.values.flatten(), pc.dictionary_encode(after.values.flatten())
    entries = made.dictionary.to_pylist()
    number = {entry: at for at, entry in enumerate(entries)}
    codes = np.asarray(made.indices).copy()
    for row in rows:  # lists with something to hide are few
        first, length = int(firsts[row]), int(lengths[row])
        words = items.slice(first, length).to_pylist()
        now = [entries[code] for code in codes[first : first + length]]
        for at, new in _changed(hider, words, now, spans[line_of[row]]):
            if new not in number:
                number[new] = len(entries)
                entries.append(new)
            codes[first + at] = number[new]
    lists = texts.with_items(after.values, pa.array(codes, pa.int32()), entries)
    return Column(after.cls, lists, after.rows)


def _changed(
    hider: Hider, words: Sequence[str], now: Sequence[str], spans: Sequence[Span]
) -> Iterator[tuple[int, str]]:
    """The items of a line in which something is hidden, and what they are then."""
    end = -len(_GAP)
    for at, word in enumerate(words):
        start, end = end + len(_GAP), end + len(_GAP) + len(word)
        mine = [(max(a, start) - start, min(b, end) - start) for a, b in spans]
        mine = [(a, b) for a, b in mine if a < b]
        if now[at] == word:
            if mine:
                yield at, replaced(word, mine, hider.part)
        elif any(word[a:b] in now[at] for a, b in mine):
            # Part of it is hidden already, so that places in it are others.
            yield at, hider.part(word)
