"""YARA rules, which look at artifacts: files of ``.yar`` and ``.yara``, run by YARA-X."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from kcap.detect.rule import About, Contents, Problem, Rule
from kcap.errors import KcapError, MissingExtraError
from kcap.model.alert import SEVERITIES
from kcap.readers.rules.yara_includes import included, names

SCAN_S: Final = 30
"""What the rules may take for one artifact, in seconds."""

MATCHES: Final = 16
"""Places of a pattern that an alert tells of."""

PATTERNS: Final = 64
"""Patterns that an alert tells of."""

_CLOCK: Final = "time"
_RULE: Final = re.compile(r'(?:^|["}])[ \t]*((?:(?:private|global)\s+)*)rule\s+(\w+)', re.MULTILINE)
_PREFIX: Final = "yara:"
_TEXT_CHARS: Final = 1024


class YaraRules:
    """Reads YARA rules (`kcap.detect.rule.Loader`).

    Example:
        >>> [rule.about.id for rule in YaraRules().load("rule a { condition: true }", "a.yar")]
        ['yara:a']
    """

    kind: ClassVar[str] = "yara"
    suffixes: ClassVar[tuple[str, ...]] = (".yar", ".yara")

    def __init__(self) -> None:
        self._scanner = _Scanner()

    @staticmethod
    def sniff(text: str, path: str) -> bool:
        """See `kcap.detect.rule.Loader`."""
        del path
        try:
            return bool(_RULE.search(text) or next(names(text), None))
        except KcapError:
            return True  # reading it says what is wrong

    def load(self, text: str, path: str) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`.

        Raises:
            MissingExtraError: The extra ``yara`` is not installed.
        """
        folder, files, error = included(text, path)
        compiler = _compiler(folder)
        compiler.add_source(text, path)
        found = {match[2]: match for match in _RULE.finditer(text)}
        lines = _Lines(text)
        if error is not None:
            yield Problem(error)
        for each in _problems(compiler, text, path, lines):
            if error is None or "include" not in str(each.error):
                yield each
        space = self._scanner.add(text, path, folder)
        for one in compiler.build():
            match = found.get(one.identifier)
            if match is not None and "private" in match[1]:
                continue
            line = None if match is None else lines.at(match.start(2))
            about = _about(one, path, line)
            contents = Contents(self._scanner, f"{space}:{one.identifier}")
            yield Rule(about, (), contents=contents, includes=files)

    def finish(self) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`."""
        return ()


class _Scanner:
    """All rules that were read, which look at a content together (`kcap.detect.rule.Scanner`)."""

    def __init__(self) -> None:
        self._sources: list[tuple[str, str, Path | None]] = []
        self._made: Any = None

    def add(self, text: str, path: str, folder: Path | None) -> int:
        """Take a file of rules.

        Args:
            text: Its content.
            path: Its name.
            folder: Where the files are that it includes; None for none.

        Returns:
            What stands before the names of its rules.
        """
        self._sources.append((text, path, folder))
        self._made = None
        return len(self._sources) - 1

    def scan(self, content: bytes) -> Mapping[str, Mapping[str, Any]]:
        """See `kcap.detect.rule.Scanner`."""
        import yara_x

        if self._made is None:
            # Together they take little longer than one; but what one includes is not the others'.
            alone = [[one] for one in enumerate(self._sources) if one[1][2] is not None]
            others = [one for one in enumerate(self._sources) if one[1][2] is None]
            self._made = [_compiled(each) for each in (others, *alone) if each]
        try:
            return {
                f"{rule.namespace}:{rule.identifier}": _data(rule)
                for scanner in self._made
                for rule in scanner.scan(content).matching_rules
            }
        except yara_x.TimeoutError as e:
            raise KcapError(f"YARA rules took more than {SCAN_S} s for one") from e
        except yara_x.ScanError as e:
            raise KcapError(f"YARA rules can't look at it: {e}") from e


def _compiled(sources: Iterable[tuple[int, tuple[str, str, Path | None]]]) -> Any:  # noqa: ANN401
    """A scanner of some files, each in the namespace of its number."""
    import yara_x

    compiler: Any = None
    for number, (text, path, folder) in sources:
        compiler = compiler or _compiler(folder)
        compiler.new_namespace(str(number))
        compiler.add_source(text, path)
    made = yara_x.Scanner(compiler.build())
    made.set_timeout(SCAN_S)
    made.max_matches_per_pattern(MATCHES)
    return made


def _compiler(folder: Path | None) -> Any:  # noqa: ANN401 - yara_x.Compiler
    """A compiler that passes over bad rules.

    Args:
        folder: Where files may be included from; None for nowhere.
    """
    try:
        import yara_x
    except ImportError as e:
        raise MissingExtraError("YARA rules need yara-x", hint="pip install 'kcap[yara]'") from e
    made = yara_x.Compiler(relaxed_re_syntax=True, includes_enabled=folder is not None)
    made.ignore_invalid_rules(True)
    # What a rule says must not depend on when it is asked.
    made.ignore_module(_CLOCK)
    if folder is not None:
        made.add_include_dir(str(folder))
    return made


class _Lines:
    """The lines of a text.

    Args:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._length = len(text)

    def at(self, place: int) -> int:
        """The line of a place, counted from 1."""
        return bisect_left(self._ends, place) + 1

    def end(self, line: int) -> int:
        """Where a line ends; a line that is not there ends with the text."""
        return self._ends[line - 1] if 0 < line <= len(self._ends) else self._length


def _problems(
    compiler: Any,  # noqa: ANN401 - yara_x.Compiler
    text: str,
    path: str,
    lines: _Lines,
) -> Iterator[Problem]:
    """What is wrong with rules, and which rules they are."""
    each = list(_RULE.finditer(text))
    starts = [match.start(2) for match in each]
    for error in compiler.errors():
        labels = error.get("labels") or [{}]
        file = labels[0].get("code_origin") or path
        line = error.get("line")
        name = None
        if file == path and line is not None and "Include" not in str(error.get("type")):
            before = bisect_left(starts, lines.end(line))
            name = each[before - 1][2] if before else None
        said = f"{error.get('title')}: {labels[0].get('text')}"[:_TEXT_CHARS]
        what = said if name is None else f"the rule {name}: {said}"
        yield Problem(
            KcapError(what, file=file, line=line), None if name is None else _PREFIX + name
        )
    named = {match[2]: lines.at(match.start(2)) for match in each}
    for one in compiler.ignored_rules():
        # What the compiler has no error for: rules of a module that is left out.
        if str(one.reason) != "IgnoredRuleReason.CompileError":
            what = f"the rule {one.name} is left out: {one.message}"
            hint = "the module time asks for the time of the replay" if _CLOCK in what else None
            error_ = KcapError(what, file=path, line=named.get(one.name), hint=hint)
            yield Problem(error_, _PREFIX + one.name)


def _about(rule: Any, path: str, line: int | None) -> About:  # noqa: ANN401 - yara_x.Rule
    """What is said of a rule, by its own metadata."""
    meta = _meta(rule)
    severity = str(meta.get("severity", "")).lower()
    references = meta.get("reference")
    return About(
        id=_PREFIX + rule.identifier,
        name=rule.identifier,
        version=str(meta.get("version", "1")),
        description=str(meta.get("description", "")),
        severity=severity if severity in SEVERITIES else "medium",
        tags=tuple(rule.tags),
        references=(references,) if isinstance(references, str) else (),
        kind=YaraRules.kind,
        file=path,
        line=line,
        details={"meta": meta},
    )


def _meta(rule: Any) -> dict[str, Any]:  # noqa: ANN401 - yara_x.Rule
    """Its metadata as plain JSON values, the first of each name."""
    found: dict[str, Any] = {}
    for name, value in rule.metadata:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        found.setdefault(name, text[:_TEXT_CHARS] if isinstance(text, str) else text)
    return found


def _data(rule: Any) -> dict[str, Any]:  # noqa: ANN401 - yara_x.Rule
    """What an alert says of a match: the rule's metadata, and which patterns are where."""
    matched = [pattern for pattern in rule.patterns if pattern.matches]
    strings = [
        {
            "name": found.identifier,
            "matches": [{"offset": m.offset, "length": m.length} for m in found.matches[:MATCHES]],
        }
        for found in matched[:PATTERNS]
    ]
    said: dict[str, Any] = {"meta": _meta(rule), "strings": strings}
    if len(matched) > PATTERNS:
        said["more_strings"] = len(matched) - PATTERNS
    return said
