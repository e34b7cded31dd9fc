"""kcap doctor, and the choice of a source: what is refused is said, and what comes next is used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from cli_support import run

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live import capabilities as module
from kcap.readers.live.bpf import btf
from kcap.readers.live.capabilities import BESIDE, ON_REQUEST, USED, Capability, Host, capabilities
from kcap.readers.live.choice import Choice, choose
from kcap.readers.live.trace.tracefs import Tracefs
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
NO_TRACING = [f"{kind}=-bpf,-perfmon,-sys_admin" for kind in ("--bounding-set", "--inh-caps")]


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


def opened() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.root
def test_a_host_that_can_be_recorded() -> None:
    """The best source works: exit code 0, its name first, nothing of the host changed."""
    bpf_works()
    before = settings()
    result = run("doctor")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("kcap records this host with bpf.\n")
    tried = result.stdout.partition("kcap records with:")[2]
    order = [tried.index(f"\n  {name} ") for name in (*USED, *ON_REQUEST, *BESIDE)]
    assert order == sorted(order)
    for word in ("Where --source asks for it", "kernel", "rights", "CAP_SYS_ADMIN"):
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
    assert list(sources)[: len(USED)] == list(USED)
    assert set(sources) == {"bpf", "proc", "perf", "tracefs", "audit", "artifacts", "packets"}
    assert all(one["usable"] is not bool(one["why"]) for one in sources.values())
    assert all(one["used"] == (name in USED) for name, one in sources.items())


@pytest.mark.root
@pytest.mark.parametrize(
    ("drop", "env", "said"),
    [
        (ORDINARY, {}, "lacks CAP_BPF and CAP_PERFMON"),
        (NO_BPF, {}, "(uid 0) lacks CAP_BPF"),
        (NO_TRACING, {}, "lacks CAP_BPF and CAP_PERFMON"),
        ([], {btf.PATH_VARIABLE: "/nowhere"}, "/nowhere: the kernel's types cannot be read"),
    ],
    ids=["an ordinary user", "root without CAP_BPF", "root who may not trace", "no types"],
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
    sources = {one["source"]: one for one in found["sources"]}
    bpf, *others = (sources[name] for name in USED)

    assert not bpf["usable"]
    assert said in bpf["why"]
    assert all(one["advice"] for one in sources.values() if not one["usable"])
    left = [one["source"] for one in others if one["usable"]]
    if not left:
        assert (code, found["source"]) == (1, None)
        return
    assert (code, found["source"]) == (3, left[0])
    if drop == ORDINARY:
        assert left == ["proc"]
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
    refused = USED[: USED.index(left[0])]
    for name, after in zip(refused, [*refused[1:], left[0]], strict=True):
        assert re.search(rf"^kcap: {name}: .*; trying {after} instead$", errors, re.MULTILINE)
    collector = {"proc": "netlink-proc"}.get(left[0], f"kcap-{left[0]}")
    assert [source["collector"] for source in info["sources"]] == [collector]


NO_NETWORK = [f"{kind}=-net_admin,-sys_admin" for kind in ("--bounding-set", "--inh-caps")]
NO_PACKETS = [f"{kind}=-net_admin,-net_raw,-sys_admin" for kind in ("--bounding-set", "--inh-caps")]
NO_MEMORY = [f"{kind}=-sys_ptrace" for kind in ("--bounding-set", "--inh-caps")]


@pytest.mark.root
@pytest.mark.parametrize(
    ("drop", "source", "usable", "said"),
    [
        ([], "packets", True, None),
        ([], "artifacts", True, None),
        (NO_NETWORK, "packets", True, "by a packet socket, and so not packets of other network"),
        (NO_NETWORK, "packets", True, "lacks CAP_NET_ADMIN"),
        (NO_NETWORK, "artifacts", False, "lacks CAP_SYS_ADMIN"),
        (NO_PACKETS, "packets", False, "lacks CAP_NET_ADMIN"),
        (NO_MEMORY, "artifacts", True, "CAP_SYS_PTRACE is missing"),
        (ORDINARY, "packets", False, "lacks CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN"),
    ],
)
def test_what_artifacts_can_be_kept(
    drop: list[str], source: str, usable: bool, said: str | None, program: Callable[[str], str]
) -> None:
    """Packets and artifacts are tried, too; of each way that is left what it lacks is said."""
    bpf_works()
    program("setpriv")
    _, out, _ = kcap("doctor", "--json", drop=drop)
    [found] = [one for one in json.loads(out)["sources"] if one["source"] == source]
    assert found["usable"] == usable
    text = " ".join([found["why"], *found["limits"]])
    if said is None:
        assert text.strip() == ""
    else:
        assert said in text
    assert found["usable"] or found["advice"]


@pytest.mark.root
@pytest.mark.parametrize("source", ["perf", "tracefs", "artifacts", "packets"])
def test_a_trial_leaves_nothing(source: str) -> None:
    """Trying tracepoints opens all of them, and takes every descriptor and instance back."""
    before = settings(), opened()
    tried = module.capability(source, Host.read())
    if not tried.usable:
        pytest.skip(f"no {source} here: {tried.why}")
    with Tracefs() as tracefs:
        instances = Path(tracefs.path, "instances").iterdir()
        left = [path.name for path in instances if f"-{os.getpid()}-" in path.name]

    assert left == []
    assert (settings(), opened()) == before


@pytest.mark.root
def test_a_source_that_does_not_tell_is_not_used(tmp_path: Path) -> None:
    """Files are not told of by tracepoints: record refuses, rather than answer something else."""
    path = tmp_path / "r.kcap"
    code, _, errors = kcap("record", "-o", str(path), "--source", "perf", "--events", "openat")

    assert code == 1
    assert "perf does not tell of openat" in errors
    assert not path.exists()


def tried(usable: Collection[str]) -> list[Capability]:
    """Findings as they might be."""
    return [
        Capability(name, "all", usable=name in usable, why="" if name in usable else f"no {name}")
        for name in USED
    ]


def test_the_choice_is_the_first_that_works() -> None:
    """In the order of what they tell; what was passed over has its reason."""
    assert choose(tried(USED)) == Choice("bpf", {})
    for at, name in enumerate(USED):
        refused = {better: f"no {better}" for better in USED[:at]}
        assert choose(tried(USED[at:])) == Choice(name, refused)
    assert choose(tried(())) == Choice(None, {name: f"no {name}" for name in USED})
    assert USED == ORDER, "record tries the same ones in the same order"


@pytest.mark.parametrize(
    ("usable", "code", "first"),
    [
        (["bpf"], 0, "kcap records this host with bpf."),
        (["tracefs", "proc"], 3, "kcap records this host with tracefs, not with bpf, perf."),
        ([], 1, "This host cannot be recorded."),
    ],
)
def test_exit_codes(
    usable: list[str], code: int, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 for the best source, 3 for a lesser one, 1 for none; the first line says which."""
    monkeypatch.setattr(module, "capabilities", lambda _: tried(usable))
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
