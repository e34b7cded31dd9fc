"""The options of record and run that say what is recorded; nothing is recorded here."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import run

from kcap.readers.live.bpf import events
from kcap.tools import live_select


@pytest.mark.parametrize("verb", ["record", "run"])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--scope", "uidd=0"], 2, "the scope: no scope is called 'uidd'"),
        (["--filter", "uidd=0"], 2, "did you mean 'uid'?"),
        (["--trace", "comm>a"], 2, "'>' is for numbers"),
        (["--scope", "openat.args.pathnam=x"], 2, "did you mean 'pathname'?"),
        (["--events", "opnat"], 2, "did you mean 'openat'?"),
        (["--events", "a,,b"], 2, "a name is missing"),
        (["--set", "openat"], 2, "no set is called 'openat'"),
        (["--events", "-default"], 2, "no event is left to record"),
        (["--env", "A=1"], 2, "'A=1' is no variable's name"),
        (["--opens", "some"], 2, "is not one of"),
        (["--scope", "tree=4194304"], 1, "there is no process 4194304"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(
    verb: str, words: list[str], code: int, said: str, tmp_path: Path
) -> None:
    """The error says what is wrong, and no file is made."""
    target = tmp_path / "r.kcap"
    result = run(verb, "-o", target, *words)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert not target.exists()


def test_the_place_in_a_scope_is_shown() -> None:
    """A caret points at the word that is wrong."""
    assert "\n  uid=root\n      ^^^^\n" in run("run", "--scope", "uid=root").stderr


@pytest.mark.parametrize("verb", ["record", "run"])
def test_events_are_listed(verb: str) -> None:
    """Every event, with its sets; every view, with what it is made of."""
    result = run(verb, "--list-events")
    assert result.exit_code == 0
    listed = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")}
    assert listed >= events.events().keys()
    assert "security_file_open" in listed
    assert "net_sock" in result.stdout


def test_all_ways_to_name_events_come_together() -> None:
    """Names, sets and what to leave out, in options and among scopes."""
    options: live_select.SelectOptions = {
        "source": "auto",
        "wanted": ("default,read,-mount", "close.retval<0"),
        "sets": ("clone",),
        "exclude": ("ptrace",),
        "scope": ("event=write", "e!=bpf"),
        "env": "HOME",
        "stack": True,
        "opens": None,
    }
    found = live_select.chosen(options, None)
    assert {"read", "close", "write", "clone", "vfork", "openat"} <= found.events
    assert not {"mount", "ptrace", "bpf"} & found.events
    assert (found.opens, found.stack, found.environment.level) == ("writes", True, 2)
    assert found.setup().constants["stacks"] == 1
