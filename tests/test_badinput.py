"""Input that is bad: one line that says what and where, the right exit code, no traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forge
import pytest
import zstandard
from badinput_support import (
    EDITS,
    GOOD,
    GOOD_ROWS,
    ROOT,
    VERBS,
    check_damaged,
    check_refused,
    edited,
    words_for,
)
from cli_support import run
from forge import Part
from hypothesis import given
from hypothesis import strategies as st
from support import read, rows_of
from tracee_support import OPENED

from kcap.errors import KcapError
from kcap.format import payloads
from kcap.format.record import Kind
from kcap.readers.tracee import TraceeReader

EVENT = json.dumps(OPENED).encode() + b"\n"


# What is no capture


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"hello\n", "no capture that kcap can read at byte 0: expected one of kcap, "),
        (bytes(100_000), "no capture"),
        (b"\x1f\x8b\x08", "no capture"),
        (gzip.compress(b"hello", mtime=0), "no capture"),
        (zstandard.compress(b"hello"), "no capture"),
        (b'{"neither":"tracee"}\n', "no capture"),
        (b"PK\x03\x04", "no capture"),
        (GOOD[:3], "no capture"),
        (GOOD[:4], "ends before"),
        (GOOD[:40], "ends before its FILE_HEADER does at byte 40"),
        (GOOD[300:], "no capture"),
    ],
)
def test_what_is_no_capture_is_refused(
    verb: str, content: bytes, what: str, tmp_path: Path
) -> None:
    """Content that no reader knows, whatever its name says."""
    path = tmp_path / "bad.kcap"
    path.write_bytes(content)

    check_refused(verb, path, what)


@pytest.mark.parametrize("verb", VERBS)
def test_what_cannot_be_opened_is_refused(verb: str, tmp_path: Path) -> None:
    """A directory, a missing file, a file behind a file, a loop of links, a name too long."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(GOOD)
    check_refused(verb, tmp_path, "directory")
    check_refused(verb, tmp_path / "none", "No such file")
    check_refused(verb, tmp_path / "file" / "x", "Not a directory")
    check_refused(verb, tmp_path / "loop", "symbolic links")
    check_refused(verb, tmp_path / ("x" * 300), "too long")


@pytest.mark.parametrize("verb", VERBS)
def test_what_may_not_be_read_is_refused(verb: str, tmp_path: Path) -> None:
    """Without the permission the message says so and how to get on."""
    path = tmp_path / "secret.kcap"
    path.write_bytes(GOOD)
    path.chmod(0)
    # Root without capabilities is as anyone else, and still finds its Python.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    words = [*drop, sys.executable, "-m", "kcap.tools", *map(str, words_for(verb, path))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, env=env, check=False)

    assert done.returncode == 1, done.stderr
    expected = f"kcap: {path}: can't be opened: Permission denied\nhint: run as a user that may"
    assert done.stderr.decode().startswith(expected)


# What a newer kcap wrote


def header(**changes: object) -> bytes:
    """The capture with other FILE_HEADERs."""
    parts = forge.parts_of(GOOD)
    found = payloads.FileHeader.unpack(parts[0].payload)
    made = replace(found, **changes).pack()  # type: ignore[arg-type]
    return forge.assembled([replace(p, payload=made) for p in parts[:2]] + parts[2:])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("pipe", [False, True])
def test_newer_versions_are_refused(verb: str, pipe: bool, tmp_path: Path) -> None:
    """A greater major version and an unknown required feature; a minor version is read."""
    path = tmp_path / "new.kcap"
    cases = [
        (header(major=2), r"format version 2\.\d: expected version 1"),
        (header(major=2, meta={"requires": ["x"]}), r"format version 2\.\d"),
        (header(meta={"requires": ["warp-drive"]}), r"features \['warp-drive'\]"),
        (header(meta={"requires": "warp-drive"}), "warp-drive"),
    ]
    for content, what in cases:
        path.write_bytes(content)
        if pipe and verb != "import":
            result = run(verb, "-", input=content)
            assert result.exit_code == 1
            assert re.match(rf"kcap: -: [^\n]*{what}", result.stderr), result.stderr
        else:
            check_refused(verb, path, what)
        assert "newer kcap" in run("cat", path).stderr
    path.write_bytes(header(minor=7))
    assert run(*words_for(verb, path)).exit_code == 0


