"""Containers and pods of events: by cgroup path, and by what runtimes left on the disk."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.readers.live import cgroups, procfs, runtimes
from kcap.readers.live.cgroups import COLUMNS, Containers
from kcap.readers.live.probe.hierarchies import hierarchies
from kcap.readers.live.procfs import ProcFS
from kcap.readers.live.runtimes import NOTHING, Facts, Runtimes

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
POD = "2f4e6a80-1b3d-4c5e-8f90-a1b2c3d4e5f6"
IMAGE = "sha256:" + "ab" * 32

PATHS = {
    f"/docker/{ID}": (ID, None),
    f"/system.slice/docker-{ID}.scope": (ID, None),
    f"/kubepods/burstable/pod{POD}/{ID}": (ID, POD),
    f"/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{ID}.scope": (
        ID,
        POD,
    ),
    f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{'0a' * 16}.slice"
    f"/crio-{ID}.scope": (ID, "0a" * 16),
    f"/machine.slice/libpod-{ID}.scope/container": (ID, None),
    f"/docker/{OTHER}/docker/{ID}": (ID, None),
    "/user.slice/user-1000.slice/session-3.scope": (None, None),
    f"/system.slice/{ID[:63]}": (None, None),
    "/podman/podium": (None, None),
    "/": (None, None),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_names_container_and_pod(path: str) -> None:
    """Of every runtime's form of a path, with systemd and without it; other paths name none."""
    assert cgroups.group(path)[1:] == PATHS[path]


@given(HEX, st.sampled_from(["docker-%s.scope", "%s", "crio-%s.scope", "libpod-%s.scope"]))
def test_any_id_is_found(digits: str, form: str) -> None:
    """Whatever the 64 digits are; one digit fewer is no container."""
    assert cgroups.group("/a.slice/" + form % digits).container_id == digits
    assert cgroups.group("/a.slice/" + form % digits[1:]).container_id is None


@given(st.binary(max_size=200))
def test_a_cgroup_file_may_hold_anything(content: bytes) -> None:
    """What is in the file never is an error, and never becomes a container by itself."""
    found = cgroups.of_process(content)

    assert found is None or found.container_id is None or found.container_id.encode() in content


def test_the_first_hierarchy_that_tells_counts() -> None:
    """A process may be in the root of one hierarchy and in a container's group of another."""
    content = f"9:name=systemd:/\n4:memory:/docker/{ID}\n1:cpu:/docker/{ID}\n0::/\n"

    found = cgroups.of_process(content.encode())
    assert found is not None
    assert found.container_id == ID
    assert cgroups.of_process(b"9:cpu:/\n4:memory:/a\n") == ("/a", None, None)
    assert cgroups.of_process(b"") is None


# State files of runtimes

LABELS = {
    "io.kubernetes.cri.container-name": "web",
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.image-name": "docker.io/library/nginx:1.27",
    "io.kubernetes.cri.sandbox-name": "web-7d9",
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-uid": POD,
}
CRIO = {
    "io.kubernetes.container.name": "web",
    "io.kubernetes.cri-o.ContainerType": "sandbox",
    "io.kubernetes.cri-o.ImageName": "quay.io/nginx:1.27",
    "io.kubernetes.cri-o.ImageRef": "quay.io/nginx@" + IMAGE,
    "io.kubernetes.pod.name": "web-7d9",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.uid": POD,
}
TASK = "run/containerd/io.containerd.runtime.v2.task"
STORAGE = "var/lib/containers/storage/overlay-containers"

FILES: dict[str, tuple[str, Any, Facts]] = {
    "docker": (
        f"var/lib/docker/containers/{ID}/config.v2.json",
        {"Name": "/web", "Image": IMAGE, "Config": {"Image": "nginx:1.27", "Labels": {}}},
        Facts("web", "nginx:1.27", IMAGE),
    ),
    "docker-kubernetes": (
        f"var/lib/docker/containers/{ID}/config.v2.json",
        {
            "Name": "/k8s_web_web-7d9_shop_0",
            "Image": IMAGE,
            "Config": {
                "Image": "nginx:1.27",
                "Labels": {
                    "io.kubernetes.container.name": "web",
                    "io.kubernetes.pod.name": "web-7d9",
                    "io.kubernetes.pod.namespace": "shop",
                    "io.kubernetes.pod.uid": POD,
                    "io.kubernetes.docker.type": "podsandbox",
                },
            },
        },
        Facts("web", "nginx:1.27", IMAGE, "web-7d9", "shop", POD, pod_sandbox=True),
    ),
    "containerd": (
        f"{TASK}/k8s.io/{ID}/config.json",
        {"ociVersion": "1.2.0", "annotations": LABELS},
        Facts(
            "web", "docker.io/library/nginx:1.27", None, "web-7d9", "shop", POD, pod_sandbox=False
        ),
    ),
    "cri-o": (
        f"{STORAGE}/{ID}/userdata/config.json",
        {"annotations": CRIO},
        Facts("web", "quay.io/nginx:1.27", IMAGE, "web-7d9", "shop", POD, pod_sandbox=True),
    ),
    "podman": (
        f"{STORAGE}/containers.json",
        [
            {"id": OTHER, "names": ["other"], "image": "cd" * 32, "metadata": "{}"},
            {
                "id": ID,
                "names": ["web"],
                "image": "ab" * 32,
                "metadata": json.dumps({"image-name": "docker.io/nginx:1.27", "name": "web"}),
            },
        ],
        Facts("web", "docker.io/nginx:1.27", IMAGE),
    ),
}


