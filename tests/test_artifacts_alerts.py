"""Rules that look at artifacts, while those are recorded: the same alerts as of the recording."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from binaries_support import BLACKWATER
from cli_support import run
from test_artifacts_asked import work
from test_artifacts_examples import NAME, recorded, script
from test_artifacts_record import FOLLOWED

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/btf/vmlinux").exists(),
    reason="needs root and the types of the kernel",
)
pytest.importorskip("yara_x", reason="needs the extra yara")
__all__ = ["work"]

MARK: Final = b"kcap-dropped-by-the-test"
RULES: Final = """
rule dropped : test {
    meta: severity = "high"
    strings: $mark = "kcap-dropped-by-the-test"
    condition: $mark
}
rule unpacked { strings: $mark = "unpacked by the test" condition: $mark }
rule blackwater { strings: $mark = "blackwater" wide condition: $mark }
rule nothing { strings: $mark = "nobody has this in a file" condition: $mark }
"""


def alerts(text: str) -> list[tuple[str, str, str | None, str | None]]:
    """Rule and id of each alert, kind and path of its artifact, in an order of their own."""
    found = []
    for line in text.splitlines():
        alert: dict[str, Any] = json.loads(line)
        if alert["kind"] == "alert":
            about = alert.get("arg_alert_data", {}).get("artifact", {})
            told = alert["arg_rule"], alert["arg_alert_id"]
            found.append((*told, about.get("kind"), about.get("path")))
    return sorted(found, key=str)


def test_yara_live_and_replayed(tmp_path: Path, work: Path) -> None:
    """A dropped program, memory and a written file are found as they are taken, and again later."""
    rules = tmp_path / "rules.yar"
    rules.write_text(RULES)
    program = tmp_path / "dropper"
    shutil.copy2("/bin/true", program)
    with program.open("ab") as file:
        file.write(MARK)
    (tmp_path / "evil.exe").write_bytes(BLACKWATER)
    unpack = """
        import ctypes, mmap, time
        code = mmap.mmap(-1, 4096, prot=7)
        code[:20] = b'unpacked by ' + b'the test'
        at = ctypes.addressof(ctypes.c_char.from_buffer(code))
        assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), 4096, 5)
        time.sleep(0.5)
    """
    typed = f"{program}; {script(tmp_path, unpack)}; cp {tmp_path}/evil.exe {work}/evil.exe"
    live = tmp_path / "alerts.jsonl"
    words = (*FOLLOWED, "--artifacts", f"exec,mem,write={work}/*", "--yara", rules)
    recorded(tmp_path, (*words, "--sink", f"file:{live}?format=jsonl&what=alerts"), typed)

    at_once = alerts(live.read_text())
    later = run("detect", "--yara", rules, "--format", "jsonl", tmp_path / NAME)
    assert at_once == alerts(later.stdout), later.stderr
    told = {(name.removeprefix("yara:"), kind) for name, _, kind, _ in at_once}
    assert told == {("dropped", "exec"), ("unpacked", "mem"), ("blackwater", "write")}


FIBRATUS: Final = """
name: A company that nobody knows
id: 9d1a7f4e-6a9d-4a53-a6ff-6d3c0d5a7e11
version: 1.0.0
condition: evt.name = 'openat' and pe.resources[Company] contains 'blackwater'
min-engine-version: 2.0.0
---
name: Any program
id: 9d1a7f4e-6a9d-4a53-a6ff-6d3c0d5a7e12
version: 1.0.0
condition: evt.name = 'sched_process_exec' and elf.bits = 64
min-engine-version: 2.0.0
---
name: A program of a company that nobody knows
id: 9d1a7f4e-6a9d-4a53-a6ff-6d3c0d5a7e13
version: 1.0.0
condition: evt.name = 'sched_process_exec' and pe.resources[Company] contains 'blackwater'
min-engine-version: 2.0.0
---
name: A program with a mark
id: 9d1a7f4e-6a9d-4a53-a6ff-6d3c0d5a7e14
version: 1.0.0
condition: >
  evt.name = 'sched_process_exec' and
  yara(ps.exe, 'rule x { strings: $a = "kcap-dropped-by-the-test" condition: $a }')
