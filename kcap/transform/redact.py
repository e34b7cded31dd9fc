"""Redaction: tokens in place of values, in events and in all that travels beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model import catalogue, naming, shape
from kcap.model.batch import Batch, Column, Rows
from kcap.model.classes import TypeClass
from kcap.model.naming import RAW, SIZE
from kcap.model.side import Heartbeat, Loss, SourceInfo
from kcap.replay.stages import Matching
from kcap.transform import lines, texts
from kcap.transform.hiding import Hider
from kcap.transform.names import FIXED, Names
from kcap.transform.patterns import Pattern, follows_option
from kcap.transform.shapes import edited
from kcap.transform.sides import Sides, each_column, on_rows
from kcap.transform.tokens import Key

if TYPE_CHECKING:
    from kcap.filter.filter import Filter

VOCABULARY: Final = frozenset(
    [
        *("event", "action", "category", "kind", "direction", "status", "syscall", "derived_from"),
        *("provenance", "fd_type", "type", "state", "flags", "family", "protocol", "fs_type"),
    ]
)
"""Columns with words of a fixed set: short values that are hidden elsewhere stay in them."""

NOTE: Final = "redacted"
"""Key of a source's details with what was redacted."""

_KEYS: Final = frozenset({"process_key", "parent_key"})
_SOURCE: Final = "source"
_APART: Final = {*FIXED, *_KEYS} - {"kind"}
_HEX: Final = re.compile(r"(?:[0-9a-f]{16}){1,2}")
_HOST: Final = "host"
_MACHINE: Final = "machine"
_TOLD: Final = {"command_line": "cmdline", "pid": "pid"}
"""What details say of the recorder, and the columns that say it of others."""
_NUMBERS: Final = frozenset({TypeClass.I64, TypeClass.U64, TypeClass.F64})
_NUMBER_LISTS: Final = frozenset({TypeClass.LIST_I64, TypeClass.LIST_U64, TypeClass.LIST_F64})


