"""Sigma rules, the rows of event logs, rows made so that a rule hits, and SQLite's opinion."""

from __future__ import annotations

import functools
import json
import random
import re
import sqlite3
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kcap.detect.feed import source
from kcap.detect.rule import Problem, Rule
from kcap.model.batch import Batch, concat
from kcap.readers.rules.sigma import SigmaRules

pytest.importorskip("sigma.backends.sqlite", reason="needs pySigma and its SQLite backend")

from sigma import conditions, types
from sigma.backends.sqlite import sqliteBackend
from sigma.processing.conditions import LogsourceCondition
from sigma.processing.pipeline import ProcessingItem, ProcessingPipeline
from sigma.processing.transformations import (
    AddConditionTransformation,
    FieldMappingTransformation,
)
from sigma.rule import SigmaRule

Fields = Mapping[str, Any]

SYSMON = "Microsoft-Windows-Sysmon/Operational"
LINUX = "Linux-Sysmon/Operational"
EVENT_IDS = {
    "process_creation": [1],
    "file_change": [2],
    "file_event": [11],
    "file_delete": [23, 26],
    "file_executable_detected": [29],
    "registry_add": [12],
    "registry_delete": [12],
    "registry_set": [13],
    "registry_event": [12, 13, 14],
}
SECURITY = {
    "Image": "NewProcessName",
    "ParentImage": "ParentProcessName",
    "ProcessId": "NewProcessId",
    "ParentProcessId": "ProcessId",
    "User": "SubjectUserName",
    "LogonId": "SubjectLogonId",
    "IntegrityLevel": "MandatoryLabel",
}


