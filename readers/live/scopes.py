"""Tracee's words for what to record: ``uid=0``, ``comm=bash,sh``, ``openat.args.pathname=/tmp*``.

All of them hold at once; of one thing that is said to be equal to several values, any will do,
whether they stand in one list or in several expressions. What each says becomes a condition in
the language of filters; what the kernel can test of it beforehand is found there
(`kcap.filter.pushdown`). Only trees of processes and new containers are no matter of one event.

====================================== =========================================================
``uid`` ``pid`` ``mntns`` ``pidns``     numbers: ``=`` and ``!=`` with a list, ``<`` ``<=`` ``>``
                                       ``>=`` with one
``comm`` ``uts`` ``user`` ``binary``    text: ``=`` and ``!=`` with a list, a ``*`` at either end
``container``                          an id or the beginning of one, or a name; by itself any
                                       container, ``!container`` the host, ``container=new``
                                       those that start later
``pid=new``                            processes that start later, and nothing else
``tree=PID``                           that process and all its descendants; ``tree!=PID`` others
``follow``                             all descendants, too, of what the rest is about
``event`` ``set``                      which events; ``-NAME`` and ``event!=NAME`` are left out
``EVENT.args.NAME`` ``EVENT.retval``   only those events of this kind; likewise ``data`` for
                                       ``args``, and ``scope`` or ``context`` for whose they are
====================================== =========================================================
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn

from kcap.filter import FilterError, fields
from kcap.filter.syntax import And, Binary, Call, Expr, FieldRef, ListOf, Literal, Not, Op, Or

NUMBERS: Final = {"uid": "uid", "pid": "pid", "mntns": "mount_ns", "pidns": "pid_ns"}
"""Scopes of numbers, and the column that each is about."""

TEXTS: Final = {"comm": "process_name", "uts": "host", "user": "user", "binary": "exe"}
"""Scopes of texts."""

_SHORT: Final = {
    **dict.fromkeys(["bin", "exe", "exec", "executable"], "binary"),
    **dict.fromkeys(["s", "sets", "tag"], "set"),
    **dict.fromkeys(["e", "events"], "event"),
    "c": "comm",
    "p": "pid",
    "u": "uid",
}
_KNOWN: Final = (*NUMBERS, *TEXTS, "container", "tree", "follow", "event", "set")
_NAME_BYTES: Final = 15
"""The kernel keeps no more of a thread's name."""

_EXPRESSION: Final = re.compile(
    r"(?P<not>!?)(?P<name>[^!=<>]+)(?:(?P<op>!=|<=|>=|=|<|>)(?P<rest>.*))?"
)
_ID: Final = re.compile(r"[0-9a-f]{8,64}")
_INTEGER: Final = re.compile(r"-?\d{1,20}|0[xX][0-9a-fA-F]{1,16}")
_BINARY: Final = re.compile(r"(?:(?P<ns>host|\d+):)?(?P<path>.*)", re.DOTALL)


class ScopeError(FilterError):
    """A scope that can't be understood."""

    def __str__(self) -> str:
        """One line; the notes below it show the place."""
        return super().__str__().replace("the filter: ", "the scope: ", 1)


class Choice(NamedTuple):
    """Events as they were asked for."""

    name: str
    """Of an event or a set, or a pattern."""
    drop: bool = False
    """They are left out."""
    sets_only: bool = False
    """A set is meant, whatever event has that name."""


@dataclass(frozen=True, slots=True)
class Containers:
    """Which containers are meant, as far as their control groups tell."""

    only: bool = False
    """Nothing outside of containers."""
    host: bool = False
    """Nothing inside of one."""
    new: bool = False
    """Only containers that start later."""
    ids: tuple[str, ...] = ()
    """How ids begin, where not all are meant."""

    @property
    def restricts(self) -> bool:
        """Whether not everything is meant."""
        return self.only or self.host or self.new or bool(self.ids)

    def admits(self, container_id: str | None) -> bool:
        """Whether a control group that was there at the start is one of these.

        Args:
            container_id: The container that it is of, None for none.

        Returns:
            False where nothing in it is recorded.
        """
        if self.new:
            return False
        if container_id is None:
            return not self.only
        return not self.host and (not self.ids or container_id.startswith(self.ids))


