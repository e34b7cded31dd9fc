"""The columns that a name means, in events and in the tables of a state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kcap.errors import KcapError
from kcap.model import catalogue, naming

FIXED: Final = ("origin", "ord", "ts", "kind", "source", "shape")
"""What an event is found, told apart and given back by: no transformer changes it."""

_PREFIXES: Final = (f"{naming.ARGUMENT}_", f"{naming.EXTENSION}_")

_TWINS: Final = {
    ("processes", "name"): ("process_name", "parent_name", "arg_process_name", "arg_name"),
    ("processes", "cmdline"): ("cmdline", "arg_cmdline", "arg_command_line", "arg_comm"),
    ("processes", "exe"): ("exe", "arg_exe"),
    ("processes", "user"): ("user", "arg_user", "arg_username", "arg_sid"),
    ("processes", "start_ns"): ("process_start_ns",),
    ("processes", "parent_key"): ("process_key",),
    ("threads", "name"): ("process_name", "parent_name"),
    ("threads", "ptid"): ("tid",),
    ("fds", "name"): ("fd_name", "arg_pathname", "arg_path", "arg_name", "arg_filename"),
    ("fds", "type"): ("fd_type",),
    ("handles", "name"): ("arg_handle_name", "arg_object_name", "arg_file_name", "arg_key_name"),
    ("users", "name"): ("user", "arg_user", "arg_username", "arg_sid"),
    ("sockets", "process_name"): ("process_name", "parent_name"),
    ("namespaces", "name"): ("process_name", "parent_name"),
    ("groups", "name"): (),
    ("modules", "name"): (),
    ("bpf_programs", "name"): (),
    ("interfaces", "name"): (),
}
"""A column of a table, and the columns of events that hold the same; others have the same name."""

_OWN: Final = frozenset({"machine", "provenance", "type", "id", "state", "flags", "size"})
"""Columns of tables that mean something else than an argument of that name."""


_SAME_ELSEWHERE: Final = {"cmdline": ("arg_args", "arg_argv", "arg_command_line")}
"""A name of the envelope, and the arguments that have the same under another name."""


class Names:
    """Columns as a user named them.

    A name of the envelope is that column. Any other is that of an argument, as its source spells
    it: all columns of the argument, of whatever class. ``arg_NAME``, ``ext_NAME`` and a full name
    as ``arg_flags__str`` are our own names of columns.

    Args:
        given: The names.
        what: What is done to them, for errors.
        both: A name of the envelope means the arguments of that name, too, and those that have the
            same: ``cmdline`` also the list of arguments that it was made of.

    Raises:
        KcapError: What identifies an event is among them.
    """

    def __init__(self, given: Iterable[str], what: str, *, both: bool = False) -> None:
        self.given = tuple(given)
        for name in self.given:
            check(name, what)
        bases = {base_of(n) for n in self.given if not _is_exact(n)}
        own = {naming.argument(b) for b in bases & catalogue.envelope().keys() if both}
        self.bases = frozenset(bases | own)
        self._as = {n: base for base in bases if both for n in _SAME_ELSEWHERE.get(base, ())}
        self._exact = frozenset(n for n in self.given if _is_exact(n))
        self._of: dict[str, str | None] = {}
        self._tables: dict[tuple[str, str], bool] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.given)

    def has(self, column: str) -> bool:
        """Whether a column of events is among them.

        Args:
            column: Its name; that of a ``__raw`` or ``__size`` goes with the column it belongs to.

        Returns:
            True where it is.
        """
        return self.named(column) is not None

    def named(self, column: str) -> str | None:
        """The name by which a column is among them.

        Args:
            column: As for `has`.

        Returns:
            The base or the full name, None for no such column.
        """
        if column not in self._of:
            self._of[column] = self._find(column)
        return self._of[column]

    def has_in(self, table: str, column: str) -> bool:
        """Whether a column of a state's table holds what one of them holds.

        Args:
            table: The table's name.
            column: The column's.

        Returns:
            True where it does.
        """
        key = (table, column)
        if key not in self._tables:
            self._tables[key] = any(self.has(name) for name in _same(table, column))
        return self._tables[key]

    def unmet(self) -> list[str]:
        """The names that meant no column so far of those that were asked about."""
        met = set(self._of.values())
        return [n for n in self.given if base_of(n) not in met and n not in met]

    def _find(self, column: str) -> str | None:
        base, suffixes = naming.parts(column)
        if base in self.bases:
            return base
        if base in self._as:
            return self._as[base]
        while suffixes:
            name = "__".join((base, *suffixes))
            if name in self._exact:
                return name
            if suffixes.pop() not in {naming.RAW, naming.SIZE}:
                break
        return None


def check(name: str, what: str) -> None:
    """Refuse what no transformer may change.

    Args:
        name: A name.
        what: What would be done to it.

    Raises:
        KcapError: It is part of what identifies an event.
    """
    if not name:
        raise KcapError(f"{what}: an empty name", expected="a column or a parameter")
    if naming.parts(name)[0] in FIXED:
        others = f"an argument of that name is {naming.argument(name)!r}"
        what = f"{what}: {name!r} is part of what identifies an event"
        raise KcapError(what, expected="another column", hint=others)


def base_of(name: str) -> str:
    """The column base that a name means.

    Args:
        name: A column's or a parameter's name.

    Returns:
        The base.
    """
    if name in catalogue.envelope() or name.startswith(_PREFIXES):
        return name
    return naming.argument(name)


def _is_exact(name: str) -> bool:
    """Whether a name says the class too, and so means one column only."""
    base, suffixes = naming.parts(name)
    known = base in catalogue.envelope() or base.startswith(_PREFIXES)
    return known and bool(suffixes) and catalogue.class_of(name) is not None


def _same(table: str, column: str) -> Iterable[str]:
    base, *suffixes = column.split("__")
    end = "".join(f"__{s}" for s in suffixes)
    if base in _OWN:
        return ()
    twins = _TWINS.get((table, base), (base, naming.argument(base)))
    return [f"{twin}{end}" for twin in twins]
