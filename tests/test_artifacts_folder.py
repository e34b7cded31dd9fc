"""Whole output directories of Tracee, of every version, and hostile ones."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from artifact_support import files_below, reader_of, tracee_event, tracee_folder
from cli_support import lines_of, run
from hypothesis import given
from hypothesis import strategies as st

import kcap
from kcap.errors import KcapError, NotACaptureError
from kcap.model.artifact import Artifact, Gap
from kcap.opening import open_source
from kcap.readers import tracee_folder_files
from kcap.readers.tracee_folder_files import FileContent
from kcap.replay.artifacts import listed
from kcap.replay.pipeline import Pipeline

CONTAINER = "ab" * 32
DEV, ST_DEV = 271581185, 66305
T0 = 1_657_321_167_356_748_797


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def a_recording() -> tuple[dict[str, bytes], list[str]]:
    """Files as 0.15 to main lay them out, and the events that they were taken for."""
    written = {"pathname": "/tmp/a b", "dev": DEV, "inode": 9}
    index = f"host/write.dev-{DEV}.inode-9 /old\nhost/write.dev-{DEV}.inode-9 /tmp/a b\n"
    events = [
        tracee_event("openat", T0, {"pathname": "/tmp/a b"}),
        tracee_event(
            "security_file_open", T0 + 1, {"pathname": "/x", "flags": 2, "dev": DEV, "inode": 9}
        ),
        tracee_event("vfs_write", T0 + 2, written),
        tracee_event("vfs_write", T0 + 3, written),
        tracee_event("vfs_read", T0 + 4, {"pathname": "", "dev": 12, "inode": 7}),
        tracee_event("execve", T0 + 5, {"pathname": "/bin/ls"}),
        tracee_event("sched_process_exec", T0 + 6, {"pathname": "/usr/bin/ls", "ctime": 5}),
        tracee_event("sched_process_exec", T0 + 7, {"pathname": "/bin/id", "ctime": 99}),
        tracee_event("mem_prot_alert", T0 + 8, {"alert": 4}),
        tracee_event("init_module", T0 + 9, {}),
        tracee_event("security_bpf_prog", T0 + 10, {"type": 1, "name": "one"}),
        tracee_event("security_bpf_prog", T0 + 11, {"type": 1, "name": "two"}),
        tracee_event(
            "vfs_write",
            T0 + 12,
            {"pathname": "/c", "dev": DEV, "inode": 9},
            container={"id": CONTAINER},
            processId=1,
        ),
    ]
    files = {
        f"host/write.dev-{DEV}.inode-9": b"written",
        "host/read.dev-12.inode-7": b"read testing 123\n",
        f"host/exec.{T0 + 6}.ls": b"ELF ls",
        "host/exec.99.id": b"ELF id",
        f"host/bin.pid-7.ts-{T0 + 8}": b"page",
        f"host/module.dev-{DEV}.inode-3.pid-7.{digest(b'mod')}": b"mod",
        f"host/bpf.name-two.pid-7.{digest(b'prog')}": b"prog",
        f"{CONTAINER}/write.dev-{DEV}.inode-9": b"inside",
        f"{CONTAINER}/exec.{T0 + 6}.ls": b"never executed there",
        "written_files": index.encode(),
    }
    return files, events


EXPECTED = {
    f"host/write.dev-{DEV}.inode-9": 2,
    "host/read.dev-12.inode-7": 4,
    f"host/exec.{T0 + 6}.ls": 6,
    "host/exec.99.id": 7,
    f"host/bin.pid-7.ts-{T0 + 8}": 8,
    f"host/module.dev-{DEV}.inode-3.pid-7.{digest(b'mod')}": 9,
    f"host/bpf.name-two.pid-7.{digest(b'prog')}": 11,
    f"{CONTAINER}/write.dev-{DEV}.inode-9": 12,
    f"{CONTAINER}/exec.{T0 + 6}.ls": None,
}
"""Which event each file belongs to."""


class Kept:
    """A sink that keeps what comes."""

    def __init__(self) -> None:
        self.artifacts: list[Artifact] = []
        self.places: list[tuple[int, Artifact]] = []
        self.rows = 0

    def write(self, batch: Any) -> None:
        """See `Sink.write`."""
        for side in batch.before:
            if isinstance(side, Artifact):
                self.artifacts.append(side)
                self.places.append((self.rows, side))
        self.rows += batch.rows

    def close(self) -> None:
        """See `Sink.close`."""


def read(folder: Path, **options: Any) -> tuple[Kept, list[Any]]:
    """What a directory gives, and what was lost."""
    kept = Kept()
    source = open_source(folder, **options)
    losses = Pipeline(source, [kept]).run().losses
    source.close()
    return kept, losses


def content(one: Artifact) -> bytes:
    """The bytes of an artifact."""
    return b"".join(bytes(p.length) if isinstance(p, Gap) else p for p in one.content.parts())


def blobs_in(path: Path) -> dict[str, tuple[int | None, str | None]]:
    """Of a capture's artifacts the file they were, with event and hash."""
    return {
        str(m.details["file"]).removeprefix("out/"): (m.ord, m.sha256)
        for m in reader_of(path.read_bytes()).manifests()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording of a current version."""
    return tracee_folder(tmp_path / "tracee", *a_recording())


def test_each_artifact_finds_its_event(folder: Path) -> None:
    """By what its name says; one whose container says otherwise finds none."""
    kept, losses = read(folder)
    found = {str(a.details["file"]).removeprefix("out/"): a for a in kept.artifacts}

    assert not losses
    assert {name: a.ord for name, a in found.items()} == EXPECTED
    assert {name: content(a) for name, a in found.items()} == {
        name: data for name, data in a_recording()[0].items() if "/" in name
    }
    written = found[f"host/write.dev-{DEV}.inode-9"]
    assert written.path == "/tmp/a b"
    assert written.details["other_paths"] == ["/old"]
    assert (written.details["dev"], written.details["inode"]) == (ST_DEV, 9)
    assert written.details["process_name"] == "sh"
    assert found[f"{CONTAINER}/write.dev-{DEV}.inode-9"].details["container_id"] == CONTAINER
    assert found[f"host/exec.{T0 + 6}.ls"].path == "/usr/bin/ls"


def test_artifacts_come_with_their_events_or_before_them(folder: Path) -> None:
    """So that who chooses among events knows in time."""
    kept, _ = read(folder)

    assert all(at <= (a.ord or at) for at, a in kept.places)
    assert len(kept.artifacts) == len(EXPECTED)


def test_the_events_are_those_of_the_file(folder: Path) -> None:
    """The same rows and origin as of the file alone."""
    assert lines_of("cat", folder) == lines_of("cat", folder / "events.json")
    assert lines_of("cat", folder / "out", "-n", "0") == []
    with kcap.open(folder) as capture:
        assert sum(batch.rows for batch in capture.batches()) == len(a_recording()[1])


def test_an_import_has_everything(folder: Path, tmp_path: Path) -> None:
    """And tells it again as Tracee lays it out: the directory comes back."""
    target = tmp_path / "t.kcap"
    result = run("import", folder, "-o", target)

    assert result.exit_code == 0, result.output
    files = {n: d for n, d in a_recording()[0].items() if "/" in n}
    assert blobs_in(target) == {name: (EXPECTED[name], digest(d)) for name, d in files.items()}
    run("artifacts", "extract", target, "-o", tmp_path / "o", "--layout", "tracee")
    out = files_below(tmp_path / "o/out")
    index = out.pop("written_files").decode().splitlines()
    assert out == files
    assert f"host/write.dev-{DEV}.inode-9 /tmp/a b" in index


def test_the_same_directory_gives_the_same_capture(folder: Path, tmp_path: Path) -> None:
    """Byte for byte, whatever order the file system lists its files in."""
    again = tmp_path / "again"
    files, events = a_recording()
    tracee_folder(again, dict(reversed(files.items())), events)
    captures = []
    for at, name in ((folder, "a.kcap"), (again, "b.kcap"), (folder, "c.kcap")):
        run("import", at, "-o", tmp_path / name, "--canonical")
        captures.append((tmp_path / name).read_bytes())

    assert captures[0] == captures[1] == captures[2]


def test_events_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    """--events names them; of something that is no directory it is an error."""
    (folder / "events.json").rename(tmp_path / "else.json")
    bare, target = tmp_path / "bare.kcap", tmp_path / "t.kcap"

    assert run("import", folder, "-o", bare).exit_code == 0
    assert {ord_ for ord_, _ in blobs_in(bare).values()} == {None}
    assert run("import", folder, "--events", tmp_path / "else.json", "-o", target).exit_code == 0
    assert {n: o for n, (o, _) in blobs_in(target).items()} == EXPECTED
    wrong = run("import", tmp_path / "else.json", "--events", tmp_path / "else.json", "-o", "x")
    assert wrong.exit_code == 1
    assert run("import", folder, "--events", "-", "-o", tmp_path / "y").exit_code == 1


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["filter", "-w", "evt.name = 'vfs_read'"], {"host/read.dev-12.inode-7"}),
        (["filter", "-w", "evt.name = 'nothing'"], set()),
        (["filter", "-n", "3"], {f"host/write.dev-{DEV}.inode-9"}),
        (["merge"], set(EXPECTED)),
        (["import"], set(EXPECTED)),
    ],
)
def test_artifacts_stay_where_their_events_do(
    folder: Path, tmp_path: Path, words: list[str], kept: set[str]
) -> None:
    """Through filter and merge, and no others."""
    target = tmp_path / "t.kcap"
    result = run(words[0], folder, *words[1:], "-o", target)

    assert result.exit_code == 0, result.output
    assert set(blobs_in(target)) == kept


def test_a_split_divides_them(folder: Path, tmp_path: Path) -> None:
    """Each part has those of its events; those of none are in the first."""
    result = run("split", folder, "--events", "7", "-o", tmp_path / "p-{n}.kcap")

    assert result.exit_code == 0, result.output
    parts = [blobs_in(path) for path in sorted(tmp_path.glob("p-*.kcap"))]
    assert len(parts) == 2
    for number, part in enumerate(parts):
        expected = {n for n, o in EXPECTED.items() if (0 if o is None else o // 7) == number}
        assert set(part) == expected


def test_a_redacted_copy_keeps_no_content(folder: Path, tmp_path: Path) -> None:
    """By default artifacts are hidden or left out; --blobs keep takes them along."""
    key = tmp_path / "key"
    run("redact", "--new-key", key)
    for what, expected in (("drop", 0), ("hash", len(EXPECTED)), ("keep", len(EXPECTED))):
        target = tmp_path / f"{what}.kcap"
        result = run("redact", folder, "-o", target, "--key-file", key, "--blobs", what)
        assert result.exit_code == 0, result.output
        found = list(reader_of(target.read_bytes()).manifests())
        assert len(found) == expected
        assert all(m.complete == (what == "keep") for m in found)
        assert (b"read testing 123" in target.read_bytes()) == (what == "keep")


LAYOUTS = {
    "v0.4": ({"4026531840/exec.{t}.ls": b"a", "4026531840/bin.{t}": b"b"}, ["mem", "exec"]),
    "v0.7": (
        {"host/write.dev-1.inode-2": b"", f"{CONTAINER}/bin.5": b"b", "tracee.profile": b"{}"},
        ["mem", "write"],
    ),
    "v0.13": ({"host/bpf.name-a.pid-3.123456": b"cut", "host/module": b"cut"}, ["bpf", "module"]),
    "v0.20": ({"host/read.dev-1.inode-2.pid-3": b"z", "read_files": b""}, ["read"]),
    "main": ({"host/bpf.name-x.y." + digest(b"p"): b"p", "written_files": b""}, ["bpf"]),
}


@pytest.mark.parametrize("version", LAYOUTS)
def test_every_version_is_read(tmp_path: Path, version: str) -> None:
    """Also without events, and named by the folder above or the one with the files."""
    files, kinds = LAYOUTS[version]
    made = tracee_folder(tmp_path, {n.format(t=T0): data for n, data in files.items()})

    for path in (made, made / "out"):
        kept, losses = read(path)
        assert [a.kind for a in kept.artifacts] == kinds
        assert not losses


def test_a_mount_namespace_of_old_versions_is_compared(tmp_path: Path) -> None:
    """Up to 0.6 folders have its number."""
    event = tracee_event("sched_process_exec", T0, {"pathname": "/bin/ls"})
    files = {f"{ns}/exec.{T0}.ls": str(ns).encode() for ns in (4026531840, 4026531841)}
    kept, _ = read(tracee_folder(tmp_path, files, [event]))

    assert [(a.details["mount_ns"], a.ord) for a in kept.artifacts] == [
        (4026531840, 0),
        (4026531841, None),
    ]


def test_a_hash_that_is_not_the_contents_is_damage(tmp_path: Path) -> None:
    """It is said, the artifact is there, and the exit code is 3."""
    files = {f"host/module.pid-1.{digest(b'right')}": b"wrong"}
    kept, losses = read(tracee_folder(tmp_path / "t", files))

    assert [loss.kind for loss in losses] == ["damaged"]
    assert [content(a) for a in kept.artifacts] == [b"wrong"]
    assert run("import", tmp_path / "t", "-o", tmp_path / "x.kcap").exit_code == 3


def test_an_index_that_names_what_is_not_there_is_a_loss(tmp_path: Path) -> None:
    """Somebody removed it, or Tracee never wrote it."""
    files = {"host/write.dev-1.inode-2": b"a", "written_files": b"host/write.dev-1.inode-3 /b\n"}
    _, losses = read(tracee_folder(tmp_path, files))

    assert [(loss.kind, "inode-3" in loss.reason) for loss in losses] == [("lost", True)]


def test_paths_in_the_index_may_hold_anything(tmp_path: Path) -> None:
    """Spaces, line feeds, bytes that are no UTF-8."""
    raw = b"/tmp/ two  spaces\nand a line\xff \x1b[2J"
    files = {
        "host/write.dev-1.inode-2": b"a",
        "host/write.dev-1.inode-3": b"a",
        "written_files": b"host/write.dev-1.inode-2 " + raw + b"\nhost/write.dev-1.inode-3 /b\n",
    }
    kept, losses = read(tracee_folder(tmp_path, files))

    assert not losses
    assert kept.artifacts[0].path == "/tmp/ two  spaces\nand a line\\xff \x1b[2J"
    assert kept.artifacts[1].path == "/b"


def test_no_link_pipe_or_device_is_opened(tmp_path: Path) -> None:
    """Neither as an artifact nor as events, an index or a folder; a pipe would wait for ever."""
    secret = tmp_path / "secret"
    secret.write_text(tracee_event("execve", T0))
    made = tracee_folder(tmp_path / "t", {"host/exec.1.a": b"a"})
    host = made / "out/host"
    (host / "exec.2.b").symlink_to(secret)
    os.mkfifo(host / "exec.3.c")
    os.mkfifo(made / "out/written_files")
    (made / "events.json").symlink_to(secret)
    (made / "out" / CONTAINER).symlink_to(tmp_path)
    os.mkfifo(made / "fifo.json")
    kept, losses = read(made)

    assert [a.details["file"] for a in kept.artifacts] == ["out/host/exec.1.a"]
    assert kept.rows == 0
    assert [loss.kind for loss in losses] == ["skipped"]


def test_a_file_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    """Between listing and reading: what was there is a truncated artifact, and a loss."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    made = tracee_folder(tmp_path / "t", {"host/exec.1.a": b"a", "host/exec.2.b": b"b"})
    source = open_source(made)
    first, second = listed(source)
    (made / "out/host/exec.1.a").unlink()
    (made / "out/host/exec.1.a").symlink_to(secret)

    with pytest.raises(OSError):  # noqa: PT011
        list(first.content.parts())
    assert content(second) == b"b"
    source.close()


def test_a_file_in_which_no_one_sees_a_format_is_said(folder: Path) -> None:
    """It is no reason to refuse the rest."""
    (folder / "notes.txt").write_text("hello")
    (folder / "out/host/thing").write_text("hello")
    kept, losses = read(folder)

    assert len(kept.artifacts) == len(EXPECTED)
    assert sorted("notes" in loss.reason for loss in losses) == [False, True]


def test_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    """As before, by name."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/readme").write_text("hello")

    with pytest.raises(NotACaptureError, match="directory"):
        open_source(tmp_path)
    assert run("cat", tmp_path).exit_code == 1


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on everything."""
    made = tracee_folder(tmp_path, {f"host/exec.{i}.a": b"" for i in range(9)})
    monkeypatch.setattr(tracee_folder_files, "FILES_MAX", 8)

    with pytest.raises(KcapError):
        read(made)


def test_a_sparse_file_of_4_gib_is_cheap(tmp_path: Path) -> None:
    """Holes are not read, and the size is right."""
    made = tracee_folder(tmp_path, {"host/write.dev-1.inode-2": b"a" * 5000})
    with (made / "out/host/write.dev-1.inode-2").open("r+b") as stream:
        stream.seek(4 << 30)
        stream.write(b"z")
    kept, _ = read(made)
    parts = list(kept.artifacts[0].content.parts())

    assert sum(p.length if isinstance(p, Gap) else len(p) for p in parts) == (4 << 30) + 1
    assert sum(len(p) for p in parts if not isinstance(p, Gap)) < 3 << 20


def test_only_so_much_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is missing, and says why."""
    made = tracee_folder(tmp_path, {"host/exec.1.a": os.urandom(3 << 20)})
    monkeypatch.setattr(tracee_folder_files, "DATA_MAX", 1 << 20)
    parts = list(FileContent(str(made), ("out", "host", "exec.1.a")).parts())

    assert [p.length for p in parts if isinstance(p, Gap)] == [2 << 20]
    assert all(p.reason for p in parts if isinstance(p, Gap))


@given(st.lists(st.sampled_from([b"\0" * 4096, b"a" * 4096, b"\0" * (1 << 20), b"z"]), max_size=6))
def test_what_a_file_gives_depends_on_its_bytes_alone(blocks: list[bytes]) -> None:
    """Not on what its file system stores: a copy of it gives the same parts."""
    import tempfile

    data = b"".join(blocks)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "dense").write_bytes(data)
        with (Path(name) / "sparse").open("wb") as stream:
            for block in blocks:
                if block.strip(b"\0"):
                    stream.write(block)
                else:
                    stream.seek(len(block), 1)
            stream.truncate(len(data))
        dense, sparse = (list(FileContent(name, (n,)).parts()) for n in ("dense", "sparse"))

    def joined(parts: list[bytes | Gap]) -> bytes:
        return b"".join(bytes(p.length) if isinstance(p, Gap) else p for p in parts)

    assert joined(dense) == joined(sparse) == data


def test_bad_lines_end_it_as_they_end_the_file(folder: Path, tmp_path: Path) -> None:
    """What came before is there, with its artifacts; --lenient goes on."""
    lines = (folder / "events.json").read_text().splitlines(keepends=True)
    (folder / "events.json").write_text("".join([*lines[:4], "bad\n", *lines[4:]]))
    target = tmp_path / "t.kcap"

    assert run("import", folder, "-o", target).exit_code == 1
    assert run("import", folder, "-o", target, "--force", "--lenient").exit_code == 3
    assert len(blobs_in(target)) == len(EXPECTED)
    assert json.loads(lines[0])["eventName"] == "openat"


def test_the_times_of_names_are_compared_and_not_guessed(tmp_path: Path) -> None:
    """An executed file of another time, or of another name, has no event."""
    far = tracee_folder_join_near() + 1
    files = {
        f"host/exec.{T0}.ls": b"a",
        f"host/exec.{T0}.id": b"b",
        f"host/exec.{T0 + far}.ls": b"c",
        f"host/exec.{T0 - 1000}.ls": b"d",
    }
    event = tracee_event("sched_process_exec", T0, {"pathname": "/bin/ls"})
    kept, _ = read(tracee_folder(tmp_path, files, [event]))
    found = {a.details["time_ns"] - T0: a for a in kept.artifacts if a.ord is not None}

    assert sorted(found) == [-1000, 0]
    assert found[0].details["joined_by"] == "time and name"
    assert found[-1000].details["joined_by"] == "name and nearest time"


def tracee_folder_join_near() -> int:
    """How near times must be."""
    from kcap.readers.tracee_folder_join import NEAR_NS

    return NEAR_NS