@dataclass(frozen=True)
class Rules:
    """What is redacted."""

    columns: Names = field(default_factory=lambda: Names((), "redact", both=True))
    """All their values."""
    patterns: tuple[Pattern, ...] = ()
    """What they match in any text."""
    components: bool = False
    """Of paths keep the structure."""
    where: Filter | None = None
    """Of these events only; what travels beside the events is redacted all the same."""
    literals: Collection[bytes] = ()
    """Values that are hidden wherever they stand."""
    only: frozenset[int | float | str] | None = None
    """The only values of the columns to redact; all where None."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """What the details of the sources are to say of it, behind what they say already."""


class Redact:
    """A stage that puts tokens in the place of values.

    Equal values get equal tokens, in whatever column they stand, so what could be joined before
    can be joined still; who lacks the key can't tell from a token what it stands for.

    Args:
        key: Makes the tokens.
        rules: What is redacted.
        hider: Makes the tokens of texts; None for one that does what the rules say.
    """

    def __init__(self, key: Key, rules: Rules, hider: Hider | None = None) -> None:
        self._key = key
        self._rules = rules
        self._columns = rules.columns
        made = Hider(key, rules.patterns, rules.literals, components=rules.components)
        self.hider = made if hider is None else hider
        self._sides = Sides(self)
        self._matching = None if rules.where is None else Matching(rules.where, state=True)
        self._only = rules.only
        self._options = any(p.name == "password-option" for p in rules.patterns)
        self._renamed: dict[str, str] = {}

    @property
    def key_id(self) -> str:
        """`Key.id` of the key that makes the tokens."""
        return self._key.id

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        rows = None if self._matching is None else self._matching.rows(batch)
        before = self._sides.changed(batch.before)
        moved = self._sides.rows_of_moved(batch)
        made = self._events(batch) if rows is None else on_rows(batch, rows, self._events)
        if len(moved):
            made = self._rekeyed(made, moved)
        return self._sides.events(made).with_before(before)

    # Events

    def _events(self, batch: Batch) -> Batch:
        out = batch
        for name, column in batch.columns.items():
            if name not in _APART and not _is_twin_of(name, batch):
                out = self._column(out, name, column, self._columns.has(name))
        out = self._key_columns(out)
        if self.hider:
            out = self._names(edited(out, self._shape))
        return out

    def _column(self, batch: Batch, name: str, column: Column, chosen: bool) -> Batch:
        """The batch with a column redacted, and what tells of it."""
        if not chosen:
            return self._hidden(batch, name, column) if self.hider else batch
        if self._only is not None and column.cls in texts.TEXTUAL:
            return self._hidden(batch, name, column, self._chosen)
        made = self._whole(column)
        out = _without(batch, name, f"{name}__{RAW}", f"{name}__{SIZE}")
        if made is None:
            return out
        raw = batch.get(f"{name}__{RAW}")
        if raw is not None:
            # What is no valid text is told by its bytes: two of them may look alike as text.
            tokens = texts.recoded(raw.codes(), pa.array([self._token_of(v) for v in _of(raw)]))
            made = texts.merged(made, Column(TypeClass.STR, tokens, raw.rows), batch.rows)
        return out.adding({name: made})

    def _token_of(self, raw: bytes) -> str:
        return self.hider.whole_data(raw).decode()

    def _whole(self, column: Column) -> Column | None:
        """A column whose values are hidden; None where tokens of them would tell them."""
        whole = self.hider.whole
        if column.cls in _NUMBERS:
            return self._numbers(column)
        if column.cls in _NUMBER_LISTS:
            return _items(column, self._numbers)
        if column.cls is TypeClass.JSON:
            return _entries(column, [self.hider.whole_json(v) for v in _of(column)])
        if column.cls is TypeClass.BIN:
            return _entries(column, [self.hider.whole_data(v) for v in _of(column)])
        if column.cls in texts.TEXTUAL:
            return texts.mapped(column, lambda found: [whole(v) for v in found]).column
        return None

    def _numbers(self, column: Column) -> Column:
        entries = pc.dictionary_encode(column.values)
        real = column.cls is TypeClass.F64
        found = [self._number(v, real=real) for v in entries.dictionary.to_pylist()]
        made = pa.array(found, column.values.type).take(entries.indices)
        return Column(column.cls, made, column.rows)

    def _number(self, value: Any, *, real: bool) -> Any:  # noqa: ANN401
        if self._only is not None and value not in self._only:
            return value
        return self.hider.real(value) if real else self.hider.number(value)

    def _chosen(self, values: Sequence[str]) -> list[str]:
        """Texts of a column of which some values are hidden."""
        assert self._only is not None
        hidden = self.hider.texts(values)
        return [
            self.hider.whole(v) if v in self._only else h
            for v, h in zip(values, hidden, strict=True)
        ]

    def _hidden(
        self, batch: Batch, name: str, column: Column, chosen: texts.Texts | None = None
    ) -> Batch:
        """The batch with what is to be hidden in the texts of a column hidden."""
        if column.cls not in texts.TEXTUAL:
            return batch
        if chosen is not None and column.cls is not TypeClass.JSON:
            changed = texts.mapped(column, chosen, self.hider.data)
        else:
            changed = self._found(name, column)
        raw = batch.get(f"{name}__{RAW}")
        out = batch
        if column.cls is TypeClass.LIST and changed.column is not column:
            return _without(batch, f"{name}__{SIZE}").adding({name: changed.column})
        if changed.column is not column:
            out = _without_length(batch, name, _differing(column, changed.column))
            out = texts.put(out, name, changed)
        if raw is None:
            return out
        bare = texts.mapped(raw, self.hider.texts, self.hider.data).column
        both = np.union1d(_differing(column, changed.column), _differing(raw, bare))
        if not len(both):
            return out
        # The exact bytes go where they would show what is hidden, or would not fit the text.
        only = np.setdiff1d(_differing(raw, bare), _differing(column, changed.column))
        made = out.columns[name]
        if len(only):
            mine = raw.take(only.astype(np.int32), batch.rows)
            assert mine is not None
            tokens = texts.recoded(mine.codes(), pa.array([self._token_of(v) for v in _of(mine)]))
            made = texts.merged(
                made, Column(TypeClass.STR, tokens, only.astype(np.int32)), batch.rows
            )
        kept = texts.without(raw, both.astype(np.int32), batch.rows)
        out = _without(out, f"{name}__{RAW}").adding({name: made})
        return out if kept is None else out.adding({f"{name}__{RAW}": kept})

    def _found(self, name: str, column: Column) -> texts.Changed:
        hider = self.hider
        if name in VOCABULARY:
            return texts.mapped(column, hider.names, hider.data)
        if column.cls is TypeClass.JSON:
            return texts.Changed(_entries(column, hider.json(_of(column))), None)
        changed = texts.mapped(column, hider.texts, hider.data)
        if column.cls is not TypeClass.LIST:
            return changed
        after = changed.column
        if self._options:
            after = self._after_options(column, after)
        return texts.Changed(lines.hidden(hider, column, after), None)

    def _after_options(self, before: Column, after: Column) -> Column:
        """Lists of arguments without the secrets that stand behind an option of their own."""
        items = pc.dictionary_encode(before.values.flatten())
        option = np.array(follows_option(items.dictionary.to_pylist()), np.bool_)
        if not option.any():
            return after
        follows = np.zeros(len(items), np.bool_)
        follows[1:] = option[np.asarray(items.indices)][:-1]
        lengths = np.asarray(pc.list_value_length(before.values)).astype(np.int64)
        firsts = np.cumsum(lengths) - lengths
        follows[firsts[lengths > 0]] = False
        made = pc.dictionary_encode(after.values.flatten())
        secret = np.asarray(items.indices)[follows]
        if not len(secret):
            return after
        entries = made.dictionary.to_pylist()
        codes = np.asarray(made.indices).copy()
        words = items.dictionary.to_pylist()
        number = {
            w: len(entries) + i for i, w in enumerate(dict.fromkeys(words[c] for c in secret))
        }
        codes[follows] = [number[words[c]] for c in secret]
        entries += [self.hider.part(w) for w in number]
        lists = texts.with_items(after.values, pa.array(codes, pa.int32()), entries)
        return Column(after.cls, lists, after.rows)

    def _key_columns(self, batch: Batch) -> Batch:
        """The batch with ids that hold something to hide hidden, and keys that are to be."""
        for name in (_KEYS | {_SOURCE}) & batch.columns.keys():
            column = batch.columns[name]
            if column.cls is not TypeClass.STR:
                continue
            change = self._digits if self._columns.has(name) else self._foreign
            batch = batch.adding({name: texts.mapped(column, change).column})
        return batch

    def _digits(self, values: Sequence[str]) -> list[str]:
        return [self._key.digits(v.encode()) for v in values]

    def _foreign(self, values: Sequence[str]) -> list[str]:
        """Ids as they are, but what is none is text like any other."""
        return [
            v if _HEX.fullmatch(v) else hidden
            for v, hidden in zip(values, self.hider.texts(values), strict=True)
        ]

    def _rekeyed(self, batch: Batch, rows: Rows) -> Batch:
        """Keys of processes, which are hashed from what is hidden of their machine."""
        found = [n for n in _KEYS & batch.columns.keys() if not self._columns.has(n)]
        return on_rows(batch, rows, lambda part: _changed(part, found, self._digits))

    def _shape(self, value: str) -> str:
        found = shape.decode(value)
        items = [*found.record, *found.arguments]
        words = [w for item in items for w in (item.name, item.type)]
        hidden = self.hider.names(words)
        if hidden == words:
            return value
        made = [
            i._replace(name=n, type=t)
            for i, n, t in zip(items, hidden[::2], hidden[1::2], strict=True)
        ]
        count = len(found.record)
        return shape.encode(made[count:], made[:count] if count else None)

    def _names(self, batch: Batch) -> Batch:
        """The batch with what is hidden in the names of its columns hidden."""
        fresh = [n for n in batch.columns if n not in self._renamed]
        for name in fresh:
            self._renamed[name] = self._name(name)
        if all(self._renamed[n] == n for n in batch.columns):
            return batch
        columns = {self._renamed[n]: c for n, c in batch.columns.items()}
        return Batch(batch.rows, columns, batch.before)

    def _name(self, column: str) -> str:
        base, suffixes = naming.parts(column)
        if catalogue.home(base) is not None:
            return column
        prefix, _, _ = base.partition("_")
        before = naming.source_name(base)
        after = self.hider.names([before])[0]
        if after == before:
            return column
        spell = naming.argument if prefix == naming.ARGUMENT else naming.extension
        return "__".join((spell(after), *suffixes))

    # What travels beside them: see `kcap.transform.sides.Change`

    def source(self, info: SourceInfo) -> SourceInfo:
        """See `kcap.transform.sides.Change.source`."""
        host, boot = info.host, info.boot_id
        details = dict(info.details)
        for name, column in _TOLD.items():
            if name in details and self._columns.has(column) and self._only is None:
                details[name] = self._told(details[name])
        hider = self.hider
        if host is not None:
            host = self._host(host)
        if host != info.host and info.host:
            own = Hider(self._key, (), [info.host.encode()], components=self._rules.components)
            details = own.details(details)
        if hider:
            details = hider.details(details)
            boot = None if boot is None else hider.names([boot])[0]
        if self._rules.note:
            known = details.get(NOTE)
            former = known if isinstance(known, list) else []
            details[NOTE] = [*former, dict(self._rules.note)]
        collector = hider.names([info.collector])[0]
        return replace(info, collector=collector, host=host, boot_id=boot, details=details)

    def _told(self, value: Any) -> Any:  # noqa: ANN401
        return self.hider.number(value) if type(value) is int else self.hider.whole(str(value))

    def _host(self, host: str) -> str:
        if not self._columns.has(_HOST):
            return self.hider.texts([host])[0]
        return self.hider.whole(host) if self._only is None else self._chosen([host])[0]

    def loss(self, loss: Loss) -> Loss:
        """See `kcap.transform.sides.Change.loss`."""
        event = loss.event
        if event is not None:
            chosen = self._columns.has("event") and self._only is None
            event = self.hider.whole(event) if chosen else self.hider.names([event])[0]
        reason = self.hider.texts([loss.reason])[0]
        source = None if loss.source is None else self._foreign([loss.source])[0]
        (kind,) = self.hider.names([loss.kind])
        return replace(loss, kind=kind, reason=reason, event=event, source=source)

    def heartbeat(self, beat: Heartbeat) -> Heartbeat:
        """See `kcap.transform.sides.Change.heartbeat`."""
        return replace(beat, details=self.hider.details(beat.details)) if self.hider else beat

    def table(self, name: str, rows: Batch) -> tuple[str, Batch]:
        """See `kcap.transform.sides.Change.table`."""
        out = rows
        for column, values in rows.columns.items():
            if column == _MACHINE:
                out = _changed(out, [column], self._machine)
            elif self.hider.names([column]) != [column]:
                out = _without(out, column)
            elif column not in _KEYS and not _is_twin_of(column, rows):
                out = self._column(out, column, values, self._columns.has_in(name, column))
        for column in _KEYS & rows.columns.keys():
            chosen = self._columns.has_in(name, column)
            out = _changed(out, [column], self._digits if chosen else self._foreign)
        machine = rows.get(_MACHINE)
        if self._sides.machines and machine is not None and not self._columns.has("process_key"):
            moved = np.array([m in self._sides.machines for m in _of(machine)], np.bool_)
            at = np.flatnonzero(moved[machine.compact().codes()]).astype(np.int32)
            mine = at if machine.rows is None else machine.rows[at]
            found = sorted(_KEYS & out.columns.keys())
            out = on_rows(out, mine, lambda part: _changed(part, found, self._digits))
        return self.hider.names([name])[0], out

    def _machine(self, values: Sequence[str]) -> list[str]:
        hidden = self.hider.names(values)
        known = self._sides.machines
        return [v if v in known else h for v, h in zip(values, hidden, strict=True)]


def _is_twin_of(name: str, batch: Batch) -> bool:
    """Whether a column tells of another one of the batch: its bytes or its length."""
    base, _, ending = name.rpartition("__")
    return ending in {RAW, SIZE} and base in batch.columns


def _of(column: Column) -> list[Any]:
    """The different values of a text column that are used."""
    found: list[Any] = column.compact().values.dictionary.to_pylist()
    return found


def _entries(column: Column, after: list[Any]) -> Column:
    used = column.compact()
    values = texts.recoded(used.codes(), pa.array(after, used.values.type.value_type))
    return Column(column.cls, values, column.rows)


def _items(column: Column, change: Callable[[Column], Column]) -> Column:
    child = column.cls.child
    assert child is not None
    items = change(Column(child, column.values.flatten())).values
    lengths = np.asarray(pc.list_value_length(column.values)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Column(column.cls, pa.ListArray.from_arrays(pa.array(offsets), items), column.rows)


def _differing(before: Column, after: Column) -> Rows:
    """The rows whose text differs; both have the same rows."""
    if before is after:
        return np.zeros(0, np.int32)
    plain = before.values.type.value_type
    pair = (before.values.cast(plain), after.values.cast(plain))
    at = np.flatnonzero(np.asarray(pc.not_equal(*pair).to_numpy(zero_copy_only=False)))
    found = at.astype(np.int32)
    return found if before.rows is None else before.rows[found]


def _without_length(batch: Batch, name: str, rows: Rows) -> Batch:
    """The batch without the lengths that cut texts of these rows had."""
    size = f"{name}__{SIZE}"
    known = batch.get(size)
    if known is None:
        return batch
    kept = texts.without(known, rows, batch.rows)
    return _without(batch, size) if kept is None else batch.adding({size: kept})


def _without(batch: Batch, *names: str) -> Batch:
    return batch.select([n for n in batch.columns if n not in names])


def _changed(batch: Batch, names: Sequence[str], change: texts.Texts) -> Batch:
    """The batch with the texts of some columns changed."""

    def column(name: str, found: Column) -> Column:
        if name not in names or found.cls is not TypeClass.STR:
            return found
        return texts.mapped(found, change).column

    return each_column(batch, column)
