"""JSON lines: one flat object an event."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import BinaryIO, Final, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model import catalogue, text
from kcap.model.batch import Batch, without_state
from kcap.model.classes import TypeClass
from kcap.writers import blocks, fragments

_BLANK: Final = re.compile("[\t\n\r]")
_OPENING: Final = re.compile(r"[\[{]")


class JsonLines:
    """A sink that writes one JSON object an event.

    Columns stand in a fixed order, the envelope first and the rest by name; a value that is not
    there is left out. The same events give the same bytes, however they were cut into batches.

    Args:
        stream: Where the lines go; stays open.
        state: Whether rows that only describe what was there (``kind`` is ``state``) are written.

    Example:
        >>> sink = JsonLines(sys.stdout.buffer)
        >>> sink.write(batch)
        {"ts":1604759097183980900,"event":"CreateFile","pid":6328}
    """

    def __init__(self, stream: BinaryIO, *, state: bool = False) -> None:
        self._stream = stream
        self._state = state
        self._closed = False

    def write(self, batch: Batch) -> None:
        """Write the events of a batch.

        Args:
            batch: Events; side records have no place in JSON lines.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._state:
            batch = without_state(batch)
        constants = fragments.Constants()
        ends = (constants.number("{}\n"), constants.number("}\n"))
        heads = {}
        for name in _in_order(batch):
            first, other = _heads(name)
            heads[name] = (constants.number(first), constants.number(other))
        shared = constants.texts()
        for block in blocks.of(batch):
            lines = fragments.LineBuilder(block.rows, shared)
            _append_events(lines, block, heads, ends)
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


def _in_order(batch: Batch) -> list[str]:
    """The columns: the envelope in its order, the rest by name."""
    envelope = [name for name in catalogue.envelope() if name in batch.columns]
    return envelope + sorted(batch.columns.keys() - catalogue.envelope().keys())


@lru_cache(maxsize=4096)
def _heads(name: str) -> tuple[str, str]:
    """What stands before a value that is the first of its line, and before any other."""
    literal = text.json_string(name)
    return f"{{{literal}:", f",{literal}:"


def _append_events(
    lines: fragments.LineBuilder,
    block: Batch,
    heads: dict[str, tuple[int, int]],
    ends: tuple[int, int],
) -> None:
    """Append the events of a block, given what stands before each value and behind the last."""
    seen = np.zeros(block.rows, np.bool_)
    for name, head in heads.items():
        column = block.get(name)
        if column is not None and len(column):
            texts = fragments.render(column, json_texts, ",")
            fragments.append_item(lines, column, texts, head, seen)
    empty, end = ends
    lines.append(end if seen.all() else np.where(seen, end, empty).astype(np.int32))


def json_texts(cls: TypeClass, values: pa.Array) -> pa.Array:
    """Render values of a class as JSON.

    Args:
        cls: The class, no list.
        values: The values.

    Returns:
        Texts, utf8; bytes are base64, a float that is no number is a string.
    """
    if cls is TypeClass.STR:
        return _strings(values)
    if cls is TypeClass.JSON:
        return pa.array([embedded(value) for value in values.to_pylist()], pa.utf8())
    if cls is TypeClass.BIN:
        return _quoted(fragments.base64_texts(values))
    texts = fragments.number_texts(values)
    if cls is TypeClass.F64:
        return pc.if_else(pc.is_finite(values), texts, _quoted(texts))
    return texts


def _quoted(texts: pa.Array) -> pa.Array:
    return fragments.around('"', texts, '"')


def _strings(values: pa.Array) -> pa.Array:
    """`text.json_string` for a whole array."""
    escaped = values
    data = fragments.text_bytes(values)
    for special in ("\\", '"'):
        if (data == ord(special)).any():
            escaped = pc.replace_substring(escaped, special, f"\\{special}")
    return fragments.escape_unsafe(values, _quoted(escaped), text.json_string)


def embedded(value: str) -> str:
    """The text of a ``json`` value as a part of a line.

    Args:
        value: The text.

    Returns:
        The same JSON on one line, safe on a terminal; a string where it is no JSON.
    """
    try:
        parsed = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text.json_string(value)
    # Every level has an opening bracket, and most texts have too few to be worth a look.
    if len(_OPENING.findall(value)) > limits.JSON_DEPTH and text.depth(parsed) > limits.JSON_DEPTH:
        return text.json_string(value)
    # Valid JSON has blanks between its tokens only, and all else that is unsafe in strings only.
    return text.json_safe(_BLANK.sub(" ", value))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
