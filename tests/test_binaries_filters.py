"""Filters and rules that are answered from artifacts, whatever the way of the events."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
from binaries_support import (
    BLACKWATER,
    DUMP,
    ORIGIN,
    PLAIN,
    TEXT,
    Blob,
    capture,
    event,
)
from cli_support import run
from detect_support import about, batch, cut, plain, raised, selector
from hypothesis import given, settings
from hypothesis import strategies as st
from support import opened

from kcap.binaries.inspector import COLUMNS
from kcap.detect.engine import Detections
from kcap.detect.rule import Rule
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.filter.errors import FilterError
from kcap.model.artifact import Artifact, Gap, Parts
from kcap.replay.chosen import chosen
from kcap.replay.stages import Matching

SHA256 = hashlib.sha256(BLACKWATER).hexdigest()
EVIL = "pe.resources[Company] contains 'blackwater'"
WIDE = 'rule a { strings: $a = "blackwater" wide condition: $a }'
EVENTS = [
    event("sched_process_exec", 1, "/tmp/by-hash", exe_sha256=SHA256),
    event("openat", 2, "/tmp/evil.exe", pathname="/before"),
    event("sched_process_exec", 3, "/tmp/evil.exe"),
    event("openat", 4, "/tmp/evil.exe", pathname="/x"),
    event("write", 5, "/bin/bash", pathname="/tmp/drop"),
    event("sched_process_exec", 6, "/bin/plain"),
    event("sched_process_exec", 7, "/tmp/evil.exe"),
    event("openat", 8, "/tmp/evil.exe", pathname="/lsass.dmp"),
    event("openat", 9, "/bin/sh", pathname="/etc/passwd"),
]
BLOBS = [
    Blob(BLACKWATER, "/tmp/evil.exe", 2),
    Blob(BLACKWATER, "/tmp/drop", 4, "write"),
    Blob(PLAIN, "/bin/plain", 5),
    Blob(PLAIN, "/tmp/evil.exe", 6),
    Blob(DUMP, "/lsass.dmp", 7, "write"),
    Blob(TEXT, "/bin/sh", 8),
]


def found(text: str, data: bytes | None = None, *, binaries: bool = True) -> list[int]:
    """The events of a capture that a filter chooses, by `ord`."""
    where = Filter.of(text)
    where.inspect(binaries=binaries)
    source, stages = chosen(opened(capture(EVENTS, BLOBS) if data is None else data), where=where)
    ords: list[int] = []
    for part in source.batches():
        kept = reduce(lambda batch, stage: stage.process(batch), stages, part)
        assert COLUMNS & set(kept.columns) <= COLUMNS & set(part.columns)
        ords += kept.array("ord").to_pylist()
    return ords


@pytest.mark.parametrize(
    ("text", "ords"),
    [
        (EVIL, [0, 2, 3, 4]),
        ("pe.company = 'Honest Inc'", [5, 6, 7]),
        ("ps.pe.company = 'Honest Inc'", [5, 6, 7]),
        ("pe.imports contains 'ws2_32' and evt.name = 'write'", [4]),
        ("pe.sections[.rsrc].entropy > 2 and pe.nsections = 3", [0, 2, 3, 4]),
        ("foreach(ps.pe._sections, $s, $s.name = '.idata')", [0, 2, 3, 4]),
        ("pe.is_exec = true", [0, 2, 3, 4, 5, 6, 7]),
        ("pe.is_dll = false", [0, 2, 3, 4, 5, 6, 7]),
        ("pe.timestamp < '2024-01-01' and pe.address.base = 0x140000000", [0, 2, 3, 4, 5, 6, 7]),
        (f"pe.imphash = '{'0' * 32}'", []),
        ("exists(pe.symbols)", [0, 2, 3, 4]),
        ("not pe.is_exec", [1, 8]),
        ("is_minidump(args.pathname)", [7]),
        ("not is_minidump(args.pathname) and exists(args.pathname)", [1, 3, 4, 8]),
        ("elf.bits = 64", []),
        (f"yara(ps.exe, '{WIDE}')", [1, 2, 3, 6, 7]),
        ("yara(args.pathname, 'rule a { condition: uint16(0) == 0x5a4d }')", [4]),
        ("yara(args.pathname, 'rule a { condition: filesize < 5 }')", []),
    ],
)
def test_fields_are_those_of_the_event_s_artifact(text: str, ords: list[int]) -> None:
    """Its own; else by hash; else what was last at its path, but nothing that came later."""
    assert found(text) == ords


@pytest.mark.parametrize("text", [EVIL, "pe.is_exec = true", "exists(pe.symbols)"])
def test_without_the_option_they_are_missing(text: str) -> None:
    """The negative control."""
    assert found(text, binaries=False) == []


def test_what_is_no_pe_says_nothing() -> None:
    """A text, a file that is only begun, and one whose header lies: the path's file counts then."""
    for content in (TEXT, BLACKWATER[:0x50], b"MZ" + bytes(0x3A) + b"\xff\xff\xff\x7f"):
        blobs = [Blob(BLACKWATER, "/tmp/evil.exe", 0), Blob(content, "/tmp/x", 1, "write")]
        events = [event("exec", 1, "/tmp/evil.exe"), event("write", 2, "/tmp/evil.exe")]
        assert found(EVIL, capture(events, blobs)) == [0, 1]
        assert found(EVIL, capture(events, [blobs[1]._replace(path="/tmp/evil.exe")])) == []


