"""Events for Fibratus's rules, made of nothing but their conditions.

The generator does not look at what the loader makes of a rule: it takes the condition as the parser
gives it, finds values for the columns that its comparisons ask for, and asks the interpreter. A
field that no capture has (the call stack, say) is given by its name, as ``field:NAME``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from itertools import combinations, islice, product
from typing import Any, NamedTuple

from fibratus_rules_oracle import Row, blank, true_of, value_of

from kcap.detect.event import field as resolve
from kcap.filter.check import Checked, Resolved, check
from kcap.filter.fields import Source
from kcap.filter.interpret import holds
from kcap.filter.interpret import value as evaluated
from kcap.filter.syntax import (
    And,
    Binary,
    Bound,
    Call,
    Expr,
    FieldRef,
    ListOf,
    Literal,
    Not,
    Op,
    Or,
    children,
    text_of,
)
from kcap.filter.syntax import Sequence as Steps
from kcap.model import naming

_BRANCHES = 120
_POOL = 160
_SWEEPS = 4


class UnsolvedError(Exception):
    """No event was found for a condition; says why."""


# the generator


class Atom(NamedTuple):
    """A comparison that must hold, or must not."""

    expr: Expr
    wanted: bool


def solve(condition: Checked, variables: Mapping[str, Any], seed: int = 0) -> Row:
    """An event of which a condition is true."""
    last = "no way to make it true"
    for branch in islice(_branches(condition.expr, wanted=True), _BRANCHES):
        for event in _events(branch, condition):
            row = _search(branch, condition, variables, event, seed)
            if row is not None and true_of(condition, row, variables):
                return row
            last = f"no values for {event}"
    raise UnsolvedError(last)


def _branches(expr: Expr, *, wanted: bool) -> Iterator[list[Atom]]:
    """Ways in which an expression is true, or false: comparisons that decide it."""
    if isinstance(expr, Not):
        yield from _branches(expr.inner, wanted=not wanted)
    elif isinstance(expr, And | Or) and isinstance(expr, And) is wanted:
        ways = [list(islice(_branches(part, wanted=wanted), 12)) for part in expr.parts]
        for chosen in product(*ways):
            yield [atom for atoms in chosen for atom in atoms]
    elif isinstance(expr, And | Or):
        for part in expr.parts:
            yield from _branches(part, wanted=wanted)
    else:
        yield [Atom(expr, wanted)]


def _events(branch: Sequence[Atom], condition: Checked) -> list[str]:
    """The events that a branch may be about."""
    named: set[str] | None = None
    for expr, wanted in branch:
        if isinstance(expr, Binary) and isinstance(expr.left, FieldRef) and wanted:
            names = condition.fields[expr.left].field.name in ("evt.name", "kevt.name")
            if names and expr.op in (Op.EQ, Op.IN):
                found = set(map(str, _constants(expr.right)))
                named = found if named is None else named & found
    return sorted(named or ())


def _constants(expr: Expr) -> list[Any]:
    if isinstance(expr, Literal):
        return [expr.value]
    return [item.value for item in expr.items] if isinstance(expr, ListOf) else []


def _search(
    branch: Sequence[Atom],
    condition: Checked,
    variables: Mapping[str, Any],
    event: str,
    seed: int,
) -> Row | None:
    """Values of columns for which all comparisons are as they must be, by going uphill."""
    row = blank(event)
    pools: dict[str, list[Any]] = {}
    for expr, wanted in branch:
        for ref, values in _demands(expr, condition, variables, wanted=wanted):
            for column, value in _columns(condition.fields[ref], values, row):
                pool = pools.setdefault(column, [None])
                if value not in pool:
                    pool.append(value)
    pools.pop("event", None)
    for expr, _ in branch:
        together = [
            c for ref in _refs(expr) for c, _ in _columns(condition.fields[ref], ["x"], row)
        ]
        if isinstance(expr, Binary) and len(set(together)) > 1:
            every = [value for column in together for value in pools.get(column, ())]
            for column in together:
                pools[column] = list(dict.fromkeys([*pools.get(column, ()), *every]))
    for column in pools:
        pools[column] = _mixed(column, pools[column])[:_POOL]

    def score(made: Row) -> int:
        filled = {name: value for name, value in made.items() if value is not None}
        part = condition.fields
        return sum(
            holds(expr, lambda ref: value_of(filled, part[ref]), variables) is wanted
            for expr, wanted in branch
        )

    chance = random.Random(seed)
    best = score(row)
    for _ in range(_SWEEPS):
        if best == len(branch):
            break
        for column in chance.sample(sorted(pools), len(pools)):
            for value in pools[column]:
                tried = {**row, column: value}
                if (now := score(tried)) > best:
                    row, best = tried, now
        items = [column for column in sorted(pools) if "[]" in column]
        for one, other in combinations(items, 2) if best < len(branch) else ():
            for first, second in product(pools[one][:40], pools[other][:40]):
                tried = {**row, one: first, other: second}
                if (now := score(tried)) > best:
                    row, best = tried, now
    if best < len(branch):
        return None
    return {name: value for name, value in row.items() if value is not None}


def _demands(
    expr: Expr, condition: Checked, variables: Mapping[str, Any], *, wanted: bool
) -> Iterator[tuple[FieldRef, list[Any]]]:
    """Fields that a comparison asks for, with values that may make it as it must be."""
    if isinstance(expr, FieldRef):
        yield expr, [True] if wanted else [False]
    elif isinstance(expr, Call) and expr.name == "foreach":
        yield from _each(expr)
    elif isinstance(expr, Binary):
        right = _constants(expr.right)
        if not _refs(expr.right):
            said = evaluated(expr.right, lambda _: None, variables)
            right = right or ([] if said is None else [getattr(said, "number", said)])
        if isinstance(expr.left, Call) and expr.left.name == "count":
            yield from _counted(expr.left)
        for ref in _refs(expr.left):
            yield ref, _fitting(expr.op, right, _kind(condition, ref))
        for ref in _refs(expr.right):
            yield ref, _fitting(expr.op, [], _kind(condition, ref))
    else:
        for ref in _refs(expr):
            values = [value for part in children(expr) for value in _constants(part)]
            yield ref, _fitting(Op.EQ, values, _kind(condition, ref))


def _counted(expr: Call) -> Iterator[tuple[FieldRef, list[Any]]]:
    """Lists that have one to three items like a pattern."""
    words = [
        word for part in expr.arguments for c in _constants(part) for word in _texts(Op.MATCHES, c)
    ]
    for ref in _refs(expr):
        yield ref, [(word,) * count for word in words for count in (1, 2, 3)]


class Item(dict[str, Any]):
    """An item of a list that ``foreach`` goes through."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def _each(expr: Call) -> Iterator[tuple[FieldRef, list[Any]]]:
    """What ``foreach`` goes through, with one item of which its predicate is true."""
    over, variable, predicate = expr.arguments[:3]
    assert isinstance(variable, Bound)
    named: dict[str, FieldRef] = {}
    if isinstance(over, Call):
        for name, ref in zip(over.arguments[::2], over.arguments[1::2], strict=True):
            assert isinstance(name, Literal)
            assert isinstance(ref, FieldRef)
            named[str(name.value)] = ref
    for branch in islice(_branches(predicate, wanted=True), 8):
        pools: dict[str, list[Any]] = {}
        for inner, _ in branch:
            if isinstance(inner, Binary) and isinstance(inner.left, Bound):
                found = _fitting(inner.op, _constants(inner.right), "text")
                pools.setdefault(inner.left.path, []).extend(found)
        for values in islice(product(*pools.values()), 2000):
            item = Item(zip(pools, values, strict=True))
            if holds(predicate, lambda _: None, {variable.name: item}):
                if isinstance(over, FieldRef):
                    yield over, [(item,)]
                for path, ref in named.items():
                    yield ref, [(item.get(path),)]
                break


