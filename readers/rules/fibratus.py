"""Fibratus's rules: files of 2.x and 3.x with a rule each, groups of 1.x, and macros.

Macros may stand in any file, so rules are made when all files are read. What a rule does besides
alerting is told in its alerts and never done.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

from kcap.detect.rule import Problem, Rule
from kcap.documents import RULES, Node, documents
from kcap.errors import BadInputError, KcapError
from kcap.filter.parser import MacroTable
from kcap.readers.rules.fibratus_rule import Group, Macro, Written, rules

_SNIFF: Final = re.compile(r"^(?:min-engine-version:|(?:-\s+|\s+)(?:macro|group):)", re.MULTILINE)

_RULE: Final = frozenset(
    {
        "action", "authors", "condition", "description", "enabled", "id", "labels",
        "min-engine-version", "name", "notes", "output", "references", "severity", "tags",
        "version",
    }
)  # fmt: skip
_OF_GROUP: Final = _RULE | {"def"}
_GROUP: Final = frozenset(
    {
        "description", "enabled", "from-strings", "group", "labels", "policy", "references",
        "relation", "rules", "selector", "tags",
    }
)  # fmt: skip
_MACRO: Final = frozenset({"description", "expr", "list", "macro"})
_LISTS: Final = frozenset({"authors", "references", "tags"})
_TEXTS: Final = replace(RULES, is_typed=False)
_YES: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass
class FibratusRules:
    """Reads Fibratus's rules (`kcap.detect.rule.Loader`).

    Example:
        >>> loader = FibratusRules()
        >>> macro = "{macro: spawn_process, expr: evt.name = 'CreateProcess'}"
        >>> list(loader.load(f"[{macro}]", "m.yml"))
        []
        >>> rule = "{name: a, id: b, condition: spawn_process, min-engine-version: 3.0.0}"
        >>> list(loader.load(rule, "r.yml"))
        []
        >>> [rule.about.name for rule in loader.finish()]
        ['a']
    """

    kind: ClassVar[str] = "fibratus"
    suffixes: ClassVar[tuple[str, ...]] = (".yml", ".yaml")

    _macros: dict[str, Macro] = field(default_factory=dict)
    _groups: list[Group] = field(default_factory=list)

    @staticmethod
    def sniff(text: str, path: str) -> bool:
        """See `kcap.detect.rule.Loader`."""
        del path
        return _SNIFF.search(text) is not None

    def load(self, text: str, path: str) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`."""
        problems: list[Rule | Problem] = []
        try:
            for document in documents(text, path, _TEXTS):
                for entry in document.items:
                    try:
                        problems += self._entry(entry, path)
                    except KcapError as error:
                        problems.append(_refused(error, entry, path))
        except KcapError as error:
            if "{{" in text and error.hint is None:
                error.hint = "is it a template of Go? Give what Fibratus makes of it on its host"
            problems.append(Problem(error))
        return problems

    def finish(self) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`."""
        macros, groups = self._macros, self._groups
        self._macros, self._groups = {}, []
        table = MacroTable(
            {name: macro.expr for name, macro in macros.items() if macro.expr is not None},
            {name: list(macro.items) for name, macro in macros.items() if macro.expr is None},
        )
        return rules(groups, table, macros)

    def _entry(self, entry: Node, path: str) -> Iterator[Problem]:
        """A rule, a group or a macro."""
        if entry.get("macro") is not None:
            self._macro(entry, path)
        elif entry.get("group") is not None:
            yield from self._group(entry, path)
        else:
            one = _written(entry, path, _RULE, required=("name", "id", "condition"))
            if one is not None:
                self._groups.append(Group("", path, (one,)))

    def _macro(self, entry: Node, path: str) -> None:
        keys = _keys(entry, _MACRO, "macro")
        name, expr, items = _text(keys, "macro"), keys.get("expr"), keys.get("list")
        if (expr is None) == (items is None):
            expected = "either 'expr' or 'list'"
            raise BadInputError(f"the macro {name!r}", line=entry.line, expected=expected)
        words = tuple(item.text for item in items.items) if items is not None else ()
        if items is not None and not all(words):
            expected = "a list of texts"
            raise BadInputError(f"the macro {name!r}", line=items.line, expected=expected)
        made = Macro(path, expr or entry, _text(keys, "expr") if expr else None, words)
        known = self._macros.setdefault(name, made)
        if (known.expr, known.items) != (made.expr, made.items):
            what = f"the macro {name!r} is another one in {known.path}, line {known.node.line}"
            raise BadInputError(what, line=entry.line, expected="one meaning of each name")

    def _group(self, entry: Node, path: str) -> Iterator[Problem]:
        keys = _keys(entry, _GROUP, "group")
        if not _is_enabled(keys):
            return
        policy, relation = (
            _choice(keys, "policy", ("include", "exclude")),
            _choice(keys, "relation", ("or", "and")),
        )
        name, made = _text(keys, "group"), []
        for key in ("rules", "from-strings"):
            for item in keys[key].items if key in keys else ():
                try:
                    one = _written(item, path, _OF_GROUP, required=("name",))
                except KcapError as error:
                    yield _refused(error, item, path)
                    continue
                if one is not None:
                    made.append(one)
        if "rules" not in keys and "from-strings" not in keys:
            raise BadInputError(f"the group {name!r} has no rules", line=entry.line)
        self._groups.append(
            Group(name, path, tuple(made), keys, policy == "exclude", relation == "and")
        )


def _refused(error: KcapError, entry: Node, path: str) -> Problem:
    """What is wrong with an entry, by its name where it has one."""
    name = entry.get("name")
    error.file = path
    if name is not None and name.text.strip() and repr(name.text) not in error.what:
        error.what = f"the rule {name.text.strip()!r}: {error.what}"
    return Problem(error)


def _written(
    entry: Node, path: str, known: frozenset[str], required: tuple[str, ...]
) -> Written | None:
    """A rule as it stands in its file; None of one that is switched off."""
    keys = _keys(entry, known, "rule")
    for key in required:
        if not keys.get(key, entry).text.strip():
            expected = f"'{key}: ...' as text"
            raise BadInputError(f"a rule without {key!r}", line=entry.line, expected=expected)
    condition = keys.get("condition") or keys.get("def")
    if condition is None or not condition.text.strip():
        what = f"the rule {_text(keys, 'name')!r} has no condition"
        raise BadInputError(what, line=entry.line, expected="'condition: ...'")
    if not _is_enabled(keys):
        return None
    for key in ("condition", "output", "name"):
        if "{{" in keys.get(key, entry).text:
            what = f"a template of Go stands in {key!r}"
            hint = "give what Fibratus makes of it on the host it is for"
            raise BadInputError(what, line=keys[key].line, hint=hint)
    return Written(path, entry, keys, condition)


def _keys(entry: Node, known: frozenset[str], what: str) -> Mapping[str, Node]:
    """What an entry says, by key."""
    if not isinstance(entry.value, dict):
        expected = "'name: ...', 'group: ...' or 'macro: ...'"
        raise BadInputError("this is no rule", line=entry.line, expected=expected)
    for key, node in entry.value.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise BadInputError(f"no {what} has {key!r}", line=node.line, hint=hint)
        if key in _LISTS and not all(item.text for item in node.items):
            raise BadInputError(f"{key!r}", line=node.line, expected="a list of texts")
    return entry.value


def _text(keys: Mapping[str, Node], key: str) -> str:
    node = keys.get(key)
    if node is None:
        return ""
    if not isinstance(node.value, str) or not node.value.strip():
        raise BadInputError(f"{key!r}", line=node.line, expected="text")
    return node.value.strip()


def _is_enabled(keys: Mapping[str, Node]) -> bool:
    node = keys.get("enabled")
    if node is None:
        return True
    found = _YES.get(node.text.lower())
    if found is None:
        raise BadInputError("'enabled'", line=node.line, expected="true or false")
    return found


def _choice(keys: Mapping[str, Node], key: str, words: tuple[str, ...]) -> str:
    found = _text(keys, key).lower() or words[0]
    if found not in words:
        hint = "write it as a condition: sequence maxspan 1h |...| |...|"
        raise BadInputError(
            f"{found!r} is no {key}",
            line=keys[key].line,
            expected=" or ".join(words),
            hint=hint if found == "sequence" else None,
        )
    return found
