"""Files that are cut, damaged or none: what is whole is delivered, the rest told."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from scap_support import (
    EVENT,
    EVENT_LARGE,
    descriptor,
    descriptor_list,
    event,
    i64,
    machine,
    opened,
    process,
    process_list,
    section,
    text,
    u32,
)

from kcap.errors import (
    BadInputError,
    DamagedError,
    KcapError,
    NotACaptureError,
    TruncatedError,
    VersionError,
)
from kcap.model.batch import Batch, concat
from kcap.model.side import Loss
from kcap.readers.scap import ScapReader

READ = 6
PARTS = [
    section(),
    machine(),
    process_list(9, process(9, tid=100, pid=100, comm="cat")),
    descriptor_list(2, 100, descriptor(2, 0, 7, text("/dev/tty"))),
    opened("/etc/passwd"),
    event(READ, i64(3), u32(8)),
    event(READ + 1, i64(4), b"abcd", kind=EVENT_LARGE),
    event(READ, i64(3), u32(8), kind=EVENT),
    event(5000, b"xyz"),
    opened("/etc/group", 4, tid=7),
]
DATA = b"".join(PARTS)
STARTS = [sum(map(len, PARTS[:i])) for i in range(len(PARTS) + 1)]
FIRST_EVENT = 4


def delivered(
    data: bytes, *, lenient: bool = False, raw_pairs: bool = True
) -> tuple[list[Batch], KcapError | None]:
    """What comes before a reader fails, and how it fails."""
    found: list[Batch] = []
    reader = ScapReader(io.BytesIO(data), "x.scap", lenient=lenient, raw_pairs=raw_pairs)
    try:
        for batch in reader.batches():
            found.append(batch)  # noqa: PERF402  (what came before a failure counts)
    except KcapError as error:
        return found, error
    return found, None


def values(batches: list[Batch]) -> list[dict[str, Any]]:
    """The rows, but for what names the input and where they stand."""
    other = {"origin", "source", "ord", "seq"}
    rows = concat(batches or [Batch(0, {})]).to_pylist()
    return [{n: v for n, v in row.items() if n not in other} for row in rows]


def losses(batches: list[Batch]) -> list[str]:
    """The kinds of losses."""
    return [side.kind for batch in batches for side in batch.before if isinstance(side, Loss)]


WANT = values(delivered(DATA)[0])


def test_the_sample_is_whole() -> None:
    """All its events come, without a loss."""
    found, error = delivered(DATA)

    assert error is None
    assert len(WANT) == len(PARTS) - FIRST_EVENT
    assert losses(found) == []


@pytest.mark.parametrize("lenient", [False, True])
def test_cut_anywhere(*, lenient: bool) -> None:
    """At every byte: all whole events, and one loss that says it is torn."""
    for size in range(len(DATA)):
        found, error = delivered(DATA[:size], lenient=lenient)
        if size < STARTS[1]:
            assert isinstance(error, (NotACaptureError, TruncatedError)) or losses(found), size
            assert values(found) == []
            continue
        whole = sum(start <= size for start in STARTS[FIRST_EVENT + 1 :])
        assert error is None, size
        assert values(found) == WANT[:whole], size
        assert losses(found) == ([] if size in STARTS else ["torn"]), size


def test_gzip_cut_anywhere() -> None:
    """The same of compressed files: what can be decompressed counts."""
    packed = gzip.compress(DATA, 1)
    counts = []
    for size in range(24, len(packed)):
        found, error = delivered(packed[:size])
        if error is None:
            assert losses(found) == ["torn"], size
            assert values(found) == WANT[: len(values(found))]
            counts.append(len(values(found)))
        else:
            assert isinstance(error, (NotACaptureError, TruncatedError)), size

    assert counts == sorted(counts)
    assert counts[-1] == len(WANT)


def brief(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an event itself says, without its machine and its other half."""
    kept = ("event", "direction", "tid", "ts", "shape", "retval")
    return [{n: v for n, v in row.items() if n in kept} for row in rows]


def test_every_flipped_byte() -> None:
    """Only our own errors; the events before are there, where lenient also those behind."""
    want = brief(WANT)
    for place in range(STARTS[1], len(DATA)):
        data = bytearray(DATA)
        data[place] ^= 0xFF
        before = max(0, sum(start <= place for start in STARTS) - 1 - FIRST_EVENT)
        behind = len(want) - before - (place >= STARTS[FIRST_EVENT])
        found, error = delivered(bytes(data))
        assert brief(values(found))[:before] == want[:before], place
        assert isinstance(error, (DamagedError, BadInputError, type(None))), place
        found, error = delivered(bytes(data), lenient=True)
        rows = brief(values(found))
        assert error is None, place
        assert rows[:before] == want[:before], place
        assert not behind or rows[-behind:] == want[-behind:], place


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(seed: int) -> None:
    """Runs of random bytes and zeros anywhere: only our own errors, lenient or not."""
    rng = random.Random(seed)
    for _ in range(150):
        data = bytearray(DATA * 2)
        for _ in range(rng.randrange(1, 4)):
            at, size = rng.randrange(len(data)), rng.randrange(1, 40)
            data[at : at + size] = rng.choice([rng.randbytes(size), bytes(size)])
        for lenient in (False, True):
            # Any other error ends the test.
            delivered(bytes(data), lenient=lenient, raw_pairs=False)


