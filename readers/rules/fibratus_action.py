"""What a rule of Fibratus does when it matches: said in alerts, and never done.

Fibratus 3.x has a list of names (``kill``, ``isolate``). In 1.x it is a template of Go whose
functions have effects: ``emit`` raises an alert, ``kill`` ends a process. Of the template that much
is understood here: literals, variables, fields of the event, and functions that join text. What it
says is then a text with places for values (`kcap.detect.text`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kcap.documents import Node
from kcap.errors import BadInputError, KcapError
from kcap.model import alert

DEPTH_MAX: Final = 32
"""Deepest nesting of parentheses in a template."""

_BLOCK: Final = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_COMMENT: Final = re.compile(r"\s*/\*.*\*/\s*", re.DOTALL)
_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)
      | (?P<number>-?\d+)
      | (?P<variable>\$\w+)
      | (?P<path>\.[A-Za-z_][\w.]*|\.)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<sign>:=|[=|()])
    )""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}
_VERB: Final = re.compile(r"%[-+# 0]*\d*(?:\.\d+)?([A-Za-z%])")
_SPACE: Final = re.compile(r"\s+")

_EVENT: Final = {
    "Category": "kevt.category",
    "CPU": "kevt.cpu",
    "Description": "kevt.desc",
    "Host": "kevt.host",
    "Name": "kevt.name",
    "PID": "kevt.pid",
    "Seq": "kevt.seq",
    "Tid": "kevt.tid",
    "Timestamp": "kevt.time",
}
_PROCESS: Final = {
    "Args": "args",
    "Cmdline": "comm",
    "Comm": "comm",
    "Cwd": "cwd",
    "Domain": "domain",
    "Exe": "exe",
    "Name": "name",
    "PID": "pid",
    "Ppid": "ppid",
    "SessionID": "sessionid",
    "SID": "sid",
    "Username": "username",
}
_FUNCTIONS: Final = ("cat", "emit", "kill", "print", "printf")


class Emit(NamedTuple):
    """An alert; its texts have places for values."""

    title: str
    text: str
    severity: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Action:
    """What a rule does when it matches."""

    emits: tuple[Emit, ...] = ()
    others: tuple[Mapping[str, Any], ...] = field(default=())
    """What Fibratus would do to the host; texts have places for values."""


def of(node: Node | None, names: Mapping[str, str]) -> Action:
    """What a rule does.

    Args:
        node: What stands under ``action``.
        names: Texts that a template may ask for: ``Group.Name``.

    Returns:
        It.

    Raises:
        KcapError: It can't be understood; the error has the line.
    """
    if node is None or not node.value:
        return Action()
    if isinstance(node.value, str):
        return _Template(node, names).action()
    found = []
    for item in node.items:
        name = item.get("name")
        if name is None or not name.text:
            expected = "a list of actions, each with a name"
            raise BadInputError("this is no action", line=item.line, expected=expected)
        found.append(item.plain())
    return Action((), tuple(found))


class _Word(NamedTuple):
    kind: str
    text: str


class _Template:
    """One template.

    Values are texts with places; a percent sign in them is written twice.
    """

    def __init__(self, node: Node, names: Mapping[str, str]) -> None:
        self._node = node
        self._names = names
        self._variables: dict[str, str] = {}
        self._emits: list[Emit] = []
        self._others: list[Mapping[str, Any]] = []
        self._words: list[_Word] = []
        self._at = 0
        self._start = 0

    def action(self) -> Action:
        """What it does."""
        text = self._node.text
        behind = 0
        for block in _BLOCK.finditer(text):
            self._outside(text[behind : block.start()], behind)
            behind, self._start = block.end(), block.start()
            if not _COMMENT.fullmatch(block[1]):
                self._block(block[1])
        self._outside(text[behind:], behind)
        return Action(tuple(self._emits), tuple(self._others))

    def _outside(self, text: str, start: int) -> None:
        if text.strip():
            self._start = start + len(text) - len(text.lstrip())
            shown = text.strip()[:40]
            raise self._error(f"{shown!r} stands outside of {{{{ }}}}", "{{ emit . 'title' ... }}")

    def _error(self, what: str, expected: str | None = None) -> KcapError:
        return BadInputError(
            f"the action's template: {what}",
            line=self._node.line_at(self._start),
            expected=expected,
        )

    def _block(self, text: str) -> None:
        self._words = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise self._error(f"{text[at:].strip()[:40]!r} is not understood")
            self._words.append(_Word(match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self._at = 0
        target = None
        if len(self._words) > 1 and self._words[1].text in (":=", "="):
            target = self._words[0].text
            self._at = 2
        value = self._pipeline(0)
        if self._at < len(self._words):
            raise self._error(f"{self._words[self._at].text!r} is not understood")
        if target is not None:
            self._variables[target] = value
        elif value:
            raise self._error("it writes text, and nobody reads that", "emit or kill")

    def _pipeline(self, depth: int) -> str:
        if depth > DEPTH_MAX:
            raise self._error(f"it is nested more than {DEPTH_MAX} deep")
        value = self._command(depth, None)
        while self._at < len(self._words) and self._words[self._at].text == "|":
            self._at += 1
            value = self._command(depth, value)
        return value

    def _command(self, depth: int, piped: str | None) -> str:
        if self._at >= len(self._words):
            raise self._error("it is empty", f"one of {', '.join(_FUNCTIONS)}")
        first = self._words[self._at]
        if first.kind != "name":
            value = self._operand(depth)
            if piped is not None:
                raise self._error(f"{first.text!r} is no function")
            return value
        if first.text not in _FUNCTIONS:
            expected = f"one of {', '.join(_FUNCTIONS)}"
            raise self._error(f"{first.text!r} is not understood", expected)
        self._at += 1
        arguments = []
        while self._at < len(self._words) and self._words[self._at].text not in ("|", ")"):
            arguments.append(self._operand(depth))
        if piped is not None:
            arguments.append(piped)
        return self._called(first.text, arguments)

    def _operand(self, depth: int) -> str:
        word = self._words[self._at]
        self._at += 1
        if word.text == "(":
            value = self._pipeline(depth + 1)
            if self._at >= len(self._words) or self._words[self._at].text != ")":
                raise self._error("a '(' is not closed")
            self._at += 1
            return value
        if word.kind == "text":
            return _literal(word.text)
        if word.kind == "number":
            return word.text
        if word.kind == "variable" and word.text in self._variables:
            return self._variables[word.text]
        if word.kind == "path":
            return self._path(word.text)
        raise self._error(f"{word.text!r} is not understood")

    def _path(self, path: str) -> str:
        """The place for a value of the event, or a text."""
        first, _, rest = path[1:].partition(".")
        if not first:
            return _DOT
        number = ""
        if first == "Kevts":
            key, _, rest = rest.partition(".")
            number = f"{key.removeprefix('k')}."
        elif first != "Kevt":
            known = self._names.get(path[1:])
            if known is None:
                expected = f".Kevt or one of {', '.join(f'.{name}' for name in self._names)}"
                raise self._error(f"{path!r} is not known", expected)
            return _percents(known)
        found = _field(rest)
        if found is None or (number and not number[:-1].isdecimal()):
            raise self._error(f"{path!r} is not known", ".Kevt.PS.Name or .Kevt.Kparams.NAME")
        return f"%{number}{found}"

    def _called(self, name: str, arguments: list[str]) -> str:
        if name == "printf":
            return self._printf(arguments)
        if name == "cat":
            return " ".join(arguments)
        if name == "print":
            return "".join(arguments)
        given = arguments[1:] if arguments and arguments[0] == _DOT else arguments
        if name == "kill":
            if len(given) != 1:
                raise self._error("kill takes a process", "kill .Kevt.PID")
            self._others.append({"name": "kill", "pid": given[0]})
            return ""
        title, text, word, *tags = (*given, "", "", "")[: max(3, len(given))]
        if not title or not text:
            raise self._error("emit takes a title and a text", 'emit . "title" "text" "critical"')
        severity = None
        if word:
            try:
                severity = alert.severity(word)
            except KcapError as error:
                raise self._error(error.what, error.expected) from error
        title, text = (_SPACE.sub(" ", value).strip() for value in (title, text))
        self._emits.append(Emit(title, text, severity, tuple(tags)))
        return ""

    def _printf(self, arguments: list[str]) -> str:
        if not arguments:
            raise self._error("printf takes a format")
        values = iter(arguments[1:])

        def verb(match: re.Match[str]) -> str:
            if match[1] == "%":
                return "%%"
            value = next(values, None)
            if value is None:
                raise self._error("printf has fewer values than its format asks for")
            return value

        made = _VERB.sub(verb, arguments[0].replace("%%", "%"))
        if next(values, None) is not None:
            raise self._error("printf has more values than its format asks for")
        return made


_DOT: Final = "\0"
"""What ``.`` alone gives: all that the template is about."""


def _literal(text: str) -> str:
    inner = text[1:-1]
    if text[0] == '"':
        inner = _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[1]), inner)
    return _percents(inner)


def _percents(text: str) -> str:
    return text.replace("%", "%%")


def _field(path: str) -> str | None:
    """The field that a path below an event leads to."""
    first, _, rest = path.partition(".")
    if first == "Kparams":
        return f"kevt.arg[{rest}]" if rest and "." not in rest else None
    if first != "PS":
        return None if rest else _EVENT.get(first)
    parent = ""
    if rest.startswith("Parent."):
        parent, rest = "parent.", rest.removeprefix("Parent.")
    name = _PROCESS.get(rest)
    return None if name is None else f"ps.{parent}{name}"
