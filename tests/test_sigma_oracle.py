"""Sigma rules find what SQLite finds by pySigma's own backend, in every row."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import sigma_support as support
from sigma.rule import SigmaRule
from sigma_support import Fields, Made, Sqlite, batch_of_rows, converted, mutants, row_for, shapes

from kcap.detect.engine import Detections
from kcap.detect.feed import feed
from kcap.filter.many import Filters
from kcap.readers.rules import sigma_condition

Data = Callable[[str], Path]

NEVER = {
    # What it is equal to is no match of its regular expression.
    "proc_creation_win_xwizard_runwizard_com_object_exec.yml",
}
NO_SHAPE = {"file_access", "file_rename"}
"""Categories that are events of neither Sysmon's nor the Security log."""


@pytest.fixture(scope="module")
def texts(data: Data) -> Mapping[str, str]:
    """The rules of the archive."""
    return support.texts(data("rules/sigma-process-creation.zip").parents[1])


@pytest.fixture(scope="module")
def logged(data: Data) -> Sequence[Fields]:
    """The events of all logs that can be read whole."""
    pytest.importorskip("evtx", reason="needs evtx")
    found: list[Fields] = []
    for path in sorted(data("evtx").glob("mdecr_*.evtx")):
        found += support.events_of_log(path)
    return found


def made(named: Mapping[str, str]) -> tuple[list[Fields], set[tuple[str, str]]]:
    """Rows of which each rule hits one, rows beside them; and rules that no row was found for."""
    rng = random.Random(20)
    rows: list[Fields] = []
    missing = set()
    for name, text in named.items():
        for shape in shapes(SigmaRule.from_yaml(text)):
            row = row_for(text, shape, rng)
            if row is None:
                missing.add((Path(name).name, shape))
            else:
                rows += [row, *mutants(row, rng)]
    return rows, missing


def compared(named: Mapping[str, str], rows: Sequence[Fields]) -> tuple[list[str], int, int]:
    """Where kcap and SQLite differ; how many rules hit something, and how many pairs there are."""
    rules, problems = converted(named, ["sysmon", "security"])
    # Categories of which neither shape has events can't be asked here.
    assert {p.error.what.rpartition("category: ")[2] for p in problems} <= NO_SHAPE
    pairs = [(rule.about, one) for rule in rules for one in rule.selectors]
    found = Filters([one.filter for _, one in pairs]).rows(batch_of_rows(rows))
    table = Sqlite(rows)
    wrong, hit = [], set()
    for (about, one), ours in zip(pairs, found, strict=True):
        theirs = table.rows(SigmaRule.from_yaml(named[about.file]), one.name)
        hit |= {about.id} if len(ours) else set()
        other = sorted({*ours.tolist()} ^ {*theirs})
        wrong += [f"{about.file} {one.name}: {rows[number]}" for number in other]
    return wrong, len(hit), len(pairs) * len(rows)


def test_a_sample_of_rules_finds_what_sqlite_finds(
    texts: Mapping[str, str], logged: Sequence[Fields]
) -> None:
    """Every thirtieth rule: each row made for a rule, each beside it, each of the logs."""
    named = {name: texts[name] for name in sorted(texts)[::30]}
    rows, missing = made(named)

    wrong, hit, pairs = compared(named, [*logged, *rows])

    assert not wrong
    assert not missing
    assert hit >= 55
    assert pairs > 100_000