@dataclass(frozen=True, slots=True)
class Scope:
    """What expressions say together."""

    where: Expr | None = None
    """What the rows of all events must meet."""
    roots: frozenset[int] = frozenset()
    """Processes that are meant with their descendants; where there are any, nothing else is."""
    others: frozenset[int] = frozenset()
    """Processes that are not meant, with their descendants."""
    new: bool = False
    """Only processes that start later."""
    follow: bool = False
    """Descendants of processes that are meant are, too."""
    containers: Containers = Containers()
    choices: tuple[Choice, ...] = ()
    """Which events."""
    of_events: tuple[tuple[str, Expr], ...] = ()
    """Conditions for the events of one name only."""
    texts: tuple[str, ...] = ()
    """The expressions, as they were given."""

    @property
    def tracks(self) -> bool:
        """Whether it is about descent, not about each event by itself."""
        return bool(self.roots or self.others or self.new or self.follow)


@dataclass
class _Said:
    """What has been read so far."""

    known: Mapping[str, Collection[str]]
    """The arguments of each event."""
    equal: dict[tuple[str, str], list[Expr]] = field(default_factory=dict)
    """What things may equal, by the event that this is said of, "" for all, and the thing."""
    conditions: list[tuple[str, Expr]] = field(default_factory=list)
    """What else holds, likewise."""
    roots: set[int] = field(default_factory=set)
    others: set[int] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)
    ids: list[str] | None = None
    choices: list[Choice] = field(default_factory=list)

    def note(self, part: _Part, key: str, condition: Expr, event: str = "") -> None:
        """Values that a thing may equal add up; all else holds at once.

        Args:
            part: The expression.
            key: The thing.
            condition: What it says.
            event: The event that it is about; empty for all.
        """
        if part.op == "=":
            self.equal.setdefault((event, key), []).append(condition)
        else:
            self.conditions.append((event, condition))


@dataclass(frozen=True, slots=True)
class _Part:
    """One expression, cut into its parts."""

    text: str
    negated: bool
    name: str
    op: str
    values: tuple[str, ...]

    def fail(
        self, what: str, shown: str = "", *, expected: str | None = None, hint: str | None = None
    ) -> NoReturn:
        """Refuse it.

        Args:
            what: What is wrong.
            shown: The part of the text that is.
            expected: What would have been right.
            hint: What to do.

        Raises:
            ScopeError: Always.
        """
        at = max(0, self.text.rfind(shown)) if shown else 0
        length = len(shown) or len(self.text)
        raise ScopeError(what, self.text, at, at + length, expected=expected, hint=hint)


def parse(texts: Iterable[str], known: Mapping[str, Collection[str]]) -> Scope:
    """Read expressions.

    Args:
        texts: The expressions, in Tracee's spellings of any release.
        known: The names of all events, with the names of their arguments.

    Returns:
        What they say together.

    Raises:
        ScopeError: One of them can't be understood.
    """
    texts = tuple(texts)
    said = _Said(known)
    for text in texts:
        _read(_cut(text.strip()), said)
    conditions = [(event, _any(each)) for (event, _), each in said.equal.items()]
    conditions += said.conditions
    return Scope(
        _all([condition for event, condition in conditions if not event]),
        frozenset(said.roots),
        frozenset(said.others),
        "new process" in said.flags,
        "follow" in said.flags,
        Containers(
            bool(said.flags & {"container", "new container"}) or said.ids is not None,
            "host" in said.flags,
            "new container" in said.flags,
            tuple(said.ids or ()) if all(map(_ID.fullmatch, said.ids or ())) else (),
        ),
        tuple(said.choices),
        tuple((event, condition) for event, condition in conditions if event),
        texts,
    )


def is_expression(text: str) -> bool:
    """Whether a word among names of events says more than a name."""
    return re.search("[=<>]", text) is not None


def _cut(text: str) -> _Part:
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        hint = "as in uid=0, comm=bash,sh or openat.args.pathname=/tmp*"
        raise ScopeError(f"{text!r} is no scope", text, 0, len(text), hint=hint)
    op, rest = match["op"] or "", match["rest"] or ""
    name = match["name"].strip()
    part = _Part(text, bool(match["not"]), _SHORT.get(name, name), op, tuple(rest.split(",")))
    if op and "" in part.values:
        part.fail("a value is missing", expected=f"{match['name']}{op}VALUE")
    if op not in ("=", "!=", "") and len(part.values) > 1:
        part.fail(f"{op!r} takes one value", rest)
    if part.negated and op:
        part.fail("'!' stands before a name without a value", expected=f"{name}!={rest}")
    return part


