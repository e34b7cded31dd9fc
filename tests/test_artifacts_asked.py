"""What ``--artifacts`` takes beside Tracee's examples: limits, filters, hashes, folders."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from badinput_support import ROOT
from cli_support import run
from test_artifacts_examples import NAME, below, of_kind, recorded, script
from test_artifacts_record import FOLLOWED, Row, content

from kcap.readers.live.probe.hierarchies import hierarchies

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/btf/vmlinux").exists(),
    reason="needs root and the types of the kernel",
)

SIZE: Final = 600_000


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder of a short name: paths are asked for by 50 characters at most."""
    path = Path(f"/tmp/kcap-{uuid.uuid4().hex[:8]}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    """A control group of the test's own, in each hierarchy: the recorder numbers those of one."""
    name = f"kcap-{uuid.uuid4().hex[:8]}"
    made = []
    for mounted in hierarchies():
        path = Path(mounted.path) / name
        with contextlib.suppress(OSError):
            path.mkdir()
            made.append(path)
    if not made:
        pytest.skip("no control group can be made")
    yield made
    for path in made:
        path.rmdir()


def by_name(found: list[Row]) -> dict[str, Row]:
    """Artifacts by the last part of their path."""
    return {Path(each["path"]).name: each for each in found}


def lost(folder: Path) -> list[str]:
    """What the capture says was lost or cut."""
    told = json.loads(run("info", "--json", folder / NAME).stdout)
    return [each["reason"] for each in told["loss"] if each["kind"] != "filtered"]


def test_a_control_group_has_its_own_limit(tmp_path: Path, work: Path, groups: list[Path]) -> None:
    """What is beyond has its hash, and is counted; another group's artifacts are whole."""
    fill = f"head -c {SIZE} /dev/urandom > {work}/"
    # (One of cpuset takes nobody before it is told which processors it has.)
    enter = [f"echo $BASHPID > {path}/cgroup.procs" for path in groups]
    inside = "; ".join([*enter, *(f"{fill}in{n}" for n in "123")])
    words = (*FOLLOWED, "--artifacts", f"write={work}/*,max-cgroup=1M")
    recorded(tmp_path, words, f"({inside})\n{fill}out1", 3)

    found = by_name(of_kind(tmp_path, "write"))
    assert {name for name, each in found.items() if each["complete"]} == {"in1", "out1"}
    assert found["in1"]["details"]["cgroup_id"] != found["out1"]["details"]["cgroup_id"]
    for name in ("in2", "in3"):
        assert found[name]["size"] == SIZE
        assert "of its control group" in found[name]["missing"][0]["reason"]
        digest = hashlib.sha256((work / name).read_bytes()).hexdigest()
        assert found[name]["details"]["sha256"] == digest
    assert [why for why in lost(tmp_path) if "of its control group" in why]


def test_a_capture_has_a_limit(tmp_path: Path, work: Path) -> None:
    """From there on there are hashes alone."""
    words = (*FOLLOWED, "--artifacts", f"write={work}/*,max-capture=1M")
    typed = "\n".join(f"head -c {SIZE} /dev/urandom > {work}/{n}; sleep 0.3" for n in "123")
    recorded(tmp_path, words, typed, 3)

    found = by_name(of_kind(tmp_path, "write"))
    assert {name for name, each in found.items() if each["complete"]} == {"1"}
    for name in "23":
        digest = hashlib.sha256((work / name).read_bytes()).hexdigest()
        assert found[name]["details"]["sha256"] == digest
    assert lost(tmp_path)


def test_hashes_beside_sha256(tmp_path: Path, work: Path) -> None:
    """``hash=md5,sha1``: they are shown, an artifact is found by them, and a hunt finds it."""
    words = (*FOLLOWED, "--artifacts", f"write={work}/*,hash=md5,sha1")
    recorded(tmp_path, words, f"echo of several hashes > {work}/x")

    md5 = hashlib.md5((work / "x").read_bytes(), usedforsecurity=False).hexdigest()
    sha1 = hashlib.sha1((work / "x").read_bytes(), usedforsecurity=False).hexdigest()
    (found,) = of_kind(tmp_path, "write")
    assert (found["details"]["md5"], found["details"]["sha1"]) == (md5, sha1)
    for digest in (md5, sha1):
        listed = run("artifacts", "list", tmp_path / NAME, "--hash", digest[:8], "--json").stdout
        assert json.loads(listed)["path"] == f"{work}/x"
        (tmp_path / "ioc.txt").write_text(digest)
        hunted = run("hunt", "--ioc", tmp_path / "ioc.txt", tmp_path / NAME, "--json").stdout
        assert digest in hunted


def test_three_beginnings_and_a_type(tmp_path: Path, work: Path) -> None:
    """``path`` has up to three alternatives, and ``type=elf`` must hold beside any of them."""
    for name in "abcd":
        (work / name).mkdir()
    asked = ",".join([f"write={work}/a/*", f"write:path={work}/b/*", f"write={work}/c/*"])
    typed = "\n".join(f"cp /bin/true {work}/{n}/elf; echo text > {work}/{n}/text" for n in "abcd")
    recorded(tmp_path, (*FOLLOWED, "--artifacts", f"{asked},write:type=elf"), typed)

    found = of_kind(tmp_path, "write")
    assert {each["path"] for each in found} == {f"{work}/{name}/elf" for name in "abc"}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("write:fd=stdout", {b"out\n"}),
        ("write:fd=stderr", {b"err\n"}),
        ("write:fd=stdout,stderr", {b"out\n", b"err\n"}),
        ("write:type=pipe", {b"out\n", b"err\n"}),
        ("write:fd=stdin", set()),
    ],
)
def test_descriptors(tmp_path: Path, asked: str, expected: set[bytes]) -> None:
    """What a process writes to one goes through a pipe here, each a stream of its own."""
    program = script(tmp_path, "import os; os.write(1, b'out\\n'); os.write(2, b'err\\n')")
    typed = f"{{ {program} | tail >/dev/null; }} 2>&1 | tail >/dev/null"
    recorded(tmp_path, ("--output", "none", *FOLLOWED, "--artifacts", asked), typed)

    found = [a for a in of_kind(tmp_path, "write") if a["details"].get("file_type") == "pipe"]
    assert {content(tmp_path / NAME, each) for each in found} == expected


