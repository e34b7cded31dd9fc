"""Events for filaments: the documented dictionary, packed in columns for the worker.

What a filament is given is documented in docs/filament-events.md. It is put together in two
halves. This half runs beside the pipeline and decides, a column at a time, what the values are:
names, texts of flags, what is known of the process. `kcap.filament.dicts` runs in the worker and
makes one dictionary an event of it, with nothing but the standard library.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.filament import parameters
from kcap.filament.describe import description, fibratus_category
from kcap.filament.dicts import LIST, Key, Packed
from kcap.filament.streams import (
    Int64s,
    Stream,
    complete,
    entries_of,
    numbers,
    numbers_of,
    rows_of,
    texts,
)
from kcap.model.batch import Batch, Rows
from kcap.model.classes import TypeClass
from kcap.model.distinct import grouped, integers
from kcap.model.side import Side, SourceInfo

STATE_COLUMNS: Final = frozenset(
    f"state:process.{fact}" for fact in ("cmdline", "cwd", "exe", "name", "ppid", "user")
)
"""What `kcap.state.kin.Kin` adds to a batch: with these columns more of a process is known."""

_PPID: Final = ("ppid", "state:process.ppid")
_PROCESS: Final = (
    ("cwd", ("state:process.cwd",)),
    ("exe", ("process_name", "state:process.name")),
    ("cmdline", ("cmdline", "state:process.cmdline")),
    ("sid", ("user", "state:process.user")),
)
"""Keys that are there where the process is known, and the columns that may have them."""

_NUMBERS: Final = ("ts", "ord", "uid", "gid", "session", "ns_pid", "ns_tid", "retval")
_TEXTS: Final = (
    ("exe_path", ("exe", "state:process.exe")),
    *((name, (name,)) for name in ("origin", "action", "process_key", "parent_name", "user")),
    *((name, (name,)) for name in ("container_id", "container_name", "syscall", "status")),
    *((name, (name,)) for name in ("fd_type", "fd_name")),
)
"""Keys of ours, each there where the event has a value."""

FURTHER_KEYS: Final = frozenset({*_NUMBERS, *(key for key, _ in _TEXTS)})
"""Keys that only kcap has."""

_WORD_BITS: Final = 63


class EventColumns:
    """Packs the batches of one stream, whose sources it remembers.

    Example:
        >>> from kcap.filament.dicts import dicts
        >>> list(dicts(EventColumns().pack(Batch(0, {}))))
        []
    """

    def __init__(self) -> None:
        self._families: dict[str, str] = {}

    def note(self, before: Iterable[Side]) -> None:
        """Remember the sources that a stream tells; `pack` does so itself.

        Args:
            before: Side records.
        """
        for side in before:
            if isinstance(side, SourceInfo):
                self._families[side.id] = side.collector

    def pack(self, batch: Batch) -> bytes:
        """Pack a batch, every row of it.

        Args:
            batch: The next events of the stream, with the `STATE_COLUMNS` where they are known.

        Returns:
            What `kcap.filament.dicts.dicts` makes dictionaries of.
        """
        self.note(batch.before)
        own = [*_identity(batch), *_process(batch), *_further(batch)]
        others = list(parameters.streams(batch, self._families))
        plans, of_row = _plans(batch.rows, [stream.rows for stream in (*own, *others)])
        table = [
            ([n for n in plan if n < len(own)], [n - len(own) for n in plan if n >= len(own)])
            for plan in plans
        ]
        # A column may have two names, but goes over once.
        packed: dict[int, tuple[int, Packed]] = {}
        keys = [_key(stream, packed) for stream in own]
        names = [_key(stream, packed) for stream in others]
        columns = [tuple(column) for _, column in packed.values()]
        return marshal.dumps((of_row.astype(np.int32).tobytes(), table, keys, names, columns))


def columns(batch: Batch) -> bytes:
    """Pack one batch that tells its sources itself, or whose sources don't matter.

    Args:
        batch: Events.

    Returns:
        See `EventColumns.pack`.
    """
    return EventColumns().pack(batch)


def _key(stream: Stream, packed: dict[int, tuple[int, Packed]]) -> Key:
    number, _ = packed.setdefault(id(stream.packed), (len(packed), stream.packed))
    return stream.key, number


def _plans(count: int, rows: Sequence[Rows | None]) -> tuple[list[list[int]], Int64s]:
    """The distinct sets of streams that rows have values of, and the one of each row."""
    if not count:
        return [], np.zeros(0, np.int64)
    dense = [n for n, at in enumerate(rows) if at is None]
    sparse = [(n, at) for n, at in enumerate(rows) if at is not None]
    words = np.zeros((-(-len(sparse) // _WORD_BITS) or 1, count), np.int64)
    for i, (_, at) in enumerate(sparse):
        words[i // _WORD_BITS][at] |= np.int64(1 << i % _WORD_BITS)
    found = [integers(word) for word in words]
    groups = grouped([codes for _, codes in found], [len(masks) for masks, _ in found])
    plans = []
    for codes in zip(*(column.tolist() for column in groups.codes), strict=True):
        masks = [masks[code] for (masks, _), code in zip(found, codes, strict=True)]
        has = [n for i, (n, _) in enumerate(sparse) if masks[i // _WORD_BITS] >> i % _WORD_BITS & 1]
        plans.append(sorted([*dense, *has]))
    return plans, groups.rows


def _identity(batch: Batch) -> Iterator[Stream]:
    """The keys that every event has."""
    yield Stream("seq", numbers_of(*numbers(batch, ("seq", "ord"))))
    for name in ("pid", "tid", "cpu"):
        yield Stream(name, numbers_of(*numbers(batch, (name,))))
    events, event = complete(batch, "event")
    yield Stream("name", entries_of(events, event))
    for key, column, made in (
        ("category", "category", fibratus_category),
        ("description", "action", description),
    ):
        entries, codes = complete(batch, column)
        pairs = grouped([event, codes], [len(events), len(entries)])
        different = zip(*(found.tolist() for found in pairs.codes), strict=True)
        values = [made(events[a], entries[b]) for a, b in different]
        yield Stream(key, entries_of(values, pairs.rows))
    yield _timestamp(batch)
    yield Stream("host", entries_of(*complete(batch, "host")))


def _process(batch: Batch) -> Iterator[Stream]:
    """The keys that an event has whose process is known."""
    known = np.zeros(batch.rows, np.bool_)
    for column in (*_PPID, *(name for _, names in _PROCESS for name in names)):
        known |= batch.mask(column)
    if not known.any():
        return
    rows = rows_of(known)
    values, has = numbers(batch, _PPID)
    yield Stream("ppid", numbers_of(values[known], has[known]), rows)
    for key, names in _PROCESS:
        entries, codes = complete(batch, *names)
        packed = entries_of(entries, codes[known])
        yield Stream(key, packed, rows)
        if key == "cmdline":
            yield Stream("comm", packed, rows)


def _further(batch: Batch) -> Iterator[Stream]:
    """The keys of ours."""
    for name in _NUMBERS:
        values, has = numbers(batch, (name,))
        if has.any():
            yield Stream(name, numbers_of(values[has], has[has]), rows_of(has))
    for key, names in _TEXTS:
        entries, codes = texts(batch, names)
        has = codes >= 0
        if has.any():
            yield Stream(key, entries_of(entries, codes[has]), rows_of(has))


def _timestamp(batch: Batch) -> Stream:
    """Times as text: UTC, the fraction without the zeros at its end."""
    column = batch.get("ts")
    known: list[str] = []
    if column is not None and column.cls is TypeClass.I64:
        # A cast knows no locale and no zone; its fraction has nine digits always.
        spelled = column.values.cast(pa.timestamp("ns")).cast(pa.utf8())
        known = pc.ascii_rtrim(pc.ascii_rtrim(spelled, characters="0"), characters=".").to_pylist()
        if column.rows is None:
            return Stream("timestamp", Packed(LIST, known))
    entries, codes = complete(batch, "ts_raw")
    found = [entries[code] for code in codes.tolist()]
    rows = () if column is None or column.rows is None else column.rows.tolist()
    for row, text in zip(rows, known, strict=True):
        found[row] = text
    return Stream("timestamp", Packed(LIST, found))
