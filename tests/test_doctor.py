"""kcap doctor, and the choice of a source: what is refused is said, and what comes next is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import run

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live import capabilities as module
from kcap.readers.live.bpf import btf
from kcap.readers.live.capabilities import USED, Capability, Host, capabilities
from kcap.readers.live.choice import Choice, choose
from kcap.tools.live import ORDER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hosts are recorded on Linux")

HOST = Host(
    kernel="6.1",
    machine="x86_64",
    uid=1000,
    capabilities=(),
    initial_user_namespace=True,
    lockdown="none",
    cgroups="v2",
    tracefs=None,
    types=btf.KERNEL,
)
ORDINARY = ["--reuid=65534", "--clear-groups"]
NO_BPF = ["--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin"]


def bpf_works() -> None:
    """Skip the test where this host can't be recorded with BPF."""
    tried = module.capability("bpf", Host.read())
    if not tried.usable:
        pytest.skip(f"no BPF here: {tried.why}")


def kcap(*words: str, drop: list[str] | None = None, **env: str) -> tuple[int, str, str]:
    """Run kcap as a process of its own, with fewer rights; give code, output and errors."""
    command = [sys.executable, "-m", "kcap.tools", *words]
    if drop:
        command = ["setpriv", *drop, *command]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    return done.returncode, done.stdout, done.stderr


def settings() -> dict[str, str]:
    """What a recorder might leave behind: mounts, sysctls, tracing, the audit's rules."""
    mounts = Path("/proc/self/mounts").read_text("utf-8")
    found = {"mounts": "\n".join(m for m in mounts.splitlines() if "trac" in m or "bpf" in m)}
    for path in ("unprivileged_bpf_disabled", "bpf_stats_enabled", "perf_event_paranoid"):
        file = Path("/proc/sys/kernel", path)
        found[path] = file.read_text("ascii") if file.exists() else ""
    return found


@pytest.mark.root
def test_a_host_that_can_be_recorded() -> None:
    """The best source works: exit code 0, its name first, nothing of the host changed."""
    bpf_works()
    before = settings()
    result = run("doctor")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("kcap records this host with bpf.\n")
    for word in ("kernel", "rights", "  bpf ", "  proc ", "  fanotify ", "CAP_SYS_ADMIN"):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert settings() == before


@pytest.mark.root
def test_as_json() -> None:
    """The same findings, for programs: the source, the host, every source with its reasons."""
    bpf_works()
    result = run("doctor", "--json")
    found = json.loads(result.stdout)

    assert found["source"] == "bpf"
    assert found["host"]["kernel"] == os.uname().release
    assert "CAP_BPF" in found["host"]["capabilities"]
    sources = {one["source"]: one for one in found["sources"]}
    assert list(sources)[:2] == list(USED)
    assert set(sources) == {"bpf", "proc", "perf", "tracefs", "audit", "fanotify"}
    assert all(one["usable"] is not bool(one["why"]) for one in sources.values())
    assert all(one["used"] == (name in USED) for name, one in sources.items())


@pytest.mark.root
@pytest.mark.parametrize(
    ("drop", "env", "said"),
    [
        (ORDINARY, {}, "lacks CAP_BPF and CAP_PERFMON"),
        (NO_BPF, {}, "(uid 0) lacks CAP_BPF"),
        ([], {btf.PATH_VARIABLE: "/nowhere"}, "/nowhere: the kernel's types cannot be read"),
    ],
    ids=["an ordinary user", "root without CAP_BPF", "no types"],
)
def test_the_next_source_is_named_and_used(
    drop: list[str],
    env: dict[str, str],
    said: str,
    program: Callable[[str], str],
    tmp_path: Path,
) -> None:
    """What refuses bpf is said by doctor and by record, which goes on with the next source."""
    bpf_works()
    program("setpriv")
    code, out, _ = kcap("doctor", "--json", drop=drop, **env)
    found = json.loads(out)
    bpf, proc = found["sources"][:2]

    assert not bpf["usable"]
    assert said in bpf["why"]
    assert bpf["advice"]
    if not proc["usable"]:
        assert (code, found["source"]) == (1, None)
        return
    assert (code, found["source"]) == (3, "proc")
    if "--reuid=65534" in drop:
        tmp_path = Path("/dev/shm")  # where an ordinary user may write
    path = tmp_path / f"kcap-doctor-{os.getpid()}.kcap"
    try:
        code, _, errors = kcap(
            "record", "-o", str(path), "--duration", "0.3", "--force", drop=drop, **env
        )
        info = json.loads(run("info", "--json", path).stdout)
    finally:
        path.unlink(missing_ok=True)
    assert code == 0, errors
    assert "kcap: bpf: " in errors
    assert "trying proc instead" in errors
    assert "netlink-proc" in json.dumps(info)


