"""Fibratus's rules: all of them load, and alert on what they say and on nothing near it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from fibratus_rules_oracle import Oracle, Row, blank, ended, timed, true_of
from fibratus_rules_support import Scene, UnsolvedError, solve

from kcap.detect import sequence
from kcap.detect.feed import feed
from kcap.detect.rule import Problem, Rule
from kcap.filter.check import Checked, check
from kcap.filter.parser import MacroTable, parse
from kcap.filter.syntax import Sequence as Steps
from kcap.readers.rules.fibratus import FibratusRules

RULES = 134
SEQUENCES = 62

UNSOLVED = {
    "defense_evasion_activity_from_unhooked_ntdll_module": "LoadModule",
    "defense_evasion_suspicious_object_symbolic_link_creation": "CreateSymbolicLinkObject",
    "persistence_potential_mandatory_profile_registry_persistence": "CreateFile",
}
"""Rules that ask for the integrity level of a process (``!= 'SYSTEM'``) at an event that does not
tell it: a comparison with a missing value is false. By event."""

UNTOLD = "ps.token.integrity_level != 'SYSTEM' and"
"""What those ask for."""

SAMPLE = 8
"""Of so many rules one is in the quick suite."""


class Case(NamedTuple):
    """A rule of Fibratus."""

    name: str
    text: str
    tree: Any
    rule: Rule


@pytest.fixture(scope="module")
def files(data: Callable[[str], Path]) -> dict[str, str]:
    """The files of rules and of macros by their names."""
    with zipfile.ZipFile(data("rules/fibratus-rules.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".yml"))
        return {name: archive.read(name).decode() for name in names}


@pytest.fixture(scope="module")
def cases(files: dict[str, str]) -> list[Case]:
    """All rules, as the test parses them and as the loader made them."""
    return cases_of(files)


def cases_of(files: dict[str, str]) -> list[Case]:
    """The rules of some files, the macros among them."""
    expressions, lists = {}, {}
    for name, text in files.items():
        for macro in yaml.safe_load(text) if "/macros/" in name else ():
            if "expr" in macro:
                expressions[macro["macro"]] = macro["expr"]
            else:
                lists[macro["macro"]] = [str(item) for item in macro["list"]]
    table = MacroTable(expressions, lists)
    rules = {rule.about.file: rule for rule in loaded(files) if isinstance(rule, Rule)}
    found = []
    for name, content in files.items():
        if "/macros/" not in name:
            text = yaml.safe_load(content)["condition"]
            tree = parse(text, table, unopened=True)
            found.append(Case(Path(name).stem, text, tree, rules[name]))
    return found


def loaded(files: dict[str, str]) -> list[Rule | Problem]:
    """What the loader makes of some files."""
    loader = FibratusRules()
    found: list[Rule | Problem] = []
    for name, text in files.items():
        found += loader.load(text, name)
    return [*found, *loader.finish()]


def test_all_load(files: dict[str, str]) -> None:
    """All rules of Fibratus become rules that run, with what their files say of them."""
    rules = loaded(files)
    assert len(rules) == RULES
    assert not [rule for rule in rules if isinstance(rule, Problem)]
    assert all(FibratusRules.sniff(text, name) for name, text in files.items())
    for rule in rules:
        assert isinstance(rule, Rule)
        said = yaml.safe_load(files[rule.about.file])
        assert (rule.about.id, rule.about.name) == (said["id"], said["name"])
        assert rule.about.version == said["version"]
        assert rule.about.severity == said.get("severity", "medium")
        assert rule.about.details.get("actions", []) == said.get("action", [])
        label = said["labels"].get("subtechnique.id", said["labels"]["technique.id"])
        assert rule.about.techniques == (label,)
        assert rule.events
    broken = {name: text.replace("ps.name", "ps.nam") for name, text in files.items()}
    problems = [one for one in loaded(broken) if isinstance(one, Problem)]
    assert len(problems) > 40
    for one in problems:
        assert one.error.file is not None
        assert one.error.line is not None
        line = broken[one.error.file].splitlines()[one.error.line - 1]
        assert "ps.nam" in line, (one.error, line)


# sequences


def sequences(cases: list[Case]) -> list[Case]:
    """Those that are sequences."""
    return [case for case in cases if isinstance(case.tree, Steps)]


def scenes(cases: list[Case]) -> Iterator[tuple[Case, Scene, list[Row]]]:
    """Sequences that can happen, with what happens."""
    for case in sequences(cases):
        scene = Scene(case.tree, case.text)
        if case.name in UNSOLVED:
            with pytest.raises(UnsolvedError, match=UNSOLVED[case.name]):
                scene.solve()
        else:
            yield case, scene, scene.solve()


def said(case: Case, rows: list[Row]) -> list[tuple[int, ...]]:
    """The causes of a rule's alerts: of the machine, and of the engine where it can be asked."""
    found = [one.causes for one in Oracle(case.rule).run(rows)]
    if all(":" not in name for row in rows for name in row):
        raised = feed(case.rule, [told(row) for row in rows])
        assert [tuple(n for _, n in one.causes) for one in raised] == found, case.name
    return found


