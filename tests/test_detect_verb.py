"""kcap detect: the text and lists of tracee-rules, JSON lines, inputs, intervals, tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import run, shell
from rules_support import OWN_RULES, events, lines, written

from kcap.writers.detections import go

SEED_IDS = "TRC-1 TRC-13 TRC-2 TRC-14 TRC-3 TRC-11 TRC-9 TRC-4 TRC-5 TRC-12 TRC-6 TRC-10 TRC-7"
SEED_LOADED = f"Loaded 14 signature(s): [{SEED_IDS} TRC-15]\n"
SEED_EVENTS = (
    "close,dup,dup2,dup3,execve,hooked_syscalls,init_module,magic_write,mem_prot_alert,"
    "process_vm_writev,ptrace,sched_process_exec,sched_process_exit,security_bprm_check,"
    "security_file_open,security_kernel_read_file,security_sb_mount,security_socket_connect\n"
)
HEADING = "ID         NAME                                VERSION DESCRIPTION"
FIRST = (
    "TRC-1      Standard Input/Output Over Socket   0.1.0  "
    " Redirection of process's standard input/output to socket"
)
TEXT = """
*** Detection ***
Time: 2022-07-09T21:42:49Z
Signature ID: TRC-3
Signature: Code injection
Data: map[file flags:O_WRONLY file path:/proc/12/mem]
Command: cat
Hostname: fujitsu
"""


def rules_found(*words: str | Path) -> list[tuple[str, int]]:
    """The alerts that kcap detect prints: rule and event time."""
    result = run("detect", "--format", "jsonl", *words)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [(one["arg_rule"], one["ts"]) for one in found]


def names_found(*words: str | Path) -> list[str]:
    """The rules of the alerts that kcap detect prints."""
    return [name for name, _ in rules_found(*words)]


def test_list() -> None:
    """The table has tracee-rules's widths and order, and what was loaded goes to stderr."""
    result = run("detect", "--list")
    assert result.exit_code == 0
    found = result.stdout.splitlines()
    assert found[:2] == [HEADING, FIRST]
    assert [line.split()[0] for line in found[1:]] == [*SEED_IDS.split(), "TRC-15"]
    assert result.stderr == SEED_LOADED


def test_list_events() -> None:
    """The events are one line and nothing else, of all rules or of those that are named."""
    result = run("detect", "--list-events")
    assert (result.stdout, result.stderr) == (SEED_EVENTS, "")
    result = run("detect", "--rules", "TRC-3", "--list-events")
    assert (result.stdout, result.stderr) == ("process_vm_writev,ptrace,security_file_open\n", "")


def test_text(tmp_path: Path) -> None:
    """An alert is printed as tracee-rules does, with the time of its event."""
    result = run("detect", "--rules", "TRC-3", written(tmp_path))
    assert result.stdout == TEXT
    assert result.stderr.startswith("Loaded 1 signature(s): [TRC-3]\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "map[]"),
        ({"b": [1, "x"], "a": {"c": True}}, "map[a:map[c:true] b:[1 x]]"),
        ({"n": None, "f": 1.0}, "map[f:1 n:<nil>]"),
        (0.1, "0.1"),
        (1e20, "100000000000000000000"),
        (1.5e21, "1.5e+21"),
        (-0.00001, "-1e-05"),
        (0.0001, "0.0001"),
    ],
)
def test_go(value: object, text: str) -> None:
    """Values look as Go prints them."""
    assert go(value) == text


def test_same_alerts_of_every_input(tmp_path: Path) -> None:
    """A file, its import, standard input and the options of tracee-rules give the same bytes."""
    path = written(tmp_path)
    assert run("import", path, "-o", tmp_path / "one.kcap").exit_code == 0
    first = run("detect", "--format", "jsonl", path).stdout
    assert [json.loads(line)["arg_rule"] for line in first.splitlines()] == [
        "TRC-2", "TRC-2", "TRC-6", "TRC-3",
    ]  # fmt: skip
    assert run("detect", "--format", "jsonl", tmp_path / "one.kcap").stdout == first
    text = path.read_bytes()
    assert run("detect", "--format", "jsonl", "-", input=text).stdout == first
    words = ["--input-tracee", "file:stdin", "--input-tracee", "format:JSON"]
    assert run("detect", "--format", "jsonl", *words, input=text).stdout == first


