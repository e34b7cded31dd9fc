"""Batches as messages: bodies, ids and options, made column by column."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import plugins
from kcap.errors import KcapError
from kcap.model import alert, naming
from kcap.model import text as texts
from kcap.model.batch import Batch, Rows, without_state
from kcap.model.classes import TypeClass
from kcap.model.side import Side, SourceInfo
from kcap.writers import blocks, fragments
from kcap.writers.sinks import messages
from kcap.writers.sinks.messages import Texts

if TYPE_CHECKING:
    from kcap.model.stream import Sink

EVENTS: Final = "events"
ALERTS: Final = "alerts"
ALL: Final = "all"
WHAT: Final = (EVENTS, ALERTS, ALL)
"""What a sink can be given."""

TEMPLATE: Final = "template"
"""The format whose form the user writes."""

LINE: Final = "line"

_ALERT_ID: Final = naming.argument("alert_id")
_DERIVED: Final = "derived_from"
_NOT_KNOWN: Final = "-"
_NO_ORD: Final = -(1 << 63)
_NEWLINE: Final = 10


@dataclass(frozen=True, slots=True)
class Rendered:
    """Some messages, ready for a courier."""

    count: int
    block: bytes
    """See `kcap.writers.sinks.messages`."""
    bodies: bytes
    """Their bodies, a newline behind each."""
    beside: Mapping[str, Texts]
    """What goes with them: ``id``, and options that differ from message to message."""


class _Cells(NamedTuple):
    """A column of texts: one after another, a newline behind each."""

    data: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]

    def part(self, start: int, stop: int) -> Texts:
        first = int(self.ends[start - 1]) if start else 0
        lengths = np.diff(self.ends[start:stop], prepend=first) - 1
        return Texts(
            lengths.astype("<u4").tobytes(), self.data[first : self.ends[stop - 1]].tobytes()
        )


class Renderer:
    """Makes messages of events.

    Args:
        form: The format of bodies: `TEMPLATE`, or one of ``kcap.writers`` that writes a line an
            event.
        template: The form of a body where that is `TEMPLATE`; of a line where that is `LINE`.
        what: One of `WHAT`.
        values: Templates of options, by their names.

    Raises:
        KcapError: A template is malformed.
    """

    def __init__(
        self,
        form: str,
        *,
        template: str | None = None,
        what: str = ALL,
        values: Mapping[str, str] | None = None,
    ) -> None:
        self._form = form
        self._what = what
        self._number = 0
        if form == TEMPLATE:
            if template is None:
                raise KcapError(
                    "format=template without a template",
                    hint="give template={{ event }}, or template-file=FILE",
                )
            self._bodies = _by_template(template, TEMPLATE)
        else:
            self._bodies = _by_lines(form, template)
        self._values = {name: _by_template(text, name) for name, text in (values or {}).items()}
        self._sources: tuple[Side, ...] = ()

    def render(self, batch: Batch) -> Iterator[Rendered]:
        """Make messages of the events of a batch; what only describes a state is none.

        Args:
            batch: Events, and alerts.

        Yields:
            The messages in order, about `messages.BLOCK_BYTES` at a time.
        """
        # What a source is called says how its numbers read, and may come long before its events.
        self._sources += tuple(s for s in batch.before if isinstance(s, SourceInfo))
        wanted = chosen(without_state(batch), self._what).with_before(self._sources)
        if wanted.rows:
            self._sources = ()
        for block in blocks.of(wanted):
            bodies, ids = self._bodies(block), self._ids(block)
            values = {name: make(block) for name, make in self._values.items()}
            times = block.numpy("ts", messages.NO_TIME).astype("<i8")
            for start, stop in _cut(bodies.ends):
                part, named = bodies.part(start, stop), ids.part(start, stop)
                also = {name: cells.part(start, stop) for name, cells in values.items()}
                made = messages.encode(stop - start, times[start:stop].tobytes(), named, part, also)
                yield Rendered(stop - start, made, bytes(part.data), {"id": named, **also})

    def _ids(self, block: Batch) -> _Cells:
        """``ORIGIN:ORD``, what was derived with its own name behind; of alerts their ids.

        What has neither has its number in this run: a replay gives the same again.
        """
        numbers = np.arange(self._number, self._number + block.rows)
        self._number += block.rows
        ords = block.numpy("ord", _NO_ORD)
        places = pa.array(ords).cast(pa.utf8())
        if (ords == _NO_ORD).any():
            counted = fragments.around("n", pa.array(numbers).cast(pa.utf8()), "")
            places = pc.if_else(pa.array(ords == _NO_ORD), counted, places)
        origins = _filled(block, "origin", _NOT_KNOWN)
        found = fragments.joined(origins, pa.scalar(":", pa.utf8()), places)
        if block.get(_DERIVED) is not None:
            named = fragments.around(":", _filled(block, "event", _NOT_KNOWN), "")
            derived = pa.array(block.mask(_DERIVED))
            found = pc.if_else(derived, fragments.joined(found, named), found)
        alerts = _alert_rows(block)
        if len(alerts):
            known = block.mask(_ALERT_ID)
            known &= np.isin(np.arange(block.rows), alerts)
            found = pc.if_else(pa.array(known), _filled(block, _ALERT_ID, ""), found)
        return _cells(fragments.escape_unsafe(found, found, texts.printable))


def chosen(batch: Batch, what: str) -> Batch:
    """Keep what a sink is to get.

    Args:
        batch: Events and alerts.
        what: One of `WHAT`.

    Returns:
        Those rows of it.
    """
    if what == ALL:
        return batch
    alerts = _alert_rows(batch)
    if what == ALERTS:
        return batch.take(alerts)
    if not len(alerts):
        return batch
    others = np.ones(batch.rows, np.bool_)
    others[alerts] = False
    return batch.take(np.flatnonzero(others).astype(np.int32))


def _filled(block: Batch, name: str, missing: str) -> pa.Array:
    """A text column at full length; ``missing`` where there is no value."""
    column = block.get(name)
    if column is None or column.cls is not TypeClass.STR:
        return pa.array([missing] * block.rows, pa.utf8())
    return pc.fill_null(column.full(block.rows).cast(pa.utf8()), missing)


def _alert_rows(batch: Batch) -> Rows:
    if not alert.alerts_in(batch):
        return np.zeros(0, np.int32)
    column = batch.columns["kind"]
    code = column.values.dictionary.to_pylist().index(alert.KIND)
    at = np.flatnonzero(column.codes() == code).astype(np.int32)
    return at if column.rows is None else column.rows[at]


def _cells(found: pa.Array) -> _Cells:
    lines = fragments.around("", found, "\n")
    ends = np.cumsum(np.asarray(pc.binary_length(lines), np.int64))
    return _Cells(fragments.text_bytes(lines), ends)


def _cut(ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Where to cut bodies so that a block is not too long; a block has one message at least."""
    start = 0
    while start < len(ends):
        done = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, done + messages.BLOCK_BYTES, "right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _by_template(template: str, name: str) -> Callable[[Batch], _Cells]:
    from kcap.writers.templates import Template

    made = Template(template, name=name)
    return lambda block: _cells(pa.concat_arrays(list(made.pieces(block))))


def _by_lines(form: str, template: str | None) -> Callable[[Batch], _Cells]:
    """Bodies by a writer that writes a line an event: the same bytes as in a file."""
    stream = io.BytesIO()
    options: dict[str, Any] = {"template": template} if form == LINE else {}
    writer: Sink = plugins.load(plugins.WRITERS, form)(stream, **options)

    def lines(block: Batch) -> _Cells:
        stream.seek(0)
        stream.truncate()
        writer.write(block)
        data = np.frombuffer(stream.getvalue(), np.uint8)
        ends = np.flatnonzero(data == _NEWLINE) + 1
        if len(ends) != block.rows:
            raise KcapError(
                f"the format {form} has no line for each event",
                expected="one that has, as jsonl",
            )
        return _Cells(data, ends)

    return lines
