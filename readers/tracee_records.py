"""From a Tracee event, parsed from JSON, to a record of a batch.

Events of one layout (the same keys in the same order, values of the same JSON types, the same
arguments) share everything that depends on that alone: where each value goes and the text of
their shape. So an event costs a walk over its keys and one look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from kcap import limits
from kcap.model import catalogue, jsonshape, shape
from kcap.model.builder import Field, Layout, RecordBuilder
from kcap.model.classes import TypeClass
from kcap.model.shape import Item
from kcap.readers.tracee_values import (
    Deep,
    Entry,
    data_entry,
    decimal,
    deep,
    event_entry,
    row_bytes,
    spelled_number,
    text_time,
    time_reader,
)

_NAME_TYPE_VALUE: Final = ("name", "type", "value")
_PLAIN: Final = object()
"""In a layout's key: name, type and class of value of each argument follow, all of form ntv."""

_SPELT: Final = object()
"""In a layout's key: the form of each argument stands before its name."""

_TIME, _START = "ts", "thread_start_ns"
_STRUCTS: Final = (
    "metadata",
    "threat",
    "threat.mitre",
    "threat.mitre.tactic",
    "threat.mitre.technique",
)
"""Objects with fixed keys of which the envelope has no columns."""

_TELLING: Final = frozenset({"context", "data", "id", "timestamp", "workload"})
"""A ``v1beta1.Event`` has one of these besides its name."""

_NUMBERS: Final = frozenset({TypeClass.F64, TypeClass.I64})
_POINTERS: Final = frozenset({"trace.Pointer", "void*"})
"""Types of arguments that are addresses, whatever their name stands for elsewhere."""

_PARENT: Final = ("ppid", "ns_ppid", "parent_entity", "parent_name")
_RETURN_VALUE: Final = "returnValue"
_PARSED: Final = "parsedArgs"
"""The arguments of ``trace.Event`` as later releases give them to signatures in Rego, in place of
``args``: numbers are text already."""


class BadRecordError(Exception):
    """The JSON is no Tracee event; says why."""


class _Dialect:
    """One spelling of the events: its names for our columns."""

    def __init__(
        self,
        name: str,
        entries: str,
        entry: Callable[[int, object], Entry],
        *families: str,
    ) -> None:
        self.name = name
        """Key of the event's name."""
        self.entries = entries
        """Key of the list of arguments."""
        self.entry = entry
        self.aliases: dict[str, str] = {}
        for family in families:
            self.aliases |= catalogue.aliases(family)
        parents = {path[:i] for path in self.aliases for i, char in enumerate(path) if char == "."}
        self.structs = parents.union(_STRUCTS)
        """Paths of the objects that are taken apart."""


@cache
def _dialects() -> tuple[_Dialect, _Dialect, _Dialect]:
    """``trace.Event``, ``v1beta1.Event`` in both its spellings, and what Rego is given."""
    return (
        _Dialect("eventName", "args", event_entry, "tracee"),
        _Dialect("name", "data", data_entry, "tracee-v1beta1", "tracee-grpc"),
        _Dialect("eventName", _PARSED, event_entry, "tracee"),
    )


class _Struct:
    """The objects that may stand at one path, by their keys and types."""

    def __init__(self, path: str | None, dialect: _Dialect) -> None:
        self.path = path
        self.dialect = dialect
        self.plans: dict[tuple[Any, ...], _Plan] = {}

    def plan(self, key: tuple[Any, ...], obj: Mapping[str, Any]) -> _Plan:
        """Make the plan for objects of these keys and types."""
        paths = tuple(jsonshape.join(self.path, name) for name in obj)
        children = tuple(
            (name, _Struct(path, self.dialect))
            for path, (name, value) in zip(paths, obj.items(), strict=True)
            if type(value) is dict and path in self.dialect.structs
        )
        plan = self.plans[key] = _Plan(paths, children)
        return plan


class _Plan:
    """One list of keys and types: their paths, and the objects inside that are taken apart."""

    __slots__ = ("children", "paths")

    def __init__(self, paths: tuple[str, ...], children: tuple[tuple[str, _Struct], ...]) -> None:
        self.paths = paths
        self.children = children


