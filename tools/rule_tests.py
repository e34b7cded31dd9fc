"""Tests of rules: YAML that says which alerts come of a capture, or of a few events.

::

    run: [./rules, TRC-2]        # files, folders and IDs, as of --rules; default Tracee's first 14
    cases:
      - name: a debugger hides
        capture: hides.kcap      # or events: a list, as kcap.detect.feed takes it
        expect:                  # all alerts, in order; of each what matters
          - rule: TRC-2
            process_name: strace
      - name: nothing else
        events: [{event: open, ts: 1, pid: 7, arguments: {pathname: /tmp/x}}]
        expect: []
      - name: all that is said
        capture: hides.kcap
        golden: hides.jsonl      # the alerts as kcap detect --format jsonl prints them
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kcap import trust
from kcap.detect import feed
from kcap.detect.engine import Detections
from kcap.detect.rule import Rule
from kcap.documents import Node, documents
from kcap.errors import KcapError, LimitError
from kcap.model import naming
from kcap.tools import ruleset

if TYPE_CHECKING:
    from kcap.model.batch import Batch
    from kcap.model.stream import Source

SUFFIXES: Final = (".test.yml", ".test.yaml")
"""How a file of tests is called, so that it can lie beside rules."""

FILES_MAX: Final = 10_000
FILE_BYTES: Final = 16 << 20

_FILE: Final = frozenset({"run", "signatures", "cases"})
_CASE: Final = frozenset({"name", "capture", "events", "expect", "golden"})
_SHORT: Final = {"id": "alert_id", "version": "rule_version", "data": "alert_data"}


@dataclass(frozen=True)
class Case:
    """One test."""

    file: Path
    line: int
    name: str
    rules: tuple[Rule, ...]
    capture: Path | None
    events: Sequence[Mapping[str, Any]] | None
    expect: Sequence[Mapping[str, Any]] | None
    golden: Path | None

    def alerts(self) -> bytes:
        """Run the rules.

        Returns:
            The alerts as JSON lines.

        Raises:
            KcapError: The capture can't be read, an event understood, or a rule fails.
        """
        if self.events is not None:
            return alerts_of(feed.source(self.events), self.rules)
        from kcap.opening import open_source

        assert self.capture is not None
        with closing(open_source(self.capture)) as source:
            return alerts_of(source, self.rules)


@dataclass
class Outcome:
    """What became of a test."""

    case: Case
    found: bytes = b""
    """The alerts."""
    wrong: list[str] = field(default_factory=list)
    """What was not as expected; empty where the test passes."""
    updated: bool = False
    """The golden file was written."""


def alerts_of(source: Source, rules: Sequence[Rule]) -> bytes:
    """The alerts of rules over events.

    Args:
        source: The events; not closed.
        rules: The rules.

    Returns:
        JSON lines, as ``kcap detect`` prints them.

    Raises:
        KcapError: A rule fails, or something was lost.
    """
    from kcap.replay.pipeline import Pipeline
    from kcap.writers.jsonl import JsonLines

    out = io.BytesIO()
    detections = Detections(rules)
    summary = Pipeline(source, [JsonLines(out)], taps=[detections], stages=[_NoEvents()]).run()
    for problem in detections.problems:
        raise problem.error
    for loss in summary.losses:
        raise KcapError(f"{loss.kind}: {loss.reason}", file=source.info.file)
    return out.getvalue()


def found_in(paths: Sequence[Path]) -> list[Case]:
    """Read tests.

    Args:
        paths: Files, and folders in which files of tests are looked for by name.

    Returns:
        The tests, in order of file names.

    Raises:
        KcapError: A file can't be understood, or rules that it names can't run.
    """
    found: list[Case] = []
    count = 0
    for path in paths:
        each = [path]
        if path.is_dir():
            each = [one for one in sorted(path.rglob("*")) if one.name.endswith(SUFFIXES)]
        count += len(each)
        if count > FILES_MAX:
            raise LimitError(f"more than {FILES_MAX:,} files of tests", file=str(path))
        for file in each:
            found += read(file)
    return found


def read(path: Path) -> Iterator[Case]:
    """Read a file of tests.

    Args:
        path: The file.

    Yields:
        Its tests.

    Raises:
        KcapError: It can't be understood, or rules that it names can't run.
    """
    trust.check(path)
    try:
        if path.stat().st_size > FILE_BYTES:
            raise LimitError(f"a file of tests of more than {FILE_BYTES:,} bytes", file=str(path))
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "no UTF-8"
        raise KcapError(f"it can't be read: {what}", file=str(path)) from error
    for document in documents(text, str(path)):
        said = _mapping(document, _FILE, path, "a file of tests")
        cases = said.get("cases")
        if cases is None or not isinstance(cases.value, tuple):
            raise _wrong(path, cases or document, "it has no cases", "cases: and a list")
        rules = _rules(said, path)
        for node in cases.value:
            yield _case(node, rules, path)


def run(case: Case, *, update: bool = False) -> Outcome:
    """Run a test.

    Args:
        case: The test.
        update: Write its golden file, where it has one and that is not the same.

    Returns:
        What became of it.
    """
    made = Outcome(case)
    try:
        made.found = case.alerts()
    except KcapError as error:
        made.wrong.append(str(error))
        return made
    if case.expect is not None:
        alerts = [json.loads(line) for line in made.found.splitlines()]
        made.wrong += compared(alerts, case.expect)
    if case.golden is None:
        return made
    try:
        old = case.golden.read_bytes() if case.golden.is_file() else None
        if update and old != made.found and not made.wrong:
            case.golden.write_bytes(made.found)
            made.updated = True
        elif old != made.found:
            made.wrong += _golden(case.golden, old, made.found)
    except OSError as error:
        made.wrong.append(f"{case.golden}: {error.strerror}")
    return made


def compared(alerts: Sequence[Mapping[str, Any]], expect: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not as expected.

    Args:
        alerts: The alerts, as their JSON has them.
        expect: Of each in order what matters: columns, with or without ``arg_``; ``id``,
            ``version`` and ``data`` for short.

    Returns:
        Lines; none where all is as expected.
    """
    found = []
    for number, (alert, one) in enumerate(zip(alerts, expect, strict=False), 1):
        for name, value in one.items():
            other = _value(alert, name)
            if other != value:
                found.append(f"alert {number}: {name} is {_json(other)}, expected {_json(value)}")
    if len(alerts) != len(expect):
        names = ", ".join(str(alert["arg_rule"]) for alert in alerts)
        found.append(f"{len(alerts)} alerts, expected {len(expect)}: {names or 'none'}")
    return found


