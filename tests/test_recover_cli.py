"""The verb recover: what it says, where it writes, how it ends."""

from __future__ import annotations

import io
import json
from pathlib import Path
from unittest import mock

import pytest
from cli_support import on_a_terminal, run, shell
from recover_support import Truth, with_checkpoints, with_tails
from support import FILE_ID, SOURCE, capture, make_events, opened

from kcap.format import recover as recover_module
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.writer import CaptureWriter


@pytest.fixture
def truth() -> Truth:
    """A capture of twelve chunks."""
    return Truth(with_checkpoints())


def broken(truth: Truth, kind: Kind, nth: int) -> bytes:
    """The capture with the payload of one record damaged."""
    data = bytearray(truth.data)
    item = [r for r in truth.records if r.header.kind == kind][nth]
    data[item.offset + HEADER_BYTES + 8] ^= 1
    return bytes(data)


def test_lossless(truth: Truth, tmp_path: Path) -> None:
    """Exit code 0, the very bytes, and one line that says so; the output is private."""
    path, out = tmp_path / "a.kcap", tmp_path / "b.kcap"
    path.write_bytes(truth.data)

    result = run("recover", path, "-o", out)

    assert result.exit_code == 0, result.output
    assert out.read_bytes() == truth.data
    assert out.stat().st_mode & 0o777 == 0o600
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"{out}: lossless: the capture is undamaged, and this is its copy, byte for byte"
    )
    assert lines[1] == f"120 events, {len(truth.data) / 1024:.1f} KiB, verified"
    assert lines[2].startswith("sha256 ")
    assert result.stderr == ""


def test_an_open_capture(truth: Truth, tmp_path: Path) -> None:
    """Exit code 0: it only lacked its FOOTER."""
    path = tmp_path / "a.kcap"
    path.write_bytes(truth.data[: truth.records[-1].offset])

    result = run("recover", path, "-o", tmp_path / "b")

    assert result.exit_code == 0, result.output
    assert "b.kcap: lossless: the capture had no FOOTER, and has one now" in result.stdout
    assert (tmp_path / "b.kcap").read_bytes() == truth.data


def test_damage(truth: Truth, tmp_path: Path) -> None:
    """Exit code 3; place, records, rows, positions and times; info and verify show them too."""
    path, out = tmp_path / "a.kcap", tmp_path / "b.kcap"
    path.write_bytes(broken(truth, Kind.CHUNK, 5))
    number = [r for r in truth.records if r.header.kind == Kind.CHUNK][5].header.number

    result = run("recover", path, "-o", out)

    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path}: 1 damaged place"
    assert f"record {number}: the CHUNK record fails its CRC" in lines[1]
    assert "lost: 1 CHUNK; 10 events, ord 50 to 59, 2023-11-14T22:13:20.0000" in lines[2]
    assert lines[3] == f"{out}: lost 1 CHUNK; events lost: 10"
    assert lines[4].startswith("110 events, ")
    reason = f"the CHUNK record fails its CRC; left out by recover: record {number}"
    assert f"damaged 10 events: {reason}" in run("info", out).stdout
    shown = run("verify", out)
    assert shown.exit_code == 0
    assert f"recorded loss: damaged 10 events: {reason}" in shown.stdout
    assert run("cat", out).exit_code == 0

    again = run("recover", out, "-o", tmp_path / "c.kcap")
    assert again.exit_code == 0
    assert f"left out by an earlier recover: {reason}" in again.stdout
    assert (tmp_path / "c.kcap").read_bytes() == out.read_bytes()


def test_what_is_made_anew(truth: Truth, tmp_path: Path) -> None:
    """Exit code 3, as there was damage; but nothing is lost, and the hash chain proves it."""
    path, out = tmp_path / "a.kcap", tmp_path / "b.kcap"
    path.write_bytes(broken(truth, Kind.CHUNK_INDEX, 2))

    result = run("recover", path, "-o", out)

    assert result.exit_code == 3
    assert "made anew: CHUNK_INDEX" in result.stdout
    assert "nothing is lost: by its hash chain this is the capture as it was" in result.stdout
    assert out.read_bytes() == truth.data