def told(row: Row) -> dict[str, Any]:
    """An event as `feed` takes it."""
    mine = {name: value for name, value in row.items() if not name.startswith("arg_")}
    arguments = {n.removeprefix("arg_"): v for n, v in row.items() if n.startswith("arg_")}
    return mine | {"arguments": arguments}


def checks_of_sequence(case: Case, scene: Scene, rows: list[Row]) -> None:
    """One hit; a step missing, steps swapped, another key, a span too long, a process ended."""
    everyone = [tuple(range(len(rows)))]
    assert said(case, timed(rows)) == everyone, case.name
    assert said(case, timed(rows, scene.maxspan_ns)) == everyone
    assert not said(case, timed(rows, scene.maxspan_ns + 1))
    for number in range(len(rows)):
        assert not said(case, timed(rows[:number] + rows[number + 1 :])), (case.name, number)
    for number in range(len(rows) - 1):
        first, second = rows[number : number + 2]
        swapped = [*rows[:number], second, first, *rows[number + 2 :]]
        assert not said(case, timed(swapped)), (case.name, number)
    other_key(case, scene, rows)
    process_ended(case, rows)
    host = timed(rows)
    host[-1] = host[-1] | {"host": "other"}
    assert not said(case, host)
    together = timed(rows)
    together[-1]["ts"] = together[-2]["ts"]
    assert not said(case, together)


def other_key(case: Case, scene: Scene, rows: list[Row]) -> None:
    """The last step with another value to join by is the last step of nothing."""
    by = scene.by[-1]
    if not by:
        return
    last = len(rows) - 1
    changed = {**rows[last]}
    for column in ("process_key", "pid", "arg_pid", "process_name", "exe", "arg_exe", "session",
                   "arg_file_path", "arg_name", "arg_base_address", "state:parent.process_key",
                   "ppid", "arg_view_base", "arg_file_object", "user", "arg_sid", "arg_tid",
                   "state:named.process_key", "arg_session_id"):  # fmt: skip
        if column not in changed:
            continue
        value = changed[column]
        others = (
            [value + 1] if isinstance(value, int) else [f"{value[:-5]}q{value[-5:]}", value + "q"]
        )
        for other in others:
            tried = {**changed, column: other}
            key = [scene._key(tried, ref) for ref in by]
            if scene.may_be(tried, last, rows) and key != [scene._key(changed, ref) for ref in by]:
                assert not said(case, timed([*rows[:last], tried])), (case.name, column)
                OTHER_KEYS.add(case.name)
                return


OTHER_KEYS: set[str] = set()
"""Rules for which another key was found."""


def process_ended(case: Case, rows: list[Row]) -> None:
    """Where the process of the first event ends, nothing comes of that; else it does."""
    first = rows[0]
    pid = first["pid"]
    if first["event"] == "CreateThread":
        pid = first.get("arg_pid", pid)
    assert not said(case, timed([first, ended(pid), *rows[1:]])), case.name
    found = said(case, timed([first, ended(99_999), *rows[1:]]))
    assert found == [(0, *range(2, len(rows) + 1))], case.name


def test_some_sequences(cases: list[Case]) -> None:
    """Of some sequences: they alert on what they say, and on nothing near it."""
    some = list(scenes(sequences(cases)[::SAMPLE]))
    assert len(some) > 6
    for one in some:
        checks_of_sequence(*one)


