"""Extraction where names, folders and other users are hostile."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from artifact_support import artifact, capture_of, files_below, listing_of, reader_of
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import OutputError
from kcap.model.tracee_names import named
from kcap.writers import artifacts_folder
from kcap.writers.artifacts import clear_output, extract
from kcap.writers.artifacts_folder import RefusedError, SafeFolder
from kcap.writers.artifacts_names import safe

NAMES = [
    "/../../../etc/passwd",
    "../../up",
    "..",
    ".",
    "/",
    "",
    "/abs/olute",
    "nul\0byte",
    "line\nfeed",
    "\x1b]0;title\x07\x1b[2J",
    "back\\..\\slash",
    "C:\\Windows\\evil.exe",
    "con",
    "aux.txt",
    "trailing. ",
    "-rf",
    "x" * 300,
    "й" * 300,
    "broken\\xff",
    "\u202egpj.exe",
    "Case",
    "case",
    "CASE",
    "e\u0301",
    "\u00e9",
    "MANIFEST.jsonl",
    ".bashrc",
    "a:stream",
    "out",
    "written_files",
]
UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u202a-\u202e]')
LAYOUTS = ["flat", "tracee"]


def hostile() -> bytes:
    """A capture with each name as a path, as a container, and as the name of a program."""
    made = []
    for i, name in enumerate(NAMES):
        data = b"%d" % i
        made += [
            artifact(data + b"e", name, 1, kind="exec", time_ns=1, container_id=name),
            artifact(data + b"w", name, 1, kind="write", dev=1, inode=i),
            artifact(data + b"b", name, 1, kind="bpf", name=name, pid=1),
            artifact(data + b"k", name, 1, kind=name or "x"),
            artifact(data + b"o", name, 1, kind="read", host=name),
        ]
    return capture_of(made)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_name_stays_in_the_folder_and_is_safe(tmp_path: Path, layout: Any) -> None:
    """Each content is there once, under a name that means nothing to any system."""
    folder = tmp_path / "deep" / "o"
    folder.parent.mkdir()
    data = hostile()
    report = extract(reader_of(data), str(folder), layout=layout)

    assert not report.losses
    assert report.artifacts == 5 * len(NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert [p.name for p in folder.parent.iterdir()] == ["o"]
    found = files_below(folder)
    for index in ("out/written_files", "out/read_files"):
        found.pop(index, None)
    assert len(found) == report.files == 5 * len(NAMES)
    assert len({n.casefold() for n in found}) == len(found)
    for name in files_below(folder):
        for part in name.split("/"):
            assert not UNSAFE.search(part), name
            assert len(part.encode()) <= 255
            assert part[0] not in ".-"
            assert part == part.rstrip(" .")
            assert not re.fullmatch(r"(?i)(con|aux|nul|prn)(\..*)?", part)
    by_file = {line["file"]: line for line in listing_of(folder)}
    assert {line["path"] for line in by_file.values()} == set(NAMES)


def test_nothing_that_steers_a_terminal_is_printed(tmp_path: Path) -> None:
    """By no verb, in no form."""
    path = tmp_path / "hostile.kcap"
    path.write_bytes(hostile())

    for words in (
        ["list", path],
        ["list", path, "--json"],
        ["show", path, "--kind", "exec"],
        ["extract", path, "-o", tmp_path / "o", "--layout", "tracee"],
        ["extract", path, "-o", tmp_path / "o"],
    ):
        result = run("artifacts", *words)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.output), words
    listing = (tmp_path / "o/MANIFEST.jsonl").read_text("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", listing)
    index = (tmp_path / "o/out/written_files").read_bytes()
    assert len(index.splitlines()) == sum(1 for name in NAMES if name)


@given(st.text(), st.integers(1, 200))
def test_a_safe_name_is_safe(name: str, most: int) -> None:
    """Any text, any length: one component, and the same when it is made safe again."""
    made = safe(name, most)

    assert not UNSAFE.search(made)
    assert len(made.encode()) <= most + 1
    assert made[0] not in ".-"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_links_that_were_planted_lead_nowhere(tmp_path: Path, layout: Any) -> None:
    """In place of the folder, a folder in it, or a file: refused, and the goal is untouched."""
    data = capture_of([artifact(b"evil", "/x", 1, kind="exec", time_ns=1)])
    goal = tmp_path / "goal"
    goal.mkdir()
    (goal / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(goal)

    with pytest.raises(OutputError):
        extract(reader_of(data), str(tmp_path / "link"), layout=layout)
    extract(reader_of(data), str(tmp_path / "o"), layout=layout)
    (name,) = files_below(tmp_path / "o")
    for planted in {name, name.split("/")[0]}:
        for force in (False, True):
            folder = tmp_path / f"{len(planted)}{force}"
            (folder / planted).parent.mkdir(parents=True)
            (folder / planted).symlink_to(goal / "file" if planted == name else goal)
            report = extract(reader_of(data), str(folder), layout=layout, force=force)
            assert [loss.kind for loss in report.losses] == ["skipped"]
    assert {p.name: p.read_bytes() for p in goal.iterdir()} == {"file": b"mine"}


@pytest.mark.parametrize("listing", ["MANIFEST.jsonl", "MANIFEST.jsonl.partial"])
def test_a_link_in_place_of_the_listing_is_not_followed(tmp_path: Path, listing: str) -> None:
    """Nor is what an earlier run seems to have left."""
    goal, folder = tmp_path / "goal", tmp_path / "o"
    goal.write_bytes(b"mine")
    folder.mkdir()
    (folder / listing).symlink_to(goal)
    with contextlib.suppress(OutputError):
        extract(reader_of(capture_of([artifact(b"a", "/a", 1)])), str(folder), force=True)

    assert goal.read_bytes() == b"mine"


@pytest.mark.parametrize("moment", ["mkdir", "open"])
def test_a_folder_that_becomes_a_link_meanwhile_is_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between making a folder and opening it, and between any two steps."""
    goal, folder = tmp_path / "goal", tmp_path / "o"
    goal.mkdir()
    data = capture_of([artifact(b"evil", "/x", 1, kind="exec", time_ns=1)])
    plain = getattr(os, moment)

    def attacked(path: Any, *args: Any, **options: Any) -> Any:
        if path == "host" and moment == "open":
            (folder / "out/host").rmdir()
            (folder / "out/host").symlink_to(goal)
        made = plain(path, *args, **options)
        if path == "out" and moment == "mkdir":
            (folder / "out").rmdir()
            (folder / "out").symlink_to(goal)
        return made

    monkeypatch.setattr(artifacts_folder.os, moment, attacked)
    report = extract(reader_of(data), str(folder), layout="tracee")

    assert [loss.kind for loss in report.losses] == ["skipped"]
    assert not list(goal.iterdir())