def _put(root: Path, path: str, content: object) -> Path:
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return file


@pytest.mark.parametrize("kind", FILES)
def test_state_files_name_container_image_and_pod(kind: str, tmp_path: Path) -> None:
    """Each runtime's files, as they lie on a host; of another container nothing is known."""
    path, content, expected = FILES[kind]
    _put(tmp_path, path, content)

    assert Runtimes(str(tmp_path)).read(ID) == expected
    assert Runtimes(str(tmp_path)).read("9" * 64) is None, "negative control"


@given(
    kind=st.sampled_from(sorted(FILES)),
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["Name", "Config", "annotations", "Labels", "id", "metadata"]),
                inner,
                max_size=4,
            )
        ),
    ),
)
def test_state_files_may_hold_any_json(
    kind: str, content: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file of another version, or of somebody else, gives nothing or text, never an error."""
    folder = tmp_path_factory.mktemp("runtime")
    _put(folder, FILES[kind][0], content)

    found = Runtimes(str(folder)).read(ID)
    assert found is None or all(isinstance(v, str | bool | None) for v in found)


BROKEN: dict[str, Callable[[Path], object]] = {
    "half": lambda file: file.write_text('{"Name": "/we'),
    "deep": lambda file: file.write_text("[" * 100_000),
    "no-text": lambda file: file.write_bytes(b"\xff\xfe\xfd"),
    "too-large": lambda file: os.truncate(file, runtimes.FILE_BYTES + 1),
    "fifo": lambda file: (file.unlink(), os.mkfifo(file)),
    "folder": lambda file: [file.unlink(), file.mkdir()],
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_state_file_says_nothing(how: str, tmp_path: Path) -> None:
    """Half written, too deep, too large, no file at all: nothing waits and nothing fails."""
    path, content, expected = FILES["docker"]
    file = _put(tmp_path, path, content)
    assert Runtimes(str(tmp_path)).read(ID) == expected, "negative control"
    BROKEN[how](file)

    assert Runtimes(str(tmp_path)).read(ID) is None


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "a" * 63 + "/", "", "a" * 65])
def test_only_an_id_becomes_part_of_a_path(name: str, tmp_path: Path) -> None:
    """What is no 64 digits is not looked for."""
    assert Runtimes(str(tmp_path)).read(name) is None


def test_names_come_late_and_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer is that nothing is known; later ones have what a thread has read."""
    path, content, expected = FILES["docker"]
    _put(tmp_path, path, content)
    let = threading.Event()
    slow = Runtimes(str(tmp_path))
    real = slow.read
    monkeypatch.setattr(slow, "read", lambda of: (let.wait(10), real(of))[1])

    assert slow.facts(ID) == NOTHING
    assert slow.facts(ID) == NOTHING, "still being read"
    let.set()
    _until(lambda: slow.facts(ID) == expected)
    slow.close()
    assert not [t for t in threading.enumerate() if t.name == "kcap-runtimes"]


def test_a_runtime_may_write_its_files_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container without files is looked for again, but not for ever."""
    monkeypatch.setattr(runtimes, "RETRY_S", 0.0)
    asked = Runtimes(str(tmp_path))
    assert asked.facts(ID) == NOTHING
    path, content, expected = FILES["docker"]
    _put(tmp_path, path, content)
    _until(lambda: asked.facts(ID) == expected)

    for _ in range(5 * runtimes.TRIES):
        asked.facts(OTHER)
    tried = asked._tries.get(OTHER)
    assert tried is not None
    assert tried[0] == runtimes.TRIES
    asked.close()


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


# Events


class FakeProc:
    """A proc file system in a folder."""

    def __init__(self, folder: Path, mounts: str = "") -> None:
        self.folder = folder
        (folder / "mounts").write_text(mounts)

    def put(self, pid: int, cgroup: str) -> None:
        """Add a process."""
        (self.folder / str(pid)).mkdir(exist_ok=True)
        (self.folder / str(pid) / "cgroup").write_text(cgroup)

    def proc(self) -> ProcFS:
        """Read it."""
        return ProcFS(str(self.folder))


V1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"


@pytest.fixture
def no_runtimes(tmp_path: Path) -> Iterator[Runtimes]:
    """A host without state files."""
    empty = tmp_path / "empty"
    empty.mkdir()
    found = Runtimes(str(empty))
    yield found
    found.close()


def _column(containers: Containers, pids: list[int], **more: list[int]) -> list[Any]:
    arrays = {name: np.array(values) for name, values in more.items()}
    found = containers.columns(np.ones(len(pids), np.int64), np.array(pids), **arrays)
    return found.get("container_id", [None] * len(pids))


def test_without_useful_ids_processes_are_looked_up(tmp_path: Path, no_runtimes: Runtimes) -> None:
    """Version 1: each process by its file; one that is gone is where its parent is."""
    fake = FakeProc(tmp_path, V1)
    fake.put(5, f"4:memory:/docker/{ID}\n")
    fake.put(6, "4:memory:/\n")
    containers = Containers(fake.proc(), no_runtimes)
    rows: dict[str, list[int]] = {"started_ns": [1, 2, 3, 1], "ppids": [1, 1, 5, 1]}

    assert _column(containers, [5, 6, 7, 5], **rows) == [ID, None, ID, ID]
    fake.put(5, f"4:memory:/docker/{OTHER}\n")
    assert _column(containers, [5], started_ns=[1]) == [ID], "read once for a process"
    assert _column(containers, [5], started_ns=[9]) == [OTHER], "another process of that id"
    assert _column(containers, [5]) == [OTHER]
    containers.close()


def test_no_container_costs_no_columns(tmp_path: Path, no_runtimes: Runtimes) -> None:
    """Events outside of containers get none of the columns."""
    containers = Containers(FakeProc(tmp_path, V1).proc(), no_runtimes)

    assert containers.columns(np.array([1, 1]), np.array([1, 2])) == {}
    assert containers.columns(np.array([], np.int64), np.array([], np.int64)) == {}
    containers.close()


def test_columns_are_those_of_events(tmp_path: Path) -> None:
    """Id out of the path, the rest out of state files, each value at its event."""
    path, content, expected = FILES["containerd"]
    _put(tmp_path / "root", path, content)
    fake = FakeProc(tmp_path, V1)
    fake.put(5, f"4:memory:/kubepods/pod{POD}/{ID}\n")
    names = Runtimes(str(tmp_path / "root"))
    containers = Containers(fake.proc(), names)
    events = np.array([1, 1, 1]), np.array([5, 9, 5])

    first = containers.columns(*events)
    assert first["pod_uid"] == [POD, None, POD], "the path has it at once"
    _until(lambda: names.facts(ID) == expected)
    found = containers.columns(*events)
    assert set(found) <= set(COLUMNS)
    assert found == {
        "container_id": [ID, None, ID],
        **{
            name: [value, None, value]
            for name, value in expected._asdict().items()
            if value is not None
        },
    }
    containers.close()


# This host


@contextmanager
def in_group(folder: Path) -> Iterator[int]:
    """A process in a new control group, which goes away with it."""
    made: list[Path] = []
    for path in (folder.parent, folder):
        if not path.exists():
            path.mkdir()
            made.append(path)
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        signal.pause()
        os._exit(0)
    try:
        (folder / "cgroup.procs").write_text(str(pid))
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for path in reversed(made):
            path.rmdir()


def _hierarchy(version: int) -> Path:
    for mounted in hierarchies():
        if bool(mounted.controllers) == (version == 1) and os.access(mounted.path, os.W_OK):
            return Path(mounted.path)
    pytest.skip(f"no control groups of version {version} to write to")


@pytest.mark.root
def test_an_id_of_version_2_leads_to_its_container(no_runtimes: Runtimes) -> None:
    """By handle, and remembered when the group is gone; without handles by walking."""
    folder = _hierarchy(2) / "kcap-test" / f"docker-{ID}.scope"
    containers = Containers(ProcFS(), no_runtimes)
    with in_group(folder) as pid:
        number = folder.stat().st_ino
        event = np.array([number]), np.array([pid])
        assert containers.columns(*event)["container_id"] == [ID]
        walked = cgroups.Paths(ProcFS())
        mounted = hierarchies()[0]
        found = dict(cgroups.walk(mounted, 10_000))
        assert found[f"/kcap-test/docker-{ID}.scope"] == number
        assert walked.path(number) == f"/kcap-test/docker-{ID}.scope"
        walked.close()
    assert not folder.exists()
    assert containers.columns(*event)["container_id"] == [ID], "gone, but it was seen"
    late = Containers(ProcFS(), no_runtimes)
    assert late.columns(*event) == {}, "negative control: nobody saw it in time"
    for one in (containers, late):
        one.close()


@pytest.mark.root
def test_a_group_of_version_1_leads_to_its_container(no_runtimes: Runtimes) -> None:
    """By the process, where its group of version 2 is the root; by id, where that is recorded."""
    base = _hierarchy(1)
    controllers = next(m.controllers for m in hierarchies() if m.path == str(base))
    folder = base / "kcap-test" / ID
    containers = Containers(ProcFS(), no_runtimes)
    by_id = Containers(ProcFS(), no_runtimes, controller=controllers.split(",")[0])
    with in_group(folder) as pid:
        assert procfs.container_id(Path(f"/proc/{pid}/cgroup").read_bytes()) == ID
        assert containers.columns(np.array([1]), np.array([pid]))["container_id"] == [ID]
        event = np.array([folder.stat().st_ino]), np.array([pid])
        assert by_id.columns(*event)["container_id"] == [ID]
    for one in (containers, by_id):
        one.close()
