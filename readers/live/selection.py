"""What a recording is to hold, and how much of that the kernel decides.

What counts is the filter of a `Selection`, and for descent `kcap.readers.live.tracking`: they see
every event that comes and are exact. The kernel program is told beforehand what it may leave out;
it leaves out less, never more. Executions, forks and exits always come, as the state of the
machine is made of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from kcap.filter import Filter, pushdown
from kcap.filter.pushdown import Demand, Necessary, necessary
from kcap.filter.syntax import (
    And,
    Binary,
    Expr,
    FieldRef,
    ListOf,
    Literal,
    Not,
    Op,
    Or,
    text_of,
)
from kcap.model.catalogue import derived as views
from kcap.readers.live import choosing
from kcap.readers.live.bpf import events as catalogue
from kcap.readers.live.choosing import ChoiceError, Chosen
from kcap.readers.live.scopes import TEXTS, Choice, Scope, parse
from kcap.readers.live.subjects import Subjects, members
from kcap.replay.derived import named

if TYPE_CHECKING:
    from kcap.readers.live.bpf.program import Setup

ALL: Final = "all"
WRITES: Final = "writes"
"""Of opened files those that may be written, and attempts at that."""

STATE: Final = ("sched_process_exec", "sched_process_fork", "sched_process_exit")
"""Events that always come."""

RANGED: Final = ("uid", "pid")
"""Columns that the kernel compares with a least and a greatest value."""

SCOPE_ENTRIES: Final = 4096
"""Entries that a scope's table in the kernel has."""

TRACKED_ENTRIES: Final = 65_536
"""Entries of the table of processes that are tracked."""

_U32: Final = (1 << 32) - 1
_EQUAL, _UNEQUAL = b"\x01", b"\x02"
_NAME: Final = struct.Struct("16s")
_NAME_BYTES: Final = 15
_TABLES: Final = {
    pushdown.NAME: ("comm", _NAME),
    "uid": ("uid", struct.Struct("=I")),
    "pid": ("pid", struct.Struct("=I")),
    "mount_ns": ("mount_ns", struct.Struct("=I")),
    "pid_ns": ("pid_ns", struct.Struct("=I")),
    "cgroup_id": ("cgroup", struct.Struct("=Q")),
}
"""Columns: the kernel's name for each, and how it keeps a value."""

