"""From event records of a Fibratus capture to batches.

Parameters are put in order of their names: the writer stores them in the order of a hash table,
which is another one in every record and says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import numpy as np
import pyarrow as pa

from kcap.model import catalogue, jsonshape, naming, shape
from kcap.model import text as texts
from kcap.model.batch import Batch, Column, coded, constant
from kcap.model.builder import Field, Layout, RecordBuilder, columns_of
from kcap.model.classes import TypeClass
from kcap.model.side import Side, SourceInfo
from kcap.readers.fibratus_records import Decoder, Event, EventType
from kcap.readers.fibratus_values import DIALECTS, Clock

KEPT_FIELDS: Final = 1 << 16
"""Fields of all layouts kept; a capture with more starts anew."""

_UNKNOWN: Final = 0xFFFFFFFF
"""Process or thread id of an event that none caused."""

_NO_TIME: Final = -1
_DISPOSITIONS: Final = ("create_disposition", "operation")
_CREATES: Final = (2, "create")
"""A file was made. Measured: 0 stands with every event that failed, and 1 with most others, so
the number is how the call ended rather than what was asked for."""

_CATEGORIES: Final = {"image": "module", "mem": "memory", "net": "network"}
"""Fibratus's names of categories to ours."""

_NAME_NOT_FOUND: Final = 0xC0000034


class _Layout:
    """Where the values of events with the same parameters, metadata and state fields go."""

    def __init__(
        self,
        builder: RecordBuilder,
        names: Sequence[tuple[str, int]],
        more: Sequence[tuple[str, Any]],
        types: Sequence[str],
    ) -> None:
        order = sorted(range(len(names)), key=lambda i: names[i])
        self._order = itemgetter(*order) if len(order) > 1 else None
        found = [names[i] for i in order]
        self.disposition = next((i for i, (n, _) in enumerate(found) if n in _DISPOSITIONS), None)
        self._access = next((i for i, (n, _) in enumerate(found) if n == "desired_access"), None)
        bases = [naming.argument(name) for name, _ in found]
        bases += [naming.extension(name) for name, _ in more]
        seen: Counter[str] = Counter()
        fields = []
        for base in bases:
            seen[base] += 1
            fields.append(Field(base, catalogue.home(base), seen[base]))
        items = [shape.Item(name, types[code]) for name, code in found]
        record = [shape.Item(name, _word(value)) for name, value in more] or None
        self.layout: Layout = builder.layout(fields, shape.encode(items, record))

    def arranged(self, values: list[Any]) -> list[Any]:
        """The values in the order of their fields."""
        found = values if self._order is None else list(self._order(values))
        if self._access is not None:
            found[self._access] = _number(found[self._access])
        return found


