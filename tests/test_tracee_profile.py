"""Tracee's profile of executed files: each is an event, and damage costs no more than its entry."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tracee_support as ts
import zstandard
from cli_support import lines_of, run
from hypothesis import given
from hypothesis import strategies as st
from support import Pipe

from kcap.errors import BadInputError, DamagedError, KcapError, LimitError
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.readers import tracee_profile
from kcap.readers.tracee_profile import TraceeProfileReader

CONTAINER = "0123456789abcdef" * 4
SHA = "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b"
PROFILE: dict[str, Any] = {
    "/tmp/tracee/out/host/exec.ls:1626263212345678901": {"times": 3, "file_hash": SHA},
    f"/tmp/tracee/out/{CONTAINER}/exec.ä b:5": {"times": 1},
    "/usr/bin/x:7": {"times": 2, "file_hash": "ff"},
    "no-time": {"file_hash": "00"},
}
ENTRIES = [f"{json.dumps(k, ensure_ascii=False)}:{json.dumps(v)}" for k, v in PROFILE.items()]
PLAIN = ("{" + ",".join(ENTRIES) + "}").encode()
ENDS = [len(("{" + ",".join(ENTRIES[: i + 1])).encode()) for i in range(len(ENTRIES))]
"""Where each entry ends."""


def delivered(
    data: bytes, *, lenient: bool = False
) -> tuple[list[dict[str, Any]], list[Loss], KcapError | None]:
    """The rows that come before a reader fails, what it tells of, and how it fails."""
    batches: list[Batch] = []
    failure = None
    try:
        for batch in TraceeProfileReader(io.BytesIO(data), "in", lenient=lenient).batches():
            batches.append(batch)  # noqa: PERF402  (what came before a failure counts)
    except KcapError as error:
        failure = error
    hidden = {"origin", "source", "shape", "ord", "kind", "event", "category"}
    made = [row for batch in batches for row in batch.to_pylist()]
    rows = [{k: v for k, v in r.items() if k not in hidden and v is not None} for r in made]
    return rows, ts.losses(batches), failure


WANT = delivered(PLAIN)[0]


def test_what_a_profile_says() -> None:
    """Path, time of the last change, times it was executed, hash, container."""
    assert [
        {
            "arg_pathname": "/tmp/tracee/out/host/exec.ls",
            "arg_name": "ls",
            "arg_ctime": 1626263212345678901,
            "arg_times": 3,
            "arg_sha256": SHA,
        },
        {
            "arg_pathname": f"/tmp/tracee/out/{CONTAINER}/exec.ä b",
            "arg_name": "ä b",
            "arg_ctime": 5,
            "arg_times": 1,
            "container_id": CONTAINER,
        },
        {
            "arg_pathname": "/usr/bin/x",
            "arg_ctime": 7,
            "arg_times": 2,
            "arg_sha256": "ff",
            "exe": "/usr/bin/x",
        },
        {"arg_pathname": "no-time", "arg_times": 0, "arg_sha256": "00"},
    ] == WANT


def test_verbs_show_it(tmp_path: Path) -> None:
    """Found by content; imported and printed it is the same, in order, and told from state."""
    path = tmp_path / "x"
    path.write_bytes(PLAIN)
    out = tmp_path / "out.kcap"
    assert run("import", path, "-o", out).exit_code == 0
    found = lines_of("cat", out)
    assert found == lines_of("cat", path)
    assert [(row["event"], row["kind"], row["ord"]) for row in found] == [
        ("executed_file", "event", i) for i in range(4)
    ]
    text = run("cat", path).stdout.splitlines()
    assert len(text) == 4
    assert SHA in text[0]


def test_cut_at_every_byte() -> None:
    """All whole entries, and one loss that says it is torn."""
    for end in range(1, len(PLAIN)):
        rows, losses, failure = delivered(PLAIN[:end])
        assert failure is None, end
        assert rows == WANT[: sum(e <= end for e in ENDS)], end
        assert [loss.kind for loss in losses] == ["torn"], end


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_compressed_and_cut_at_every_byte(pack: Callable[[bytes], bytes]) -> None:
    """What can be decompressed is delivered, whole entries only."""
    packed = pack(PLAIN)
    assert delivered(packed) == (WANT, [], None)
    for end in range(4, len(packed)):
        rows, losses, failure = delivered(packed[:end])
        assert (rows, failure) == (WANT[: len(rows)], None)
        assert [loss.kind for loss in losses] == ["torn"]


@pytest.mark.parametrize("lenient", [False, True])
def test_a_flipped_bit(lenient: bool) -> None:
    """Entries before the bit are as they were; lenient, all but the two at the bit are."""
    for at in range(len(PLAIN)):
        for bit in range(8):
            data = bytearray(PLAIN)
            data[at] ^= 1 << bit
            rows, _, failure = delivered(bytes(data), lenient=lenient)
            whole = sum(e <= at for e in ENDS)
            assert rows[:whole] == WANT[:whole]
            assert failure is None or not lenient
            assert failure is None or isinstance(failure, (BadInputError, DamagedError))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ('"k":1', "no JSON object"),
        ('"k":{"times":tru}', "no JSON"),
        ('"k" {"times":1}', "no JSON"),
        ("7:{}", "no text"),
        ('"k":{"times":' + "[" * 50 + "]" * 50 + "}", "nested too deep"),
        ('"k":{"times":' + "[" * 90_000 + "}", "nested too deep"),
    ],
)
def test_a_bad_entry(entry: str, problem: str, tmp_path: Path) -> None:
    """Exit 1 with those before it delivered; with --lenient all others, counted, exit 3."""
    path = tmp_path / "x"
    path.write_text("{" + ",".join([*ENTRIES[:2], entry, *ENTRIES[2:]]) + "}")
    strict = run("cat", path)
    assert (strict.exit_code, len(strict.stdout.splitlines())) == (1, 2)
    assert f"{path}: " in strict.stderr
    assert problem in strict.stderr
    lenient = run("cat", path, "--lenient")
    assert (lenient.exit_code, len(lenient.stdout.splitlines())) == (3, 4)
    assert "skipped" in lenient.stderr


def test_what_follows_is_told() -> None:
    """Two profiles in one file are not one; newlines at the end are nothing."""
    assert delivered(PLAIN + b"\n\n") == (WANT, [], None)
    rows, _, failure = delivered(PLAIN + PLAIN)
    assert rows == WANT
    assert isinstance(failure, BadInputError)
    assert failure.offset == len(PLAIN)


def test_bytes_that_are_no_text() -> None:
    """What comes before them is delivered, then it is damaged."""
    data = PLAIN.replace(b"/usr", b"\xffusr")
    rows, _, failure = delivered(data)
    assert rows == WANT[:2]
    assert isinstance(failure, DamagedError)
    assert failure.offset == data.index(b"\xff")
    rows, losses, failure = delivered(data, lenient=True)
    assert (rows, [loss.kind for loss in losses], failure) == (WANT[:2], ["damaged"], None)


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.dictionaries(KEYS, st.fixed_dictionaries({}, optional={"times": st.integers(0, 2**70)})))
def test_any_profile(profile: dict[str, Any]) -> None:
    """Whatever the keys are and however large the counts, each entry is a row."""
    rows, losses, failure = delivered(json.dumps(profile).encode())
    assert (losses, failure) == ([], None)
    assert len(rows) == len(profile)


@given(st.lists(st.tuples(st.integers(0, 999), st.binary(max_size=9))), st.booleans())
def test_accidents(edits: list[tuple[int, bytes]], lenient: bool) -> None:
    """Bytes written over anywhere: rows, losses or a `KcapError`, nothing else."""
    data = bytearray(PLAIN)
    for at, new in edits:
        start = at % len(data)
        data[start : start + len(new)] = new
    delivered(bytes(data), lenient=lenient)


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes(raw: bytes, lenient: bool) -> None:
    """Whatever the bytes: only our errors, from reading and from sniffing."""
    delivered(raw, lenient=lenient)
    delivered(b'{"a":{"times":1},' + raw, lenient=lenient)
    assert TraceeProfileReader.sniff(raw) in {True, False}


@pytest.mark.parametrize(
    "data",
    [b"", bytes(5000), b"{}", b'{"a":{"b":1}}', b'{"a":[1]}', b"[1]", ts.lines([ts.OPENED])],
)
def test_what_is_no_profile(data: bytes, tmp_path: Path) -> None:
    """Empty, zeros, other JSON: not ours."""
    assert not TraceeProfileReader.sniff(data)
    path = tmp_path / "x"
    path.write_bytes(data)
    if not data.startswith(b'{"timestamp'):
        result = run("cat", path)
        assert (result.exit_code, result.stdout) == (1, "")


def test_sniffing_needs_one_entry() -> None:
    """From the first field of the first entry on, spaced as you like."""
    assert TraceeProfileReader.sniff(PLAIN)
    assert TraceeProfileReader.sniff(json.dumps(PROFILE, indent=2).encode())
    assert TraceeProfileReader.sniff(PLAIN[: ENDS[0] - 5])
    assert not TraceeProfileReader.sniff(PLAIN[:10])


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that is too long ends with what to expect; many layouts are let go of."""
    monkeypatch.setattr(tracee_profile, "PROFILE_BYTES", 100)
    assert isinstance(delivered(PLAIN)[2], LimitError)
    monkeypatch.undo()
    monkeypatch.setattr(tracee_profile, "KEPT_FIELDS", 20)
    many = {f"k{i}": {"times": 1, f"f{i}": 2} for i in range(50)}
    rows, _, failure = delivered(json.dumps(many).encode())
    assert (len(rows), failure) == (50, None)
    assert [sorted(row.values(), key=str)[:2] for row in rows] == [[1, 2]] * 50


def test_an_entry_that_is_too_large() -> None:
    """More than a row can hold is a bad entry."""
    huge = {"big": {"times": 1} | {f"f{i}": "x" * 60_000 for i in range(500)}}
    data = json.dumps(huge | {"a:1": {"times": 1}}).encode()
    assert isinstance(delivered(data)[2], BadInputError)
    rows, losses, failure = delivered(data, lenient=True)
    assert (len(rows), [loss.kind for loss in losses], failure) == (1, ["skipped"], None)


def test_a_pipe_is_like_a_file() -> None:
    """Given little at a time, the same rows and the same origin."""
    piped = list(TraceeProfileReader(io.BufferedReader(Pipe(PLAIN)), "in").batches())
    whole = list(TraceeProfileReader(io.BytesIO(PLAIN), "in").batches())
    assert [r for b in piped for r in b.to_pylist()] == [r for b in whole for r in b.to_pylist()]


def test_closing_twice_is_fine() -> None:
    """As every source."""
    reader = TraceeProfileReader(io.BytesIO(PLAIN), "in")
    reader.close()
    reader.close()
