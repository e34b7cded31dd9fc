"""``kcap artifacts list`` and ``show`` as people see them, and what ``kcap info`` says beside."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from artifact_support import artifact, capture_of, listing_of, reader_of, tracee_folder
from badinput_support import ROOT
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from support import FILE_ID, SOURCE, make_events

from kcap.format.blobs import Gap, Manifest
from kcap.format.writer import CaptureWriter
from kcap.model.side import Loss
from kcap.tools.artifact_lines import PATH_CHARS, Table

_HOSTILE = st.text(alphabet="ab/\n\t\x1b\u202e\ud83d\u202c é…", max_size=40)


def manifest(**more: Any) -> Manifest:
    """One with a path and a process."""
    made = artifact(b"x", "/tmp/x", 3, **{"kind": "write", "pid": 7, "process_name": "sh"} | more)
    (found,) = reader_of(capture_of([made])).manifests()
    return found


def test_what_is_no_text_is_escaped_in_every_form(tmp_path: Path) -> None:
    """JSON may hold half a character: a list, its JSON and the listing of an extraction say so."""
    path, folder = tmp_path / "made.kcap", tmp_path / "out"
    path.write_bytes(capture_of([artifact(b"x", "/x", 3, kind="write", process_name="a\ud83db")]))

    done = [run("artifacts", "list", *more, path) for more in ((), ("--json",))]
    done += [run("artifacts", "show", path), run("artifacts", "extract", path, "-o", folder)]

    assert [one.exit_code for one in done] == [0] * 4, done[-1].stderr
    assert all("a\\ud83db" in one.stdout for one in done[:3])
    assert listing_of(folder)[0]["details"]["process_name"] == "a\ud83db"


@pytest.mark.parametrize("width", [40, 80, 100, 120, 150, 200])
def test_a_line_fits_a_terminal(width: int) -> None:
    """Columns go until there is room for a path; what names an artifact and whose it is stays."""
    table = Table(width)

    assert len(table.head) - len("PATH") + PATH_CHARS <= max(width, 80)
    assert {"ID", "KIND", "SIZE", "PROCESS", "PID", "PATH"} <= set(table.head.split())
    assert table.narrow == (width < 150)
    assert "TIME" in Table(120).head
    assert Table().head == Table(200).head


def test_what_is_cut_has_a_mark() -> None:
    """A name that is too long ends with one; a path and the name of an event are whole."""
    found = manifest(process_name="n" * 40, kind="k" * 9, time_ns=1_795_323_209_474_050_113)

    row = Table().row(found)

    assert f"{'n' * 14}… " in row
    assert "kkkkk… " in row
    assert row.endswith("/tmp/x")
    assert "2026-11-22T04:53:29.474 " in row
    far = Manifest(None, 0, path="/x", origin="ab" * 16, ord=10**18)
    assert f"abababab:{10**18}" in Table().row(far)


@given(_HOSTILE, _HOSTILE, _HOSTILE)
def test_hostile_names_stay_in_their_line(path: str, name: str, kind: str) -> None:
    """Whatever a process is called and wherever its file was: one line, nothing for a terminal."""
    made = Manifest(
        None, 0, path=path, details={"process_name": name, "kind": kind, "container_id": name}
    )

    row = Table(80).row(made)

    assert row.isprintable()
    assert "\u202e" not in row


def test_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    """The list of a real terminal has no line that is longer but for its path."""
    path = tmp_path / "made.kcap"
    path.write_bytes(capture_of([artifact(b"x", "/tmp/x", 3, kind="write", process_name="sh")]))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {n: v for n, v in os.environ.items() if n not in {"COLUMNS", "LINES"}}
    done = subprocess.run(
        [sys.executable, "-m", "kcap.tools", "artifacts", "list", path],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=slave,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    os.close(slave)
    said = os.read(master, 1 << 16).decode()
    os.close(master)

    lines = said.splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert "wider terminal" in done.stderr
    assert "TIME" in run("artifacts", "list", path).stdout  # no terminal, so all columns


def test_numbers_that_are_no_times_are_not_shown_as_such(tmp_path: Path) -> None:
    """A mount namespace ends as times do."""
    path = tmp_path / "made.kcap"
    made = artifact(
        b"x", "/x", 3, kind="bpf", mount_ns=4026531832, end_ns=1_795_323_209_474_050_113
    )
    path.write_bytes(capture_of([made]))

    said = run("artifacts", "show", path).stdout

    assert re.search(r"^mount_ns +4026531832$", said, re.MULTILINE)
    assert re.search(r"^end_ns +2026-11-22T04:53:29.474050113Z$", said, re.MULTILINE)
    names = [line.split()[0] for line in said.splitlines()]
    assert names[:5] == ["id", "kind", "sha256", "size", "path"]


def test_nothing_is_said_of_content_that_is_not_there(tmp_path: Path) -> None:
    """Zeros stand for it, and are not what it was like; the control has an entropy."""
    path = tmp_path / "made.kcap"
    gone = artifact([Gap(8192, "unreadable memory")], None, 3, kind="mem")
    path.write_bytes(capture_of([gone, artifact([b"x", Gap(9, "cut")], "/x", 4, kind="write")]))

    said = [json.loads(s) for s in run("artifacts", "show", "--json", path).stdout.splitlines()]

    assert said[0]["content"] == {"why": "none of its bytes are there"}
    assert "entropy" in said[1]["content"]


def test_what_a_scope_left_out_is_one_line(tmp_path: Path) -> None:
    """However many names of events it has; other reasons are lines of their own."""
    counts = {"open": 5, "mmap": 1000, "creat": 7, "mkdir": 1}
    lost = [Loss("filtered", n, "not in the scope", SOURCE.id, e) for e, n in counts.items()]
    lost.append(Loss("filtered", 2, "something else", SOURCE.id))
    out = io.BytesIO()
    with contextlib.closing(CaptureWriter(out, file_id=FILE_ID)) as writer:
        writer.write(make_events(3).with_before([SOURCE, *lost]))
    path = tmp_path / "made.kcap"
    path.write_bytes(out.getvalue())

    said = [line for line in run("info", path).stdout.splitlines() if line.startswith("left out")]

    assert said == [
        "left out     filtered 1,013 events: not in the scope (1,000 mmap, 7 creat, 5 open, …)",
        "left out     filtered 2 events: something else",
    ]


def test_a_hunt_finds_the_artifacts_of_a_directory(tmp_path: Path) -> None:
    """By each hash and by path, as it finds those of its import; the control is none of them."""
    folder, taken = tmp_path / "tracee", tmp_path / "taken.kcap"
    files = {"host/write.dev-1.inode-9": b"evil", "written_files": b"host/write.dev-1.inode-9 /e\n"}
    tracee_folder(folder, files, [])
    assert run("import", folder, "-o", taken).exit_code == 0
    hashes = [hashlib.new(n, b"evil", usedforsecurity=False) for n in ("md5", "sha1", "sha256")]
    ioc = tmp_path / "ioc.txt"
    for text in (*(each.hexdigest() for each in hashes), "/e"):
        ioc.write_text(text)
        said = run("hunt", "--json", "--ioc", ioc, folder)
        assert [json.loads(s)["value"] for s in said.stdout.splitlines()] == [text], said.stderr
    ioc.write_text(f"{hashes[2].hexdigest()}\n/e\n")
    of = [run("hunt", "--json", "--ioc", ioc, name).stdout.splitlines() for name in (folder, taken)]
    assert len(of[0]) == len(of[1]) == 2
    ioc.write_text(hashlib.md5(b"good", usedforsecurity=False).hexdigest())
    assert run("hunt", "--json", "--ioc", ioc, folder).stdout == ""


@pytest.mark.parametrize(("fields", "kept"), [("ts,event", 0), ("ts,origin,ord", 1)])
def test_artifacts_need_the_columns_that_name_their_event(
    tmp_path: Path, fields: str, kept: int
) -> None:
    """Without them a copy has none, which is said."""
    path, copy = tmp_path / "made.kcap", tmp_path / "copy.kcap"
    path.write_bytes(capture_of([artifact(b"x", "/x", 3, kind="write")]))

    done = run("cat", path, "-f", "kcap", "-F", fields, "-o", copy)

    assert done.exit_code == 0
    assert ("the artifacts stay behind" in done.stderr) == (not kept)
    assert len(run("artifacts", "list", "--json", copy).stdout.splitlines()) == kept


def test_a_kind_that_may_be_a_slip(tmp_path: Path) -> None:
    """A capture may have kinds that kcap does not know; of one that it lacks the known are told."""
    path = tmp_path / "made.kcap"
    path.write_bytes(capture_of([artifact(b"x", "/x", 3, kind="own")]))

    assert "write, read" in run("artifacts", "list", path, "--kind", "exce").stderr
    assert "write, read" not in run("artifacts", "list", path, "--kind", "own").stderr
    assert "write, read" not in run("artifacts", "list", path, "--kind", "exec").stderr


def test_tables_of_events_and_artifacts_join(tmp_path: Path) -> None:
    """As docs/artifacts.md says: the listing of an extraction and the export, by origin and ord."""
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb")
    path, table, folder = (tmp_path / name for name in ("made.kcap", "events.parquet", "files"))
    path.write_bytes(capture_of([artifact(b"x", "/x", 3, kind="write")]))
    assert run("export", path, "-o", table).exit_code == 0
    assert run("artifacts", "extract", path, "-o", folder).exit_code == 0

    found = duckdb.sql(
        f"SELECT e.ord, a.file, a.sha256 FROM '{folder}/MANIFEST.jsonl' a"
        f" JOIN '{table}' e ON e.origin = a.origin AND e.ord = a.ord"
    ).fetchall()

    digest = hashlib.sha256(b"x").hexdigest()
    assert found == [(3, f"write.{digest[:12]}.x", digest)]
