"""Rules row by row: each event is put to each selector, as the interpreter has it.

Nothing of the engine is used: no columns, no candidates, no batches. A row is a dict of the columns
in which it has a value; of a field that no capture has (the call stack, say) it has the value by
name, as ``field:NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from filter_rows import field as field_of

from kcap.detect.event import field as resolve
from kcap.detect.room import Room
from kcap.detect.rule import Identity, Machine, Rule
from kcap.filter.check import Checked, Resolved
from kcap.filter.interpret import holds
from kcap.model import catalogue

Row = dict[str, Any]
"""An event: values of columns."""

ORIGIN = "0c" * 16
FAMILIES = {"fibratus": "fibratus"}
START_NS = 1_700_000_000_000_000_000


class One:
    """An event as machines see it (`kcap.detect.rule.Event`)."""

    def __init__(self, row: Row, number: int) -> None:
        self.row = row
        self.identity = Identity(ORIGIN, number)
        self.causes = (self.identity,)
        self.ts_ns = row.get("ts")
        self.name = row["event"]

    def column(self, name: str) -> Any:
        return self.row.get(name)

    def field(self, name: str, era: int | None = None) -> Any:
        return value_of(self.row, resolve(name, era)[1])

    def holds(self, condition: Checked, variables: Mapping[str, Any] = {}) -> bool:
        return true_of(condition, self.row, variables)

    def arguments(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.row.items() if name.startswith("arg_")}

    def who(self) -> dict[str, Any]:
        return {"pid": self.row.get("pid")}


class Said(NamedTuple):
    """An alert."""

    causes: tuple[int, ...]
    text: str | None
    data: Mapping[str, Any] | None


class Oracle:
    """Lets a rule look at events one by one (`kcap.detect.rule.Context`)."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.room = Room()
        self.now_ns = -(1 << 63)
        self.found: list[Said] = []
        self._event: One | None = None

    def run(self, rows: Sequence[Row]) -> list[Said]:
        assert self.rule.machine is not None
        machine: Machine = self.rule.machine()
        for number, row in enumerate(rows):
            event = self._event = One(row, number)
            self.now_ns = max(self.now_ns, row["ts"])
            for selector in reversed(range(len(self.rule.selectors))):
                if true_of(self.rule.selectors[selector].filter.checked, row):
                    machine.match(self, selector, event)
        machine.end(self)
        return self.found

    def alert(self, *, causes: Any = (), data: Any = None, text: Any = None, **_: Any) -> None:
        assert self._event is not None
        of = causes or (self._event.identity,)
        self.found.append(Said(tuple(one.ord for one in of), text, data))

    def who(self) -> Mapping[str, Any]:
        return {}

    def at(self, time_ns: int, key: object) -> None:
        raise AssertionError("a rule of Fibratus has no deadlines")

    def dropped(self, count: int = 1) -> None:
        raise AssertionError(f"{count} dropped")


def true_of(condition: Checked, row: Row, variables: Mapping[str, Any] = {}) -> bool:
    """Whether a condition holds, as the interpreter has it."""
    return holds(condition.expr, lambda ref: value_of(row, condition.fields[ref]), variables)


def value_of(row: Row, resolved: Resolved) -> Any:
    """The value of a field; of one that no capture has what the row says of it."""
    if not resolved.field.sources:
        return row.get(f"field:{resolved.field.name}")
    return field_of(row, resolved, FAMILIES)


# rows


def blank(event: str) -> Row:
    """An event of which nothing else is known."""
    known = catalogue.events("fibratus").get(event)
    row = {
        "event": event, "source": "fibratus", "host": "box", "kind": "event", "pid": 1000,
        "tid": 1004,
    }  # fmt: skip
    if known is not None:
        row |= {"category": known.category, "action": known.action}
    return row


def timed(rows: Sequence[Row], last_ns: int | None = None) -> list[Row]:
    """Events one nanosecond after the other; the last one some time after the first."""
    made = [{**row, "ts": START_NS + number} for number, row in enumerate(rows)]
    if last_ns is not None:
        made[-1]["ts"] = START_NS + last_ns
    return made


def ended(pid: int) -> Row:
    """The end of a process."""
    return blank("TerminateProcess") | {"pid": pid, "tid": pid + 4, "arg_pid": pid, "arg_ppid": 4}