def test_input_tracee(tmp_path: Path) -> None:
    """An input that is not what it is said to be is refused, and so are unknown words."""
    file = f"file:{written(tmp_path)}"
    result = run("detect", "--input-tracee", file, "--input-tracee", "format:gob")
    assert result.exit_code == 1
    assert "this is a tracee input" in result.stderr
    for word in ("format:xml", "stdin", "file:"):
        assert run("detect", "--input-tracee", word).exit_code == 2
    assert run("detect").exit_code == 2


def test_several_captures(tmp_path: Path) -> None:
    """Several captures are one run, in order of time, whatever order they are named in."""
    paths = []
    for number, part in enumerate((events()[2:], events()[:2])):
        (tmp_path / f"{number}.json").write_bytes(lines(part))
        paths.append(tmp_path / f"{number}.json")
    (tmp_path / "own.yml").write_text(OWN_RULES)
    found = rules_found("--rules", tmp_path / "own.yml", *paths)
    assert [name for name, _ in found] == ["TWICE", "OPENS"]
    assert rules_found("--rules", tmp_path / "own.yml", *reversed(paths)) == found
    assert names_found("--rules", tmp_path / "own.yml", paths[0]) == ["OPENS"]


def test_interval_is_a_part_of_the_whole(tmp_path: Path) -> None:
    """--start and --end give those alerts of the whole run that have such a time."""
    path = written(tmp_path)
    (tmp_path / "own.yml").write_text(OWN_RULES)
    words: list[str | Path] = ["--rules", tmp_path / "own.yml", "--signatures", "seed", path]
    whole = rules_found(*words)
    assert ("TWICE", events()[2]["timestamp"]) in whole
    times = sorted({at for _, at in whole})
    for start, end in zip(times, [*times[2:], times[-1] + 1, times[-1]], strict=True):
        some = rules_found("--start", str(start), "--end", str(end), *words)
        assert some == [(name, at) for name, at in whole if start <= at < end]


def test_where_and_limit(tmp_path: Path) -> None:
    """-w leaves rules without other events, and -n ends the run behind so many alerts."""
    path = written(tmp_path)
    assert names_found("-w", "ps.name = 'cat'", path) == ["TRC-3"]
    assert names_found("-n", "2", path) == ["TRC-2", "TRC-2"]


def test_exit_code(tmp_path: Path) -> None:
    """Exit code 4 says that something was found, where that was asked for."""
    path = written(tmp_path)
    assert run("detect", path).exit_code == 0
    assert run("detect", "--exit-code", path).exit_code == 4
    assert run("detect", "--exit-code", "-w", "ps.name = 'none'", path).exit_code == 0


def test_selection(tmp_path: Path) -> None:
    """Rules are chosen by path, by ID, in folders by ID, and from later sets."""
    path = written(tmp_path)
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "own.yml").write_text(OWN_RULES)
    assert names_found("--rules", folder, path) == ["TWICE", "OPENS"]
    assert names_found("--rules", folder, "--rules", "TRC-6", path) == ["TWICE", "TRC-6", "OPENS"]
    assert names_found("--rules-dir", folder, path) == ["TWICE", "OPENS"]
    assert names_found("--rules-dir", folder, "--rules", "OPENS,TRC-6", path) == ["TRC-6", "OPENS"]
    result = run("detect", "--list", "--rules", "TRC-8")
    assert result.stdout.splitlines()[1].startswith("TRC-8 ")
    assert len(run("detect", "--list", "--signatures", "all").stdout.splitlines()) == 48
    result = run("detect", "--rules", "TRC-33", path)
    assert result.exit_code == 1
    assert "no rule has the ID 'TRC-33'" in result.stderr
    assert "TRC-3" in result.stderr


def test_bad_rules(tmp_path: Path) -> None:
    """A rule that can't run is told with file and line, the others run, and the exit code is 3."""
    bad = "  - id: BAD\n    name: x\n    condition: ps.nam = 'x'\n"
    rules = tmp_path / "own.yml"
    rules.write_text(OWN_RULES + bad)
    result = run("detect", "--format", "jsonl", "--rules", rules, written(tmp_path))
    assert result.exit_code == 3
    assert f"{rules}: the rule BAD: no field is called 'ps.nam' at line 16" in result.stderr
    assert [json.loads(x)["arg_rule"] for x in result.stdout.splitlines()] == ["TWICE", "OPENS"]


