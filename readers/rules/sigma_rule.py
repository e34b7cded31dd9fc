"""What a document of Sigma says of itself, whether a rule, a correlation or a filter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

from kcap.detect.rule import About, Selector
from kcap.documents import Node
from kcap.errors import BadInputError
from kcap.readers.rules.sigma_pipelines import Target

KIND: Final = "sigma"

_TECHNIQUE: Final = re.compile(r"t\d{4}(?:\.\d{3})?", re.IGNORECASE)
_SEVERITIES: Final = {
    "INFORMATIONAL": "low",
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
    "CRITICAL": "critical",
}
_WORD: Final = re.compile(r"[\w-]+")
_QUOTED: Final = re.compile("'([^']+)'")
_CONDITION: Final = re.compile(r"\bcondition|not defined in|doesn't match any", re.IGNORECASE)
_GRAMMAR: Final = re.compile(r"Expected .*, found (.+?)\s+\(at char \d+\), \(line:\d+, col:(\d+)\)")
"""What the parser of conditions says, which names its own grammar."""
_MODIFIER: Final = re.compile(r"\bSigma\w+Modifier\b")


@dataclass(frozen=True, slots=True)
class Document:
    """A document: a rule, a correlation or a filter."""

    path: str
    node: Node
    value: Mapping[str, Any]
    """What it says, as Python's own objects."""

    @classmethod
    def of(cls, path: str, node: Node) -> Document:
        """Take what was read.

        Args:
            path: The file's name.
            node: A document of it.

        Returns:
            It.

        Raises:
            BadInputError: It is no mapping.
        """
        if not isinstance(node.value, dict):
            expected = "title, logsource, detection ..."
            what = "a document is no mapping"
            raise BadInputError(what, file=path, line=node.line, expected=expected)
        return cls(path, node, node.plain())

    @property
    def line(self) -> int:
        """Where it begins, from 1."""
        return self.node.line

    def line_of(self, *keys: str) -> int:
        """Where a value stands.

        Args:
            keys: The keys that lead to it; of a list's items the numbers.

        Returns:
            Its line; of one that is not there that of what it would be in.
        """
        node = self.node
        for key in keys:
            inner = dict(_inner(node)).get(key)
            if inner is None:
                break
            node = inner
        return node.line

    def places(self) -> Iterator[tuple[str, ...]]:
        """The keys that lead to each value, in their order.

        Yields:
            Those of mappings; lists count as mappings of numbers.
        """
        todo: list[tuple[tuple[str, ...], Node]] = [((), self.node)]
        while todo:
            keys, node = todo.pop()
            if keys:
                yield keys
            todo += [((*keys, name), inner) for name, inner in reversed(list(_inner(node)))]


@dataclass(slots=True)
class Written:
    """A document that pySigma has read."""

    document: Document
    parsed: Any
    id: str

    def error(
        self, what: str, *keys: str, expected: str | None = None, hint: str | None = None
    ) -> BadInputError:
        """What is wrong with it.

        Args:
            what: What.
            keys: Where, by the keys that lead there.
            expected: What would have been right.
            hint: What helps.

        Returns:
            The error.
        """
        line, file = self.document.line_of(*keys), self.document.path
        whole = f"the rule {self.id}: {what}"
        return BadInputError(whole, file=file, line=line, expected=expected, hint=hint)


class Wanted(NamedTuple):
    """Events of one pipeline that a rule wants."""

    target: Target
    selector: Selector


def _inner(node: Node) -> Iterable[tuple[str, Node]]:
    """What is in a value, by key or number."""
    if isinstance(node.value, dict):
        return node.value.items()
    if isinstance(node.value, tuple):
        return ((str(number), one) for number, one in enumerate(node.value))
    return ()


def recorded(wanted: Iterable[Wanted]) -> frozenset[str] | None:
    """The events that kcap's own recorder has to record.

    Args:
        wanted: What a rule wants.

    Returns:
        Their names; None where it records nothing of the kind.
    """
    found = [one.target.events for one in wanted if one.target.events is not None]
    return frozenset[str]().union(*found) if found else None