class _NoEvents:
    """Leaves alerts alone: a stage."""

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        return batch.slice(0, 0)


def _golden(golden: Path, old: bytes | None, found: bytes) -> list[str]:
    """How alerts differ from a golden file."""
    if old is None:
        return [f"{golden} is not there: --update writes it"]
    import difflib

    lines = difflib.unified_diff(
        old.decode("utf-8", "replace").splitlines(),
        found.decode("utf-8", "replace").splitlines(),
        str(golden),
        "now",
        lineterm="",
        n=0,
    )
    return [f"the alerts are not those of {golden}: --update if they should be", *lines]


def _value(alert: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any JSON
    if name in alert:
        return alert[name]
    return alert.get(naming.argument(_SHORT.get(name, name)))


def _rules(said: Mapping[str, Node], path: Path) -> tuple[Rule, ...]:
    """The rules that a file of tests names; paths are those beside it."""
    node, signatures = said.get("run"), said.get("signatures")
    names = [] if node is None else _texts(node, path, "run")
    chosen = None if signatures is None else _texts(signatures, path, "signatures")[0]
    if chosen is not None and chosen not in ruleset.SETS:
        assert signatures is not None
        expected = ", ".join(ruleset.SETS)
        raise _wrong(path, signatures, f"no set of signatures is called {chosen!r}", expected)
    beside = [str(path.parent / name) for name in names]
    words = [b if Path(b).exists() else n for b, n in zip(beside, names, strict=True)]
    found = ruleset.selected(words, chosen)
    for problem in found.problems:
        raise problem.error
    return tuple(found.rules)


def _case(node: Node, rules: tuple[Rule, ...], path: Path) -> Case:
    said = _mapping(node, _CASE, path, "a case")
    plain = {name: one.plain() for name, one in said.items()}
    if ("capture" in said) == ("events" in said):
        raise _wrong(path, node, "a case has one input", "capture: FILE, or events: and a list")
    if "expect" not in said and "golden" not in said:
        raise _wrong(path, node, "a case expects nothing", "expect: and a list, or golden: FILE")
    files = {
        name: path.parent / _texts(said[name], path, name)[0] if name in said else None
        for name in ("capture", "golden")
    }
    expect = plain.get("expect")
    if "expect" in said:
        if not isinstance(expect, list):
            raise _wrong(path, said["expect"], "'expect' is no list", "[] for no alerts")
        expect = [{"rule": one} if isinstance(one, str) else one for one in expect]
        if not all(isinstance(one, dict) for one in expect):
            raise _wrong(path, said["expect"], "an alert is none", "a rule's ID, or a mapping")
    events = plain.get("events")
    if "events" in said and not (
        isinstance(events, list) and all(isinstance(one, dict) for one in events)
    ):
        raise _wrong(path, said["events"], "'events' is no list of mappings", None)
    name = str(plain.get("name") or (files["capture"] or path).name)
    return Case(path, node.line, name, rules, files["capture"], events, expect, files["golden"])


def _mapping(node: Node, known: frozenset[str], path: Path, what: str) -> Mapping[str, Node]:
    expected = f"some of {', '.join(sorted(known))}"
    if not isinstance(node.value, dict):
        raise _wrong(path, node, f"{what} is no mapping", expected)
    for name in node.value:
        if name not in known:
            at = node.value[name].line
            raise KcapError(
                f"{what} has {name!r}, which nobody knows",
                file=str(path),
                line=at,
                expected=expected,
            )
    found: Mapping[str, Node] = node.value
    return found


def _texts(node: Node, path: Path, name: str) -> list[str]:
    plain = node.plain()
    each = plain if isinstance(plain, list) else [plain]
    if not each or not all(isinstance(one, str) and one for one in each):
        raise _wrong(path, node, f"{name!r} is no text", None)
    return each


def _wrong(path: Path, node: Node, what: str, expected: str | None) -> KcapError:
    return KcapError(what, file=str(path), line=node.line, expected=expected)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
