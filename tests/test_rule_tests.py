"""kcap test: what tests of rules expect, golden files, and tests cut from captures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_support import rows_in, run, shell
from rules_support import OWN_RULES, event, events, lines, written

from kcap.tools.pytest_plugin import alerts, golden, replay  # noqa: F401 - fixtures

CASES = """\
run: own.yml
cases:
  - name: something is opened
    capture: events.json
    expect:
      - rule: TWICE
        ts: 1657402967000000000
      - rule: OPENS
        text: cat opened it
        process_name: cat
  - name: nothing happens
    events:
      - {event: execve, ts: 1, pid: 7}
    expect: []
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rules, events, and a file of tests."""
    written(tmp_path)
    (tmp_path / "own.yml").write_text(OWN_RULES)
    (tmp_path / "own.test.yml").write_text(CASES)
    return tmp_path


def test_passes(folder: Path) -> None:
    """Tests whose alerts are as expected pass; a file of tests is no file of rules."""
    result = run("test", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"ok   {folder}/own.test.yml:3: something is opened",
        f"ok   {folder}/own.test.yml:11: nothing happens",
    ]
    assert result.stderr == "kcap: 2 tests, 0 failed\n"
    assert run("rules", "validate", folder).exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("rule: OPENS", "rule: OPEN", 'alert 2: rule is "OPENS", expected "OPEN"'),
        ("cat opened it", "dog opened it", 'alert 2: text is "cat opened it", expected "dog op'),
        ("expect: []", "expect: [TWICE]", "0 alerts, expected 1: none"),
        ("capture: events.json", "capture: none.json", "none.json: can't be opened"),
    ],
)
def test_fails(folder: Path, old: str, new: str, wrong: str) -> None:
    """A test fails where an alert, a value or an input is another; the others still run."""
    (folder / "own.test.yml").write_text(CASES.replace(old, new))
    result = run("test", folder)
    assert result.exit_code == 1
    assert wrong in result.stdout
    assert "kcap: 2 tests, 1 failed\n" in result.stderr
    found = [json.loads(line) for line in run("test", folder, "--json").stdout.splitlines()]
    assert sorted(one["passed"] for one in found) == [False, True]


def test_rule_that_stops_working(folder: Path) -> None:
    """A test fails when its rule is changed so that it finds nothing any more."""
    (folder / "own.yml").write_text(OWN_RULES.replace("security_file_open", "openat"))
    result = run("test", folder)
    assert result.exit_code == 1
    assert "1 alerts, expected 2: TWICE" in result.stdout


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("expect: []", "", "a case expects nothing at line 11"),
        ("    capture: events.json\n", "", "a case has one input at line 3"),
        ("cases:", "casess:", "a file of tests has 'casess', which nobody knows at line 2"),
        ("run: own.yml", "run: none.yml", "none.yml"),
        ("run: own.yml", "signatures: v9", "no set of signatures is called 'v9' at line 1"),
    ],
)
def test_wrong_files(folder: Path, old: str, new: str, wrong: str) -> None:
    """A file of tests that can't be understood is refused, with the line."""
    (folder / "own.test.yml").write_text(CASES.replace(old, new))
    result = run("test", folder)
    assert result.exit_code == 1
    assert wrong in result.stderr


def test_golden(folder: Path) -> None:
    """A golden file holds what detect prints; --update writes it, and another alert is told."""
    (folder / "own.test.yml").write_text(
        "run: own.yml\ncases: [{name: all, capture: events.json, golden: all.jsonl}]\n"
    )
    result = run("test", folder)
    assert result.exit_code == 1
    assert "all.jsonl is not there: --update writes it" in result.stdout
    assert run("test", folder, "--update").exit_code == 0
    words = ["--rules", folder / "own.yml", "--format", "jsonl", folder / "events.json"]
    assert (folder / "all.jsonl").read_text() == run("detect", *map(str, words)).stdout
    assert run("test", folder).exit_code == 0
    (folder / "own.yml").write_text(OWN_RULES.replace("severity: low", "severity: high"))
    result = run("test", folder)
    assert result.exit_code == 1
    assert '"arg_severity":"high"' in result.stdout


def test_no_tests(tmp_path: Path) -> None:
    """A folder without tests is an error: nothing was tested."""
    assert run("test", tmp_path).exit_code == 1
    assert run("test").exit_code == 2


@pytest.mark.parametrize(("rule", "count"), [("TWICE", 2), ("OPENS", 1)])
def test_cut(folder: Path, rule: str, count: int) -> None:
    """--from writes the smallest capture that still alerts, and a test that passes with it."""
    noise = [event(s, "openat", "noise", pathname="/x") for s in range(5, 40)]
    path = folder / "long.json"
    path.write_bytes(lines([*noise, *events(), *noise]))
    rules = folder / "own.yml"
    found = run("detect", "--rules", rules, "--format", "jsonl", path).stdout.splitlines()
    (alert,) = (one for one in map(json.loads, found) if one["arg_rule"] == rule)
    words = ["--from", path, "--alert", alert["arg_alert_id"][:12], "--rules", rules]
    result = run("test", *words, folder / "cut")
    assert result.exit_code == 0, result.output
    (capture,) = (folder / "cut").glob("*.kcap")
    assert len(rows_in(capture)) == count
    assert run("test", folder / "cut").exit_code == 0
    rules.write_text(OWN_RULES.replace("'x'", "'y'").replace("security_file_open", "openat"))
    assert run("test", folder / "cut").exit_code == 1