def _read(part: _Part, said: _Said) -> None:
    """Understand one expression."""
    if part.name in ("event", "set"):
        _read_events(part, said)
    elif part.name == "container":
        _read_container(part, said)
    elif part.name == "tree":
        _read_tree(part, said)
    elif part.name == "follow":
        if part.op or part.negated:
            part.fail("'follow' takes no value", expected="follow")
        said.flags.add("follow")
    elif part.name == "pid" and part.values == ("new",):
        if part.op != "=":
            part.fail("only 'pid=new' asks for new processes", expected="pid=new")
        said.flags.add("new process")
    elif part.name in NUMBERS or part.name in TEXTS:
        _need_value(part)
        said.note(part, part.name, _condition(part))
    elif "." in part.name:
        _read_event_condition(part, said)
    else:
        near = difflib.get_close_matches(part.name, [*_KNOWN, *_SHORT], 1)
        if part.name in said.known and not part.op:
            near = [f"event={part.name}"]
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_KNOWN)}"
        part.fail(f"no scope is called {part.name!r}", part.name, hint=hint)


def _need_value(part: _Part) -> None:
    if not part.op:
        part.fail(f"{part.name!r} needs a value", part.name, expected=f"{part.name}=VALUE")


def _read_events(part: _Part, said: _Said) -> None:
    if part.op not in ("=", "!="):
        part.fail(f"{part.name!r} takes names", expected=f"{part.name}=NAME,...")
    drop, sets_only = part.op == "!=", part.name == "set"
    said.choices += [Choice(name, drop, sets_only) for name in part.values]


def _read_container(part: _Part, said: _Said) -> None:
    if not part.op:
        said.flags.add("host" if part.negated else "container")
        inside: Expr = Call("exists", (FieldRef("container_id"),))
        said.conditions.append(("", Not(inside) if part.negated else inside))
        return
    if part.op not in ("=", "!="):
        part.fail(f"{part.op!r} is for numbers", part.op, expected="container=ID or container=new")
    if part.op == "=" and part.values == ("new",):
        said.flags.add("new container")
        said.conditions.append(("", Call("exists", (FieldRef("container_id"),))))
        return
    if part.op == "=" and part.values == ("started",):
        part.fail("when a container has come up is not known", hint="'container' asks for any")
    parts: list[Expr] = []
    for value in part.values:
        if _ID.fullmatch(value):
            parts.append(Binary(Op.STARTSWITH, FieldRef("container_id"), Literal(value)))
        else:
            parts.append(_text_is(part, "container_name", value))
    if part.op == "!=":
        said.conditions.append(("", Not(_any(parts))))
        return
    said.ids = [*(said.ids or ()), *part.values]
    said.note(part, part.name, _any(parts))


def _read_tree(part: _Part, said: _Said) -> None:
    if part.op not in ("=", "!="):
        part.fail("'tree' takes ids of processes", expected="tree=PID or tree!=PID")
    numbers = {_number(part, value) for value in part.values}
    (said.roots if part.op == "=" else said.others).update(numbers)