@given(st.binary(max_size=300), st.booleans())
def test_anything_behind_a_header(junk: bytes, lenient: bool) -> None:
    """Whatever follows: only our own errors, and the events before it."""
    found, _ = delivered(DATA + junk, lenient=lenient)

    assert values(found)[: len(WANT)] == WANT


@given(
    st.integers(0, 460),
    st.lists(st.binary(max_size=24), max_size=12),
    st.sampled_from([EVENT, 0x208, 0x216, 0x217, EVENT_LARGE, 0x222]),
)
def test_any_parameters(number: int, parameters: list[bytes], kind: int) -> None:
    """An event of any type with any parameters is carried, whatever they hold."""
    data = section() + machine() + event(number, *parameters, kind=kind)

    found, error = delivered(data)

    if error is None:
        assert len(values(found)) == 1
    else:  # of the first version, whose events do not say how many parameters they have
        assert kind in (EVENT, 0x208)
        assert isinstance(error, BadInputError)


@pytest.mark.parametrize(
    "data", [b"", bytes(4096), b"\n\r\r\n", b"text\n" * 100, gzip.compress(b"", mtime=0)]
)
def test_what_is_no_capture(data: bytes, tmp_path: Path) -> None:
    """Empty, zeros, text, a bare magic: refused with exit code 1, for every verb."""
    path = tmp_path / "x.scap"
    path.write_bytes(data)

    for words in (["cat", path], ["info", path], ["import", path, "-o", tmp_path / "x.kcap"]):
        result = run(*words)
        assert result.exit_code == 1, (words, result.stderr)
        assert result.stderr.startswith("kcap: ")
        assert "Traceback" not in result.stderr


def test_other_byte_orders_and_versions() -> None:
    """They are refused by what they are."""
    swapped = b"".join(section()[i : i + 4][::-1] for i in range(0, 28, 4))
    for data in (swapped + bytes(40), section(2, 0) + machine()):
        _, error = delivered(data)
        assert isinstance(error, (VersionError, NotACaptureError))


def test_exit_codes(tmp_path: Path) -> None:
    """Cut: 3. Damaged in the middle: 1, and the output is marked; lenient 3."""
    path, out = tmp_path / "x.scap", tmp_path / "x.kcap"
    path.write_bytes(DATA[:-5])
    assert run("import", path, "-o", tmp_path / "cut.kcap").exit_code == 3
    data = bytearray(DATA)
    data[STARTS[6] + 4] ^= 1
    path.write_bytes(data)

    strict = run("import", path, "-o", out)
    assert strict.exit_code == 1
    assert f"at byte {STARTS[6]}" in strict.stderr
    shown = run("cat", out, "--format", "jsonl")
    assert shown.stdout.count("\n") == 2  # joined later, the read's enter is a half here

    lenient = run("import", path, "-o", out, "--force", "--lenient")
    assert lenient.exit_code == 3
    assert "damaged" in lenient.stderr
    assert run("cat", out, "--format", "jsonl").stdout.count("\n") == 5


def test_control_damage_matters() -> None:
    """Negative control: another byte in a path is another row."""
    at = DATA.index(b"/etc/group")
    data = DATA[:at] + b"?" + DATA[at + 1 :]

    assert values(delivered(data)[0]) != WANT


@pytest.mark.parametrize("name", ["curl_google", "rename"])
def test_samples_cut_in_the_middle(name: str, data: Callable[[str], Path]) -> None:
    """Real files, cut: the events of the whole blocks, counted from their lengths alone."""
    whole = data(f"scap/{name}.scap").read_bytes()
    raw = gzip.decompress(whole) if whole[:2] == b"\x1f\x8b" else whole
    for size in (len(raw) // 3, len(raw) // 2 + 1, len(raw) - 1):
        found, error = delivered(raw[:size])
        assert error is None
        assert sum(batch.rows for batch in found) == blocks_in(raw[:size])
        assert losses(found) == ["torn"]


def blocks_in(data: bytes) -> int:
    """Whole event blocks, by a plain walk."""
    count = at = 0
    while at + 12 <= len(data):
        kind, size = (int.from_bytes(data[at + i : at + i + 4], "little") for i in (0, 4))
        if at + size > len(data):
            break
        count += kind in {EVENT, 0x208, 0x216, 0x217, EVENT_LARGE, 0x222}
        at += size
    return count