@pytest.mark.parametrize("kind", [99, Kind.SEGMENT])
def test_an_unknown_kind_that_is_needed_is_refused(kind: int, tmp_path: Path) -> None:
    """Without the ancillary flag an unknown record stops the reading where it stands."""
    path = tmp_path / "new.kcap"
    path.write_bytes(forge.inserted(GOOD, Part(kind, b"what?", flags=0)))

    for verb in ("cat", "replay"):
        result = run(verb, path)
        assert result.exit_code == 1
        assert re.match(
            rf"kcap: {path}: this kcap can't read \S.* records .*at byte \d+ \(record \d+\)\n"
            "hint: use a newer kcap\n",
            result.stderr,
        ), result.stderr
    result = run(*words_for("import", path))
    assert result.exit_code == 1
    kept = path.with_suffix(".out.kcap")
    assert json.loads(run("info", "--json", kept).stdout)["loss"][-1]["kind"] == "torn"


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_kind_that_is_ancillary_is_skipped(verb: str, tmp_path: Path) -> None:
    """With the flag it costs nothing, wherever it stands."""
    path = tmp_path / "new.kcap"
    edited = forge.parts_of(GOOD)
    edited.insert(5, Part(200, b"who knows", flags=1))
    path.write_bytes(forge.assembled(edited, edit=_count_kind_200))

    result = run(*words_for(verb, path))

    assert result.exit_code == 0, result.output
    assert rows_of(read(path.read_bytes())[0]) == GOOD_ROWS


def _count_kind_200(_table: object, totals: dict[str, object]) -> dict[str, object]:
    return {**totals, "records": {**totals["records"], "kind 200": 1}}  # type: ignore[dict-item]


# Foreign input that ends early


@pytest.mark.parametrize("verb", VERBS)
def test_a_cut_gzip_is_read_to_its_end(verb: str, tmp_path: Path) -> None:
    """What was complete comes out, the end is told with its place, exit code 3."""
    path = tmp_path / "cut.jsonl.gz"
    lines = b"".join(EVENT.replace(b'"77"', str(i).encode()) for i in range(3000))
    path.write_bytes(gzip.compress(lines)[:-2000])

    if verb == "verify":
        check_refused(verb, path, "tracee file, which has no checksums")
        return
    check_damaged(verb, path, r"gzip data ends early at byte \d+", footer=False)
    assert run("cat", path).stdout.count("\n") > 500


# Too much


def test_too_many_columns_are_refused_when_written(tmp_path: Path) -> None:
    """65,537 arguments in one event: exit code 1, and the message says where."""
    args = [{"name": f"a{i}", "type": "int", "value": i} for i in range(65_537)]
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps({**OPENED, "args": args}) + "\n")

    result = run(*words_for("import", path))

    assert result.exit_code == 1
    assert re.match(rf"kcap: {path}: [^\n]+ at line 1, byte 0", result.stderr), result.stderr


@pytest.mark.parametrize("levels", [33, 5000, 1_000_000])
def test_deep_json_is_carried_or_refused_with_its_line(levels: int, tmp_path: Path) -> None:
    """Tracee lines that nest: never a RecursionError."""
    path = tmp_path / "deep.jsonl"
    value = "[" * levels + "]" * levels
    line = json.dumps(OPENED).replace('"/etc/passwd"', value)
    path.write_bytes(EVENT + line.encode() + b"\n")

    result = run("import", path, "-o", tmp_path / "out.kcap")

    assert "internal" not in result.stderr
    if result.exit_code:
        assert re.match(rf"kcap: {path}: [^\n]+ at line 2, byte {len(EVENT)}\nhint:", result.stderr)


# Anything at all


TRACEE = (EVENT * 3, gzip.compress(EVENT * 3, mtime=0), zstandard.compress(EVENT * 3))


@given(st.sampled_from(TRACEE), EDITS, st.booleans())
def test_edited_tracee_input_raises_nothing_foreign(
    base: bytes, edits: list[tuple[str, int, int, bytes]], lenient: bool
) -> None:
    """Whatever happens to the lines: KcapError, or events and losses."""
    data = edited(base, edits)
    try:
        batches = list(TraceeReader(io.BytesIO(data), "x", lenient=lenient).batches())
    except KcapError:
        return
    rows = sum(b.rows for b in batches)
    assert rows == 3 or data != base
    assert rows <= data.count(b"\n") + 1 or base is not TRACEE[0]


@given(st.binary(max_size=200), st.sampled_from([b"", GOOD[:32], GOOD[:4], b"{", b"\x1f\x8b"]))
def test_any_bytes_are_refused_in_order(tail: bytes, head: bytes) -> None:
    """Opening anything gives a source or KcapError."""
    result = run("info", "-", input=head + tail)

    assert result.exit_code in (0, 1, 3)
    assert "internal" not in result.stderr, result.stderr
