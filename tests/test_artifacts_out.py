"""``kcap artifacts``: list, show, extract."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
from artifact_support import Made, artifact, capture_of, files_below, listing_of, reader_of
from blob_support import PARTS, Parts, blocks_of, content
from cli_support import run, shell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcap.errors import KcapError
from kcap.format import blobs
from kcap.format.blobs import Gap
from kcap.model.artifact_details import DETAILS, KINDS
from kcap.model.tracee_names import kernel_device, named, user_device
from kcap.writers.artifacts import clear_output, extract

GIB = 1 << 30
SEED_DEV = 66305
"""259:1 as stat(2) has it; Tracee's examples call it 271581185."""


def made_some() -> list[Made]:
    """One of each kind."""
    return [
        artifact(
            b"ELF", "/bin/ls", 3, kind="exec", pid=7, process_name="ls", time_ns=5, mode=0o755
        ),
        artifact(b"text", "/tmp/a b", 4, kind="write", dev=SEED_DEV, inode=9, pid=8, exe="/bin/sh"),
        artifact(b"in", None, 4, kind="read", dev=12, inode=10, pid=8, process_name="cat"),
        artifact(b"page", None, 5, kind="mem", pid=9, time_ns=11),
        artifact(b"mod", "/m.ko", 6, kind="module", dev=SEED_DEV, inode=11, pid=9),
        artifact(b"prog", None, 7, kind="bpf", name="probe", pid=9, container_id="ab" * 32),
        artifact([b"x", Gap(4, "EIO")], "/gap", 8, kind="write", dev=1, inode=2, md5="d" * 32),
    ]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture with one of each kind."""
    path = tmp_path / "made.kcap"
    path.write_bytes(capture_of(made_some()))
    return path


def listed(capture: Path, *options: str | Path) -> list[str]:
    """The kinds that a list has."""
    result = run("artifacts", "list", capture, "--json", *options)
    return [json.loads(line)["kind"] for line in result.stdout.splitlines()]


def test_everything_is_listed_and_the_lack_of_a_part_is_said(capture: Path) -> None:
    """A line an artifact, and exit code 3 because one is not complete."""
    result = run("artifacts", "list", capture)

    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == 1 + len(made_some())
    assert result.stdout.count("incomplete") == 1
    assert "7 artifacts, 1 not complete" in result.stderr
    assert run("artifacts", "list", capture, "--kind", "exec").exit_code == 0


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (["--kind", "exec", "--kind", "mem"], ["exec", "mem"]),
        (["--process", "ls"], ["exec"]),
        (["--process", "s?"], ["write"]),
        (["--process", "8"], ["write", "read"]),
        (["--process", "nobody"], []),
        (["--path", "/tmp/*"], ["write"]),
        (["--path", "/TMP/*"], []),
        (["--container", "abab"], ["bpf"]),
        (["--container", "host", "--kind", "bpf"], []),
        (["--hash", hashlib.sha256(b"mod").hexdigest()[:9].upper()], ["module"]),
        (["--hash", "dddd"], ["write"]),
        (["--hash", "d" * 31 + "e"], []),
        (
            ["-w", "evt.seq >= 0"],
            ["exec", "write", "read", "mem", "module", "bpf", "write"],
        ),
        (["-w", "evt.arg[pathname] = '/nowhere'"], []),
    ],
)
def test_a_list_is_narrowed(capture: Path, options: list[str], kinds: list[str]) -> None:
    """Each option leaves those that it means, and no others."""
    assert listed(capture, *options) == kinds


def test_a_filter_means_the_event_behind_an_artifact(capture: Path) -> None:
    """Of one event the artifacts of that event."""
    assert listed(capture, "-w", "evt.seq = 4") == ["write", "read"]
    assert listed(capture, "-w", "evt.seq = 4", "--kind", "read") == ["read"]
    assert listed(capture, "-w", "evt.seq in (3, 7)") == ["exec", "bpf"]


@pytest.mark.parametrize("bad", ["abc", "xyzw", ""])
def test_what_is_no_hash_is_refused(capture: Path, bad: str) -> None:
    """A usage error, before anything is read."""
    assert run("artifacts", "list", capture, "--hash", bad).exit_code == 2


def test_one_is_shown_with_all_that_is_known(capture: Path) -> None:
    """Ranges that are missing and why, details, the event."""
    shown = run("artifacts", "show", capture, "--path", "/gap")

    assert shown.exit_code == 3
    assert "bytes 1 to 4: EIO" in shown.stdout
    assert "ord            8" in shown.stdout
    missing = run("artifacts", "show", capture, "dead" * 4)
    assert missing.exit_code == 1
    assert "kcap artifacts list" in missing.stderr


def test_a_program_is_looked_into(tmp_path: Path) -> None:
    """What an ELF says of itself, and why nothing can be said of what only begins like one."""
    path = tmp_path / "elf.kcap"
    program = Path(sys.executable).read_bytes()
    made = [artifact(program, "/python", 1, kind="exec"), artifact(b"\x7fELF\x02", "/no", 2)]
    path.write_bytes(capture_of(made))

    found = json.loads(run("artifacts", "show", path, "--path", "/python", "--json").stdout)
    assert found["content"]["format"] == "elf"
    assert found["content"]["elf"]["bits"] == 64
    shown = run("artifacts", "show", path, "--path", "/python").stdout
    assert "elf.machine" in shown
    assert "elf.machine" not in run("artifacts", "show", path, "--path", "/no").stdout


def test_an_artifact_goes_to_standard_output(capture: Path, tmp_path: Path) -> None:
    """Named by the start of its hash; one that lacks a part only where that is asked for."""
    name = hashlib.sha256(b"page").hexdigest()[:8]

    assert shell(f"kcap artifacts extract {capture} {name} -o -", tmp_path).stdout == b"page"
    several = run("artifacts", "extract", capture, "-o", "-")
    assert (several.exit_code, several.stdout) == (1, "")
    lacking = shell(f"kcap artifacts extract {capture} --path /gap -o -", tmp_path)
    assert (lacking.returncode, lacking.stdout) == (1, b"")
    given_ = shell(f"kcap artifacts extract {capture} --path /gap --incomplete -o -", tmp_path)
    assert (given_.returncode, given_.stdout) == (3, b"x\0\0\0\0")


def test_a_pipe_and_a_file_give_the_same(capture: Path, tmp_path: Path) -> None:
    """Standard input is kept in a temporary file first."""
    done = shell(f"cat {capture} | kcap artifacts list --json -", tmp_path)

    assert done.stdout.decode() == run("artifacts", "list", capture, "--json").stdout


def test_extraction_gives_every_complete_artifact_byte_for_byte(capture: Path) -> None:
    """Each file has the hash that the listing says; what is incomplete is named and left."""
    folder = capture.parent / "files"
    result = run("artifacts", "extract", capture, "-o", folder)

    assert result.exit_code == 3
    lines = listing_of(folder)
    files = files_below(folder)
    assert len(lines) == len(made_some())
    assert [line["why"] for line in lines if line["file"] is None] == ["it is not complete"]
    written = {line["file"]: line["sha256"] for line in lines if line["file"]}
    assert {n: hashlib.sha256(data).hexdigest() for n, data in files.items()} == written
    assert sorted(files.values()) == sorted(content(m.parts) for m in made_some()[:-1])


def test_files_are_private_and_run_only_where_that_is_asked_for(capture: Path) -> None:
    """0600; with --executable what was executed has 0700, and nothing else."""
    plain, runs = capture.parent / "plain", capture.parent / "runs"
    run("artifacts", "extract", capture, "-o", plain)
    run("artifacts", "extract", capture, "-o", runs, "--executable")

    assert {p.stat().st_mode & 0o777 for p in plain.iterdir()} == {0o600}
    assert plain.stat().st_mode & 0o777 == 0o700
    modes = {p.name.split(".")[0]: p.stat().st_mode & 0o777 for p in runs.iterdir()}
    assert modes.pop("exec") == 0o700
    assert set(modes.values()) == {0o600}


def test_incomplete_ones_are_taken_where_that_is_asked_for(capture: Path) -> None:
    """Zeros stand for what is missing, and the name says so."""
    folder = capture.parent / "files"
    result = run("artifacts", "extract", capture, "-o", folder, "--incomplete")

    assert result.exit_code == 0
    (line,) = [line for line in listing_of(folder) if not line["complete"]]
    assert line["file"].endswith(".gap.incomplete")
    assert (folder / line["file"]).read_bytes() == b"x\0\0\0\0"


def test_nothing_is_overwritten(capture: Path) -> None:
    """A second extraction is refused as a whole; --force replaces what is there."""
    folder = capture.parent / "files"
    run("artifacts", "extract", capture, "-o", folder, "--kind", "exec")
    (file,) = [p for p in folder.iterdir() if p.name.startswith("exec")]
    file.write_bytes(b"mine")

    again = run("artifacts", "extract", capture, "-o", folder, "--kind", "exec")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert file.read_bytes() == b"mine"
    assert (
        run("artifacts", "extract", capture, "-o", folder, "--kind", "exec", "--force").exit_code
        == 0
    )
    assert file.read_bytes() == b"ELF"
    assert not list(folder.glob("*.partial"))


def test_a_file_that_stands_there_is_kept_and_said(capture: Path) -> None:
    """The others are written."""
    folder = capture.parent / "files"
    run("artifacts", "extract", capture, "-o", folder, "--kind", "exec")
    (folder / "MANIFEST.jsonl").unlink()
    (file,) = folder.iterdir()
    file.write_bytes(b"mine")

    result = run("artifacts", "extract", capture, "-o", folder)
    assert result.exit_code == 3
    assert "exists already" in result.stderr
    assert file.read_bytes() == b"mine"
    assert len(files_below(folder)) == len(made_some()) - 1


def test_traceees_layout_is_traceees(capture: Path) -> None:
    """Names and index files, to the byte."""
    folder = capture.parent / "tracee"
    result = run("artifacts", "extract", capture, "-o", folder, "--layout", "tracee")

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    assert result.exit_code == 3
    assert files_below(folder) == {
        f"out/{'ab' * 32}/bpf.name-probe.pid-9.{digest(b'prog')}": b"prog",
        "out/host/bin.pid-9.ts-11": b"page",
        "out/host/exec.5.ls": b"ELF",
        f"out/host/module.dev-271581185.inode-11.pid-9.{digest(b'mod')}": b"mod",
        "out/host/read.dev-12.inode-10": b"in",
        "out/host/write.dev-271581185.inode-9": b"text",
        "out/written_files": b"host/write.dev-271581185.inode-9 /tmp/a b\n",
    }
    names = [path.rsplit("/", 1)[1] for path in files_below(folder) if path.count("/") == 2]
    assert all(map(named, names))


def test_a_name_that_several_have_is_that_of_the_last(tmp_path: Path) -> None:
    """An inode that was used again: Tracee keeps the last content only, we keep all."""
    made = [
        artifact(data, "/a", 1, kind="write", dev=1, inode=2) for data in (b"1", b"2", b"1", b"3")
    ]
    report = extract(reader_of(capture_of(made)), str(tmp_path / "o"), layout="tracee")

    files = files_below(tmp_path / "o/out/host")
    assert files == {
        "write.dev-1.inode-2": b"3",
        "write.dev-1.inode-2.2": b"2",
        "write.dev-1.inode-2.3": b"1",
    }
    assert (report.artifacts, report.files) == (4, 3)
    assert [line["file"].rsplit("/", 1)[1] for line in listing_of(tmp_path / "o")] == [
        "write.dev-1.inode-2.3",
        "write.dev-1.inode-2.2",
        "write.dev-1.inode-2.3",
        "write.dev-1.inode-2",
    ]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, max_size=6))
def test_whatever_is_in_comes_out(tmp_path: Path, made: list[Parts]) -> None:
    """Any contents, with holes, and with ranges that are missing."""
    folder = tmp_path / hashlib.sha256(repr(made).encode()).hexdigest()
    if folder.exists():
        return
    with blocks_of(16):
        data = capture_of([artifact(parts, f"/{i}", i, kind="x") for i, parts in enumerate(made)])
        report = extract(reader_of(data), str(folder), incomplete=True)

    assert not report.losses
    lines = listing_of(folder)
    assert [(folder / line["file"]).read_bytes() for line in lines] == list(map(content, made))


def test_holes_stay_holes(tmp_path: Path) -> None:
    """4 GiB of them take nearly no room, and the bytes around them are right."""
    parts: Parts = [b"a" * 4096, Gap(4 * GIB), b"z"]
    extract(reader_of(capture_of([artifact(parts, "/s", 1, kind="x")])), str(tmp_path / "o"))

    (file,) = (tmp_path / "o").glob("x.*")
    assert file.stat().st_size == 4 * GIB + 4097
    assert file.stat().st_blocks * 512 < 1 << 20
    with file.open("rb") as stream:
        stream.seek(4 * GIB)
        assert stream.read() == b"\0" * 4096 + b"z"


def test_a_block_that_stands_in_a_blob_many_times_is_bounded(tmp_path: Path) -> None:
    """A small capture can mean a large file: the whole extraction has a limit."""
    with blocks_of(16):
        data = capture_of([artifact(b"0123456789abcdef" * 100, "/b", 1), artifact(b"s", "/s", 2)])
        report = extract(reader_of(data), str(tmp_path / "o"), bytes_max=1000)

    assert list(files_below(tmp_path / "o").values()) == [b"s"]
    assert [loss.kind for loss in report.losses] == ["skipped"]


def test_a_damaged_block_leaves_no_file(tmp_path: Path) -> None:
    """Its artifact is damage; with --incomplete zeros stand there. The others are whole."""
    good, bad = (
        artifact(b"good" * 99, "/good", 1, kind="x"),
        artifact(b"bad!" * 99, "/bad", 2, kind="x"),
    )
    data = bytearray(capture_of([bad, good]))
    block = blobs.pack_block(blobs.Block.of(b"bad!" * 99))
    at = data.index(block)
    data[at + len(block) - 1] ^= 1

    report = extract(reader_of(bytes(data)), str(tmp_path / "o"))
    assert list(files_below(tmp_path / "o").values()) == [b"good" * 99]
    assert {loss.kind for loss in report.losses} == {"damaged"}
    (why,) = [line["why"] for line in listing_of(tmp_path / "o") if line["file"] is None]
    assert "CRC" in why or "hash" in why
    extract(reader_of(bytes(data)), str(tmp_path / "i"), incomplete=True)
    assert sorted(files_below(tmp_path / "i").values()) == [bytes(396), b"good" * 99]
    path = tmp_path / "bad.kcap"
    path.write_bytes(data)
    assert run("artifacts", "extract", path, "-o", tmp_path / "v").exit_code == 3


def test_a_manifest_that_lies_about_its_hash_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are right and the whole is not: nothing is left of the file."""
    data = capture_of([artifact(b"right", "/a", 1)])
    reader = reader_of(data)
    wrong = hashlib.sha256(b"wrong").hexdigest()
    lying = [blobs.Manifest(wrong, m.size, m.path, table=m.table) for m in reader.manifests()]
    monkeypatch.setattr(type(reader), "manifests", lambda _: iter(lying))

    report = extract(reader, str(tmp_path / "o"))
    assert not files_below(tmp_path / "o")
    assert [loss.kind for loss in report.losses] == ["damaged"]