def test_the_race_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without O_NOFOLLOW the planted link is followed."""
    goal, folder = tmp_path / "goal", tmp_path / "o"
    goal.mkdir()
    (folder / "out").mkdir(parents=True)
    (folder / "out/host").symlink_to(goal)
    plain = os.open

    def careless(path: Any, flags: int, *args: Any, **options: Any) -> int:
        return plain(path, flags & ~os.O_NOFOLLOW, *args, **options)

    monkeypatch.setattr(artifacts_folder.os, "open", careless)
    data = capture_of([artifact(b"evil", "/x", 1, kind="exec", time_ns=1)])
    extract(reader_of(data), str(folder), layout="tracee")

    assert [p.name for p in goal.iterdir()] == ["exec.1.x"]


def test_a_file_that_another_put_in_place_of_ours_stays(tmp_path: Path) -> None:
    """What fails is taken back, but only what is ours."""
    folder = SafeFolder(str(tmp_path / "o"))

    def fails(parts: Sequence[str]) -> Iterator[BinaryIO]:
        with folder.created(parts) as stream:
            yield stream
            raise RefusedError("no")

    for exchanged in (False, True):
        with contextlib.suppress(RefusedError):
            for stream in fails(("a",)):
                stream.write(b"ours")
                if exchanged:
                    (tmp_path / "o/a").unlink()
                    (tmp_path / "o/a").write_bytes(b"theirs")
        assert (tmp_path / "o/a").exists() == exchanged
    folder.close()


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    """A folder and a pipe stand where a file would go: by force, too."""
    data = capture_of([artifact(b"a", "/a", 1, kind="exec", time_ns=1)])
    for make in (Path.mkdir, os.mkfifo):
        folder = tmp_path / make.__name__
        (folder / "out/host").mkdir(parents=True)
        make(folder / "out/host/exec.1.a")
        report = extract(reader_of(data), str(folder), layout="tracee", force=True)
        assert [loss.kind for loss in report.losses] == ["skipped"]
        assert not (folder / "out/host/exec.1.a").is_file()


@pytest.mark.parametrize("strange", ["notes.txt", "host/thesis.odt", "src/main.c"])
def test_a_folder_of_other_things_is_not_cleared(tmp_path: Path, strange: str) -> None:
    """One file that is no artifact is enough."""
    (tmp_path / "out/host").mkdir(parents=True)
    (tmp_path / "out/host/exec.1.a").write_bytes(b"a")
    (tmp_path / "out" / strange).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / strange).write_bytes(b"dear")

    with pytest.raises(OutputError, match="is no artifact"):
        clear_output(str(tmp_path))
    assert (tmp_path / "out" / strange).exists()
    assert (tmp_path / "out/host/exec.1.a").exists()


def test_links_are_not_cleared_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, its out, and what is in that."""
    goal = tmp_path / "goal"
    (goal / "out/host").mkdir(parents=True)
    (goal / "out/host/exec.1.a").write_bytes(b"a")
    (tmp_path / "link").symlink_to(goal)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/out").symlink_to(goal / "out")
    (tmp_path / "inner/out").mkdir(parents=True)
    (tmp_path / "inner/out/host").symlink_to(goal / "out/host")

    for folder in ("link", "half", "inner"):
        with pytest.raises(OutputError):
            clear_output(str(tmp_path / folder))
    assert (goal / "out/host/exec.1.a").exists()
    monkeypatch.setenv("HOME", str(goal))
    with pytest.raises(OutputError, match="not cleared"):
        clear_output(str(goal))
    with pytest.raises(OutputError, match="not cleared"):
        clear_output("/")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert clear_output(str(goal))