def test_rule_that_fails(tmp_path: Path) -> None:
    """A signature in Python that raises is told by its line; the others run, exit code 3."""
    rules = tmp_path / "own.py"
    rules.write_text(
        "from kcap.detect.python_rules import Signature\n\n\n"
        "class Fails(Signature):\n"
        '    id = "FAILS"\n'
        '    name = "fails"\n'
        '    selectors = {"a": "evt.name = \'ptrace\'"}\n\n'
        "    def on_match(self, ctx, selector, event):\n"
        "        raise LookupError('gone')\n"
    )
    result = run("detect", "--rules", rules, "--rules", "TRC-6", written(tmp_path))
    assert result.exit_code == 3, result.output
    assert "Signature ID: TRC-6" in result.stdout
    assert "LookupError: gone" in result.stderr
    assert "line 10" in result.stderr


def test_tuning(tmp_path: Path) -> None:
    """Alerts that a tuning file names are not raised until they are to be, and counted."""
    path = written(tmp_path)
    tuning = tmp_path / "tuning.yml"
    entry = "- rule: TRC-2\n  filter: ps.name in ('strace', 'x')\n  reason: we debug\n"
    tuning.write_text(entry)
    result = run("detect", "--tuning", tuning, "--format", "jsonl", path)
    assert [json.loads(x)["arg_rule"] for x in result.stdout.splitlines()] == ["TRC-6", "TRC-3"]
    assert "kcap: TRC-2: 2 alerts suppressed: we debug\n" in result.stderr
    tuning.write_text(entry + "  until: 2022-07-09T21:42:47Z\n")
    assert names_found("--tuning", tuning, path) == ["TRC-2", "TRC-6", "TRC-3"]
    tuning.write_text(entry.replace("reason", "raeson"))
    result = run("detect", "--tuning", tuning, path)
    assert result.exit_code == 1
    assert f"{tuning}: an exception has 'raeson', which nobody knows at line 3" in result.stderr


def test_throttle(tmp_path: Path) -> None:
    """Of alerts of one rule about one process, those that come too soon are counted."""
    path = tmp_path / "events.json"
    first = events()[0]
    path.write_bytes(lines([first, first | {"timestamp": first["timestamp"] + 10**9}]))
    assert len(rules_found(path)) == 2
    result = run("detect", "--throttle", "1m", path)
    assert result.stdout.count("Detection") == 1
    assert "kcap: TRC-2: 1 alert suppressed: throttled\n" in result.stderr
    assert len(rules_found("--throttle", "500ms", path)) == 2


def test_template(tmp_path: Path) -> None:
    """A template writes an alert as it says."""
    template = tmp_path / "alert.j2"
    template.write_text("{{ arg_rule }} on {{ host }}")
    words: list[str | Path] = ["detect", "--rules", "TRC-6", written(tmp_path)]
    words += ["--output-template", template]
    assert run(*words).stdout == "TRC-6 on fujitsu\n"
    assert run(*words, "--format", "text").exit_code == 2


def test_output_and_sink(tmp_path: Path) -> None:
    """Alerts go to a file and to sinks, which get nothing else."""
    path = written(tmp_path)
    sink = tmp_path / "sink.jsonl"
    result = run("detect", path, "-o", tmp_path / "out.txt", "--sink", f"file://{sink}")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert (tmp_path / "out.txt").read_text().count("*** Detection ***") == 4
    assert [json.loads(x)["kind"] for x in sink.read_text().splitlines()] == ["alert"] * 4
    assert run("detect", path, "-o", tmp_path / "out.txt").exit_code == 1


def test_pipe(tmp_path: Path) -> None:
    """kcap cat writes what kcap detect reads, through a pipe."""
    assert run("import", written(tmp_path), "-o", tmp_path / "one.kcap").exit_code == 0
    done = shell("kcap cat --format kcap one.kcap | kcap detect --rules TRC-3 -", tmp_path)
    assert done.stdout.decode() == TEXT