_DEFAULT_PREFIXES: Final = ("LD_", "KUBERNETES_SERVICE_")
_UNHEARD: Final = ""
"""An event that there is not: where it may be meant, a filter does not name those it wants."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Which variables of its environment an execution is recorded with."""

    level: int = 1
    """0 none, 1 those that change what is loaded or tell the cluster, 2 all."""
    names: frozenset[str] | None = None
    """Only these of them, and those that begin like one that ends with a ``*``; None for all."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """What is recorded, as names and patterns."""
        if self.names is not None:
            return tuple(sorted(self.names))
        return ((), tuple(f"{p}*" for p in _DEFAULT_PREFIXES), ("*",))[self.level]

    @classmethod
    def of(cls, text: str) -> Environment:
        """Read what was asked for.

        Args:
            text: ``all``, ``none``, or names, also as ``AWS_*``.

        Returns:
            The choice.

        Raises:
            ChoiceError: A name is none.
        """
        if text in ("all", "none"):
            return cls(2 if text == "all" else 0)
        names = frozenset(text.split(","))
        for name in sorted(names):
            if not name or "=" in name or not name.isprintable():
                expected = "all, none, or names as HOME,AWS_*"
                raise ChoiceError(f"{name!r} is no variable's name", expected=expected)
        known = all(name.startswith(_DEFAULT_PREFIXES) for name in names)
        return cls(1 if known else 2, names)

    def __str__(self) -> str:
        """What is recorded, in words."""
        return {(): "none", ("*",): "all"}.get(self.patterns) or ", ".join(self.patterns)


@dataclass(frozen=True)
class Selection:
    """What is to be recorded."""

    chosen: Chosen
    """The events."""
    scope: Scope = field(default_factory=Scope)
    """Whose."""
    opens: str = WRITES
    """Which opens of files."""
    environment: Environment = field(default_factory=Environment)
    stack: bool = False
    """With the addresses of the call stack."""
    where: Filter | None = None
    """A filter beside the scope."""
    notes: tuple[str, ...] = ()
    """What the user should be told."""
    subjects: Subjects = field(default_factory=Subjects)
    """What was there at the beginning (`kcap.readers.live.subjects.look`)."""

    def at(self, subjects: Subjects) -> Selection:
        """The same selection on a host.

        Args:
            subjects: What is there.

        Returns:
            The selection.
        """
        return replace(self, subjects=subjects)

    @property
    def events(self) -> frozenset[str]:
        """The events that the kernel is to record, beside those that always come."""
        return self.chosen.events

    @cached_property
    def filter(self) -> Filter | None:
        """What is asked of each event as it is recorded, `where` aside; None for nothing."""
        parts = [] if self.scope.follow else self._scoped
        dropped = [name for name in STATE if name not in self.events]
        if dropped:
            parts.append(Not(choosing.event_in(dropped)))
        return _filter([*parts, *self.chosen.conditions])

    @cached_property
    def matching(self) -> Filter | None:
        """Where descendants are followed: what an event of the first of them meets."""
        return _filter(self._scoped) if self.scope.follow else None

    @property
    def _scoped(self) -> list[Expr]:
        """What the scope says of each event."""
        parts = [] if self.scope.where is None else [self.scope.where]
        if self.scope.containers.new and self.subjects.containers:
            known = tuple(Literal(each) for each in sorted(self.subjects.containers))
            parts.append(Not(Binary(Op.IN, FieldRef("container_id"), ListOf(known))))
        return parts

    @property
    def asked(self) -> str:
        """What was asked for beside what is always so, in a line."""
        parts = [] if self.chosen.text == choosing.DEFAULT else [f"events {self.chosen.text}"]
        parts += [f"scope {text}" for text in self.scope.texts]
        parts += [] if self.where is None else [self.where.text]
        return "; ".join(parts)

    def describe(self) -> str:
        """What is recorded, in a line for people.

        Returns:
            The line.
        """
        parts = [f"events {self.chosen.text}"]
        if any(catalogue.events()[name].handler == "open" for name in self.events):
            parts.append("opens for writing" if self.opens == WRITES else "all opens")
        parts += [f"scope {text}" for text in self.scope.texts]
        parts.append(f"environment {self.environment}")
        if self.stack:
            parts.append("call stacks")
        if self.where is not None:
            parts.append(f"where {self.where.text}")
        return "; ".join(parts)

    # for the kernel program

    def setup(self) -> Setup:
        """What the kernel program is told.

        Returns:
            Its constants, those left out that stay as they are, and the entries of its tables.
        """
        from kcap.readers.live.bpf.program import Setup

        constants, tables = self._scopes()
        # Only processes that are tracked matter then, and the kernel asks for nothing else.
        tracked = bool(self.scope.roots) or self.scope.new
        if tracked:
            known = sorted(self.subjects.members)[:TRACKED_ENTRIES]
            tables["tracked"] = {struct.pack("=I", pid): b"\x01" for pid in known}
        constants |= {
            "scoped": int(bool(constants) or tracked),
            "want_tracked": int(tracked),
            "track_new": int(self.scope.new),
            "track_matches": int(self.scope.follow and not tracked and bool(constants)),
            "writes_only": int(self.opens == WRITES),
            "environment": self.environment.level,
            "stacks": int(self.stack),
        }
        return Setup(self.events, constants, tables, lambda: members(self.scope)[:TRACKED_ENTRIES])

    @cached_property
    def demands(self) -> Mapping[str, Demand]:
        """What the kernel may test: every event that is wanted meets it.

        Where descendants are followed, that is those must meet that they descend from.
        """
        known = choosing.arguments()
        ours = self.matching if self.scope.follow else self.filter
        found = {} if ours is None else dict(necessary(ours, known).demands)
        if self.where is not None and not self.scope.follow:
            needed = dict(necessary(self.where, known).demands)
            for column in _told_otherwise(self.where):
                needed.pop(column, None)
            found = dict((Necessary(found) & Necessary(needed)).demands)
        admits = self.scope.containers.admits
        strange = [n for n, container in self.subjects.cgroups.items() if not admits(container)]
        if strange:
            found["cgroup_id"] = found.get("cgroup_id", Demand()) & Demand(frozenset(strange))
        return found

    def _scopes(self) -> tuple[dict[str, int], dict[str, Mapping[bytes | int, bytes | int]]]:
        """The constants and tables of the kernel's scopes."""
        constants: dict[str, int] = {}
        tables: dict[str, Mapping[bytes | int, bytes | int]] = {}
        for column, demand in self.demands.items():
            if column in RANGED and (demand.low > 0 or demand.high < _U32):
                low, high = int(max(demand.low, 0)), int(max(min(demand.high, _U32), -1))
                least, greatest = (low, high) if low <= high else (1, 0)
                constants |= {f"{column}_min": least, f"{column}_max": greatest}
            keys = _keys(column, demand)
            if keys is None or (len(keys) > SCOPE_ENTRIES and not demand.others):
                continue
            table = _TABLES[column][0]
            constants[f"unequal_{table}" if demand.others else f"equals_{table}"] = 1
            value = _UNEQUAL if demand.others else _EQUAL
            tables[f"scope_{table}"] = dict.fromkeys(keys[:SCOPE_ENTRIES], value)
        return constants, tables


