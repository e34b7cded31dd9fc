"""The command line: help, exit codes, reports, choosing events, documentation."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from cli_support import EVENTS, lines_of, run
from support import capture, make_events, opened, read, rows_of

from kcap.errors import KcapError
from kcap.format.reader import CaptureReader
from kcap.tools import cli, common
from kcap.tools.cli import main

Kcap = Callable[..., "subprocess.CompletedProcess[bytes]"]
VERBS = tuple(cli._VERBS)


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_its_examples_first(verb: str) -> None:
    """Examples stand before description and options, call the verb, and parse."""
    result = run(verb, "--help")

    assert result.exit_code == 0
    assert result.stdout.index("Examples:") < result.stdout.index("Options:")
    assert "no help" not in result.stdout
    command = main.get_command(None, verb)  # type: ignore[arg-type]
    assert isinstance(command, cli.Verb)
    assert command.examples
    for example in command.examples:
        calls = [shlex.split(c) for c in re.findall(r'\bkcap (\w+(?:"[^"]*"|[^|<>;)])*)', example)]
        called = {words[0] for words in calls}
        other_names = {"record", "service"} if cli._VERBS[verb].hidden else set()
        assert called & ({verb} | other_names)
        for name, *words in calls:
            other = main.get_command(None, name)  # type: ignore[arg-type]
            assert other is not None
            other.make_context(name, words)
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter  # type: ignore[attr-defined]


def test_bare_kcap_lists_the_verbs_by_group() -> None:
    """`kcap` alone succeeds, and is the help."""
    bare = run()

    assert bare.exit_code == 0
    assert bare.stdout == run("--help").stdout == run("-h").stdout
    groups = ["Capture:", "Look:", "Replay:", "Check:", "Help:"]
    places = [bare.stdout.index(f"\n{g}\n") for g in groups]
    assert places == sorted(places)
    for verb in VERBS:
        listed = re.search(rf"^  {verb} +\S", bare.stdout, re.MULTILINE)
        assert bool(listed) != cli._VERBS[verb].hidden, verb


def test_a_verb_that_is_not_there_is_wrong_usage() -> None:
    """Exit code 2; a near name is offered, a far one is not."""
    near, far = run("recrod"), run("xyzzy")

    assert (near.exit_code, far.exit_code) == (2, 2)
    assert "Did you mean 'record'?" in near.stderr
    assert "Did you mean" not in far.stderr
    assert near.stdout == far.stdout == ""


# Exit codes and the two streams


def test_exit_codes_are_those_of_a_process(kcap: Kcap, tmp_path: Path, closed: Path) -> None:
    """0 done, 1 failed, 2 wrong usage, 3 something lost; the same text on the same stream."""
    (tmp_path / "open.kcap").write_bytes(capture(closed=False))
    (tmp_path / "text.kcap").write_text("hello")
    cases: list[tuple[int, tuple[str | Path, ...]]] = [
        (0, ("cat", closed)),
        (0, ("version",)),
        (1, ("cat", tmp_path / "none.kcap")),
        (1, ("info", tmp_path / "text.kcap")),
        (2, ("cat",)),
        (2, ("cat", closed, "--start", "yesterday")),
        (2, ("cat", closed, "--fields", "nosuchcolumn!")),
        (2, ("docs", "colums")),
        (3, ("cat", tmp_path / "open.kcap")),
        (3, ("info", tmp_path / "open.kcap")),
        (3, ("verify", tmp_path / "open.kcap")),
    ]
    for code, words in cases:
        inside, outside = run(*words), kcap(*words)
        assert (inside.exit_code, outside.returncode) == (code, code), words
        assert inside.stdout_bytes == outside.stdout, words
        assert inside.stderr_bytes == outside.stderr, words
        assert b"Traceback" not in outside.stderr
        if code in (1, 2):
            assert outside.stdout == b"", words


def test_an_error_shows_its_origin_only_when_asked(tmp_path: Path) -> None:
    """`-vv` prints the traceback, before or behind the verb; nothing else does."""
    path = tmp_path / "none.kcap"

    assert "Traceback" not in run("-v", "cat", path).stderr
    assert "Traceback" in run("-vv", "cat", path).stderr
    assert "Traceback" in run("cat", path, "-v", "-v").stderr


def test_stdout_carries_data_only(closed: Path, tmp_path: Path) -> None:
    """Summaries, losses and errors are on standard error."""
    result = run("replay", closed, "--format", "jsonl")
    assert len(result.stdout.splitlines()) == EVENTS.rows
    first, times = result.stderr.splitlines()
    assert first == f"kcap: {EVENTS.rows} events replayed"
    assert times.startswith("kcap: from 2023-11-14T22:13:1")

    result = run("replay", closed, "-o", tmp_path / "out.txt")
    assert result.stdout == ""

    result = run("import", closed, "-o", "-")
    assert rows_of(read(result.stdout_bytes)[0]) == rows_of([EVENTS])
    assert result.stderr.endswith(": -\n")


# info


def test_info_gives_exact_numbers(closed: Path) -> None:
    """Events and backward steps are integers, equal to what the rows say."""
    found = json.loads(run("info", "--json", closed).stdout)
    ts = [t for t in EVENTS.columns["ts"].values.to_pylist() if t is not None]

    assert type(found["events"]) is int
    assert found["events"] == EVENTS.rows
    assert type(found["backward_steps"]) is int
    assert found["backward_steps"] == sum(b < a for a, b in pairwise(ts))
    assert found["ts"] == [min(ts), max(ts)]
    assert found["state"] == "closed"
    assert found["bytes"] == closed.stat().st_size
    assert found["columns"].keys() == EVENTS.columns.keys()


def test_info_of_every_form_of_input(tmp_path: Path, closed: Path, foreign: Path) -> None:
    """Closed, open, torn, foreign and streamed inputs: counts, state and exit code."""
    whole = closed.read_bytes()
    (tmp_path / "open.kcap").write_bytes(capture(closed=False))
    (tmp_path / "torn.kcap").write_bytes(capture(closed=False)[:-5])
    found = {}
    for name, code in [("closed", 0), ("open", 3), ("torn", 3)]:
        result = run("info", "--json", tmp_path / f"{name}.kcap")
        assert result.exit_code == code, name
        found[name] = json.loads(result.stdout)
        assert found[name]["events"] == EVENTS.rows
        assert found[name]["state"] == name
    assert found["torn"]["loss"][-1]["kind"] == "torn"

    result = run("info", "--json", "-", input=whole)
    assert result.exit_code == 0
    stream = json.loads(result.stdout)
    same = ("events", "backward_steps", "ts", "types", "columns", "sources", "state", "loss")
    assert {k: stream[k] for k in same} == {k: found["closed"][k] for k in same}

    result = run("info", "--json", foreign)
    assert result.exit_code == 0
    other = json.loads(result.stdout)
    assert (other["format"], other["events"], other["types"]) == ("tracee", 2, {"openat": 2})
    assert run("info", foreign).exit_code == 0


def test_info_of_a_closed_file_reads_its_ends_only(tmp_path: Path) -> None:
    """The numbers come from header and footer, also where the middle is not readable at all."""
    path = tmp_path / "big.kcap"
    whole = capture([make_events(20_000)], chunk_rows=1000)
    path.write_bytes(whole)
    expected = run("info", "--json", path).stdout

    reader = opened(whole)
    assert reader.footer is not None
    assert reader.footer_offset is not None
    first = int(reader.footer.chunks["offset"][0])
    hollow = whole[:first] + bytes(reader.footer_offset - first) + whole[reader.footer_offset :]
    path.write_bytes(hollow)
    assert run("info", "--json", path).stdout == expected

    counted = _Counting(hollow)
    CaptureReader(counted, "big.kcap")
    footer_bytes = len(hollow) - reader.footer_offset
    assert counted.bytes_read < footer_bytes + 4096 < len(hollow) / 4


class _Counting(io.BytesIO):
    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.bytes_read += len(part)
        return part


def test_reports_are_json(closed: Path, foreign: Path) -> None:
    """Whatever has --json prints one JSON object, and says no less than the text."""
    for words in (("info", closed), ("info", foreign), ("verify", closed), ("version",)):
        result = run(*words, "--json")
        assert result.exit_code == 0
        assert isinstance(json.loads(result.stdout), dict)
        assert run(*words).exit_code == 0
    report = json.loads(run("verify", closed, "--json").stdout)
    assert report["good"] is True
    assert report["rows"] == EVENTS.rows


# Choosing events


def test_time_ranges_are_half_open(tmp_path: Path) -> None:
    """--start counts in, --end does not; RFC 3339 and ns mean the same."""
    path = tmp_path / "a.kcap"
    events = make_events(500)
    path.write_bytes(capture([events], chunk_rows=50))
    ts = events.columns["ts"].values.to_pylist()
    low, high = sorted(ts)[100], sorted(ts)[300]
    expected = [t for t in ts if low <= t < high]
    assert expected

    for start, end in [(str(low), str(high)), (common.utc(low), common.utc(high))]:
        rows = lines_of("cat", path, "--start", start, "--end", end)
        assert [r["ts"] for r in rows] == expected
    west = common.utc(low - 3_600_000_000_000).replace("Z", "-01:00")
    assert [r["ts"] for r in lines_of("cat", path, "--start", west)] == [t for t in ts if t >= low]
    piped = lines_of("cat", "-", "--start", low, "--end", high, input=path.read_bytes())
    assert [r["ts"] for r in piped] == expected
    assert [r["ts"] for r in lines_of("cat", path, "--end", low)] == [t for t in ts if t < low]
    assert lines_of("cat", path, "--start", 10**30) == []
    assert len(lines_of("cat", path, "--start", -(10**30), "--end", 10**30)) == len(ts)


@pytest.mark.parametrize(
    "word", ["yesterday", "12:00", "2026-13-01T00:00:00Z", "1e9", "1.5", "9" * 5000, ""]
)
def test_times_that_are_none_are_wrong_usage(word: str, closed: Path) -> None:
    """Exit code 2, and the message shows how to write one."""
    result = run("cat", closed, "--start", word)

    assert result.exit_code == 2
    assert "2026-11-20T12:00:00Z" in result.stderr


@pytest.mark.parametrize("count", [0, 1, 26, 10_000])
def test_a_limit_ends_the_run(count: int, closed: Path) -> None:
    """-n gives the first N events, and does not hang on more."""
    rows = lines_of("cat", closed, "-n", count)

    assert rows == lines_of("cat", closed)[:count]


def test_fields_choose_columns(closed: Path) -> None:
    """--fields keeps these columns, in their usual order; the rows stay."""
    rows = lines_of("cat", closed, "--fields", "arg_fd__i64, ts")
    whole = lines_of("cat", closed)

    assert rows == [{k: r[k] for k in ("ts", "arg_fd__i64") if k in r} for r in whole]
    assert list(rows[0]) == ["ts", "arg_fd__i64"]
    windowed = lines_of("cat", closed, "--fields", "arg_fd__i64", "--start", whole[5]["ts"])
    assert windowed == [
        {"arg_fd__i64": r["arg_fd__i64"]} for r in whole if r["ts"] >= whole[5]["ts"]
    ]


# Documentation


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_every_verb_has_a_manual_page(verb: str | None) -> None:
    """`kcap man VERB` has the sections of a manual page, and roff that has no stray requests."""
    words = ["man", *([verb] if verb else [])]
    plain, roff = run(*words), run(*words, "--roff")

    assert (plain.exit_code, roff.exit_code) == (0, 0)
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS"):
        assert f"\n{heading}\n" in f"\n{plain.stdout}", heading
        assert f".SH {heading}\n" in roff.stdout
    requests = {line.split()[0] for line in roff.stdout.splitlines() if line[:1] in (".", "'")}
    assert requests <= {".TH", ".SH", ".PP", ".nf", ".fi"}
    assert all(len(line) < 100 for line in plain.stdout.splitlines())


def test_docs_print_every_topic_they_list() -> None:
    """`kcap docs` lists topics; each is printed, and has something to say."""
    listed = [line.split()[2] for line in run("docs").stdout.splitlines()]

    assert {"columns", "events", "format"} <= set(listed)
    for topic in listed:
        result = run("docs", topic)
        assert result.exit_code == 0
        assert len(result.stdout.splitlines()) > 5, topic
    assert "Did you mean 'columns'?" in run("docs", "colums").stderr


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid(
    shell_name: str, program: Callable[[str], str], tmp_path: Path
) -> None:
    """The script is one its shell accepts, and it asks kcap itself."""
    result = run("completion", shell_name)
    assert result.exit_code == 0
    assert "_KCAP_COMPLETE" in result.stdout
    script = tmp_path / "script"
    script.write_text(result.stdout)
    subprocess.run([program(shell_name), "-n", script], check=True)


def test_completion_knows_verbs_and_options(kcap: Kcap) -> None:
    """What the script asks is answered: verbs by prefix, and the options of a verb."""
    verbs = kcap(_KCAP_COMPLETE="bash_complete", COMP_WORDS="kcap re", COMP_CWORD="1")
    options = kcap(_KCAP_COMPLETE="bash_complete", COMP_WORDS="kcap cat --st", COMP_CWORD="2")

    assert {b"plain,record", b"plain,replay"} <= set(verbs.stdout.split())
    assert b"plain,capture" not in verbs.stdout.split()
    assert set(options.stdout.split()) == {b"plain,--start", b"plain,--state"}


def test_version_names_everything_a_report_needs(kcap: Kcap) -> None:
    """kcap, commit, format, Python, libzstd and every library."""
    found = json.loads(run("version", "--json").stdout)

    for name in ("kcap", "commit", "format", "python", "libzstd", "pyarrow", "zstandard"):
        assert re.match(r"[0-9a-f]", found[name]), name
    assert run("--version").stdout == f"kcap {found['kcap']}\n"
    assert kcap("version").stdout.decode().split()[:2] == ["kcap", found["kcap"]]


# Whatever goes wrong


def test_a_defect_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """An exception nobody foresaw is exit code 1 and asks for a report; -vv shows it."""

    def broken(*_: object, **__: object) -> object:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("kcap.opening.open_source", broken)
    result = run("cat", closed)
    assert result.exit_code == 1
    assert result.stderr == (
        "kcap: internal error: ZeroDivisionError('oops')\nhint: again with -vv, and report it\n"
    )
    assert "Traceback" in run("-vv", "cat", closed).stderr


def test_errors_read_as_one_line() -> None:
    """File, what, place and expectation stand in that order."""
    error = KcapError(
        "the thing is bad", file="f.kcap", offset=9, record=2, expected="good", hint="h"
    )
    assert str(error) == "f.kcap: the thing is bad at byte 9 (record 2): expected good"


def test_help_is_quick(kcap: Kcap) -> None:
    """Help needs no Arrow: the best of five runs stays far below a second."""
    best = 9.0
    for _ in range(5):
        begun = time.monotonic()
        assert kcap("--help").returncode == 0
        best = min(best, time.monotonic() - begun)
    assert best < 0.6
