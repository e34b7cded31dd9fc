"""``kcap record --capture module`` under another kernel, in QEMU: this host's has no modules."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import kernel_support
import pytest
from cli_support import run
from workload_support import Workloads

from kcap.format.reader import CaptureReader

pytestmark = [pytest.mark.kernels, pytest.mark.long, pytest.mark.timeout(1200)]


def listed(path: Path) -> list[dict[str, Any]]:
    """What `kcap artifacts list` tells."""
    done = run("artifacts", "list", "--json", path)
    assert done.exit_code in (0, 3), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def content(path: Path) -> list[bytes]:
    """The bytes of all artifacts."""
    with path.open("rb") as stream:
        reader = CaptureReader(stream, path.name)
        return [b"".join(reader.blob(manifest)) for manifest in reader.manifests()]


def test_a_module_that_a_shell_loads(tmp_path: Path, workloads: Workloads) -> None:
    """Of a file and of memory: its very bytes, named as Tracee names them, and they load again."""
    workloads.path("child")
    said = kernel_support.record_modules("6.1", tmp_path, workloads)

    image = (tmp_path / "dummy.ko").read_bytes()
    digest, other = (_sha256(content) for content in (image, image + bytes(3000)))
    both, recorded = listed(tmp_path / "out/both.kcap"), listed(tmp_path / "out/file.kcap")
    (found,) = recorded
    assert (found["kind"], found["sha256"], found["complete"]) == ("module", digest, True)
    assert found["path"] == "/tmp/programs/dummy.ko"
    assert content(tmp_path / "out/file.kcap") == [image]
    assert {each["sha256"] for each in both} == {digest, other}
    assert set(content(tmp_path / "out/both.kcap")) == {image, image + bytes(3000)}
    assert "cleared: /tmp/tracee/out" in said["told"]
    names = {path.name: path for path in (tmp_path / "out/tracee/out/host").iterdir()}
    pid = r"\.pid-\d+\."
    of_file = re.compile(rf"module\.dev-{said['dev']}\.inode-{said['inode']}{pid}{digest}")
    of_memory = re.compile(rf"module{pid}({digest}|{other})")
    assert [name for name in names if of_file.fullmatch(name)]
    assert {name[-64:] for name in names if of_memory.fullmatch(name)} >= {other}
    assert all(of_file.fullmatch(name) or of_memory.fullmatch(name) for name in names)
    assert all(_sha256(path.read_bytes()) == name[-64:] for name, path in names.items())
    _check_loaded(said)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_loaded(said: dict[str, Any]) -> None:
    """What was taken out is a module that the kernel takes, as the one that was recorded."""
    assert "dummy" not in said["before"]
    assert "dummy" in said["file"]["loaded"]
    assert "dummy" not in said["removed"]["loaded"]
    assert "dummy" in said["memory"]["loaded"]
    assert len(said["again"]) == 2
    for with_it, without_it in said["again"]:
        assert "dummy" in with_it
        assert "dummy" not in without_it
