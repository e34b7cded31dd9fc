"""What a document of Sigma says of itself, whether a rule, a correlation or a filter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kcap.detect.rule import About, Selector
from kcap.errors import BadInputError
from kcap.readers.rules.sigma_pipelines import Target
from kcap.readers.rules.sigma_yaml import Document

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
_CONDITION: Final = re.compile(r"\bcondition|not defined in|doesn't match any", re.IGNORECASE)


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

    what = str(error).strip() or type(error).__name__
    if not isinstance(error, SigmaError):
        what = f"pySigma can't read it ({type(error).__name__}: {what})"
    line = document.line_of(*place_of(document, what))
    return BadInputError(f"the rule {id_of(document)}: {what}", file=document.path, line=line)


def place_of(document: Document, text: str) -> tuple[str, ...]:
    """Where an error probably is.

    Args:
        document: Where the rule is written.
        text: What is wrong.

    Returns:
        The keys that lead to the modifier, the field or the part that the text names.
    """
    words = set(_WORD.findall(text))
    if "pattern" in words or "expression" in words:
        words.add("re")
    if "logsource" in words or {"log", "source"} <= words:
        return ("logsource",)
    if _CONDITION.search(text):
        body = "correlation" if "correlation" in document.value else "detection"
        return (body, "condition")
    inner = [keys for keys in document.lines if keys[0] in ("detection", "filter", "correlation")]
    by_modifier = [keys for keys in inner if words.intersection(keys[-1].split("|")[1:])]
    by_name = [keys for keys in inner if keys[-1].partition("|")[0] in words]
    return next(iter(by_modifier + by_name), ("detection",))
