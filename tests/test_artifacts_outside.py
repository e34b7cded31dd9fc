"""Programs that are executed outside of what is recorded, and within it later."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest
from test_artifacts_record import FOLLOWED, content, events, listed, recording, sh, shell

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/btf/vmlinux").exists(),
    reason="needs root and the types of the kernel",
)
__all__ = ["shell"]

WHERE: Final = (*FOLLOWED, "-w", "ps.args contains 'within'")


@pytest.mark.parametrize("words", [FOLLOWED, WHERE], ids=["scope", "filter"])
def test_a_program_that_others_executed_first(
    tmp_path: Path, shell: Path, words: tuple[str, ...]
) -> None:
    """It is there with its first execution that is recorded, and nothing of another is."""
    programs = [tmp_path / name for name in ("both", "only-outside")]
    for program in programs:
        shutil.copy2("/bin/true", program)
        with program.open("ab") as file:
            file.write(program.name.encode())
    time.sleep(0.2)
    with recording(tmp_path, *words, "--artifacts", "exec", "-o", "r.kcap") as made:
        for program in programs:
            first = [program, "without"]
            if words == WHERE:  # whom the scope knows; the filter leaves it out
                first = [shell, "-c", f"{program} without; exit 0"]
            subprocess.run(first, check=True)
        time.sleep(2.5)
        sh(shell, f"{programs[0]} within; {programs[0]} within; exit 0")
        made.stop()

    path = tmp_path / "r.kcap"
    sha256 = hashlib.sha256(programs[0].read_bytes()).hexdigest()
    found = [each for each in listed(path) if str(tmp_path / "both") == each["path"]]
    executed = [
        each for each in events(path, "sched_process_exec") if each.get("arg_exe_sha256") == sha256
    ]
    assert len(executed) == 2, "each has its hash"
    (one,) = found
    assert one["sha256"] == sha256
    assert content(path, one) == programs[0].read_bytes()
    assert (one["origin"], one["ord"]) == (executed[0]["origin"], executed[0]["ord"])
    assert not [each for each in listed(path) if each["path"] == str(programs[1])]