def _read_event_condition(part: _Part, said: _Said) -> None:
    """``EVENT.args.NAME=VALUE`` and its kin."""
    event, _, rest = part.name.partition(".")
    if event == "threat":
        part.fail("threats are of detections, not of what is recorded", part.name)
    if event not in said.known:
        near = difflib.get_close_matches(event, said.known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "--list-events prints those there are"
        part.fail(f"no event is called {event!r}", event, hint=hint)
    kind, _, name = rest.partition(".")
    if kind in ("args", "data") and name:
        condition = _argument_condition(part, name, said.known[event])
    elif kind in ("scope", "context") and name:
        condition = _context_condition(part, name)
    elif rest in ("retval", "returnValue"):
        _need_value(part)
        condition = _number_condition(part, "retval")
    elif name:
        part.fail(f"{kind!r} is nothing of an event", kind, expected="args, retval or scope")
    else:
        condition = _argument_condition(part, rest, said.known[event])
    if Choice(event) not in said.choices:
        said.choices.append(Choice(event))
    said.note(part, rest, condition, event)


def _argument_condition(part: _Part, name: str, arguments: Collection[str]) -> Expr:
    if name not in arguments:
        near = difflib.get_close_matches(name, arguments, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(arguments) or 'none'}"
        part.fail(f"{part.name.partition('.')[0]} has no argument {name!r}", name, hint=hint)
    _need_value(part)
    column = f"args.{name}"
    if part.op in ("=", "!="):
        made: list[Expr] = []
        for value in part.values:
            if _INTEGER.fullmatch(value):
                # An argument may hold the number, or the text of it.
                items = (Literal(int(value, 0)), Literal(value))
                made.append(Binary(Op.IN, FieldRef(column), ListOf(items)))
            else:
                made.append(_text_is(part, column, value))
        return _any(made) if part.op == "=" else Not(_any(made))
    return _number_condition(part, column)


def _context_condition(part: _Part, name: str) -> Expr:
    """A condition on whose event it is."""
    name = _SHORT.get(name, name)
    if name == "container" and not part.op:
        inside: Expr = Call("exists", (FieldRef("container_id"),))
        return Not(inside) if part.negated else inside
    _need_value(part)
    if name in NUMBERS or name in TEXTS:
        return _condition(part, name)
    known = fields.lookup(name, 3)
    if known is None:
        near = fields.near(name)
        hint = f"did you mean {near[0]!r}?" if near else None
        part.fail(f"an event has no {name!r}", name, hint=hint)
    if known.type == "number":
        return _number_condition(part, name)
    return _text_condition(part, name)


def _condition(part: _Part, name: str = "") -> Expr:
    """A condition on a number or a text."""
    name = name or part.name
    if name in NUMBERS:
        return _number_condition(part, NUMBERS[name])
    return _text_condition(part, TEXTS[name])


def _number_condition(part: _Part, column: str) -> Expr:
    numbers = tuple(Literal(_number(part, value)) for value in part.values)
    if part.op in ("=", "!="):
        found = Binary(Op.IN, FieldRef(column), ListOf(numbers))
        return found if part.op == "=" else Not(found)
    return Binary(Op(part.op), FieldRef(column), numbers[0])


def _number(part: _Part, value: str) -> int:
    if not _INTEGER.fullmatch(value):
        hint = f"user={value} asks for a name" if part.name == "uid" else None
        part.fail(f"{value!r} is no number", value, hint=hint)
    return int(value, 0) if value.lower().startswith("0x") else int(value)


def _text_condition(part: _Part, column: str) -> Expr:
    if part.op not in ("=", "!="):
        part.fail(f"{part.op!r} is for numbers", part.op, expected=f"{part.name}=TEXT")
    found = _any([_text_is(part, column, value) for value in part.values])
    return found if part.op == "=" else Not(found)


def _text_is(part: _Part, column: str, value: str) -> Expr:
    """Equality with a text that may have a ``*`` at either end."""
    where: Expr | None = None
    if column == TEXTS["binary"]:
        match = _BINARY.fullmatch(value)
        assert match is not None
        value, where = match["path"], _mount_ns(match["ns"])
    bare = value.removeprefix("*") if value != "*" else ""
    open_left, open_right = bare != value, bare.endswith("*") or value == "*"
    bare = bare.removesuffix("*")
    if "*" in bare:
        part.fail("a '*' stands at the beginning or at the end", value)
    if column == TEXTS["comm"] and len(bare.encode()) > _NAME_BYTES:
        short = bare.encode()[:_NAME_BYTES].decode("utf-8", "ignore")
        what = f"the kernel keeps {_NAME_BYTES} bytes of a name"
        part.fail(what, value, hint=f"give {short!r}")
    ops = {(False, False): Op.EQ, (False, True): Op.STARTSWITH, (True, False): Op.ENDSWITH}
    op = ops.get((open_left, open_right), Op.CONTAINS)
    found: Expr = Binary(op, FieldRef(column), Literal(bare))
    return found if where is None else And((where, found))


def _mount_ns(said: str | None) -> Expr | None:
    """What stands before the path of a binary: a mount namespace, or ``host``."""
    if said is None:
        return None
    if said == "host":
        return Not(Call("exists", (FieldRef("container_id"),)))
    return Binary(Op.EQ, FieldRef("mount_ns"), Literal(int(said)))


def _any(parts: Sequence[Expr]) -> Expr:
    """What holds where one part does; equalities with one field become a list."""
    if len(parts) == 1:
        return parts[0]
    items: list[Literal] = []
    fields_: set[Expr] = set()
    for part in parts:
        if not isinstance(part, Binary) or part.op not in (Op.EQ, Op.IN):
            return Or(tuple(parts))
        fields_.add(part.left)
        items += part.right.items if isinstance(part.right, ListOf) else ()
        items += [part.right] if isinstance(part.right, Literal) else ()
    if len(fields_) > 1:
        return Or(tuple(parts))
    return Binary(Op.IN, fields_.pop(), ListOf(tuple(dict.fromkeys(items))))


def _all(parts: Sequence[Expr]) -> Expr | None:
    """What holds where all parts do."""
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else And(tuple(parts))
