"""Batches of audit events, and an account of what is missing in them.

Measured (Python 3.11, one core): see docs/decisions.md. The kernel takes longer to write an
event than this takes to read it, so a loop over records costs no events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa

from kcap import limits
from kcap.model import catalogue, text
from kcap.model.batch import Batch, Column, constant
from kcap.model.builder import Field, Layout, RawText, RecordBuilder
from kcap.model.classes import TypeClass
from kcap.model.naming import RAW, SIZE
from kcap.model.side import Loss, Side, SourceInfo
from kcap.readers.audit_events import OWN_KEY, Row, row_of
from kcap.readers.audit_groups import Event
from kcap.readers.audit_records import BadRecordError

LAYOUTS_MAX: Final = 4096
"""Layouts that are kept; an input with more starts anew."""

_NAMED: Final = 3
_OBJECTS: Final = frozenset({"arg_addr", "arg_remote_addr"})


class Batches:
    """Makes batches of events.

    Args:
        source: Where they come from.
    """

    def __init__(self, source: SourceInfo) -> None:
        self.source = source
        self.ord = 0
        """Events that were given so far."""
        self.headless: set[int] = set()
        """Serial numbers of events that lack the record which says what they were."""
        self.left_out: set[int] = set()
        """Processes whose events are not wanted."""
        self.keys: frozenset[bytes] | None = None
        """Of recorders' own rules, those whose events are wanted; None for all."""
        self._builder = RecordBuilder()
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._missing: Counter[str] = Counter()
        self._bad = 0
        self._bad_first: list[str] = []
        self._cuts = 0
        self._nodes = False
        """Whether events name their machines themselves."""

    def __len__(self) -> int:
        """Events since the last `finish`."""
        return len(self._builder)

    def add(self, event: Event) -> None:
        """Take an event.

        Args:
            event: Its records.
        """
        try:
            row = row_of(event)
        except BadRecordError as error:
            self.refuse(str(error))
            return
        if row is None:
            self.headless.add(event.serial)
            return
        if row.values.get("pid") in self.left_out or self._is_old(row):
            return
        self._missing.update(row.missing)
        self._nodes |= "host" in row.values
        values: dict[str, Any] = {}
        for base, value in row.values.items():
            if isinstance(value, list):
                self._list(base, value, values)
            else:
                values[base] = _text(value) if isinstance(value, bytes) else value
        names = tuple(values)
        layout = self._layouts.get(names)
        if layout is None:
            fields = [Field(name, _home(name)) for name in names]
            layout = self._layouts[names] = self._builder.layout(fields)
        self._builder.add(layout, list(values.values()))

    def _is_old(self, row: Row) -> bool:
        """Whether an event is of a recording that is over: the kernel may hold some for long."""
        wanted = self.keys is None or row.key in self.keys
        return not wanted and OWN_KEY.fullmatch(row.key) is not None

    def refuse(self, why: str) -> None:
        """Count what is no record.

        Args:
            why: What is wrong with it, and where.
        """
        self._bad += 1
        if len(self._bad_first) < _NAMED:
            self._bad_first.append(why)

    def finish(self, before: Iterable[Side] = ()) -> Batch:
        """Make a batch of the events since the last one.

        Args:
            before: Side records for it.

        Returns:
            The batch.
        """
        count, source = len(self._builder), self.source
        numbers = np.arange(self.ord, self.ord + count)
        constants = {"ord": Column(TypeClass.I64, pa.array(numbers))}
        texts = {"origin": source.origin, "source": source.id, "host": source.host, "kind": "event"}
        if self._nodes:
            del texts["host"]
        for name, value in texts.items():
            if value is not None:
                constants[name] = constant(TypeClass.STR, value, count)
        batch = self._builder.finish(constants if count else {}, (*before, *self._sides()))
        self.ord += count
        if len(self._layouts) > LAYOUTS_MAX:
            self._builder, self._layouts = RecordBuilder(), {}
        return batch

    def _sides(self) -> list[Side]:
        """What is to be said of the events since the last call."""
        found: list[Side] = []
        source = self.source.id
        if self._missing:
            kinds = ", ".join(f"{kind} {n:,}" for kind, n in sorted(self._missing.items()))
            reason = f"records that events lack ({kinds}); arg_missing_records names them"
            found.append(Loss("lost", self._missing.total(), reason, source))
        if self._bad:
            more = ["…"] if self._bad > len(self._bad_first) else []
            reason = "; ".join([*self._bad_first, *more])
            found.append(Loss("skipped", self._bad, reason, source))
        if self._cuts:
            reason = f"lists over {limits.VALUE_BYTES} bytes are cut, their length in NAME__size"
            found.append(Loss("cut", self._cuts, reason, source))
        self._missing.clear()
        self._bad, self._bad_first, self._cuts = 0, [], 0
        return found

    def _list(self, base: str, items: list[bytes], values: dict[str, Any]) -> None:
        """A list of texts within the limits; its exact bytes beside it, where some are no text."""
        total = sum(map(len, items)) + len(items)
        cleaned = [text.clean(item) for item in items]
        if any(raw is not None for _, raw in cleaned):
            joined = b"\0".join(items)
            values[f"{base}__{RAW}"] = joined[: limits.VALUE_BYTES]
            total = max(total, len(joined))
        kept: list[str] = []
        left = limits.VALUE_BYTES
        for item, _ in cleaned[: limits.LIST_VALUE_ITEMS]:
            left -= len(item.encode())
            if left < 0:
                break
            kept.append(item)
        if len(kept) < len(items) or total > limits.VALUE_BYTES:
            self._cuts += 1
            values[f"{base}__{SIZE}"] = total
        values[base] = kept


def _text(raw: bytes) -> str | RawText:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return RawText(raw)


@lru_cache(maxsize=1 << 13)
def _home(name: str) -> TypeClass | None:
    """The class at home in a column; of an exact list of bytes, bytes."""
    if name.endswith(f"__{RAW}"):
        return TypeClass.BIN
    if name.endswith(f"__{SIZE}"):
        return TypeClass.I64
    return catalogue.home(name)
