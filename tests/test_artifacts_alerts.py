"""Rules that look at artifacts, while those are recorded: the same alerts as of the recording."""

from __future__ import annotations

import json
import os
import shutil
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
name: A dropper with an interpreter
id: 9d1a7f4e-6a9d-4a53-a6ff-6d3c0d5a7e12
version: 1.0.0
condition: evt.name = 'sched_process_exec' and ps.exe endswith '/dropper' and elf.bits = 64
min-engine-version: 2.0.0
"""


def test_fields_of_programs_live_and_replayed(tmp_path: Path, work: Path) -> None:
    """What was recorded answers for all events; live for those that come after the artifact."""
    rules = tmp_path / "rules"
    rules.mkdir(mode=0o700)
    first, second = FIBRATUS.split("---")
    (rules / "one.yml").write_text(first)
    (rules / "two.yml").write_text(second)
    program = tmp_path / "dropper"
    shutil.copy2("/bin/true", program)
    (tmp_path / "evil.exe").write_bytes(BLACKWATER)
    typed = f"cp {tmp_path}/evil.exe {work}/evil.exe\n{program}\nsleep 1.5\n{program}"
    live = tmp_path / "alerts.jsonl"
    words = (*FOLLOWED, "--artifacts", f"exec,write={work}/*", "--rules", rules, "--pe.enabled")
    recorded(tmp_path, (*words, "--sink", f"file:{live}?format=jsonl&what=alerts"), typed)

    at_once = {told[:2] for told in alerts(live.read_text())}
    detected = run("detect", "--rules", rules, "--format", "jsonl", tmp_path / NAME)
    later = run("detect", "--rules", rules, "--pe.enabled", "--format", "jsonl", tmp_path / NAME)
    found = {told[:2] for told in alerts(later.stdout)}
    assert alerts(detected.stdout) == []  # the control: nobody asks for artifacts
    assert sorted(name[-2:] for name, _ in found) == ["11", "12", "12"], later.stderr
    assert at_once <= found
    assert [name[-2:] for name, _ in at_once] == ["12"]