class Batches:
    """Collects events.

    Args:
        decoder: What reads them.
        source: Where they come from.
    """

    def __init__(self, decoder: Decoder, source: SourceInfo) -> None:
        self._types = DIALECTS[decoder.dialect.types]
        self._source = source
        self._clock = Clock()
        self._ord = 0
        self._start()
        self._clear()

    def _start(self) -> None:
        self._builder = RecordBuilder()
        self._layouts: dict[tuple[Any, ...], _Layout] = {}
        self._fields = 0

    def _clear(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._seqs: list[int] = []
        self._kinds: dict[tuple[EventType, bool], int] = {}
        self._times: dict[int, str] = {}

    def __len__(self) -> int:
        """Events since the last `finish`."""
        return len(self._builder)

    def add(self, event: Event) -> None:
        """Add an event.

        Args:
            event: The event.
        """
        row = len(self._builder)
        more: list[tuple[str, Any]] = []
        if event.metadata or event.state is not None:
            more += [("meta", _plain(event.metadata))] if event.metadata else []
            more += event.state.fields if event.state is not None else []
        key: tuple[Any, ...] = event.parameters
        if more:
            key = (key, *[(name, _word(value)) for name, value in more])
        layout = self._layouts.get(key) or self._layout(key, event.parameters, more)
        values = layout.arranged(event.values)
        creates = layout.disposition is not None and values[layout.disposition] in _CREATES
        if more:
            values = [*values, *[value for _, value in more]]
        self._builder.add(layout.layout, values)
        kind = self._kinds.setdefault((event.type, creates), len(self._kinds))
        ns, raw = self._clock.read(event.time)
        if raw is not None:
            self._times[row] = raw
        self._seqs.append(event.seq)
        self._rows.append((_NO_TIME if ns is None else ns, event.pid, event.tid, event.cpu, kind))

    def _layout(
        self, key: tuple[Any, ...], parameters: tuple[Any, ...], more: Sequence[tuple[str, Any]]
    ) -> _Layout:
        names = [_name(raw) for raw in parameters[::2]]
        found = list(zip(names, parameters[1::2], strict=True))
        layout = self._layouts[key] = _Layout(self._builder, found, more, self._types)
        self._fields += len(found) + len(more)
        return layout

    def finish(self, before: Sequence[Side]) -> Batch:
        """Make a batch of the events since the last one.

        Args:
            before: What is to be said before them.

        Returns:
            The batch.
        """
        count = len(self._builder)
        source = self._source
        columns = {
            "ord": Column(TypeClass.I64, pa.array(np.arange(self._ord, self._ord + count))),
            "origin": constant(TypeClass.STR, source.origin, count),
            "source": constant(TypeClass.STR, source.id, count),
            **self._envelope(count),
        }
        batch = self._builder.finish(columns, before)
        batch = batch.adding(_status(batch))
        self._ord += count
        self._clear()
        if self._fields > KEPT_FIELDS:
            self._start()
        return batch

    def _envelope(self, count: int) -> dict[str, Column]:
        every = np.arange(count, dtype=np.int32)
        columns, _ = columns_of(Field("seq", TypeClass.I64), every, self._seqs, count)
        ts, pid, tid, cpu, kind = np.array(self._rows, np.int64).reshape(-1, 5).T
        columns["cpu"] = Column(TypeClass.I64, pa.array(np.ascontiguousarray(cpu)))
        for name, values, missing in (
            ("ts", ts, _NO_TIME),
            ("pid", pid, _UNKNOWN),
            ("tid", tid, _UNKNOWN),
        ):
            at = np.flatnonzero(values != missing).astype(np.int32)
            if len(at):
                rows = None if len(at) == count else at
                columns[name] = Column(TypeClass.I64, pa.array(values[at]), rows)
        if self._times:
            at = np.array(list(self._times), np.int32)
            raw = list(self._times.values())
            columns |= columns_of(Field("ts_raw", TypeClass.STR), at, raw, count)[0]
        for name, texts_ in _described(list(self._kinds)).items():
            made = coded(texts_, kind)
            if made is not None:
                columns[name] = made
        numbers = np.array([of.number for of, _ in self._kinds] or [0], np.int64)
        columns["event_id"] = Column(TypeClass.I64, pa.array(numbers[kind]))
        return columns


def _described(kinds: Sequence[tuple[EventType, bool]]) -> dict[str, list[str | None]]:
    """The texts that depend on the type of an event alone."""
    known = catalogue.events("fibratus")
    infos = [known.get(of.name) for of, _ in kinds]
    actions = [info and info.action for info in infos]
    return {
        "event": [of.name for of, _ in kinds],
        "host": [of.host or None for of, _ in kinds],
        "kind": ["state" if of.state else "event" for of, _ in kinds],
        "action": [
            "file_create" if action == "file_open" and creates else action
            for action, (_, creates) in zip(actions, kinds, strict=True)
        ],
        "category": [
            info.category if info else _CATEGORIES.get(of.category, of.category or None)
            for info, (of, _) in zip(infos, kinds, strict=True)
        ],
    }


def _status(batch: Batch) -> dict[str, Column]:
    """How each event ended, in the words that Fibratus 1.x stores.

    Later releases store the number; an object that is not found is of the kind the event is about.
    """
    base = naming.argument("status")
    text = batch.get(naming.column_name(base, TypeClass.STR, catalogue.home(base)))
    number = batch.get(naming.column_name(base, TypeClass.I64, catalogue.home(base)))
    if number is None:
        return {} if text is None else {"status": text}
    words = catalogue.decoder("ntstatus")
    found: list[str | None] = [None] * batch.rows
    at = range(batch.rows) if number.rows is None else number.rows.tolist()
    categories = batch.array("category").to_pylist()
    for row, value in zip(at, number.values.to_pylist(), strict=True):
        key = categories[row] == "registry" and value == _NAME_NOT_FOUND
        found[row] = "key not found" if key else words.get(value, f"0x{value & _UNKNOWN:08x}")
    if text is not None:
        at = range(batch.rows) if text.rows is None else text.rows.tolist()
        for row, word in zip(at, text.values.to_pylist(), strict=True):
            found[row] = word
    column = coded(found, np.arange(batch.rows))
    return {} if column is None else {"status": column}


def _number(value: object) -> object:
    """A mask that 1.x stores as hexadecimal text, as the number it is."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            number = int(value, 16)
        except ValueError:
            return value
        return number if f"0x{number:x}" == value else value
    return value


def _plain(pairs: Sequence[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    """Pairs of a hash table, in order of their keys."""
    return dict(sorted((texts.clean(key)[0], texts.clean(value)[0]) for key, value in pairs))


def _word(value: object) -> str:
    """The type of a field, in the words of a shape; bytes are text that is not valid."""
    return jsonshape.WORDS.get(type(value), jsonshape.STRING)


def _name(raw: bytes) -> str:
    return texts.clean(raw)[0]