min-engine-version: 2.0.0
"""
MEMFD: Final = """
    import os, sys
    memory = os.memfd_create("unnamed")
    os.write(memory, open("/bin/sleep", "rb").read() + b"memfd")
    os.waitpid(os.posix_spawn(f"/proc/self/fd/{memory}", ["unnamed", "0.5"], {}), 0)
"""
FORMATS: Final = "/proc/sys/fs/binfmt_misc"
FOREIGN: Final = f"""
mount -t binfmt_misc none {FORMATS} &&
echo ":kcap:M::MZ::/bin/true:" > {FORMATS}/register &&
exec "$1"
"""
"""Executes a PE, as Wine's users do; the format is known to a namespace of its own alone."""


def rules_of(folder: Path) -> Path:
    """A folder with these rules."""
    rules = folder / "rules"
    rules.mkdir(mode=0o700)
    for number, text in enumerate(FIBRATUS.split("---")):
        (rules / f"{number}.yml").write_text(text)
    return rules


def told(text: str, *folders: Path) -> set[tuple[str, str, str]]:
    """Of each alert the end of its rule's id, its own id, and the program.

    Of programs of the test's own: what others execute at that time is not theirs alone.
    """
    found = [json.loads(line) for line in text.splitlines()]
    kept = [one for one in found if one["kind"] == "alert"]
    each = {(one["arg_rule"][-2:], one["arg_alert_id"], one.get("exe", "")) for one in kept}
    own = (*(f"{folder}/" for folder in folders), "/memfd:unnamed", "memfd:unnamed")
    return {one for one in each if one[0] in {"11", "13"} or one[2].startswith(own)}


def test_fields_of_programs_live_and_replayed(tmp_path: Path, work: Path) -> None:
    """Of what is executed live has what a replay has, the first time too.

    What is written has not been written yet where it is opened: only a replay has that.
    """
    rules = rules_of(tmp_path)
    program, chained = tmp_path / "dropper", tmp_path / "chained"
    for path in (program, chained):
        shutil.copy2("/bin/true", path)
        with path.open("ab") as file:
            file.write(MARK + path.name.encode())
    (tmp_path / "evil.exe").write_bytes(BLACKWATER)
    (tmp_path / "evil.exe").chmod(0o755)
    (tmp_path / "started.sh").write_text(f"#!/bin/sh\nexec {chained}\n")
    (tmp_path / "started.sh").chmod(0o755)
    (tmp_path / "foreign.sh").write_text(FOREIGN)
    typed = f"""cp {tmp_path}/evil.exe {work}/evil.exe
{program} & {program} & {program} & {program} & wait
cp {program} {work}/gone; echo gone >> {work}/gone; {work}/gone & rm {work}/gone; wait
{script(tmp_path, MEMFD)}
{tmp_path}/started.sh
unshare --user --map-root-user --mount sh {tmp_path}/foreign.sh {tmp_path}/evil.exe
{program}"""
    live = tmp_path / "alerts.jsonl"
    words = (*FOLLOWED, "--artifacts", f"exec,write={work}/*", "--rules", rules, "--pe.enabled")
    recorded(tmp_path, (*words, "--sink", f"file:{live}?format=jsonl&what=alerts"), typed)

    at_once = told(live.read_text(), tmp_path, work)
    detected = run("detect", "--rules", rules, "--format", "jsonl", tmp_path / NAME)
    later = run("detect", "--rules", rules, "--pe.enabled", "--format", "jsonl", tmp_path / NAME)
    found = told(later.stdout, tmp_path, work)
    assert {one[0] for one in told(detected.stdout, tmp_path, work)} <= {
        "14"
    }  # nobody asks for these fields
    assert {one for one in found if one[0] != "11"} == at_once, later.stderr
    assert [one[0] for one in found - at_once] == ["11"], later.stderr
    programs = Counter(Path(exe.removesuffix(" (deleted)")).name for n, _, exe in at_once)
    assert programs["dropper"] == 2 * 5  # two rules
    assert {"dropper", "gone", "chained"} <= {
        Path(exe.removesuffix(" (deleted)")).name for number, _, exe in at_once if number == "14"
    }
    assert any("unnamed" in exe for number, _, exe in at_once if number == "12")
    if foreign_formats():
        assert "13" in {number for number, _, _ in at_once}


def foreign_formats() -> bool:
    """Whether namespaces have formats of their own: Linux 6.7."""
    version = os.uname().release.split(".")
    return (int(version[0]), int(version[1])) >= (6, 7)