def _refs(expr: Expr) -> list[FieldRef]:
    if isinstance(expr, FieldRef):
        return [expr]
    return [ref for part in children(expr) for ref in _refs(part)]


def _kind(condition: Checked, ref: FieldRef) -> str:
    return condition.fields[ref].field.type


def _fitting(op: Op, constants: Sequence[Any], kind: str) -> list[Any]:
    """Values that may be what an operator asks for, and some that are not."""
    found: list[Any] = []
    for constant in constants:
        if isinstance(constant, int | Decimal) and not isinstance(constant, bool):
            number = int(constant)
            found += [number, number + 1, number - 1]
        elif isinstance(constant, str):
            found += _texts(op, constant)
        else:
            found.append(constant)
    usual: dict[str, list[Any]] = {
        "number": [7, 77, 0, 5000, 70_000],
        "bool": [True, False],
        "ip": [IPv4Address("93.184.216.34"), IPv4Address("127.0.0.1"), IPv4Address("10.0.0.5")],
        "list": ["x", "C:\\Odd\\odd.exe"],
        "any": [7, "odd"],
    }
    texts = ["odd", "C:\\Odd\\odd.exe", "HKEY_LOCAL_MACHINE\\Odd\\Odd", "Success", "K1"]
    found = [*found, *usual.get(kind, texts)]
    if kind == "list":
        found = [value if isinstance(value, tuple) else (value,) for value in found]
        every = tuple(word for word in constants if isinstance(word, str))
        return [every, *found, *((one[0], "b", "c") for one in found if isinstance(one[0], str))]
    return found