class Records:
    """Puts events into a builder.

    Args:
        builder: Collects them.
    """

    def __init__(self, builder: RecordBuilder) -> None:
        self._builder = builder
        self._roots = [_Struct(None, dialect) for dialect in _dialects()]
        self._layouts: dict[tuple[Any, ...], _Layout] = {}
        self._fields = 0

    def __len__(self) -> int:
        """Fields of all layouts met so far, also of those that were no event: what is kept."""
        return self._fields

    def add(self, event: dict[str, Any], *, careful: bool = False, large: bool = False) -> None:
        """Add an event.

        Args:
            event: The JSON object; may be changed.
            careful: Some of its values may nest deeper than a ``json`` column may.
            large: All of them may be more than a row can hold.

        Raises:
            BadRecordError: It is no Tracee event, or one of more than `limits.EVENT_FIELDS`
                fields (keys of the objects that are taken apart, and arguments) or more than
                `limits.ROW_BYTES`.
        """
        root = self._roots["eventName" not in event]
        if "args" not in event and "eventName" in event and type(event.get(_PARSED)) is list:
            root = self._roots[2]
        dialect = root.dialect
        if careful:
            _replace_deep(dialect, event, None)
        key: list[Any] = []
        values: list[Any] = []
        _walk(root, event, key, values)
        entries = event.get(dialect.entries)
        if entries and type(entries) is list:
            _check_fields(len(values) + len(entries))
            if careful or not _plain_arguments(entries, key, values):
                _spelt_arguments(dialect, entries, key, values)
        frozen = tuple(key)
        layout = self._layouts.get(frozen)
        if layout is None:
            self._fields += len(values)
            layout = _Layout(dialect, event, key)
            self._layouts[frozen] = layout
        variants = len(layout)
        target = layout.complete(values, self._builder)
        # What a value's text was may differ from event to event, each time a layout of its own.
        self._fields += (len(layout) - max(variants, 1)) * len(values) if len(layout) > 1 else 0
        if large and row_bytes(target.fields, values) > limits.ROW_BYTES:
            raise BadRecordError(f"values of more than {limits.ROW_BYTES} bytes")
        self._builder.add(target, values)


def _check_fields(count: int) -> None:
    if count > limits.EVENT_FIELDS:
        raise BadRecordError(f"more than {limits.EVENT_FIELDS} fields")


def _walk(struct: _Struct, obj: dict[str, Any], key: list[Any], values: list[Any]) -> None:
    """Append an object's plan and values, then those of the objects inside."""
    found = obj.values()
    _check_fields(len(values) + len(found))
    signature = (*obj, *map(type, found))
    plan = struct.plans.get(signature) or struct.plan(signature, obj)
    key.append(plan)
    values.extend(found)
    for name, child in plan.children:
        _walk(child, obj[name], key, values)


def _plain_arguments(entries: list[Any], key: list[Any], values: list[Any]) -> bool:
    """Append arguments of the usual form; append nothing where one has another form."""
    found: list[Any] = [_PLAIN]
    kept: list[Any] = []
    for entry in entries:
        if type(entry) is not dict or tuple(entry) != _NAME_TYPE_VALUE:
            return False
        name, kind, value = entry.values()
        if type(name) is not str or type(kind) is not str:
            return False
        found += name, kind, type(value)
        kept.append(value)
    key.extend(found)
    values.extend(kept)
    return True


def _spelt_arguments(
    dialect: _Dialect, entries: list[Any], key: list[Any], values: list[Any]
) -> None:
    """Append arguments of any form."""
    key.append(_SPELT)
    for position, raw in enumerate(entries):
        form, name, kind, value = dialect.entry(position, raw)
        value = deep(value)
        if type(value) is Deep:
            form += "j"
        key += form, name, kind, type(value)
        values.append(value)