def test_a_folder_is_cleared_and_filled(tmp_path: Path, work: Path) -> None:
    """``clear-dir``: what an earlier recording left goes, what else is there stays."""
    for old in ("tracee/out/host/exec.1.old", "tracee/mine.txt"):
        (tmp_path / old).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / old).write_text("old")
    words = (*FOLLOWED, "--artifacts", f"dir:{tmp_path}/tracee,clear-dir,write={work}/*")
    said = recorded(tmp_path, words, f"echo new > {work}/new")

    assert "cleared" in said
    contents = {path.read_text() for name, path in below(tmp_path).items() if "host/" in name}
    assert contents == {"new\n"}
    assert (tmp_path / "tracee/mine.txt").read_text() == "old"


def test_all_parts_of_a_recording_go_into_one_folder(tmp_path: Path, work: Path) -> None:
    """A recording that goes on in further files: the folder has the artifacts of all of them."""
    out = tmp_path / "tracee"
    words = (*FOLLOWED, "--artifacts", f"dir:{out},write={work}/*", "--split-time", "1s")
    typed = "\n".join(f"echo {n} > {work}/{n}; sleep 1.2" for n in "123")
    recorded(tmp_path, words, typed)

    parts = sorted(tmp_path.glob("r-*.kcap"))
    assert len(parts) > 1
    contents = {path.read_text() for name, path in below(tmp_path).items() if "host/" in name}
    assert contents == {"1\n", "2\n", "3\n"}
    index = (out / "out/written_files").read_text()
    assert all(f" {work}/{n}\n" in index for n in "123")


def test_rights_that_are_given_up_before_a_folder_is_laid_out() -> None:
    """What reads the capture then can execute nothing and connect to nobody."""
    program = """
import click, os, socket
from kcap.guard import rights
from kcap.tools import apart
with click.Context(click.Command("x")) as ctx:
    apart.settle(ctx, tuple(rights.FILES))
    assert rights.names(rights.held().effective) != ["CAP_DAC_OVERRIDE"], "not where it runs alone"
    ctx.meta["kcap.parted"] = True
    apart.settle(ctx, tuple(rights.FILES))
    print(rights.names(rights.held().effective))
    for work in (os.fork, socket.socket, lambda: os.execv("/bin/true", ["true"])):
        try:
            work()
        except PermissionError as e:
            print("refused")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[:4] == ["['CAP_DAC_OVERRIDE']", *["refused"] * 3], done.stderr