def _texts(op: Op, constant: str) -> list[str]:
    """Texts that a constant may be found in."""
    base = op.base
    if base is Op.MATCHES:
        return [constant.replace("?", "C").replace("*", filler) for filler in ("x1", "", "x.y")]
    if base is Op.STARTSWITH:
        return [constant + "x1"]
    if base is Op.ENDSWITH:
        return ["C:\\Odd\\odd" + constant, constant]
    if base is Op.CONTAINS:
        return [f"a {constant} b", constant]
    return [constant, constant + "x"]


def _mixed(column: str, pool: list[Any]) -> list[Any]:
    """Values, and such as join parts of two of them."""
    mixed = dict.fromkeys(pool)
    texts = [value for value in pool if isinstance(value, str)]
    if column.endswith("cmdline"):
        mixed |= dict.fromkeys(f"{a} {b}" for a, b in islice(product(texts[:40], texts), 2000))
    folders = dict.fromkeys(text.rpartition("\\")[0] for text in texts if "\\" in text)
    names = dict.fromkeys(text.rpartition("\\")[2] for text in texts)
    ends = dict.fromkeys("x1." + text.rpartition(".")[2] for text in texts if "." in text)
    for folder, name in product(list(folders)[:14], [*names, *ends][:30]):
        mixed[f"{folder}\\{name}"] = None
    lists = [value for value in pool if isinstance(value, tuple)]
    mixed |= dict.fromkeys(a + b for a, b in islice(product(lists, lists), 60))
    if lists and isinstance(lists[0][:1], tuple):
        mixed[tuple(dict.fromkeys(word for one in lists for word in one))] = None
    return list(mixed)


def _columns(resolved: Resolved, values: Sequence[Any], row: Row) -> Iterator[tuple[str, Any]]:
    """Where the values of a field stand in an event."""
    if not resolved.field.sources:
        for value in values:
            yield f"field:{resolved.field.name}", value
        return
    for source in resolved.field.sources:
        when = source.when
        if when is not None and (row.get(when.column) in when.values) == when.unless:
            continue
        for value in values:
            made = _inverse(source, resolved.key, value)
            if made is not None:
                yield _column(source), made
        return


def _column(source: Source) -> str:
    prefix, _, name = source.column.partition(":")
    if prefix == "arg":
        return naming.argument(name)
    return naming.extension(name) if prefix == "ext" else source.column


def _inverse(source: Source, key: str, value: Any) -> Any:
    """A value that a function makes another one of."""
    function = source.function
    if isinstance(value, IPv4Address | IPv6Address):
        value = str(value)
    if function == "basename":
        return value if "\\" in value else f"C:\\Odd\\{value}"
    if function == "extension":
        return f"C:\\Odd\\odd{value}"
    if function == "split":
        return " ".join(f'"{word}"' if " " in word else word for word in map(str, value))
    if function == "capitalized":
        return value[:1].lower() + value[1:]
    if function == "text":
        return value if isinstance(value, str) else None
    if function.startswith("value["):
        return json.dumps({function[6:-1]: value})
    if function == "variables":
        inner = value[0] if isinstance(value, tuple) else value
        return json.dumps({key: inner} if key else {str(inner): "x"})
    return value