def _replace_deep(dialect: _Dialect, obj: dict[str, Any], parent: str | None) -> None:
    """Make text of the values, other than arguments, that nest too deep."""
    for name, value in obj.items():
        if type(value) is not dict and type(value) is not list:
            continue
        path = jsonshape.join(parent, name)
        if type(value) is dict and path in dialect.structs:
            _replace_deep(dialect, value, path)
        elif path != dialect.entries:
            obj[name] = deep(value)


class _Variant(NamedTuple):
    """What may differ between events of a layout by the values of their times."""

    known: bool
    """``ts`` has a value."""
    raw: bool
    """``ts_raw`` has one."""
    words: tuple[str, ...]
    """The type words of the times that are text."""
    decoders: tuple[str, ...]
    """The decoders of the arguments that are text of a number, empty for other text."""


class _Layout:
    """What all events of a layout share."""

    def __init__(self, dialect: _Dialect, event: dict[str, Any], key: list[Any]) -> None:
        if type(event.get(dialect.name)) is not str:
            raise BadRecordError("no event name")
        if dialect.name == "name" and not event.keys() & _TELLING:
            raise BadRecordError("no Tracee event")
        at, arguments, forms, kinds = _described(key)
        items: list[Item] = []
        _record_items(dialect, event, None, jsonshape.entries(forms), items)
        self._items = items
        self._arguments = arguments
        fields = jsonshape.record_fields(items, dialect.aliases)
        places = {item.name: place for place, item in enumerate(items)}
        paths = [path for plan in key[:at] for path in plan.paths]
        self._fields = [fields[places[path]] for path in paths]
        self._fields += jsonshape.argument_fields(arguments, forms)
        self._layouts: dict[_Variant, Layout] = {}
        self._time: int | None = None
        self._timer: tuple[int, Callable[[Any], tuple[int | None, str | None]]] | None = None
        self._texts: list[tuple[int, int]] = []
        self._numbers: list[int] = []
        self._copies: list[tuple[int, Callable[[Any], Sequence[Any]]]] = []
        self._forms = forms
        self._entries = dialect.entries
        self._event = paths.index(dialect.name)
        homes = [field and field.home for field in self._fields[len(paths) :]]
        self._spelled = [
            (place, item.name)
            for place, (item, kind, home) in enumerate(zip(arguments, kinds, homes, strict=True))
            if kind is str and (home in _NUMBERS or item.type in _POINTERS)
        ]
        self._first = len(paths)
        for index, path in enumerate(paths):
            self._convert(index, places[path])
        if dialect.name == "name":
            self._copy(paths, arguments)

    def __len__(self) -> int:
        """The builder's layouts so far."""
        return len(self._layouts)

    def complete(self, values: list[Any], builder: RecordBuilder) -> Layout:
        """Turn an event's values into those of its columns.

        Args:
            values: As they were collected; changed in place.
            builder: Where they go.

        Returns:
            The builder's layout for them.
        """
        decoders: list[str] = []
        for place, name in self._spelled:
            index = self._first + place
            decoder, values[index] = spelled_number(values[self._event], name, values[index])
            decoders.append(decoder)
        for index in self._numbers:
            values[index] = decimal(values[index])
        for index, copy in self._copies:
            values.extend(copy(values[index]))
        raw = None
        if self._timer is not None:
            index, read = self._timer
            values[index], raw = read(values[index])
        words: list[str] = []
        for index, _ in self._texts:
            value = values[index]
            ns, word = text_time(value)
            if index == self._time:
                values[index] = ns or None
                raw = value if not ns or word is None else None
            elif word is not None:
                values[index] = ns
            words.append(word or jsonshape.TIME)
        known = self._time is not None and values[self._time] is not None
        if raw is not None:
            values.append(raw)
        variant = _Variant(known, raw is not None, tuple(words), tuple(decoders))
        layout = self._layouts.get(variant)
        if layout is None:
            layout = self._layouts[variant] = self._layout(builder, variant)
        return layout

    def _layout(self, builder: RecordBuilder, variant: _Variant) -> Layout:
        fields = list(self._fields)
        if self._time is not None and not variant.known:
            fields[self._time] = None
        if variant.raw:
            fields.append(Field("ts_raw", TypeClass.STR))
        items = list(self._items)
        for (_, place), word in zip(self._texts, variant.words, strict=True):
            items[place] = items[place]._replace(type=word)
        if any(variant.decoders):
            forms = list(self._forms)
            for (place, _), decoder in zip(self._spelled, variant.decoders, strict=True):
                forms[place] += jsonshape.spelled(decoder)
            at = next(i for i, item in enumerate(items) if item.name == self._entries)
            items[at] = items[at]._replace(type=jsonshape.entries(forms))
        return builder.layout(fields, shape.encode(self._arguments, items))

    def _convert(self, index: int, place: int) -> None:
        """Note what a value has to go through on its way to its column."""
        field, word = self._fields[index], self._items[place].type
        if field is None:
            return
        if field.base == _TIME:
            self._time = index
        if word == jsonshape.TIME:
            self._texts.append((index, place))
        elif field.base == _TIME:
            self._timer = index, time_reader(word)
        elif word == jsonshape.STRING and field.home is TypeClass.I64:
            self._numbers.append(index)

    def _copy(self, paths: list[str], arguments: list[Item]) -> None:
        """Fill columns that this dialect has no field of its own for."""
        bases = {field.base for field in self._fields if field is not None}
        ancestors = "workload.process.ancestors"
        if ancestors in paths and bases.isdisjoint(_PARENT):
            self._copies.append((paths.index(ancestors), _parent))
            self._fields += [Field(name, catalogue.home(name)) for name in _PARENT]
        names = [item.name for item in arguments]
        if _RETURN_VALUE in names and "retval" not in bases:
            index = len(paths) + names.index(_RETURN_VALUE)
            self._copies.append((index, lambda value: (value if type(value) is int else None,)))
            self._fields.append(Field("retval", TypeClass.I64))