def test_tails_that_stand_in(tmp_path: Path) -> None:
    """Events of a lost chunk that are in TAIL records are no loss, and the report says so."""
    truth = Truth(with_tails())
    path = tmp_path / "a.kcap"
    path.write_bytes(broken(truth, Kind.CHUNK, 1))

    result = run("recover", path, "-o", tmp_path / "b.kcap")

    assert "lost: 1 CHUNK; 5 events" in result.stdout
    assert "15 more are in TAIL records" in result.stdout


def test_as_json(truth: Truth, tmp_path: Path) -> None:
    """Everything that the text says, and more of it."""
    path, out = tmp_path / "a.kcap", tmp_path / "b.kcap"
    path.write_bytes(broken(truth, Kind.CHUNK, 5))

    result = run("recover", "--json", path, "-o", out)

    found = json.loads(result.stdout)
    assert result.exit_code == 3
    assert (found["file"], found["output"]) == (str(path), str(out))
    assert found["verified"] is True
    assert found["lossless"] is False
    assert (found["rows"], found["lost_rows"]) == (110, 10)
    assert found["lost_records"] == {"CHUNK": 1}
    (region,) = found["regions"]
    assert region["lost"]["ord"] == [50, 59]
    assert region["lost"]["after"]["ord"] == 49
    assert region["lost"]["before"]["ord"] == 60
    assert found["kept_records"]["CHUNK"] == 11
    assert found["file_hash"] == json.loads(run("verify", "--json", out).stdout)["file_hash"]


def test_through_pipes(truth: Truth, tmp_path: Path) -> None:
    """From and to a pipe: bytes on standard output alone, the report says it is not verified."""
    (tmp_path / "a.kcap").write_bytes(truth.data)

    done = shell("cat a.kcap | kcap recover - -o - | sha256sum; kcap verify a.kcap", tmp_path)

    digest = done.stdout.split()[0].decode()
    assert f"sha256 {digest}" in done.stdout.decode()
    assert b"-: lossless" in done.stderr
    assert b"not verified: what was written can't be read again" in done.stderr


def test_to_a_pipe_or_device(truth: Truth, tmp_path: Path) -> None:
    """Written in place, and not verified; a terminal takes no capture."""
    path = tmp_path / "a.kcap"
    path.write_bytes(truth.data)

    result = run("recover", path, "-o", "/dev/null")
    assert result.exit_code == 0
    assert "not verified" in result.stdout
    code, printed = on_a_terminal("recover", path, "-o", "-", folder=tmp_path)
    assert code == 1
    assert b"a capture is not written to a terminal" in printed


def test_nothing_is_replaced_by_accident(truth: Truth, tmp_path: Path) -> None:
    """An existing output stays without --force; with it a capture can be repaired in its place."""
    path = tmp_path / "a.kcap"
    path.write_bytes(broken(truth, Kind.CHUNK_INDEX, 2))
    before = path.read_bytes()

    result = run("recover", path, "-o", path)
    assert result.exit_code == 1
    assert "the output exists already" in result.stderr
    assert path.read_bytes() == before

    assert run("recover", path, "-o", path, "--force").exit_code == 3
    assert path.read_bytes() == truth.data
    assert [p.name for p in tmp_path.iterdir()] == ["a.kcap"]