# sequences


class Scene:
    """A sequence of a rule, as the parser gives it."""

    def __init__(self, tree: Steps, text: str) -> None:
        self.tree = tree
        aliases = [step.alias for step in tree.steps]
        self.steps = [
            check(step.expr, text, 3, [alias for alias in aliases[:number] if alias])
            for number, step in enumerate(tree.steps)
        ]
        self.by = [step.by or tree.by for step in tree.steps]
        self.aliases = aliases
        self.maxspan_ns = tree.maxspan.ns if tree.maxspan else 4 * 3600 * 10**9

    @property
    def bound(self) -> bool:
        """Whether steps ask for earlier ones."""
        return any(_all_bounds(one.expr) for one in self.steps)

    def solve(self) -> list[Row]:
        """An event for each step; times come later."""
        problems = []
        for leader in range(len(self.steps)):
            for seed in range(3):
                try:
                    return self._solve(leader, seed)
                except UnsolvedError as error:
                    problems.append(f"from step {leader + 1}: {error}")
        raise UnsolvedError(problems[-1])

    def _solve(self, leader: int, seed: int) -> list[Row]:
        """An event for each step, joined by what the leader's event has."""
        key: list[Any] = [None] * len(self.by[0])
        rows: list[Row | None] = [None] * len(self.steps)
        order = [leader, *(n for n in range(len(self.steps)) if n != leader)]
        for number in order:
            rows[number] = row = self.step(number, key, self.variables(rows), seed)
            if number == leader:
                key = [self._key(row, ref) for ref in self.by[number]]
        made = [row for row in rows if row is not None]
        for number in range(len(made)):
            if not true_of(self.steps[number], made[number], self.variables(rows)):
                raise UnsolvedError(f"step {number + 1} asks for a step that was found later")
        return made

    def step(
        self, number: int, key: Sequence[Any], variables: Mapping[str, Any], seed: int = 0
    ) -> Row:
        """An event for a step whose join key is given, where it is."""
        step = self.steps[number]
        parts: list[Expr] = [step.expr]
        fields = dict(step.fields)
        for ref, value in zip(self.by[number], key, strict=True):
            fields[ref] = resolve(text_of(ref), 3)[1]
            exists = Call("exists", (ref,))
            parts.append(exists if value is None else Binary(Op.EQ, ref, Literal(value)))
        for path in self._asked(self.aliases[number]):
            fields[path] = resolve(text_of(path), 3)[1]
            parts.append(Call("exists", (path,)))
        joined = Checked(And(tuple(parts)), fields, 3)
        try:
            return solve(joined, variables, seed)
        except UnsolvedError as error:
            raise UnsolvedError(f"step {number + 1}: {error}") from None

    def _asked(self, alias: str) -> list[FieldRef]:
        """What later steps ask a step for."""
        bounds = [bound for one in self.steps for bound in _all_bounds(one.expr)]
        paths = {bound.path for bound in bounds if alias and bound.name == alias}
        return [resolve(path, 3)[0] for path in sorted(paths)]

    def variables(self, rows: Sequence[Row | None]) -> dict[str, Any]:
        """What later steps ask for, by alias."""
        found: dict[str, Any] = {}
        for number, alias in enumerate(self.aliases):
            row = rows[number]
            if alias and row is not None:
                paths = {bound.path for one in self.steps for bound in _all_bounds(one.expr)}
                found[alias] = {p: value_of(row, resolve(p, 3)[1]) for p in paths if p}
        return found

    def _key(self, row: Row, ref: FieldRef) -> Any:
        value = value_of(row, resolve(text_of(ref), 3)[1])
        return getattr(value, "number", value)

    def may_be(self, row: Row, number: int, rows: Sequence[Row]) -> bool:
        """Whether an event is one of a step."""
        return true_of(self.steps[number], row, self.variables(rows))


def _all_bounds(expr: Expr) -> list[Bound]:
    own = [expr] if isinstance(expr, Bound) and expr.path else []
    return own + [found for part in children(expr) for found in _all_bounds(part)]