def test_another_recording_s_artifact_is_not_meant() -> None:
    """Of a merged capture: the same place and path, on another host."""
    blobs = [one._replace(origin="f" * 32) for one in BLOBS]
    assert found(EVIL, capture(EVENTS, blobs)) == [0]  # by its hash alone
    assert found("is_minidump(args.pathname)", capture(EVENTS, blobs)) == []


@pytest.mark.skipif(os.name != "posix", reason="an ELF of this host")
def test_elf_fields() -> None:
    content = Path("/bin/true").read_bytes()
    data = capture([event("exec", 1, "/bin/true")], [Blob(content, "/bin/true", 0)])
    for text in ("elf.bits = 64", "elf.needed contains 'libc'", "elf.sections[.text].size > 0"):
        assert found(text, data) == [0], text
        assert found(text, data, binaries=False) == []


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), places=st.sets(st.integers(1, 8)))
def test_chunks_and_batches_do_not_matter(rows: int, places: set[int]) -> None:
    data = capture(EVENTS, BLOBS, chunk_rows=rows)
    for text in (EVIL, "not pe.is_exec", "is_minidump(args.pathname)"):
        assert found(text, data) == found(text)
        where = Filter.of(text)
        where.inspect(binaries=True)
        assert where.inspector is not None
        where.inspector.bind([opened(data)])
        stage = Matching(where)
        parts = [stage.process(part) for part in cut(batch(EVENTS), sorted(places))]
        ords = [o for part in parts for o in part.array("ord").to_pylist()]
        assert ords == found(text)


def test_what_was_recorded_counts_first() -> None:
    """As in Fibratus's captures, which have such columns."""
    events = [{**event("exec", 1, "/tmp/evil.exe"), "ext_pe_x2Eimphash": "recorded"}]
    data = capture(events, [Blob(BLACKWATER, "/tmp/evil.exe", 0)])
    assert found("pe.imphash = 'recorded'", data) == [0]
    assert found(EVIL, data) == [0]


# losses


def test_a_damaged_artifact_is_a_loss() -> None:
    data = bytearray(capture(EVENTS, BLOBS))
    where = Filter.of(EVIL)
    where.inspect(binaries=True)
    reader = opened(bytes(data))
    place = reader.blobs._places().blocks
    first = min(place.values())
    data[first + 100] ^= 1
    source, stages = chosen(opened(bytes(data)), where=where)
    for part in source.batches():
        stages[0].process(part)
    kinds = {loss.kind for loss in stages[0].losses}  # type: ignore[attr-defined]
    assert kinds == {"damaged"}


def test_a_pipe_s_artifacts_are_a_loss() -> None:
    """They could be looked at only once, and among the events."""
    where = Filter.of("not " + EVIL)
    where.inspect(binaries=True)
    source, stages = chosen(opened(capture(EVENTS, BLOBS), pipe=True), where=where)
    rows = sum(stages[0].process(part).rows for part in source.batches())
    assert rows == len(EVENTS)
    (loss,) = stages[0].losses  # type: ignore[attr-defined]
    assert loss.kind == "blind"


# what a recorder gives


def live(content: bytes, ord_: int, path: str = "/tmp/evil.exe") -> Artifact:
    return Artifact("exec", Parts([content[:100], content[100:]]), path, ORIGIN, ord_)


