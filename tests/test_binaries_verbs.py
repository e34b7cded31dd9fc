"""`--pe.enabled` with every verb that has it: one answer, whatever the verb and the input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from binaries_support import BLACKWATER, Blob, capture, event
from cli_support import run, shell
from test_binaries_filters import BLOBS, EVENTS, EVIL, SHA256

import kcap

COUNT = "SELECT count(*) AS n FROM events"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.kcap"
    path.write_bytes(capture(EVENTS, BLOBS))
    return path


def counted(verb: str, path: Path, *words: str) -> int:
    """How many events a verb says the filter chooses."""
    fixed: dict[str, tuple[str | Path, ...]] = {
        "stats": ("stats", "--by", "event", path, "--json"),
        "timeline": ("timeline", path, "--json"),
        "info": ("info", path, "--json"),
        "query": ("query", COUNT, path, "--format", "jsonl"),
        "cat": ("cat", path, "--format", "jsonl"),
    }
    result = run(*fixed[verb], "-w", EVIL, *words)
    assert result.exit_code in (0, 3), result.output
    if verb == "cat":
        return len(result.stdout.splitlines())
    said = json.loads(result.stdout)
    if verb == "query":
        return int(said["n"])
    events = said["events"]
    return int(events["count"] if isinstance(events, dict) else events)


@pytest.mark.parametrize("verb", ["stats", "timeline", "info", "query", "cat"])
def test_every_verb_answers_alike(saved: Path, verb: str) -> None:
    assert counted(verb, saved, "--pe.enabled") == 4
    assert counted(verb, saved) == 0


def test_a_query_that_reads_twice(saved: Path) -> None:
    """A join: two scans of one file, each with all it needs."""
    sql = "SELECT count(*) AS n FROM events a JOIN events b ON a.ord = b.ord"
    result = run("query", sql, saved, "--format", "jsonl", "--pe.enabled", "-w", EVIL)
    assert json.loads(result.stdout) == {"n": 4}


def test_export(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    assert run("export", saved, "-o", out, "--pe.enabled", "-w", EVIL).exit_code == 0
    assert len(out.read_text().splitlines()) == 4


def test_tree(tmp_path: Path) -> None:
    """Processes with such an event, and no others."""
    path = tmp_path / "a.kcap"
    events = [
        {**event("sched_process_exec", 1, "/tmp/evil.exe"), "pid": 7, "process_name": "evil"},
        {**event("sched_process_exec", 2, "/bin/true"), "pid": 8, "process_name": "true"},
    ]
    path.write_bytes(capture(events, [Blob(BLACKWATER, "/tmp/evil.exe", 0)]))
    found = [p["pid"] for p in json.loads(run("tree", path, "--json").stdout)["processes"]]
    assert found == [7, 8]
    words = ["tree", path, "--json", "-w", EVIL]
    result = run(*words, "--pe.enabled")
    assert [p["pid"] for p in json.loads(result.stdout)["processes"]] == [7]
    assert json.loads(run(*words).stdout)["processes"] == []


def test_redact_hides_what_the_filter_means(tmp_path: Path) -> None:
    """A value of such an event is hidden; without the option it is not meant, and stays."""
    path, key = tmp_path / "a.kcap", tmp_path / "key"
    events = [event("openat", 1, "/tmp/evil.exe", pathname="/home/alice")]
    path.write_bytes(capture(events, [Blob(BLACKWATER, "/tmp/evil.exe", 0)]))
    assert run("redact", "--new-key", key).exit_code == 0
    for number, words in enumerate((["--pe.enabled"], [], ["--pe.enabled", "--columns-only"])):
        out = tmp_path / f"{number}.kcap"
        asked = ["--columns", "arg_pathname", "-w", EVIL, *words]
        result = run("redact", path, "-o", out, "--key-file", key, *asked)
        assert result.exit_code == 0, result.output
        assert ("/home/alice" in run("cat", out, "--format", "jsonl").stdout) == (not words)


@pytest.mark.parametrize("verb", ["stats", "timeline", "info", "query", "cat"])
def test_a_pipe_has_no_artifacts_and_that_is_a_loss(saved: Path, verb: str) -> None:
    words = {"query": f"query '{COUNT}' -"}.get(verb, f"{verb} -")
    result = shell(f'cat {saved} | kcap {words} --pe.enabled -w "{EVIL}"', saved.parent)
    assert result.returncode == 3, result.stderr
    assert b"the artifacts of a pipe are not looked at" in result.stderr
    assert shell(f"cat {saved} | kcap {words} -w 'pid = 7'", saved.parent).returncode == 0


def test_each_capture_is_answered_by_its_own_artifacts(tmp_path: Path) -> None:
    """Whatever was read before: the first is closed when the second is read."""
    first, second = tmp_path / "a.kcap", tmp_path / "b.kcap"
    first.write_bytes(capture([event("openat", 1, "/x")], [Blob(BLACKWATER, "/other", 50)]))
    second.write_bytes(capture([event("exec", 1, "/tmp/by-hash", exe_sha256=SHA256)], []))
    for order in ([first, second], [second, first]):
        result = run("stats", "--by", "event", *order, "--json", "--pe.enabled", "-w", EVIL)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["events"] == 0


def test_the_library_answers_functions_of_artifacts(saved: Path) -> None:
    """As filters of verbs do, without more ado."""
    with kcap.open(saved) as opened:
        assert opened.to_arrow(["ord"], "is_minidump(args.pathname)")["ord"].to_pylist() == [7]
        batches = opened.batches(["ord"], "is_minidump(args.pathname)")
        assert [o for b in batches for o in b.array("ord").to_pylist()] == [7]
        assert opened.to_arrow(["ord"], "is_minidump(ps.exe)").num_rows == 0