def test_an_output_that_does_not_verify_is_an_error(truth: Truth, tmp_path: Path) -> None:
    """It keeps the name of what is not finished, exit code 1, and the old file stays."""
    path, out = tmp_path / "a.kcap", tmp_path / "b.kcap"
    path.write_bytes(broken(truth, Kind.CHUNK, 5))
    out.write_bytes(b"before")
    recover = recover_module.recover

    def spoilt(stream: object, output: io.BufferedWriter, **names: str) -> object:
        made = io.BytesIO()
        report = recover(stream, made, **names)  # type: ignore[arg-type]
        data = bytearray(made.getvalue())
        data[len(data) // 2] ^= 1
        output.write(data)
        output.flush()
        return report

    with mock.patch.object(recover_module, "recover", spoilt):
        result = run("recover", path, "-o", out, "--force")

    assert result.exit_code == 1
    assert "the recovered capture does not verify: " in result.stderr
    assert out.read_bytes() == b"before"
    assert (tmp_path / "b.kcap.partial").exists()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"hello\n", "no intact FILE_HEADER"),
        (bytes(10_000), "no intact FILE_HEADER"),
        (capture()[:40], "the file ends before its FILE_HEADER does"),
        (b"\0" * 256 + capture(closed=False)[256:], "no FOOTER or CHECKPOINT that tells"),
    ],
)
def test_what_is_no_capture(content: bytes, what: str, tmp_path: Path) -> None:
    """Exit code 1, one line, and nothing is left behind."""
    path = tmp_path / "a.kcap"
    path.write_bytes(content)

    result = run("recover", path, "-o", tmp_path / "b.kcap")

    assert result.exit_code == 1, result.output
    assert f"kcap: {path}: " in result.stderr
    assert what in result.stderr
    assert result.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["a.kcap"]


def test_wrong_usage(tmp_path: Path) -> None:
    """Without an output there is nothing to do; a missing input is told."""
    assert run("recover", tmp_path / "a.kcap").exit_code == 2
    result = run("recover", tmp_path / "a.kcap", "-o", tmp_path / "b.kcap")
    assert result.exit_code == 1
    assert "No such file" in result.stderr


def test_very_many_places(tmp_path: Path) -> None:
    """The report names the first ones and counts them all, exactly."""
    data = bytearray(capture([make_events(1300).with_before([SOURCE])], chunk_rows=1))
    for item in Truth(bytes(data)).records:
        if item.header.kind == Kind.CHUNK:
            data[item.offset + HEADER_BYTES + 8] ^= 1
    path = tmp_path / "a.kcap"
    path.write_bytes(data)

    result = run("recover", path, "-o", tmp_path / "b.kcap")

    assert f"{path}: 1,300 damaged places" in result.stdout
    assert "and 1,280 more; --json has them" in result.stdout
    assert "lost 1,300 CHUNK; events lost: 1,300" in result.stdout
    assert opened((tmp_path / "b.kcap").read_bytes()).footer is not None


def test_the_help_has_examples() -> None:
    """And says what the exit codes mean."""
    text = run("recover", "--help").stdout

    assert "kcap recover damaged.kcap -o saved.kcap" in text
    assert "Exit code 0:" in text


def test_blobs_that_lack_blocks_are_named(tmp_path: Path) -> None:
    """And blocks whose manifest is lost are counted; all intact blocks stay."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID)
    writer.write(make_events(20).with_before([SOURCE]))
    writer.blob([b"one" * 1000], path="/tmp/one")
    writer.blob([b"two" * 1000], path="/tmp/two")
    writer.close()
    truth = Truth(out.getvalue())
    path = tmp_path / "a.kcap"

    path.write_bytes(broken(truth, Kind.BLOB_BLOCK, 0))
    first = run("recover", path, "-o", tmp_path / "b.kcap")
    path.write_bytes(broken(truth, Kind.BLOB_MANIFEST, 1))
    second = run("recover", path, "-o", tmp_path / "c.kcap")

    assert first.exit_code == second.exit_code == 3
    assert "lost: 1 BLOB_BLOCK; no events" in first.stdout
    assert "blocks are missing of" in first.stdout
    assert "/tmp/one" in first.stdout
    assert "/tmp/two" not in first.stdout
    assert "lost: 1 BLOB_MANIFEST; no events" in second.stdout
    assert "blob blocks that no manifest names: 1" in second.stdout
    kept = [r.header.kind for r in Truth((tmp_path / "c.kcap").read_bytes()).records]
    assert kept.count(Kind.BLOB_BLOCK) == 2