def test_artifacts_of_a_recorder_answer_from_then_on() -> None:
    where = Filter.of(EVIL)
    where.inspect(binaries=True)
    stage = Matching(where)
    whole = batch(EVENTS)
    first, second = whole.slice(0, 3), whole.slice(3, 9).with_before([live(BLACKWATER, 2)])
    assert stage.process(first).rows == 0
    later = stage.process(second)
    assert later.array("ord").to_pylist() == [3, 6, 7]
    assert [type(side) for side in later.before] == [Artifact]


@pytest.mark.parametrize(("late", "ords"), [(0, [2, 3, 6, 7]), (1, [3, 6, 7])])
def test_alerts_are_those_of_the_recording(late: int, ords: list[int]) -> None:
    """An artifact that stands beside its event answers there; given behind it, it does not."""
    rule = plain("R", EVIL)
    whole = batch(EVENTS)
    pieces = [whole.slice(0, 2), whole.slice(2, 3), whole.slice(3, 9)]
    pieces[1 + late] = pieces[1 + late].with_before([live(BLACKWATER, 2)])
    at_once = [one for _, one in raised(Detections([rule], binaries=True), pieces)]
    again = Detections([rule], binaries=True)
    again.bind([opened(capture(EVENTS, [Blob(BLACKWATER, "/tmp/evil.exe", 2)]))])
    later = [one for _, one in raised(again, [whole])]
    assert [one["causes"][0][1] for one in at_once] == ords
    assert (at_once == [one for one in later if one["causes"][0][1]]) is not bool(late)


def test_a_loader_is_not_the_program() -> None:
    """Of a program that was taken before, its loader alone may be taken at an execution."""
    loader = replace(live(PLAIN, 0, "/lib/ld.so"), details={"role": "interpreter"})
    program = replace(live(BLACKWATER, 5), details={"role": "executable"})
    for sides, expected in (([loader, program], [0]), ([loader], [])):
        where = Filter.of(f"evt.name = 'sched_process_exec' and {EVIL} and ps.exe = '/tmp/by-hash'")
        where.inspect(binaries=True)
        found = Matching(where).process(batch(EVENTS).with_before(sides))
        assert (found.array("ord").to_pylist() if found.rows else []) == expected
    where = Filter.of("pe.company = 'Honest Inc' and ps.exe = '/tmp/by-hash'")
    where.inspect(binaries=True)
    assert Matching(where).process(batch(EVENTS).with_before([loader])).rows == 1, "if it is all"


def test_what_a_recorder_gives_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from kcap.binaries import library

    monkeypatch.setattr(library, "LIVE_BYTES", 3 * len(BLACKWATER))
    known = library.Library()
    for number in range(10):
        known.note([live(BLACKWATER + bytes([number]), number, f"/x{number}")])
    assert len(list(known)) == 2
    assert len(known.by_sha256) == 2
    assert [loss.count for loss in known.all_losses] == [8]


def test_missing_ranges_are_zeros() -> None:
    parts = Parts([BLACKWATER[:0x400], Gap(0x200, "EIO"), BLACKWATER[0x600:]])
    from kcap.binaries.library import Library

    known = Library()
    known.note([Artifact("exec", parts, "/x", ORIGIN, 0)])
    (entry,) = known
    assert entry.sha256 is None
    assert entry.content() == BLACKWATER[:0x400] + bytes(0x200) + BLACKWATER[0x600:]


# rules


def test_rules_ask_for_them_too() -> None:
    rule = plain("R", EVIL)
    text = Rule(about("T", text="%ps.pe.company"), (selector("pe.nsections = 2"),))
    data = capture(EVENTS, BLOBS)
    for binaries, expected in ((True, 4), (False, 0)):
        detections = Detections([rule, text], binaries=binaries)
        detections.bind([opened(data)])
        alerts = [one for _, one in raised(detections, [batch(EVENTS)])]
        assert sum(one["rule"] == "R" for one in alerts) == expected
        texts = {one["text"] for one in alerts if one["rule"] == "T"}
        assert texts == ({"Honest Inc"} if binaries else set())


def test_is_minidump_needs_no_option() -> None:
    detections = Detections([plain("R", "is_minidump(args.pathname)")])
    detections.bind([opened(capture(EVENTS, BLOBS))])
    assert len(raised(detections, [batch(EVENTS)])) == 1