def tried(**usable: bool) -> list[Capability]:
    """Findings as they might be."""
    return [
        Capability(name, "all", usable=works, why="" if works else f"no {name}")
        for name, works in usable.items()
    ]


def test_the_choice_is_the_first_that_works() -> None:
    """In the order of what they tell; what was passed over has its reason."""
    assert choose(tried(bpf=True, proc=True)) == Choice("bpf", {})
    assert choose(tried(bpf=False, proc=True)) == Choice("proc", {"bpf": "no bpf"})
    assert choose(tried(bpf=False, proc=False)) == Choice(
        None, {"bpf": "no bpf", "proc": "no proc"}
    )
    assert USED == ORDER, "record tries the same ones in the same order"


@pytest.mark.parametrize(
    ("usable", "code", "first"),
    [
        ({"bpf": True, "proc": False}, 0, "kcap records this host with bpf."),
        ({"bpf": False, "proc": True}, 3, "kcap records this host with proc, not with bpf."),
        ({"bpf": False, "proc": False}, 1, "This host cannot be recorded."),
    ],
)
def test_exit_codes(
    usable: dict[str, bool], code: int, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 for the best source, 3 for a lesser one, 1 for none; the first line says which."""
    monkeypatch.setattr(module, "capabilities", lambda _: tried(**usable))
    result = run("doctor")

    assert result.exit_code == code
    assert result.stdout.splitlines()[0] == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "lacks CAP_BPF and CAP_PERFMON"),
        ({"capabilities": ("CAP_BPF",)}, "lacks CAP_PERFMON"),
        ({"capabilities": ("CAP_SYS_ADMIN",), "initial_user_namespace": False}, "user namespace"),
        ({"capabilities": ("CAP_SYS_ADMIN",), "lockdown": "confidentiality"}, "locked down"),
        ({"capabilities": ("CAP_BPF", "CAP_PERFMON")}, "a container's rules"),
    ],
)
def test_why_rights_are_refused(changes: dict[str, Any], said: str) -> None:
    """What lacks is named; where nothing does, what else refuses."""
    from dataclasses import replace

    assert said in replace(HOST, **changes).refusal("CAP_BPF", "CAP_PERFMON")


def test_every_refusal_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever error of ours a trial ends with, the others are tried all the same."""

    def refuse(_: Host) -> tuple[str, ...]:
        raise PrivilegeError("not you")

    def fail(_: Host) -> tuple[str, ...]:
        raise KcapError("not here", file="/a/file")

    trials = {
        name: (refuse if name == "bpf" else fail, *rest)
        for name, (_, *rest) in module._TRIALS.items()
    }
    monkeypatch.setattr(module, "_TRIALS", trials)
    bpf, *others = capabilities(HOST)

    assert bpf.why == "not you; this process (uid 1000) lacks CAP_BPF and CAP_PERFMON"
    assert bpf.advice == "run as root on the host, or with CAP_BPF and CAP_PERFMON"
    assert {one.why for one in others} == {"/a/file: not here"}
    assert not any(one.usable for one in (bpf, *others))


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("none [integrity] confidentiality\n", "integrity"),
        ("[none] integrity confidentiality\n", "none"),
        ("", None),
        ("nothing of the kind", None),
    ],
)
def test_the_mode_of_lockdown(text: str, mode: str | None) -> None:
    """It is the word in brackets."""
    assert module._lockdown(text) == mode
