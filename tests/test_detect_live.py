"""Rules on this host as it is: a recorder that pipes into them, and a ring that an alert writes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import run, shell
from live_support import recording

pytestmark = pytest.mark.root

_INJECT = """
import ctypes, os, time
libc = ctypes.CDLL(None)
end = time.monotonic() + 40
while time.monotonic() < end:
    child = os.fork()
    if not child:
        libc.ptrace(0, 0, 0, 0)
        time.sleep(5)
        os._exit(0)
    time.sleep(0.1)
    libc.ptrace(16, child, 0, 0)
    libc.ptrace(4, child, 0, 0)
    os.kill(child, 9)
    os.waitpid(child, 0)
"""
"""Traces a child and writes into it (PTRACE_POKETEXT), again and again."""


@contextlib.contextmanager
def injecting() -> Iterator[None]:
    """While something injects code."""
    process = subprocess.Popen([sys.executable, "-c", _INJECT])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "rules",
    [
        "--rules TRC-3",
        pytest.param("", marks=pytest.mark.long),
        pytest.param("--signatures all", marks=pytest.mark.long),
    ],
)
def test_recorder_pipes_into_rules(rules: str, tmp_path: Path) -> None:
    """What is recorded for rules, and nothing else, makes them alert at the end of a pipe."""
    line = (
        f'kcap record --events "$(kcap detect {rules} --list-events)" --duration 3s -o -'
        f" | kcap detect {rules} -"
    )
    with injecting():
        done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Signature ID: TRC-3\nSignature: Code injection\n" in done.stdout.decode(), done.stderr
    assert (b"Loaded 1 signature(s): [TRC-3]\n" in done.stderr) == (rules == "--rules TRC-3")
    unseen = b"kcap: no recorder sees hooked_proc_fops, hooked_syscall;" in done.stderr
    assert unseen == (rules == "--signatures all")


_DEEDS = "KCAP_SECRET=1 /bin/true && : < secret"
"""Shell: runs a program with a variable, opens a file for reading."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("condition", "turned"),
    [
        pytest.param(
            "evt.name = 'sched_process_exec' and ps.envs[KCAP_SECRET] = '1'",
            "--events default,sched_process_exec --env LD_*,KUBERNETES_SERVICE_*,KCAP_SECRET",
            id="env",
        ),
        pytest.param(
            "evt.name = 'sched_process_exec' and exists(thread.callstack.addresses)"
            " and args.pathname endswith '/true'",
            "--events default,sched_process_exec --stack",
            id="stack",
        ),
        pytest.param(
            "file.path endswith '/secret' and ps.name = 'sh'",
            "--events default --opens all",
            id="opens",
        ),
        pytest.param(
            "evt.name = 'security_file_open' and args.pathname endswith '/secret'",
            "--events default,security_file_open",
            id="events",
        ),
    ],
)
def test_options_that_a_rule_needs(condition: str, turned: str, tmp_path: Path) -> None:
    """What a rule looks at is recorded because of it alone, and told; without that it is silent."""
    rule = tmp_path / "rule.yaml"
    rule.write_text(f'id: R\nname: R\ncondition: "{condition}"\n')
    (tmp_path / "secret").touch()
    with (
        recording(tmp_path / "with.kcap", "--source", "bpf", "--rules", rule) as recorder,
        recording(tmp_path / "without.kcap", "--source", "bpf"),
    ):
        subprocess.run(["sh", "-c", _DEEDS], cwd=tmp_path, check=True)

    assert f"kcap: the rules: {turned}\n" in recorder.said
    found = run("detect", "--rules", rule, tmp_path / "with.kcap")
    assert found.exit_code == 0
    assert "Signature ID: R\n" in found.stdout
    assert run("detect", "--rules", rule, tmp_path / "without.kcap").stdout == ""


@pytest.mark.long
def test_alert_writes_a_ring(tmp_path: Path) -> None:
    """An alert makes a ring write what it holds, and the same alert comes of the file."""
    with injecting():
        line = "kcap record -o inc --ring 5s --after 1s --on-alert TRC-3 --duration 4s"
        done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"kcap: the rules: --events default,process_vm_writev,ptrace,security_file_open\n" in (
        done.stderr
    )
    first = min(tmp_path.glob("inc-*.kcap"))
    assert "alert TRC-3" in run("info", "--host", first).stdout
    assert "Signature ID: TRC-3" in run("detect", "--rules", "TRC-3", first).stdout
    assert run("detect", "--rules", "TRC-6", first).stdout == ""


def test_options_of_rings(tmp_path: Path) -> None:
    """--on-alert belongs to --ring, and names rules that run."""
    target = str(tmp_path / "x")
    assert run("record", "-o", target, "--on-alert", "TRC-3").exit_code == 2
    assert run("record", "-o", target, "--ring", "5s", "--on-alert", "any").exit_code == 2
    words = ["--ring", "5s", "--rules", "TRC-3", "--on-alert", "TRC-2"]
    result = run("record", "-o", target, *words)
    assert result.exit_code == 2
    assert "--on-alert TRC-2: no such rule runs" in result.stderr