@pytest.mark.parametrize(
    "text",
    ["yara(ps.exe, ps.name)", "yara(ps.exe)", "yara(ps.exe, '')", "yara(ps.exe, 'a', 'b', 'c')"],
)
def test_yara_takes_rules_as_text(text: str) -> None:
    with pytest.raises(FilterError):
        Filter.of(text)


@pytest.mark.parametrize("text", ["rule x { condition: nothing }", "// none"])
def test_bad_yara_rules_in_a_filter_are_an_error(text: str) -> None:
    where = Filter.of(f"yara(ps.exe, '{text}')")
    with pytest.raises(KcapError):
        where.inspect(binaries=False)
    detections = Detections([plain("Y", f"yara(ps.exe, '{text}')"), plain("R", "pid = 7")])
    assert len(raised(detections, [batch(EVENTS)])) == len(EVENTS)
    assert [loss.kind for loss in detections.losses] == ["blind"]


@pytest.mark.parametrize("name", ["get_reg_value", "glob", "symlink"])
def test_what_no_artifact_answers_is_refused(name: str) -> None:
    with pytest.raises(FilterError, match="can't be replayed"):
        Filter.of(f"{name}(file.path)")


# verbs


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.kcap"
    path.write_bytes(capture(EVENTS, BLOBS))
    return path


def ords(output: str) -> list[int]:
    return [json.loads(line)["ord"] for line in output.splitlines()]


@pytest.mark.parametrize("flag", ["--pe.enabled", "--pe.enabled=true", "--pe.enabled=TRUE"])
def test_the_seed_s_command(saved: Path, flag: str) -> None:
    """`replay pe.resources[Company] contains 'blackwater' -k NAME`."""
    name = str(saved.with_suffix(""))
    words = "pe.resources[Company]", "contains", "'blackwater'", "-k", name, "--format", "jsonl"
    result = run("replay", flag, *words)
    assert (result.exit_code, ords(result.stdout)) == (0, [0, 2, 3, 4])
    for off in ([], ["--pe.enabled=false"], ["--no-pe.enabled"]):
        result = run("replay", *off, *words)
        assert (result.exit_code, ords(result.stdout)) == (0, [])


def test_cat_filter_and_a_part_of_a_replay(saved: Path, tmp_path: Path) -> None:
    result = run("cat", "--pe.enabled", "-w", EVIL, saved, "--format", "jsonl")
    assert ords(result.stdout) == [0, 2, 3, 4]
    assert "pe_x2E" not in result.stdout
    copy = tmp_path / "b.kcap"
    assert run("filter", "--pe.enabled", "-w", EVIL, saved, "-o", copy).exit_code == 0
    result = run("cat", copy, "--format", "jsonl")
    assert ords(result.stdout) == [0, 2, 3, 4]
    assert "pe_x2E" not in result.stdout
    result = run("replay", "--pe.enabled", "-w", EVIL, "--start", "#3", saved, "--format", "jsonl")
    assert ords(result.stdout) == [3, 4]


def test_a_manifest_says_the_option(saved: Path, tmp_path: Path) -> None:
    out, says = tmp_path / "out.jsonl", tmp_path / "run.json"
    words = ["--format", "jsonl", "-o", out, "--manifest", says]
    assert run("replay", "--pe.enabled", "-w", EVIL, saved, *words).exit_code == 0
    assert json.loads(says.read_text())["options"]["pe.enabled"] is True
    assert run("replay", "--verify", says).exit_code == 0
    changed = json.loads(says.read_text())
    changed["options"]["pe.enabled"] = False
    says.write_text(json.dumps(changed))
    assert run("replay", "--verify", says).exit_code == 1


def test_detect_asks_the_filter_and_the_rules(saved: Path, tmp_path: Path) -> None:
    rules = tmp_path / "r.yml"
    rules.write_text(f'id: R\nname: r\ncondition: "{EVIL}"\n')
    words = ["detect", "--rules", rules, saved, "--format", "jsonl"]
    assert len(run(*words, "--pe.enabled").stdout.splitlines()) == 4
    assert run(*words).stdout == ""
    where = "pe.company icontains 'BLACKWATER' and evt.name = 'write'"
    assert len(run(*words, "--pe.enabled", "-w", where).stdout.splitlines()) == 1
