"""Tracee output directories made to cost much, and those that change while they are read."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from artifact_support import tracee_event, tracee_folder
from hypothesis import given
from hypothesis import strategies as st
from pcap_support import Packet, ipv4, pcap, udp

from kcap.model.artifact import Artifact
from kcap.model.side import Loss
from kcap.opening import open_source
from kcap.readers import tracee_folder_files as files
from kcap.readers import tracee_folder_join as joining
from kcap.readers.tracee_folder import TraceeFolder

T0 = 1_657_321_167_356_748_797
WRITTEN = "host/write.dev-1.inode-1"


def read(folder: Path) -> tuple[list[Artifact], list[Loss], int]:
    """Artifacts, losses and the number of events."""
    source = open_source(str(folder), resolve=False)
    assert isinstance(source, TraceeFolder)
    batches = list(source.batches())
    source.close()
    sides = [side for batch in batches for side in batch.before]
    artifacts = [side for side in sides if isinstance(side, Artifact)]
    losses = [side for side in sides if isinstance(side, Loss)]
    return artifacts, losses, sum(batch.rows for batch in batches)


# an index


def indexed(folder: Path, index: bytes) -> files.Index:
    """What an index says beside one artifact."""
    made = tracee_folder(folder, {WRITTEN: b"a", "written_files": index})
    return files.indexed(str(made), ("out",), "written_files", {WRITTEN})


def test_a_path_of_line_feeds(tmp_path: Path) -> None:
    """Of a path without end a beginning is kept; each line is looked at once."""
    said = indexed(tmp_path / "t", WRITTEN.encode() + b" /a" + b"\n" * 1_000_000)
    (path,) = said.paths[WRITTEN]
    assert path == "/a" + "\n" * (len(path) - 2)
    assert len(path) <= files.PATH_BYTES


def test_what_an_index_names_in_vain_is_not_kept(tmp_path: Path) -> None:
    """Of a million files that are not there five are named, and the lines counted."""
    lines = (b"host/write.dev-1.inode-%d /x\n" % number for number in range(2, 50_002))
    said = indexed(tmp_path / "t", WRITTEN.encode() + b" /a\n" + b"".join(lines))
    assert said.paths == {WRITTEN: ["/a"]}
    assert said.gone_count == 50_000
    assert said.gone == [f"host/write.dev-1.inode-{number}" for number in range(2, 7)]


def test_an_index_that_is_too_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of it counts; that there was more is a loss."""
    monkeypatch.setattr(files, "INDEX_BYTES", 40)
    index = f"{WRITTEN} /a\n{WRITTEN} /b\n".encode()
    made = tracee_folder(tmp_path / "t", {WRITTEN: b"a", "written_files": index})
    artifacts, losses, _ = read(made)
    assert artifacts[0].path is not None
    assert any("longer than the 40 bytes" in loss.reason for loss in losses)


@given(st.lists(st.sampled_from([b"\n", b" ", b"a", b"host/", WRITTEN.encode()]), max_size=40))
def test_an_index_is_read_in_any_steps(parts: list[bytes]) -> None:
    """However its bytes come, the lines are those between line feeds."""
    content = b"".join(parts)

    class Slow:
        at = 0

        def read(self, count: int) -> bytes:
            part = content[self.at : self.at + min(count, 3)]
            self.at += len(part)
            return part

    expected = content.removesuffix(b"\n").split(b"\n") if content else []
    assert list(files._lines(Slow())) == expected  # type: ignore[arg-type]


# files that come and go


def test_a_file_that_goes_while_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there; the others are."""
    made = tracee_folder(tmp_path / "t", {WRITTEN: b"a", "host/exec.1.b": b"b"})
    real = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self._entry = entry.name, entry

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            if self.name == "exec.1.b":
                raise FileNotFoundError(2, "gone")
            return self._entry.stat(follow_symlinks=follow_symlinks)

    class Listed:
        def __init__(self, place: int) -> None:
            self._found = real(place)

        def __enter__(self) -> map[Entry]:
            return map(Entry, self._found)

        def __exit__(self, *_: object) -> None:
            self._found.close()

    monkeypatch.setattr(os, "scandir", Listed)
    found = files.listing(str(made), ("out",))
    assert [one.shown for one in found.artifacts] == [f"out/{WRITTEN}"]


def test_a_folder_that_goes_while_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's folder that can't be opened is passed over, and told."""
    made = tracee_folder(tmp_path / "t", {WRITTEN: b"a", "0123456789ab/exec.1.b": b"b"})
    real = files._entries

    def entries(root: str, parts: tuple[str, ...]) -> list[tuple[str, int]]:
        if parts[-1:] == ("0123456789ab",):
            raise PermissionError(13, "Permission denied")
        return real(root, parts)

    monkeypatch.setattr(files, "_entries", entries)
    artifacts, losses, _ = read(made)
    assert [one.details["file"] for one in artifacts] == [f"out/{WRITTEN}"]
    assert any("out/0123456789ab" in loss.reason for loss in losses)


