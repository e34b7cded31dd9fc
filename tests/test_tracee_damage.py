"""Tracee's JSON lines that are cut, damaged or none, as the verbs end on them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from tracee_support import GRPC, OPENED, V1BETA1, lines, losses

from kcap.errors import BadInputError, DamagedError, KcapError
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.readers.tracee import TraceeReader
from kcap.writers.tracee_json import objects

EVENTS = [OPENED, V1BETA1, GRPC, OPENED | {"eventName": "close"}, OPENED]
PLAIN = lines(EVENTS)
ENDS = [len(lines(EVENTS[: i + 1])) for i in range(len(EVENTS))]
"""Where each line ends, behind its newline."""

PACKERS = [gzip.compress, zstandard.compress]


def delivered(
    data: bytes, *, lenient: bool = False
) -> tuple[list[dict[str, Any]], list[Loss], KcapError | None]:
    """The events that come before a reader fails, what it tells of, and how it fails."""
    batches: list[Batch] = []
    failure = None
    try:
        for batch in TraceeReader(io.BytesIO(data), "in", lenient=lenient).batches():
            batches.append(batch)  # noqa: PERF402  (what came before a failure counts)
    except KcapError as error:
        failure = error
    return [e for b in batches for e in objects(b)], losses(batches), failure


WANT = delivered(PLAIN)[0]


def test_the_sample_comes_back() -> None:
    """Negative control of all below: undamaged, every event is delivered as it was."""
    assert delivered(PLAIN) == (EVENTS, [], None)


@pytest.mark.parametrize("pack", PACKERS, ids=["gzip", "zstd"])
def test_compressed_and_cut_at_every_byte(pack: Callable[[bytes], bytes]) -> None:
    """What can be decompressed is delivered, whole lines only, and one loss says it is torn."""
    packed = pack(PLAIN)
    for end in range(4, len(packed)):
        found, told, failure = delivered(packed[:end])
        assert failure is None
        assert found == WANT[: len(found)]
        assert [loss.kind for loss in told] == ["torn"], end


@pytest.mark.parametrize("lenient", [False, True])
def test_a_flipped_bit(lenient: bool) -> None:
    """Lines have no checksum: those before the bit are as they were, lenient also those after."""
    for at in range(0, len(PLAIN), 3):
        data = bytearray(PLAIN)
        data[at] ^= 1 << at % 8
        found, _, failure = delivered(bytes(data), lenient=lenient)
        before = sum(end <= at for end in ENDS)
        after = len(WANT) - before - 1 - (at + 1 in ENDS)
        assert found[:before] == WANT[:before]
        if lenient:
            assert failure is None
            assert after <= 0 or found[-after:] == WANT[-after:], at
        assert failure is None or isinstance(failure, BadInputError)


@pytest.mark.parametrize("pack", PACKERS, ids=["gzip", "zstd"])
def test_flips_of_compressed_data(pack: Callable[[bytes], bytes]) -> None:
    """Only errors of ours, and never an event that is not there unless nothing notices."""
    packed = pack(PLAIN)
    for at in range(4, len(packed)):
        data = bytearray(packed)
        data[at] ^= 1 << at % 8
        strict = delivered(bytes(data))
        lenient = delivered(bytes(data), lenient=True)
        assert lenient[2] is None or not isinstance(lenient[2], DamagedError), at
        assert len(strict[0]) <= len(lenient[0])


@pytest.mark.parametrize("verb", ["cat", "import", "info", "replay"])
def test_verbs_on_a_cut_file(verb: str, tmp_path: Path) -> None:
    """A file that only ends early is read to its end, exit code 3; a whole one ends with 0."""
    path = tmp_path / "x"
    words: list[str | Path] = (
        [verb, path] if verb != "import" else [verb, path, "-o", tmp_path / "out", "--force"]
    )
    for data in (PLAIN[:-20], gzip.compress(PLAIN)[:-9]):
        path.write_bytes(data)
        assert run(*words).exit_code == 3
    path.write_bytes(PLAIN)
    assert run(*words).exit_code == 0


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """Exit 1 with what is before it delivered; with --lenient all others, and exit 3."""
    path = tmp_path / "x"
    path.write_bytes(PLAIN[: ENDS[1]] + b"x" + PLAIN[ENDS[1] :])
    strict = run("cat", path, "--format", "jsonl")
    assert (strict.exit_code, len(strict.stdout.splitlines())) == (1, 2)
    assert f"kcap: {path}: no JSON" in strict.stderr
    assert f"byte {ENDS[1]}" in strict.stderr
    lenient = run("cat", path, "--format", "jsonl", "--lenient")
    assert (lenient.exit_code, len(lenient.stdout.splitlines())) == (3, 4)


def test_damaged_compression_in_the_middle(tmp_path: Path) -> None:
    """A damaged member: exit 1, with --lenient what is before it and exit 3."""
    path = tmp_path / "x"
    second = bytearray(gzip.compress(PLAIN))
    second[-6] ^= 0xFF
    path.write_bytes(gzip.compress(PLAIN) + bytes(second) + gzip.compress(PLAIN))
    assert run("cat", path).exit_code == 1
    lenient = run("cat", path, "--lenient")
    assert (lenient.exit_code, len(lenient.stdout.splitlines())) == (3, 10)


@pytest.mark.parametrize(
    "data", [b"", bytes(5000), b"{}\n", b'{"a": 1}\n', b"MZ\x90\0" * 99, b"\n\n"]
)
def test_what_is_no_tracee_log(data: bytes, tmp_path: Path) -> None:
    """Empty, zeros, other JSON, another format: refused in one line by every verb."""
    assert not TraceeReader.sniff(data)
    path = tmp_path / "x"
    path.write_bytes(data)
    for verb in ("cat", "info", "replay"):
        result = run(verb, path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"kcap: {path}: ")


@given(st.lists(st.tuples(st.integers(0, 1 << 13), st.binary(max_size=9))), st.booleans())
def test_accidents(edits: list[tuple[int, bytes]], lenient: bool) -> None:
    """Bytes written over anywhere: events, losses or a `KcapError`, nothing else."""
    data = bytearray(PLAIN)
    for at, new in edits:
        start = at % len(data)
        data[start : start + len(new)] = new
    delivered(bytes(data), lenient=lenient)


def test_the_host_is_that_of_no_container() -> None:
    """The first event outside a container names it; where there is none it is not known."""
    inside = OPENED | {"hostName": "c0ffee", "containerId": "c0ffee"}
    nested = OPENED | {"hostName": "c0ffee", "container": {"id": "c0ffee"}}
    other = OPENED | {"hostName": "c0ffee", "processId": 1}
    outside = OPENED | {"hostName": "web1", "containerId": "", "processId": 77}
    for events, want in (
        ([inside, nested, other, outside], "web1"),
        ([inside, nested, other], None),
        ([V1BETA1], None),
        ([OPENED | {"hostName": 7}], None),
    ):
        source = TraceeReader(io.BytesIO(lines(events)), "in").info.sources[0]
        assert source.host == want