BROKEN = {
    "maxspan_ns": None,
    "later": False,
    "ends_with_process": False,
    "each_host": False,
}
"""Options of sequences that the checks above must miss."""


@pytest.mark.parametrize("option", BROKEN)
def test_checks_of_sequences_can_fail(
    option: str, files: dict[str, str], cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: of a machine that lacks something, the checks say so."""
    case = next(one for one in sequences(cases) if one.name.startswith("initial_access"))
    wanted = {case.rule.about.file: files[case.rule.about.file]}
    wanted |= {name: text for name, text in files.items() if "/macros/" in name}
    options = sequence.Options
    monkeypatch.setattr(
        sequence, "Options", lambda **given: options(**{**given, option: BROKEN[option]})
    )
    (broken,) = loaded(wanted)
    assert isinstance(broken, Rule)
    ((_, scene, rows),) = scenes([case])
    checks_of_sequence(case, scene, rows)
    with pytest.raises(AssertionError):
        checks_of_sequence(case._replace(rule=broken), scene, rows)


@pytest.mark.long
def test_all_sequences(cases: list[Case]) -> None:
    """All sequences alert on what they say, and on nothing near it."""
    assert len(sequences(cases)) == SEQUENCES
    found = list(scenes(cases))
    for one in found:
        checks_of_sequence(*one)
    assert len(found) == SEQUENCES - sum(case.name in UNSOLVED for case in sequences(cases))
    joined = {case.name for case, scene, _ in found if scene.by[-1]}
    assert joined <= OTHER_KEYS
    assert len(joined) == 48


@pytest.mark.long
def test_the_three_lack_nothing_but_the_integrity_level(files: dict[str, str]) -> None:
    """Without that part those that no event can be made for pass all checks: 62 of 62 sequences."""
    some = {name: text for name, text in files.items() if Path(name).stem in UNSOLVED}
    assert all(text.count(UNTOLD) == 1 for text in some.values())
    macros = {name: text for name, text in files.items() if "/macros/" in name}
    told = cases_of({**macros, **{n: text.replace(UNTOLD, "") for n, text in some.items()}})
    assert len(told) == len(UNSOLVED)
    for case in told:
        if isinstance(case.tree, Steps):
            scene = Scene(case.tree, case.text)
            checks_of_sequence(case, scene, scene.solve())
        else:
            condition = check(case.tree, case.text, 3)
            checks_of_single(case, condition, solve(condition, {}))
    for case in cases_of({**macros, **some}):
        with pytest.raises(UnsolvedError):
            Scene(case.tree, case.text).solve() if isinstance(case.tree, Steps) else solve(
                check(case.tree, case.text, 3), {}
            )


# rules about one event


def singles(cases: list[Case]) -> Iterator[tuple[Case, Checked, Row]]:
    """Rules about one event that can come true, with an event."""
    for case in cases:
        if isinstance(case.tree, Steps):
            continue
        condition = check(case.tree, case.text, 3)
        if case.name in UNSOLVED:
            with pytest.raises(UnsolvedError, match=UNSOLVED[case.name]):
                solve(condition, {})
        else:
            yield case, condition, solve(condition, {})


def checks_of_single(case: Case, condition: Checked, row: Row) -> None:
    """A hit, and events that lack or change one value each."""
    assert said(case, timed([row])) == [(0,)], case.name
    assert not said(case, timed([blank("QueryDns")]))
    near = [{name: row[name] for name in row if name != lost} for lost in row if lost != "event"]
    near += [{**row, name: f"{value}~"} for name, value in row.items() if isinstance(value, str)]
    missed = 0
    for one in near:
        expected = true_of(condition, one)
        assert bool(said(case, timed([one]))) == expected, (case.name, one)
        missed += not expected
    assert missed


def test_some_single_events(cases: list[Case]) -> None:
    """Of some rules about one event: they alert on it, and not on one that lacks something."""
    some = [case for case in cases if not isinstance(case.tree, Steps)][::SAMPLE]
    for one in singles(some):
        checks_of_single(*one)


@pytest.mark.long
def test_all_single_events(cases: list[Case]) -> None:
    """All rules about one event alert on it, and not on one that lacks something."""
    found = list(singles(cases))
    assert len(found) == RULES - SEQUENCES - 2
    for one in found:
        checks_of_single(*one)