def select(
    *,
    choices: Iterable[Choice] = (),
    scopes: Iterable[str] = (),
    opens: str | None = None,
    environment: Environment | None = None,
    stack: bool = False,
    where: Filter | None = None,
    real: Callable[[str], str] = str,
) -> Selection:
    """Decide what is recorded.

    Args:
        choices: The events; a filter that names events chooses them where nothing else does.
        scopes: Whose, in Tracee's words (`kcap.readers.live.scopes`).
        opens: ``all`` or ``writes``; None for writes where opens are recorded by default only.
        environment: The variables that executions are recorded with; None for the default.
        stack: Record the addresses of the call stack.
        where: Only events for which this is true.
        real: Gives for the path of a binary the one that the kernel has: without links.

    Returns:
        The selection.

    Raises:
        ScopeError: A scope can't be understood.
        KcapError: There is no such event, or none is left.
    """
    scope = parse(scopes, choosing.arguments())
    if scope.where is not None:
        scope = replace(scope, where=_resolved(scope.where, real))
    of_events = [(name, _resolved(expr, real)) for name, expr in scope.of_events]
    asked, notes = [*choices, *scope.choices], []
    wanted = None if where is None else named_in(where)
    if wanted is not None and all(choice.drop for choice in asked):
        asked = [*map(Choice, sorted(wanted)), *asked]
        if not wanted:
            notes.append("the filter is true of no event that is recorded")
    chosen = choosing.choose(asked, of_events)
    if chosen.unseen:
        names = ", ".join(chosen.unseen)
        notes.append(f"no recorder sees {names}; the other events are recorded")
    if where is not None:
        kept = chosen.events & _recorded_for(where)
        text = choosing.DEFAULT if wanted is None and not asked else chosen.text
        chosen = replace(chosen, events=kept, text=text)
    return Selection(
        chosen,
        scope,
        opens or (ALL if chosen.opens else WRITES),
        environment or Environment(),
        stack,
        where,
        tuple(notes),
    )


def named_in(where: Filter) -> frozenset[str] | None:
    """The events that a filter names.

    Args:
        where: The filter.

    Returns:
        Those that can be recorded; None where it does not say which, but maybe which not.
    """
    known = choosing.arguments()
    demand = necessary(where, [*known, _UNHEARD]).of(pushdown.EVENT)
    if _UNHEARD in demand:
        return None
    return frozenset(name for name in known if name in demand)


def _recorded_for(where: Filter) -> frozenset[str]:
    """The events for which a filter may be true, or for one that is derived from them."""
    known = choosing.arguments()
    demand = necessary(where, known).of(pushdown.EVENT)
    found = {name for name in known if name in demand}
    views = found & named([where])
    return frozenset(found.union(*(choosing.derived()[name] for name in views)))


def _told_otherwise(where: Filter) -> frozenset[str]:
    """Columns in which events that a filter names differ from those that they are views of.

    Those that always come need not be thought of.
    """
    names = named([where])
    entries = [e for e in views(choosing.FAMILY) if e.event in names and e.base not in STATE]
    return frozenset(column for entry in entries for column, _ in entry.columns)


def _filter(parts: Sequence[Expr]) -> Filter | None:
    """A filter of conditions, all of which must hold."""
    if not parts:
        return None
    return Filter.of(text_of(parts[0] if len(parts) == 1 else And(tuple(parts))))


def _resolved(node: Expr, real: Callable[[str], str]) -> Expr:
    """A condition in which paths of binaries are those that the kernel has, too."""
    if isinstance(node, And | Or):
        return replace(node, parts=tuple(_resolved(part, real) for part in node.parts))
    if isinstance(node, Not):
        return replace(node, inner=_resolved(node.inner, real))
    if not isinstance(node, Binary) or node.left != FieldRef(TEXTS["binary"]):
        return node
    if node.op not in (Op.EQ, Op.IN):
        return node
    items = node.right.items if isinstance(node.right, ListOf) else (node.right,)
    given = [item for item in items if isinstance(item, Literal)]
    both = tuple(dict.fromkeys([*given, *(Literal(real(str(item.value))) for item in given)]))
    return replace(node, op=Op.IN, right=ListOf(both)) if len(both) > 1 else node


def _keys(column: str, demand: Demand) -> list[bytes] | None:
    """The values of a demand as the kernel has them; None where they tell it nothing."""
    if column not in _TABLES or (demand.others and demand.values <= {None}):
        return None
    form = _TABLES[column][1]
    if column != pushdown.NAME:
        most = 1 << 8 * form.size
        return [form.pack(v) for v in sorted(demand.values - {None}) if 0 <= v < most]
    names = sorted(demand.values - {None})
    # What is no UTF-8 is shown with backslashes.
    plain = [name for name in names if "\\" not in name and "\0" not in name]
    if not demand.others:
        if len(plain) < len(names):
            return None
        plain.append("")  # a thread without a name may be given that of its process
    encoded = dict.fromkeys(name.encode() for name in plain)
    return [form.pack(name) for name in encoded if len(name) <= _NAME_BYTES]
