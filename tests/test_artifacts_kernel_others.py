"""The kernel's programs for artifacts under Debian's kernels 6.1 and 6.12, in QEMU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import kernel_support
import pytest
from stream_support import sequence
from workload_support import Workloads

from kcap.readers.live.artifacts import triggers


@pytest.mark.kernels
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_other_kernels(series: str, tmp_path: Path, workloads: Workloads) -> None:
    """Every part is taken; streams, memory, programs and modules are as here."""
    for name in ("passing", "child"):
        workloads.path(name)
    said: Any = kernel_support._booted(
        series, tmp_path, workloads, "artifacts_guest.py", ("passing",)
    )
    assert said["refused"] == {}
    assert said["unavailable"] == []
    assert said["sums"]["pieces_lost"] == said["sums"]["triggers_lost"] == 0
    found = {
        (one["kind"], one["name"], one["file_type"]): (one["bytes"], one["sha256"], one["gaps"])
        for one in said["streams"]
    }
    read = sequence(31_430) + sequence(500, 31_430)[:200]
    expected = {
        ("read", "passing", "pipe"): sequence(69_100),
        ("write", "passing", "pipe"): sequence(69_100),
        ("read", "passing", "socket"): read,
        ("write", "passing", "socket"): sequence(31_930),
    }
    for which, content in expected.items():
        assert found[which] == (len(content), hashlib.sha256(content).hexdigest(), [])
    line = hashlib.sha256(b"read testing 123\n").hexdigest()
    assert [one for one in said["streams"] if (one["kind"], one["sha256"]) == ("read", line)]
    kept = {one["kind"]: one["sha256"] for one in said["streams"]}
    assert (kept["bpf"], kept["module"]) == (said["code"], said["image"])
    told = said["triggers"]
    both = triggers.WAS_CODE | triggers.WAS_WRITABLE
    memory = [each[1] for each in told if each[0] == triggers.MEMORY and each[3] == 8192]
    assert memory == [both, triggers.WAS_WRITABLE]
    assert [each[5] for each in told if each[0] == triggers.MODULE_FILE] == ["/bin/busybox"]
    assert any(each[5] == "/bin/busybox" for each in told if each[0] == triggers.EXEC)
