"""YARA rules over artifacts: which load, what they alert on, and that nothing else matters."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from binaries_support import BLACKWATER, ORIGIN, PLAIN, TEXT, Blob, alerts_of, capture, event
from cli_support import run, shell
from detect_support import batch, cut, plain, raised
from hypothesis import given, settings
from hypothesis import strategies as st
from support import opened

from kcap import plugins
from kcap.detect import loading
from kcap.detect.engine import Detections
from kcap.detect.rule import About, Contents, Problem, Rule
from kcap.errors import KcapError, MissingExtraError
from kcap.model.artifact import Artifact, Gap, Parts

pytest.importorskip("yara_x")
from kcap.readers.rules.yara import YaraRules

EVIL = """
rule evil : apt dropper {
    meta:
        severity = "high"
        author = "somebody"
        description = "Blackwater's dropper"
        reference = "https://example.com/1"
    strings:
        $a = "blackwater" wide
        $mz = "MZ"
        $none = "not in it"
    condition:
        $mz at 0 and ($a or $none)
}
"""
HELLO = 'rule hello { strings: $a = "hello" condition: $a }\n'
EVENTS = [
    event("sched_process_exec", 1, "/tmp/evil.exe"),
    event("openat", 2, "/tmp/evil.exe"),
    event("write", 3, "/bin/bash", pathname="/tmp/drop"),
    event("sched_process_exec", 4, "/bin/sh"),
    event("sched_process_exec", 5, "/bin/plain"),
]
BLOBS = [
    Blob(BLACKWATER, "/tmp/evil.exe", 0),
    Blob(BLACKWATER, "/tmp/drop", 2, "write"),
    Blob(TEXT, "/bin/sh", 3),
    Blob(PLAIN, "/bin/plain", 4),
]


def loaded(text: str, path: str = "a.yar") -> tuple[list[Rule], list[Problem]]:
    """Rules, and what is wrong with others."""
    every = list(YaraRules().load(text, path))
    return (
        [one for one in every if isinstance(one, Rule)],
        [one for one in every if isinstance(one, Problem)],
    )


def alerts(rules: list[Rule], data: bytes | None = None, **options: Any) -> list[dict[str, Any]]:
    """The alerts of rules over a capture."""
    detections = Detections(rules, **options)
    reader = opened(capture(EVENTS, BLOBS) if data is None else data)
    detections.bind([reader])
    return [one for _, one in raised(detections, list(reader.batches()))]


# loading


def test_what_a_rule_says_of_itself() -> None:
    (rule,), problems = loaded("\n" + EVIL)
    about = rule.about
    assert problems == []
    assert (about.id, about.name, about.kind, about.line) == ("yara:evil", "evil", "yara", 3)
    assert (about.severity, about.tags) == ("high", ("apt", "dropper"))
    assert about.description == "Blackwater's dropper"
    assert about.details["meta"]["author"] == "somebody"


@pytest.mark.parametrize(
    ("bad", "name", "line", "says"),
    [
        ("rule bad { condition: undefined }", "bad", 2, "undefined"),
        ("rule bad { strings: $a = condition: $a }", "bad", 2, "syntax error"),
        ('rule bad { strings: $a = "x" condition: true }', "bad", 2, "unused pattern"),
        ('import "time" rule bad { condition: time.now() > 0 }', "bad", 2, "time"),
        ('include "/etc/passwd"', None, None, "refused"),
        ('include "../other.yar"', None, None, "refused"),
        ('include /* it */ "../other.yar"', None, None, "refused"),
        ('include "nowhere.yar"', None, 2, "not found"),
    ],
)
def test_a_bad_rule_is_named_and_the_others_run(
    tmp_path: Path, bad: str, name: str | None, line: int | None, says: str
) -> None:
    text = f"{HELLO}{bad}\nrule after {{ condition: true }}\n"
    folder = tmp_path / "rules"
    folder.mkdir()
    (tmp_path / "other.yar").write_text("rule other { condition: true }")
    path = folder / "a.yar"
    path.write_text(text)
    rules, problems = loaded(text, str(path))
    assert [rule.about.name for rule in rules] == ["hello", "after"]
    (problem,) = problems
    assert problem.error.file == str(path)
    assert problem.error.line == line
    assert says in str(problem.error)
    assert problem.id == (None if name is None else f"yara:{name}")
    assert len(alerts(rules)) == 1 + len(BLOBS)


def test_what_is_included_must_lie_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/part.yar").write_text(HELLO)
    rules, problems = loaded('include "sub/part.yar"\n' + EVIL, str(tmp_path / "a.yar"))
    assert (problems, sorted(rule.about.name for rule in rules)) == ([], ["evil", "hello"])
    assert sorted(one["rule"] for one in alerts(rules)) == ["yara:evil"] * 2 + ["yara:hello"]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
@pytest.mark.parametrize("through", ["a link", "what is included"])
def test_no_way_leads_out_of_the_folder(tmp_path: Path, through: str) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    (tmp_path / "secret.yar").write_text("rule secret { condition: true }")
    if through == "a link":
        (folder / "b.yar").symlink_to(tmp_path / "secret.yar")
    else:
        (folder / "b.yar").write_text('include "../secret.yar"')
    rules, problems = loaded('include "b.yar"\n' + HELLO, str(folder / "a.yar"))
    assert [rule.about.name for rule in rules] == ["hello"]
    assert "refused" in str(problems[0].error)


def test_private_rules_do_not_alert() -> None:
    rules, _ = loaded("private rule p { condition: true }\nrule q { condition: p }")
    assert [rule.about.name for rule in rules] == ["q"]
    assert {one["rule"] for one in alerts(rules)} == {"yara:q"}


def test_a_folder_of_rules(tmp_path: Path) -> None:
    """Through the entry point, beside rules of other kinds; ids are there once."""
    assert "yara" in plugins.found(plugins.RULES)
    (tmp_path / "b.yar").write_text(HELLO)
    (tmp_path / "a.yara").write_text(EVIL + HELLO)
    (tmp_path / "c.yar").write_text("// nothing\n")
    (tmp_path / "r.yml").write_text("id: R\nname: r\ncondition: evt.name = 'openat'\n")
    every = loading.load([tmp_path])
    assert [rule.about.id for rule in every.rules] == ["R", "yara:evil", "yara:hello"]
    (problem,) = every.problems
    assert "has the id" in str(problem.error)
    found = [one["rule"] for one in alerts(every.rules)]
    assert found == ["yara:evil", "R", "yara:evil", "yara:hello"]
    assert [r.about.id for r in loading.load([tmp_path], "yara").rules] == [
        "yara:evil",
        "yara:hello",
    ]


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yara_x", None)
    with pytest.raises(MissingExtraError) as caught:
        loaded(HELLO)
    assert "kcap[yara]" in str(caught.value.hint)


# alerts


def test_an_alert_is_one_of_the_artifact_s_event() -> None:
    first, second = alerts(loaded(EVIL)[0])
    expected = hashlib.sha256(f"yara:evil\0001\0{ORIGIN}:0".encode()).hexdigest()
    assert first["alert_id"] == expected
    assert first["causes"] == ((ORIGIN, 0),)
    assert second["causes"] == ((ORIGIN, 2),)
    assert (first["ts_ns"], first["severity"], first["text"]) == (1, "high", "Blackwater's dropper")
    assert first["who"]["exe"] == "/tmp/evil.exe"
    data = json.loads(first["data"])
    place = BLACKWATER.index("blackwater".encode("utf-16-le"))
    assert data["strings"] == [
        {"name": "$a", "matches": [{"offset": place, "length": 20}]},
        {"name": "$mz", "matches": [{"offset": 0, "length": 2}]},
    ]
    assert data["meta"]["author"] == "somebody"
    assert data["artifact"] == {
        "kind": "exec",
        "path": "/tmp/evil.exe",
        "sha256": hashlib.sha256(BLACKWATER).hexdigest(),
        "size": len(BLACKWATER),
    }
    assert json.loads(second["data"])["artifact"]["path"] == "/tmp/drop"


def test_what_an_alert_tells_is_bounded() -> None:
    strings = "".join(f'$s{i} = "hello" ' for i in range(200))
    (one,) = alerts(loaded(f"rule a {{ strings: {strings} condition: any of them }}")[0])
    data = json.loads(one["data"])
    assert len(data["strings"]) == 64
    assert data["more_strings"] == 136
    many = b"hello" * 1000
    blobs = [Blob(many, "/x", 0)]
    (one,) = alerts(loaded(HELLO)[0], capture(EVENTS, blobs))
    assert len(json.loads(one["data"])["strings"][0]["matches"]) == 16


def test_several_artifacts_of_one_event() -> None:
    blobs = [Blob(TEXT, "/a", 0), Blob(TEXT + b"x", "/b", 0), Blob(TEXT, "/a", 0, "read")]
    found = alerts(loaded(HELLO)[0], capture(EVENTS, blobs))
    assert len({one["alert_id"] for one in found}) == 3
    paths = [json.loads(one["data"])["artifact"]["path"] for one in found]
    assert paths == ["/a", "/b", "/a"]


def test_artifacts_without_an_event_come_last() -> None:
    """Those of none, and those whose event is not in the capture; not those that are not due."""
    blobs = [Blob(TEXT, "/none"), Blob(TEXT, "/gone", 1), Blob(TEXT, "/later", 99)]
    events = [{**one, "ord": number} for number, one in enumerate(EVENTS) if number != 1]
    found = alerts(loaded(HELLO)[0], capture(events, blobs))
    about = [(json.loads(one["data"])["artifact"]["path"], one["causes"]) for one in found]
    assert sorted(about) == [("/gone", ((ORIGIN, 1),)), ("/none", ())]
    assert {one["ts_ns"] for one in found} == {5}


def test_rules_of_other_kinds_stay_in_order() -> None:
    """Event, then id: `a` before `yara:...` before `z`."""
    rules = [*loaded(EVIL)[0], plain("z", "evt.name = 'write'"), plain("a", "evt.name = 'write'")]
    found = [(one["ts_ns"], one["rule"]) for one in alerts(rules)]
    assert found == [(1, "yara:evil"), (3, "a"), (3, "yara:evil"), (3, "z")]


def test_an_alert_can_be_an_event_of_another_rule() -> None:
    rules = [*loaded(EVIL)[0], plain("B", "kind = 'alert' and args.rule = 'yara:evil'")]
    assert sorted(one["rule"] for one in alerts(rules)) == ["B", "B", "yara:evil", "yara:evil"]


class Counting:
    """A scanner that matches everything."""

    def __init__(self, error: KcapError | None = None) -> None:
        self.seen: list[bytes] = []
        self._error = error

    def scan(self, content: bytes) -> Mapping[str, Mapping[str, Any]]:
        """Note the content."""
        self.seen.append(content)
        if self._error is not None:
            raise self._error
        return {"x": {}, "unknown": {}}


def of(scanner: Counting, name: str = "X") -> Rule:
    return Rule(About(id=name, name=name), (), contents=Contents(scanner, "x"))


def test_each_content_is_looked_at_once() -> None:
    scanner = Counting()
    found = alerts([of(scanner)])
    assert len(found) == len(BLOBS)
    assert sorted(scanner.seen) == sorted([BLACKWATER, PLAIN, TEXT])
    assert alerts([]) == []


def test_a_scan_that_fails_is_a_loss() -> None:
    """As one that takes too long: the others are looked at, and it is counted."""
    broken, good = Counting(KcapError("it took too long")), Counting()
    detections = Detections([of(broken, "A"), of(good, "B")])
    reader = opened(capture(EVENTS, BLOBS))
    detections.bind([reader])
    found = [one for _, one in raised(detections, list(reader.batches()))]
    assert {one["rule"] for one in found} == {"B"}
    (loss,) = detections.losses
    assert (loss.kind, loss.count, loss.reason) == ("blind", 3, "an artifact: it took too long")


def test_a_timeout_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from kcap.readers.rules import yara

    monkeypatch.setattr(yara, "SCAN_S", 1)
    inner = "for all j in (0..filesize) : (i + j >= 0)"
    text = f"rule slow {{ condition: for all i in (0..filesize) : ({inner}) }}"
    (rule,), _ = loaded(text)
    assert rule.contents is not None
    with pytest.raises(KcapError, match="more than 1 s"):
        rule.contents.scanner.scan(bytes(1 << 20))


def test_what_is_not_there_is_zeros() -> None:
    """An artifact with a hole is looked at as far as it is there."""
    blob = Blob(b"", "/x", 0, parts=[b"hel", Gap(2, "EIO"), b"hello"])
    (one,) = alerts(loaded(HELLO)[0], capture(EVENTS, [blob]))
    data = json.loads(one["data"])
    assert [m["offset"] for m in data["strings"][0]["matches"]] == [5]
    assert "sha256" not in data["artifact"]


def test_of_a_long_one_the_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from kcap.binaries import library

    monkeypatch.setattr(library, "CONTENT_BYTES", 100)
    blobs = [Blob(bytes(90) + b"hello", "/in", 0), Blob(bytes(98) + b"hello", "/out", 1)]
    detections = Detections(loaded(HELLO)[0])
    reader = opened(capture(EVENTS, blobs))
    detections.bind([reader])
    (one,) = (one for _, one in raised(detections, list(reader.batches())))
    assert json.loads(one["data"])["artifact"]["path"] == "/in"
    assert [(loss.kind, loss.count) for loss in detections.losses] == [("blind", 1)]


# however the events come


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 5), places=st.sets(st.integers(1, 4)), seed=st.permutations(range(2)))
def test_chunks_batches_and_the_order_of_files_do_not_matter(
    rows: int, places: set[int], seed: list[int]
) -> None:
    texts = [EVIL, HELLO]
    loader = YaraRules()
    rules = [r for i in seed for r in loader.load(texts[i], f"{i}.yar") if isinstance(r, Rule)]
    expected = alerts([*loaded(EVIL)[0], *loaded(HELLO)[0]])
    assert alerts(rules, capture(EVENTS, BLOBS, chunk_rows=rows)) == expected
    detections = Detections(rules)
    detections.bind([opened(capture(EVENTS, BLOBS))])
    pieces = cut(batch(EVENTS), sorted(places))
    assert [one for _, one in raised(detections, pieces)] == expected


def test_a_recorder_s_artifacts_come_after_their_event() -> None:
    """The alert is then behind the event, with the same id as in a replay."""
    rules = loaded(EVIL)[0]
    whole = batch(EVENTS)
    late = Artifact("exec", Parts([BLACKWATER]), "/tmp/evil.exe", ORIGIN, 0)
    soon = Artifact("write", Parts([BLACKWATER]), "/tmp/drop", ORIGIN, 2)
    pieces = [whole.slice(0, 2), whole.slice(2, 5).with_before([late, soon])]
    detections = Detections(rules)
    found = raised(detections, pieces)
    assert [row for row, _ in found] == [2, 3]
    assert [one["alert_id"] for _, one in found] == [one["alert_id"] for one in alerts(rules)]
    assert detections.losses == []


# verbs


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    (tmp_path / "a.kcap").write_bytes(capture(EVENTS, BLOBS))
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/evil.yar").write_text(EVIL)
    (tmp_path / "hello.yara").write_text(HELLO)
    return tmp_path


def test_detect_and_replay_agree(saved: Path) -> None:
    words = ["--yara", saved / "rules", "--yara", saved / "hello.yara", saved / "a.kcap"]
    detected = run("detect", *words, "--format", "jsonl")
    assert detected.exit_code == 0, detected.output
    found = alerts_of(detected.stdout)
    assert [one["arg_rule"] for one in found] == ["yara:evil", "yara:evil", "yara:hello"]
    replayed = run("replay", *words, "--format", "jsonl")
    assert replayed.exit_code == 0, replayed.output
    every = alerts_of(replayed.stdout)
    assert [one for one in every if one["event"] == "alert"] == found
    assert [one["event"] for one in every][:2] == ["sched_process_exec", "alert"]
    assert run("detect", *words, "--format", "jsonl").stdout == detected.stdout


def test_only_they_run_where_only_they_are_named(saved: Path) -> None:
    result = run("detect", "--yara", saved / "rules", saved / "a.kcap")
    assert "Loaded 1 signature(s): [yara:evil]" in result.stderr
    both = run("detect", "--yara", saved / "rules", "--rules", "TRC-2", saved / "a.kcap")
    assert "Loaded 2 signature(s)" in both.stderr
    listed = run("rules", "list", saved / "rules")
    assert "yara:evil" in listed.stdout, listed.output


def test_a_bad_rule_is_exit_code_3(saved: Path) -> None:
    (saved / "rules/bad.yar").write_text("rule bad { condition: nothing }")
    result = run("detect", "--yara", saved / "rules", saved / "a.kcap", "--format", "jsonl")
    assert result.exit_code == 3
    assert len(alerts_of(result.stdout)) == 2
    assert "bad.yar" in result.stderr
    assert "line 1" in result.stderr


def test_a_pipe_is_told(saved: Path) -> None:
    result = shell("cat a.kcap | kcap detect --yara rules -", saved)
    assert b"artifacts of a pipe" in result.stderr
    assert result.returncode == 3


def test_start_and_end_keep_to_alerts_of_that_time(saved: Path) -> None:
    words = ["detect", "--yara", saved / "rules", saved / "a.kcap", "--format", "jsonl"]
    found = run(*words, "--start", "1970-01-01T00:00:00.000000002Z")
    assert [one["ts"] for one in alerts_of(found.stdout)] == [3]
    found = run(*words, "-w", "evt.name = 'sched_process_exec'")
    assert [one["ts"] for one in alerts_of(found.stdout)] == [1]


# what is included


@pytest.mark.parametrize(
    "statement",
    [
        'include /*"*/ "../secret.yar"',
        'include """../secret.yar"""',
        'include // "\n"../secret.yar"',
        'include/* */// "x"\n/**/"../secret.yar"',
        'include\u00a0"../secret.yar"',
        'include "sub/../../secret.yar"',
        'include "deep/x.yar"',
    ],
)
def test_no_spelling_of_an_include_leads_out(tmp_path: Path, statement: str) -> None:
    """The compiler takes each of them; the control is that it does."""
    import yara_x

    folder = tmp_path / "rules"
    (folder / "deep").mkdir(parents=True)
    (folder / "sub").mkdir()
    (tmp_path / "secret.yar").write_text("rule secret { condition: true }")
    (folder / "deep/x.yar").write_text('include "../../secret.yar"')
    compiler = yara_x.Compiler(includes_enabled=True)
    compiler.add_include_dir(str(folder))
    compiler.add_source(statement, "a.yar")
    assert [rule.identifier for rule in compiler.build()] == ["secret"]
    rules, problems = loaded(f"{statement}\n{HELLO}", str(folder / "a.yar"))
    assert [rule.about.name for rule in rules] == ["hello"]
    assert "refused" in str(problems[0].error)


def test_includes_that_can_t_be_told_or_read_are_problems(tmp_path: Path) -> None:
    """Whatever stands there: in time, and as an error of ours."""
    (tmp_path / "loop.yar").symlink_to("loop.yar")
    for text in (
        "include /* " * 200_000,
        "include // " * 200_000,
        f'include "{"x" * 3000}"\n',
        'include "\0"\n',
        'include "loop.yar"\n',
        'include """' + "x" * 5000 + '"""\n',
    ):
        rules, problems = loaded(f"{HELLO}{text}", str(tmp_path / "a.yar"))
        assert len(problems) >= 1, text[:30]
        assert [rule.about.name for rule in rules] in (["hello"], [])


def test_a_manifest_has_the_digests_of_what_is_included(tmp_path: Path) -> None:
    """However deep: another content of it is noticed, and one of a file nearby is not."""
    path, says, deep = tmp_path / "a.kcap", tmp_path / "run.json", tmp_path / "sub/deep.yar"
    path.write_bytes(capture(EVENTS, BLOBS))
    deep.parent.mkdir()
    (tmp_path / "a.yar").write_text('include "sub/b.yar"\n' + HELLO)
    (tmp_path / "sub/b.yar").write_text('include "deep.yar"\n')
    deep.write_text(EVIL)
    (tmp_path / "sub/other.yar").write_text("rule other { condition: true }")
    words = ["--yara", tmp_path / "a.yar", "-o", tmp_path / "o", "--manifest", says]
    assert run("replay", path, "--format", "jsonl", *words).exit_code == 0
    named = [part["name"] for part in json.loads(says.read_text())["parts"]]
    assert sorted(named) == ["a.yar", "b.yar", "deep.yar"]
    assert run("replay", "--verify", says).exit_code == 0
    (tmp_path / "sub/other.yar").write_text("// changed")
    assert run("replay", "--verify", says).exit_code == 0
    deep.write_text(EVIL + "\n// changed\n")
    assert run("replay", "--verify", says).exit_code == 1


def test_rules_in_a_filter_include_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says must not depend on where it is said."""
    from kcap.filter import Filter

    (tmp_path / "x.yar").write_text(HELLO)
    monkeypatch.chdir(tmp_path)
    where = Filter.of("yara(ps.exe, 'include \"x.yar\"')")
    with pytest.raises(KcapError, match="include no files"):
        where.inspect(binaries=False)