# many artifacts of one name, process, content


def notes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each artifact for which an event is noted."""
    found: list[int] = []
    real = joining.Join._note

    def note(self: joining.Join, index: int, *rest: object, **more: object) -> None:
        found.append(index)
        real(self, index, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(joining.Join, "_note", note)
    return found


@pytest.mark.parametrize("kind", ["exec", "mem", "module", "bpf"])
def test_many_artifacts_and_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Only artifacts that an event may be of are looked at, not all of its name or process."""
    count, apart = 200, 2 * joining.NEAR_NS
    times = [T0 + number * apart for number in range(count)]
    names = {
        "exec": [f"host/exec.{time}.sh" for time in times],
        "mem": [f"host/bin.pid-7.ts-{time}" for time in times],
        "module": [f"host/module.dev-1.inode-{number}.pid-7" for number in range(count)],
        "bpf": [f"host/bpf.name-p{number}.pid-7" for number in range(count)],
    }
    events = {
        "exec": [tracee_event("sched_process_exec", t, {"pathname": "/bin/sh"}) for t in times],
        "mem": [tracee_event("mem_prot_alert", t, {"alert": 4}) for t in times],
        "module": [
            tracee_event("init_module", t, {"dev": 1, "inode": n}) for n, t in enumerate(times)
        ],
        "bpf": [
            tracee_event("security_bpf_prog", t, {"type": 1, "name": f"p{n}"})
            for n, t in enumerate(times)
        ],
    }
    found = notes(monkeypatch)
    made = tracee_folder(tmp_path / "t", dict.fromkeys(names[kind], b"x"), events[kind] * 3)
    artifacts, _, _ = read(made)
    by_file = {one.details["file"].removeprefix("out/"): one.ord for one in artifacts}
    assert [by_file[name] for name in names[kind]] == list(range(count))
    assert len(found) == count


def test_the_nearest_event_wins(tmp_path: Path) -> None:
    """Before and behind the time in a name, whatever comes first; another container's never."""
    events = [
        tracee_event("sched_process_exec", T0 + at, {"pathname": "/bin/sh"}, **more)
        for at, more in [
            (-9_000_000, {}),
            (400, {}),
            (-300, {}),
            (5, {"container": {"id": "ab" * 32}}),
            (20_000_000, {}),
        ]
    ]
    made = tracee_folder(tmp_path / "t", {f"host/exec.{T0}.sh": b"x"}, events)
    artifacts, _, _ = read(made)
    assert [(one.ord, one.details["joined_by"]) for one in artifacts] == [
        (2, "name and nearest time")
    ]


def test_packets_of_many_files_come_once(tmp_path: Path) -> None:
    """What several files hold comes once, whatever their order and sizes."""
    packets = [Packet(T0 + at, ipv4(udp(1, 2, struct.pack("<I", at)), 17)) for at in range(40)]
    held = [packets[at : at + 1 + at % 7] for at in range(40)]
    made = {
        f"pcap/processes/host/c{at}_{at + 1}_5.pcap": pcap(some) for at, some in enumerate(held)
    }
    _, _, rows = read(tracee_folder(tmp_path / "t", made))
    assert rows == 40


def test_numbers_in_names_that_no_kernel_has(tmp_path: Path) -> None:
    """They are told as they are."""
    big = "9" * 20
    made = tracee_folder(
        tmp_path / "t",
        {f"host/write.dev-{big}.inode-{big}": b"a", f"host/exec.{big}.x": b"b"},
        [tracee_event("openat", T0, {"pathname": "/a"})],
    )
    artifacts, _, _ = read(made)
    assert {one.details.get("inode", one.details.get("time_ns")) for one in artifacts} == {int(big)}