@functools.cache
def texts(data: Path) -> dict[str, str]:
    """The rules of the archive by name."""
    with zipfile.ZipFile(data / "rules" / "sigma-process-creation.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".yml"))
        return {name: archive.read(name).decode() for name in names}


def converted(
    named: Mapping[str, str], pipelines: Iterable[str] | None = None
) -> tuple[list[Rule], list[Problem]]:
    """Rules of some files, and what is wrong with others."""
    loader = SigmaRules(None if pipelines is None else frozenset(pipelines))
    found: list[Rule | Problem] = []
    for name, text in named.items():
        found += loader.load(text, name)
    found += loader.finish()
    rules = [one for one in found if isinstance(one, Rule)]
    return rules, [one for one in found if isinstance(one, Problem)]


PROCESSES = "{product: windows, category: process_creation}"
LOGONS = {"product": "windows", "service": "security"}


def rule(detection: Mapping[str, Any], title: str = "a rule", **more: Any) -> str:
    """A rule of the Security log, as text: JSON is YAML, but for its titles."""
    body = {"logsource": LOGONS, "detection": detection, **more}
    lines = [f"{name}: {json.dumps(value)}" for name, value in body.items()]
    return "\n".join([f"title: {title}", *lines, ""])


# rows


def events_of_log(path: Path) -> list[Fields]:
    """The events of an EVTX file, flat: what the system says and what the event says."""
    from evtx import PyEvtxParser

    found: list[Fields] = []
    records: Any = PyEvtxParser(str(path)).records_json()
    for record in records:
        event = json.loads(record["data"])["Event"]
        system = event["System"]
        number = system["EventID"]
        data = event.get("EventData") or {}
        row = {
            "Channel": system["Channel"],
            "EventID": number["#text"] if isinstance(number, dict) else number,
            **{k: v for k, v in data.items() if isinstance(v, str | int) and v != ""},
        }
        found.append(row)
    return found


def batch_of_rows(rows: Sequence[Fields]) -> Batch:
    """Rows as events whose arguments are their fields."""
    events = [
        {"event": "record", "ts": number, "arguments": dict(row)} for number, row in enumerate(rows)
    ]
    return concat(list(source(events).batches()))


# rows made so that a rule hits


class Made:
    """Makes rows for one rule by going through its condition backwards."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pieces: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._same: list[tuple[str, str]] = []

    def row(self, condition: Any) -> dict[str, str]:
        """A row for which a condition may be true."""
        self._pieces.clear()
        self._same.clear()
        self._solve(condition, True)
        for pieces in self._pieces.values():
            self._rng.shuffle(pieces)
        found = {field: _composed(pieces) for field, pieces in self._pieces.items()}
        for field, other in self._same:
            found[field] = found[other] = found.get(other, found.get(field, "same"))
        return found

    def _solve(self, node: Any, wanted: bool) -> None:
        if isinstance(node, conditions.ConditionNOT):
            self._solve(node.args[0], not wanted)
        elif isinstance(node, conditions.ConditionAND | conditions.ConditionOR):
            every = isinstance(node, conditions.ConditionAND) == wanted
            for part in node.args if every else [self._rng.choice(node.args)]:
                self._solve(part, wanted)
        else:
            self._leaf(node.field, node.value, wanted)

    def _leaf(self, field: str, value: Any, wanted: bool) -> None:
        if isinstance(value, types.SigmaExpansion):
            value = self._rng.choice(value.values)
        if isinstance(value, types.SigmaNull):
            if not wanted:
                self._pieces[field].append(("part", f"any {field}"))
        elif isinstance(value, types.SigmaExists):
            if bool(value) == wanted:
                self._pieces[field].append(("part", f"any {field}"))
        elif isinstance(value, types.SigmaFieldReference):
            if wanted:
                self._same.append((field, value.field))
        elif wanted:
            self._pieces[field].append(self._piece(value))

    def _piece(self, value: Any) -> tuple[str, str]:
        if isinstance(value, types.SigmaRegularExpression):
            return "part", sampled(str(value.regexp), self._rng)
        if isinstance(value, types.SigmaCIDRExpression):
            hosts = value.network
            return "whole", str(hosts[self._rng.randrange(min(hosts.num_addresses, 1 << 16))])
        if not isinstance(value, types.SigmaString):
            return "whole", str(value)
        star = types.SpecialChars.WILDCARD_MULTI
        parts = list(value.s)
        ends = bool(parts) and parts[0] is star, len(parts) > 1 and parts[-1] is star
        inner = parts[ends[0] : len(parts) - ends[1]]
        text = "".join(part if isinstance(part, str) else "q" for part in inner)
        kinds = {(True, True): "part", (False, True): "start", (True, False): "end"}
        return kinds.get(ends, "whole"), text


def _composed(pieces: Sequence[tuple[str, str]]) -> str:
    """A text that has all pieces, where that is possible."""
    by: dict[str, list[str]] = defaultdict(list)
    for kind, text in dict.fromkeys(pieces):
        by[kind].append(text)
    if by["whole"]:
        return by["whole"][0]
    start, end = max(by["start"], key=len, default=""), max(by["end"], key=len, default="")
    return start + "".join(by["part"]) + end


def sampled(pattern: str, rng: random.Random) -> str:
    """A text that a regular expression finds something in."""
    from re import _parser  # type: ignore[attr-defined]

    return "".join(_sampled(_parser.parse(pattern), rng))


def _sampled(parsed: Any, rng: random.Random) -> Iterable[str]:
    for op, value in parsed:
        name = str(op)
        if name == "LITERAL":
            yield chr(value)
        elif name == "NOT_LITERAL":
            yield "a" if value != ord("a") else "b"
        elif name == "ANY":
            yield "a"
        elif name == "IN":
            yield rng.choice(_class(value))
        elif name == "BRANCH":
            yield from _sampled(rng.choice(value[1]), rng)
        elif name == "SUBPATTERN":
            yield from _sampled(value[3], rng)
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            for _ in range(max(value[0], min(1, value[1]))):
                yield from _sampled(value[2], rng)
        elif name != "AT":
            raise NotImplementedError(name)


def _class(items: Any) -> list[str]:
    every = [chr(code) for code in range(32, 127)]
    chosen: set[str] = set()
    negated = False
    for op, value in items:
        name = str(op)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            chosen.add(chr(value))
        elif name == "RANGE":
            chosen.update(chr(code) for code in range(value[0], value[1] + 1))
        else:
            short = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
            kind = str(value).removeprefix("CATEGORY_")
            shorthand = short[kind.removeprefix("NOT_")]
            shorthand = shorthand.upper() if kind.startswith("NOT_") else shorthand
            chosen.update(c for c in every if re.match(shorthand, c))
    return sorted(set(every) - chosen) if negated else sorted(chosen)


def mutants(row: Fields, rng: random.Random) -> list[Fields]:
    """Rows that differ from one a little: a field is missing, or longer; letters are in capitals.

    Only letters of ASCII: those are all that SQLite finds in another case.
    """
    own = sorted(row.keys() - {"Channel", "EventID"})
    one = rng.choice(own)
    capitals = {
        name: re.sub("[a-z]+", lambda m: m[0].upper(), value)
        for name, value in row.items()
        if name in own and isinstance(value, str)
    }
    without = {name: value for name, value in row.items() if name != one}
    return [without, {**row, **capitals}, {**row, one: f"x{row[one]}x"}]


def shapes(rule: SigmaRule) -> tuple[str, ...]:
    """The shapes of rows that a rule can be asked of."""
    source = rule.logsource
    if source.category not in EVENT_IDS:
        return ()
    both = source.product == "windows" and source.category == "process_creation"
    return ("sysmon", "security") if both else ("sysmon",)


def row_for(text: str, shape: str, rng: random.Random, tries: int = 40) -> Fields | None:
    """A row that SQLite says a rule hits; None where none was found."""
    rule = SigmaRule.from_yaml(text)
    source = rule.logsource
    trees = [condition.parsed for condition in rule.detection.parsed_condition]
    for _ in range(tries):
        row: dict[str, Any] = dict(Made(rng).row(rng.choice(trees)))
        if shape == "security":
            row = {SECURITY.get(name, name): value for name, value in row.items()}
            row |= {"Channel": "Security", "EventID": 4688}
        else:
            channel = SYSMON if source.product == "windows" else LINUX
            row |= {"Channel": channel, "EventID": EVENT_IDS[source.category][0]}
        if Sqlite([row]).rows(SigmaRule.from_yaml(text), shape):
            return row
    return None


# SQLite


def pipeline(shape: str) -> ProcessingPipeline:
    """What pySigma does to rules before they are asked of rows of a shape."""
    items = []
    for category, numbers in EVENT_IDS.items():
        channels = [("windows", SYSMON, numbers), ("linux", LINUX, numbers)]
        if shape == "security":
            channels = [("windows", "Security", [4688])] if category == "process_creation" else []
        for product, channel, ids in channels:
            items.append(
                ProcessingItem(
                    AddConditionTransformation({"Channel": channel, "EventID": ids}),
                    rule_conditions=[LogsourceCondition(category=category, product=product)],
                )
            )
    if shape == "security":
        items.append(ProcessingItem(FieldMappingTransformation(SECURITY)))
    return ProcessingPipeline(items=items)


class Sqlite:
    """Rows in a table, as Zircolite has them, and rules as pySigma's SQLite backend has them."""

    def __init__(self, rows: Sequence[Fields]) -> None:
        names = sorted({name for row in rows for name in row})
        self._names = {name.lower() for name in names}
        self._db = sqlite3.connect(":memory:")
        self._db.create_function("REGEXP", 2, _regexp, deterministic=True)
        columns = ", ".join(f'"{name}" TEXT COLLATE NOCASE' for name in names)
        self._db.execute(f"CREATE TABLE logs ({columns})")
        places = ", ".join("?" * len(names))
        self._db.executemany(
            f"INSERT INTO logs VALUES ({places})",
            ([row.get(name) for name in names] for row in rows),
        )

    def rows(self, rule: SigmaRule, shape: str) -> list[int]:
        """The rows for which a rule is true, by number."""
        return self.found(self.queries(rule, shape))

    def queries(self, rule: SigmaRule, shape: str) -> list[str]:
        """A rule as questions to the table."""
        backend = sqliteBackend(pipeline(shape))
        queries = backend.convert_rule(rule)
        for name in sorted(backend.required_fields(rule)):
            self._know(name)
        return [query.replace("SELECT *", "SELECT rowid", 1) for query in queries]

    def found(self, queries: Sequence[str]) -> list[int]:
        """The rows that some questions find, by number."""
        return sorted({n - 1 for query in queries for (n,) in self._db.execute(query)})

    def _know(self, name: str) -> None:
        """A column that no row has a value in."""
        if name.lower() not in self._names:
            self._names.add(name.lower())
            self._db.execute(f'ALTER TABLE logs ADD COLUMN "{name}" TEXT COLLATE NOCASE')


def _regexp(pattern: str, value: str | None) -> bool | None:
    return None if value is None else re.search(pattern, value) is not None