def test_a_cut_capture_gives_what_it_has(tmp_path: Path) -> None:
    """At every place: what is extracted is whole, and no error but kcap's comes out."""
    made = [artifact(bytes([i]) * 200, f"/{i}", i, kind="x") for i in range(4)]
    data = capture_of(made)
    known = {content(m.parts) for m in made}
    counts: set[int] = set()
    for end in range(0, len(data), 53):
        folder = tmp_path / str(end)
        try:
            reader = reader_of(data[:end])
        except KcapError:
            continue
        extract(reader, str(folder))
        found = list(files_below(folder).values())
        assert set(found) <= known
        counts.add(len(found))
    assert counts >= {0, 4}


def test_devices_are_numbered_as_tracee_does() -> None:
    """The seed's own example, and back, for any device."""
    assert kernel_device(SEED_DEV) == 271581185
    assert user_device(271581185) == SEED_DEV
    assert os.major(SEED_DEV) == 259


@given(st.integers(0, (1 << 32) - 1))
def test_devices_go_back_and_forth(dev: int) -> None:
    """As the C library makes them of major and minor."""
    made = user_device(dev)

    assert kernel_device(made) == dev
    assert made == os.makedev(dev >> 20, dev & 0xFFFFF)


def test_only_what_is_called_out_is_cleared(tmp_path: Path) -> None:
    """As Tracee's clear-dir: the rest of the folder stays."""
    made = [
        artifact(b"a", "/a", 1, kind="write", dev=1, inode=2),
        artifact(b"b", "/b", 2, kind="exec"),
    ]
    extract(reader_of(capture_of(made)), str(tmp_path), layout="tracee")
    (tmp_path / "mine").write_text("mine")

    assert clear_output(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MANIFEST.jsonl", "mine"]
    assert not clear_output(str(tmp_path))
    assert not clear_output(str(tmp_path / "nowhere"))


def test_extraction_is_the_same_twice(capture: Path) -> None:
    """Names, listing, contents."""
    folders = [capture.parent / name for name in "ab"]
    for folder in folders:
        run("artifacts", "extract", capture, "-o", folder)

    first, second = ((files_below(f), (f / "MANIFEST.jsonl").read_bytes()) for f in folders)
    assert first == second


def test_no_artifacts_are_no_error(tmp_path: Path) -> None:
    """Negative control: a capture without artifacts has none, and that is no error."""
    path = tmp_path / "empty.kcap"
    path.write_bytes(capture_of([]))

    assert run("artifacts", "list", path).exit_code == 0
    assert run("artifacts", "extract", path, "-o", tmp_path / "o").exit_code == 0
    assert not files_below(tmp_path / "o")


def test_the_specification_has_the_table_of_the_code() -> None:
    """Of details, as clause 9.7 has it; and `kcap docs artifacts` prints it."""
    text = (Path(__file__).parent.parent / "spec/kcap.md").read_text("utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \|$", text.split("\n9.7 ")[1].split("\n## ")[0], re.MULTILINE
    )

    assert dict(rows) == DETAILS
    assert list(dict(rows)) == list(DETAILS)
    shown = run("docs", "artifacts").stdout
    assert all(name in shown for name in (*DETAILS, *KINDS))