def test_the_comparison_can_fail(texts: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``not``, or with only the first of several values, some row differs."""
    named = {name: texts[name] for name in sorted(texts)[::60]}
    rows, _ = made(named)
    assert not compared(named, rows)[0]

    for name, broken in (("Not", lambda inner: inner), ("disjunction", lambda p: next(iter(p)))):
        with monkeypatch.context() as patch:
            patch.setattr(sigma_condition, name, broken)
            assert compared(named, rows)[0], name


def test_alerts_are_those_rows(texts: Mapping[str, str]) -> None:
    """The engine raises one alert for each rule and row that SQLite finds, on either pipeline."""
    named = {name: texts[name] for name in sorted(texts)[5::120]}
    rows, _ = made(named)
    rules, problems = converted(named)
    table = Sqlite(rows)
    theirs = set()
    for rule in rules:
        for shape in shapes(SigmaRule.from_yaml(named[rule.about.file])):
            parsed = SigmaRule.from_yaml(named[rule.about.file])
            theirs |= {(number, rule.about.id) for number in table.rows(parsed, shape)}

    detections = Detections(rules)
    alerts = [one for _, one in detections.alerts(batch_of_rows(rows))] + detections.last()

    assert not problems
    assert not detections.problems
    ours = [(one.causes[0][1], one.rule) for one in alerts]
    assert sorted(theirs) == ours


def test_letters_beyond_ascii_are_found_in_any_case() -> None:
    """Here kcap finds more than SQLite, which takes capitals for other letters."""
    text = """
title: Accented
logsource: {product: windows, category: process_creation}
detection: {s: {CommandLine|contains: à distance}, condition: s}
"""
    row = {"Channel": support.SYSMON, "EventID": 1}
    rows = [
        {**row, "CommandLine": "bureau à distance"},
        {**row, "CommandLine": "BUREAU À DISTANCE"},
    ]
    rules, _ = converted({"a.yml": text}, ["sysmon"])

    ours = Filters([rules[0].selectors[0].filter]).rows(batch_of_rows(rows))[0].tolist()

    assert ours == [0, 1]
    assert Sqlite(rows).rows(SigmaRule.from_yaml(text), "sysmon") == [0]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_all_rules_find_what_sqlite_finds(
    texts: Mapping[str, str], logged: Sequence[Fields]
) -> None:
    """All 1,740 rules convert and agree with SQLite about every row; all but one hit some row."""
    rules, problems = converted(texts)
    assert (len(rules), problems) == (1740, [])
    rows, missing = made(texts)

    wrong, hit, pairs = compared(texts, [*logged, *rows])

    assert not wrong
    assert {name for name, _ in missing} == NEVER
    categories = [SigmaRule.from_yaml(text).logsource.category for text in texts.values()]
    assert hit == 1740 - len(NEVER) - sum(category in NO_SHAPE for category in categories)
    assert pairs > 30_000_000


def test_rules_of_files_that_no_log_has_hit_what_fibratus_sees(texts: Mapping[str, str]) -> None:
    """Those that neither shape has events for hit one of Fibratus, and no event beside it."""
    parsed = {name: SigmaRule.from_yaml(text) for name, text in texts.items() if "file" in name}
    some = {name: one for name, one in parsed.items() if one.logsource.category in NO_SHAPE}
    rules, problems = converted({name: texts[name] for name in some})
    assert (len(rules), problems) == (8, [])
    for rule in rules:
        said = some[rule.about.file]
        (condition,) = said.detection.parsed_condition
        fields = Made(random.Random(3)).row(condition.parsed)
        event = {
            "event": "RenameFile" if said.logsource.category == "file_rename" else "CreateFile",
            "category": "file",
            "exe": r"C:\x.exe",
        }
        path = fields.pop("FileName", None) or fields.pop("TargetFilename")
        told = {"file_path": path, "create_disposition": "OPEN", **fields}

        assert len(feed(rule, [{**event, "arguments": told}])) == 1, rule.about.file
        for name, other in (("file_path", "x"), ("create_disposition", "CREATE")):
            near = {**event, "arguments": {**told, name: other}}
            renames = event["event"] == "RenameFile" and name == "create_disposition"
            assert len(feed(rule, [near])) == renames, rule.about.file


_MAJOR = """
import hashlib, importlib.metadata, json, sys
from pathlib import Path
import sigma_support
rules, problems = sigma_support.converted(sigma_support.texts(Path(sys.argv[1])))
said = [[r.about.id, r.about.tags] + [[s.name, s.filter.text] for s in r.selectors] for r in rules]
said.append([str(p.error) for p in problems])
digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
print(importlib.metadata.version("pysigma"), len(rules), digest)
"""


_TESTS = ("test_sigma.py", "test_sigma_correlation.py", "test_bad_rules.py")
"""Conditions, modifiers, filters, correlations, errors."""


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_both_releases_of_pysigma_do(data: Data, tmp_path: Path) -> None:
    """With either major release every rule becomes the same filter, and our other tests hold."""
    archive = data("rules/sigma-process-creation.zip").parents[1]
    here = Path(__file__).parent
    said = {}
    for wanted in ("pysigma>=1.5,<2", "pysigma>=2,<3"):
        folder = tmp_path / wanted[9]
        install = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), wanted]
        done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"{wanted} can't be installed here: {done.stderr[-200:]}")
        paths = {"PYTHONPATH": f"{folder}:{here}"}
        told = subprocess.run(
            [sys.executable, "-c", _MAJOR, str(archive)],
            env=paths, capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        version, count, digest = told.stdout.split()
        said[version.partition(".")[0]] = (count, digest)
        pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        ran = subprocess.run(
            [*pytest_, *(str(here / name) for name in _TESTS)],
            env={**os.environ, **paths}, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert re.search(r"^\d{3} passed in", ran.stdout, re.MULTILINE), ran.stdout[-2000:]

    assert sorted(said) == ["1", "2"]
    assert said["1"] == said["2"]
    assert said["1"][0] == "1740"