@given(st.text(max_size=40))
def test_a_name_is_read_or_not(name: str) -> None:
    """No name of a file is an error."""
    found = named(name)

    assert found is None or found.kind in {"write", "read", "exec", "mem", "module", "bpf"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("write.dev-271581185.inode-1966101", ("write", 271581185, 1966101, None, None, None)),
        ("read.dev-1.inode-2.pid-3", ("read", 1, 2, 3, None, None)),
        ("exec.1657322052835478987.ls", ("exec", None, None, None, 1657322052835478987, "ls")),
        ("exec.1.a.b c", ("exec", None, None, None, 1, "a.b c")),
        ("bin.123", ("mem", None, None, None, 123, None)),
        ("bin.pid-4.ts-5", ("mem", None, None, 4, 5, None)),
        ("bpf.name-a.pid-b.pid-3.77", ("bpf", None, None, 3, None, "a.pid-b")),
        ("exec.1.", None),
        ("write", ("write", None, None, None, None, None)),
        ("write.dev-1.inode-2.swp", None),
    ],
)
def test_names_are_read_as_tracee_writes_them(name: str, expected: tuple[Any, ...] | None) -> None:
    """Those of the documentation, and what is nearly one."""
    found = named(name)

    assert (None if found is None else tuple(found)[:6]) == expected