def test_cut_names_all_that_the_test_will_see(folder: Path) -> None:
    """The test that is written passes beside other rules, of alerts too, and whatever a name is."""
    rules = folder / "more.yml"
    rules.write_text("""\
- {id: "A/B 1", name: 'A \U0001f600 "name": #1', condition: evt.name = 'security_file_open'}
- id: OTHER
  condition: evt.name = 'security_file_open'
- id: OF-ALERTS
  condition: evt.name = 'alert' and args.rule = 'OPENS'
""")
    words = ["--rules", rules, "--rules", folder / "own.yml"]
    path = folder / "events.json"
    found = run("detect", *words, "--format", "jsonl", path).stdout.splitlines()
    ids = {one["arg_rule"]: one["arg_alert_id"] for one in map(json.loads, found)}
    for rule in ("A/B 1", "OF-ALERTS"):
        given = ["test", "--from", path, "--alert", ids[rule], *words, folder / "cut"]
        assert run(*given).exit_code == 0
        assert "--force" in run(*given).stderr
        assert run(*given, "--force").exit_code == 0

    result = run("test", folder / "cut")

    assert result.exit_code == 0, result.output
    assert "\U0001f600" in result.stdout
    assert run("test", "--force", folder / "cut").exit_code == 2
    rules.write_text(rules.read_text().replace("id: OTHER", "id: ANOTHER"))
    assert run("test", folder / "cut").exit_code == 1


def test_cut_refuses(folder: Path) -> None:
    """An alert that does not come of the capture can't be cut out of it."""
    path = folder / "events.json"
    result = run("test", "--from", path, "--alert", "ffff", folder / "cut")
    assert result.exit_code == 1
    assert "no alerts have an id that begins with 'ffff'" in result.stderr
    assert run("test", "--from", path, folder / "cut").exit_code == 2


_PYTEST = """\
import pytest


def test_alerts(alerts, golden):
    found = alerts("events.json", "own.yml", "TRC-6")
    assert [one["arg_rule"] for one in found] == ["TWICE", "TRC-6", "OPENS"]
    golden("golden.jsonl", found)


def test_inline(alerts):
    assert alerts([{"event": "execve", "ts": 1, "pid": 7}], "own.yml") == []


def test_replay(replay):
    (one,) = replay("events.json", "ps.name = 'cat'")
    assert one["event"] == "security_file_open"


def test_capture(capture):
    assert capture("events.json").info.sources[0].host == "fujitsu"


def test_bad(alerts):
    with pytest.raises(Exception, match="no rule has the ID 'NONE'"):
        alerts("events.json", "NONE")
"""


def _pytest(folder: Path, *words: str) -> bytes:
    (folder / "test_rules.py").write_text(_PYTEST)
    command = "-m pytest -q -p kcap.tools.pytest_plugin -p no:cacheprovider --rootdir . ."
    line = f"{sys.executable} {command} {' '.join(words)}"
    return shell(line, folder, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1").stdout


def test_fixtures(folder: Path, request: pytest.FixtureRequest) -> None:
    """The plugin's fixtures give alerts and events; another alert than the golden one fails."""
    raised, replayed, compare = map(request.getfixturevalue, ("alerts", "replay", "golden"))
    found = raised(folder / "events.json", folder / "own.yml", "TRC-6")
    assert [one["arg_rule"] for one in found] == ["TWICE", "TRC-6", "OPENS"]
    assert [one["event"] for one in replayed(folder / "events.json", "pid = 104")] == [
        "security_file_open"
    ]
    words = ["--rules", str(folder / "own.yml"), "--rules", "TRC-6", "--format", "jsonl"]
    path = folder / "golden.jsonl"
    path.write_text(run("detect", *words, folder / "events.json").stdout)
    compare(path, found)
    with pytest.raises(AssertionError, match="other alerts"):
        compare(path, found[1:])


def test_golden_of_any_text(
    folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is a line's end elsewhere is none in a golden file, which is what detect prints."""
    raised, compare = map(request.getfixturevalue, ("alerts", "golden"))
    rules, path = folder / "odd.yml", folder / "new" / "odd.jsonl"
    rules.write_text("- id: ODD\n  name: \"a\\u2028b\\x85c\"\n  condition: ps.name = 'cat'\n")
    found = raised(folder / "events.json", rules)
    with monkeypatch.context() as patch:
        patch.setattr(type(request.config), "getoption", lambda *_, **__: True)
        compare(path, found)
    compare(path, found)
    shown = run("detect", "--rules", rules, "--format", "jsonl", folder / "events.json").stdout
    assert path.read_text() == shown
    with pytest.raises(AssertionError, match="other alerts"):
        compare(path, [{**found[0], "arg_title": "a\u2028b"}])


@pytest.mark.long
def test_pytest_plugin(folder: Path) -> None:
    """The plugin runs rules beside the test; a golden file is what detect prints."""
    words: list[str | Path] = [
        "--rules",
        folder / "own.yml",
        "--rules",
        "TRC-6",
        "--format",
        "jsonl",
    ]
    path = folder / "golden.jsonl"
    path.write_text(run("detect", *words, folder / "events.json").stdout)
    assert b"5 passed" in _pytest(folder)
    path.write_text(path.read_text().replace("low", "high"))
    found = _pytest(folder)
    assert b"1 failed, 4 passed" in found
    assert b"golden.jsonl: other alerts" in found


@pytest.mark.long
def test_pytest_plugin_updates(folder: Path) -> None:
    """A golden file that is not there fails a test, until --kcap-update writes it."""
    assert b"golden.jsonl is not there: pytest --kcap-update writes it" in _pytest(folder)
    assert b"5 passed" in _pytest(folder, "--kcap-update")
    assert b"5 passed" in _pytest(folder)