def about_of(written: Written, more: Mapping[str, Any]) -> About:
    """What is said of a rule.

    Args:
        written: The rule.
        more: Details that its source does not say.

    Returns:
        It.
    """
    parsed = written.parsed
    tags = tuple(str(tag) for tag in parsed.tags)
    attack = (tag.partition(".")[2] for tag in tags if tag.lower().startswith("attack."))
    dated = parsed.modified or parsed.date
    details = {
        "author": parsed.author,
        "license": parsed.license,
        "status": parsed.status.name.lower() if parsed.status else None,
        "falsepositives": [str(each) for each in parsed.falsepositives or ()],
        "fields": [str(each) for each in parsed.fields or ()],
        **more,
    }
    return About(
        id=written.id,
        name=parsed.title,
        version=str(dated) if dated else "1",
        description=(parsed.description or "").strip(),
        severity=_SEVERITIES[parsed.level.name] if parsed.level else "medium",
        tags=tags,
        techniques=tuple(name.upper() for name in attack if _TECHNIQUE.fullmatch(name)),
        references=tuple(str(each) for each in parsed.references or ()),
        kind=KIND,
        file=written.document.path,
        line=written.document.line,
        details={key: value for key, value in details.items() if value},
    )


def id_of(document: Document) -> str:
    """The id of a rule.

    Args:
        document: Where it is written.

    Returns:
        Its id; of one without one its name, or its title.
    """
    value = document.value
    found = value.get("id") or value.get("name") or value.get("title")
    return str(found or f"{document.path}:{document.line}")


def refused(document: Document, error: Exception) -> BadInputError:
    """Say what pySigma found wrong.

    Args:
        document: Where.
        error: What it raised.

    Returns:
        An error that names file, line and rule.
    """
    from sigma.exceptions import SigmaError

    what, expected = str(error).strip() or type(error).__name__, None
    if match := _GRAMMAR.search(what):
        what = f"its condition can't be understood at character {match[2]}, {match[1]}"
        expected = "names of detections with 'and', 'or', 'not', '1 of', 'all of'"
    elif not isinstance(error, SigmaError):
        what = f"pySigma can't read it ({type(error).__name__}: {what})"
    what = _MODIFIER.sub(lambda found: _modifiers().get(found[0], found[0]), what)
    line = document.line_of(*place_of(document, what))
    whole = f"the rule {id_of(document)}: {what}"
    return BadInputError(whole, file=document.path, line=line, expected=expected)


@cache
def _modifiers() -> Mapping[str, str]:
    """The modifiers as rules write them, by the classes that errors name."""
    from sigma.modifiers import modifier_mapping

    return {kind.__name__: repr(name) for name, kind in modifier_mapping.items()}


def place_of(document: Document, text: str) -> tuple[str, ...]:
    """Where an error probably is.

    Args:
        document: Where the rule is written.
        text: What is wrong.

    Returns:
        The keys that lead to the modifier, the field or the part that the text names.
    """
    words = {*_WORD.findall(text), *_QUOTED.findall(text)}
    if "pattern" in words or "expression" in words:
        words.add("re")
    if "logsource" in words or {"log", "source"} <= words:
        return ("logsource",)
    if _CONDITION.search(text):
        body = "correlation" if "correlation" in document.value else "detection"
        return (body, "condition")
    bodies = ("detection", "filter", "correlation")
    inner = [keys for keys in document.places() if keys[0] in bodies]
    by_modifier = [keys for keys in inner if words.intersection(keys[-1].split("|")[1:])]
    by_name = [keys for keys in inner if keys[-1].partition("|")[0] in words]
    above = {"id" if word == "identifier" else word.lower() for word in words}.difference(bodies)
    of_rule: list[tuple[str, ...]] = [(name,) for name in document.value if name in above]
    return next(iter(by_modifier + by_name + of_rule), ("detection",))