def _described(key: list[Any]) -> tuple[int, list[Item], list[str], list[type]]:
    """Where a layout's key goes on to the arguments; their items, forms and classes."""
    for at, mark in enumerate(key):
        if mark is _PLAIN:
            rest = key[at + 1 :]
            quads = [("ntv", *rest[i : i + 3]) for i in range(0, len(rest), 3)]
            break
        if mark is _SPELT:
            rest = key[at + 1 :]
            quads = [tuple(rest[i : i + 4]) for i in range(0, len(rest), 4)]
            break
    else:
        at, quads = len(key), []
    items = [Item(name, kind, value is type(None)) for _, name, kind, value in quads]
    return at, items, [form for form, *_ in quads], [value for *_, value in quads]


def _record_items(
    dialect: _Dialect,
    obj: dict[str, Any],
    parent: str | None,
    entries: str,
    items: list[Item],
) -> None:
    """The items of an object's fields, those of an object inside right after it."""
    for name, value in obj.items():
        path = jsonshape.join(parent, name)
        if value is None:
            items.append(Item(path, "", null=True))
        elif type(value) is dict and path in dialect.structs:
            items.append(Item(path, jsonshape.OBJECT))
            _record_items(dialect, value, path, entries, items)
        elif path == dialect.entries:
            if type(value) is not list:
                raise BadRecordError(f"{path} is no list")
            items.append(Item(path, entries))
        elif type(value) is str and dialect.aliases.get(path) in {_TIME, _START}:
            items.append(Item(path, jsonshape.TIME))
        else:
            items.append(Item(path, jsonshape.WORDS.get(type(value), "json")))


def _parent(ancestors: object) -> tuple[int | str | None, ...]:
    """What the first of the ancestors says: pid, pid in its namespace, entity, name."""
    first = ancestors[0] if isinstance(ancestors, list) and ancestors else None
    if not isinstance(first, dict):
        return (None,) * len(_PARENT)
    thread = first.get("thread")
    name = thread.get("name") if isinstance(thread, dict) else None
    numbers = (
        first.get("host_pid", first.get("hostPid")),
        first.get("pid"),
        first.get("unique_id", first.get("uniqueId")),
    )
    return (*(n if type(n) is int else None for n in numbers), name if type(name) is str else None)
