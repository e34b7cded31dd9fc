"""What import does with its inputs: which it reads, bad ones among many, how far it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from cli_support import lines_of, on_a_terminal, run
from scap_support import event, i64, opened, scap

from kcap import plugins
from kcap.readers.tracee import TraceeReader
from kcap.replay.pipeline import Summary
from kcap.tools.inputs import Inputs
from kcap.tools.progress import Progress

VECTORS = Path(__file__).parent.parent / "fixtures" / "vectors"


class Needing(TraceeReader):
    """A reader that needs what nobody has."""

    name = "needing"
    reads = "nothing"
    needs = {"moon": "kcap_moon_module"}  # noqa: RUF012

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Nothing of anybody else's."""
        return head.startswith(b"MOON")


def with_readers(monkeypatch: pytest.MonkeyPatch, *more: EntryPoint) -> None:
    """Let there be more readers."""
    found, known = plugins.found, plugins.found(plugins.READERS)
    everything = dict(sorted((known | {entry.name: entry for entry in more}).items()))
    monkeypatch.setattr(
        plugins, "found", lambda group: everything if group == plugins.READERS else found(group)
    )


def test_the_list_says_what_each_reader_reads() -> None:
    """A line a reader, all of them can be used, and the same as JSON."""
    names = sorted([*plugins.found(plugins.READERS), *plugins.found(plugins.FOLDERS)])

    lines = run("import", "--list").stdout.splitlines()
    listed = json.loads(run("import", "--list", "--json").stdout)

    assert [line.split()[0] for line in lines] == names
    assert [one["name"] for one in listed] == names
    assert all(one["reads"] in line for one, line in zip(listed, lines, strict=True))
    assert all(one["why"] is None for one in listed)
    assert not any("NOT AVAILABLE" in line for line in lines)


def test_the_list_says_why_a_reader_can_not_be_used(
    monkeypatch: pytest.MonkeyPatch, foreign: Path
) -> None:
    """An extra that is not installed, a broken distribution: named, and in nobody's way."""
    with_readers(
        monkeypatch,
        EntryPoint("broken", "kcap_no_such_module:Reader", plugins.READERS),
        EntryPoint("needing", f"{__name__}:Needing", plugins.READERS),
        EntryPoint("nobody", f"{__name__}:Nobody", plugins.READERS),
    )

    listed = {one["name"]: one for one in json.loads(run("import", "--list", "--json").stdout)}

    assert "kcap_no_such_module" in listed["broken"]["why"]
    assert "Nobody" in listed["nobody"]["why"]
    assert listed["needing"]["needs"] == ["kcap[moon]"]
    assert listed["needing"]["why"] == "pip install 'kcap[moon]'"
    assert "NOT AVAILABLE: pip install 'kcap[moon]'" in run("import", "--list").stdout
    assert run("cat", foreign).exit_code == 0


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An input whose reader lacks an extra is known all the same, and the extra is named."""
    with_readers(monkeypatch, EntryPoint("needing", f"{__name__}:Needing", plugins.READERS))
    path = tmp_path / "x.moon"
    path.write_bytes(b"MOON")

    result = run("cat", path)

    assert result.exit_code == 1
    assert "this is a needing input, and what reads it is not installed" in result.stderr
    assert "hint: pip install 'kcap[moon]'" in result.stderr
    path.write_bytes(b"SUN")  # the control: nobody knows this one
    assert "no capture that kcap can read" in run("cat", path).stderr


def test_root_loads_nobody_elses_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed with the reason."""
    other = EntryPoint("other", "some_distribution:Reader", plugins.READERS)
    hidden = {plugins.READERS: {"other": other}}
    monkeypatch.setattr(plugins, "hidden", lambda group: hidden.get(group, {}))

    (line,) = [x for x in run("import", "--list").stdout.splitlines() if x.startswith("other")]

    assert "root loads nothing but kcap's own: some_distribution:Reader" in line


@pytest.fixture
def inputs(tmp_path: Path, foreign: Path) -> dict[str, Path]:
    """Good inputs and bad ones."""
    made = {
        "good": foreign,
        "scap": tmp_path / "x.scap",
        "empty": tmp_path / "empty",
        "text": tmp_path / "notes.txt",
        "missing": tmp_path / "missing",
        "folder": tmp_path / "folder",
        "newer": VECTORS / "must_reject" / "major-2.kcap",
    }
    made["scap"].write_bytes(scap(opened("/a"), event(4, i64(3))))
    made["empty"].touch()
    made["text"].write_text("nothing of interest\n")
    made["folder"].mkdir()
    return made


@pytest.mark.parametrize("bad", ["empty", "text", "missing", "folder", "newer"])
def test_a_bad_input_among_many(bad: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    """It is named and nothing is written; with --lenient it is passed over, which is a loss."""
    out = tmp_path / "out.kcap"
    words: list[str | Path] = ["import", inputs["good"], inputs[bad], inputs["scap"], "-o", out]

    strict = run(*words)
    assert strict.exit_code == 1
    assert str(inputs[bad]) in strict.stderr
    assert not out.exists()

    lenient = run(*words, "--lenient")
    assert lenient.exit_code == 3
    assert f"{inputs[bad]} was passed over" in lenient.stderr
    assert len(lines_of("cat", out)) == 4
    (loss,) = json.loads(run("info", out, "--json").stdout)["loss"]
    assert str(inputs[bad]) in loss["reason"]


def test_only_bad_inputs(inputs: dict[str, Path], tmp_path: Path) -> None:
    """All of them bad, or a single bad one: refused, --lenient or not."""
    for bad in (["empty"], ["empty", "text"]):
        words = [inputs[name] for name in bad]
        result = run("import", *words, "-o", tmp_path / "out.kcap", "--lenient")
        assert result.exit_code == 1
        assert str(words[0]) in result.stderr
        assert not (tmp_path / "out.kcap").exists()


def test_one_that_fails_on_the_way(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What even --lenient can't read ends that input alone; its good events stay."""
    from kcap.errors import LimitError
    from kcap.model.batch import Batch
    from kcap.readers.scap import ScapReader

    whole = ScapReader.batches

    def failing(self: ScapReader) -> Iterator[Batch]:
        yield next(whole(self))
        raise LimitError("too much of it", file="x.scap", offset=99)

    monkeypatch.setattr(ScapReader, "batches", failing)
    out = tmp_path / "out.kcap"

    result = run("import", inputs["good"], inputs["scap"], "-o", out, "--lenient")

    assert result.exit_code == 3
    assert f"the rest of {inputs['scap']} was passed over: too much of it at byte 99" in (
        result.stderr
    )
    assert len(lines_of("cat", out)) == 3


def test_progress_counts_bytes(inputs: dict[str, Path]) -> None:
    """Of files the share, the rate and the time left; of a pipe what came so far."""
    with ExitStack() as stack:
        names = [str(inputs["good"]), str(inputs["scap"])]
        found = Inputs(names, stack, lenient=False, raw_pairs=False)
        total = sum(Path(name).stat().st_size for name in names)
        assert found.position()[1] == total
        for source in found.sources:
            for _ in source.batches():
                pass
        assert found.position() == (total, total)
    assert line(lambda: (1 << 20, 4 << 20)) == (
        "00:00:02  0 events  25 % of 4.0 MiB  512.0 KiB/s  00:00:06 left  0 lost"
    )
    assert line(lambda: (1 << 20, None)) == "00:00:02  0 events  1.0 MiB  512.0 KiB/s  0 lost"


def test_progress_of_a_pipe() -> None:
    """A pipe's bytes are counted as they come; its end is not known."""
    data = scap(*(opened(f"/{i}") for i in range(20_000)))
    reader, writer = os.pipe()
    if os.fork() == 0:  # the writer, in a process of its own
        os.close(reader)
        with os.fdopen(writer, "wb") as stream:
            stream.write(data)
        os._exit(0)
    os.close(writer)
    with ExitStack() as stack:
        found = Inputs([f"/dev/fd/{reader}"], stack, lenient=False, raw_pairs=False)
        before = found.position()
        for _ in found.sources[0].batches():
            pass
        after = found.position()
    os.wait()
    os.close(reader)

    assert before[1] is after[1] is None
    assert 0 < before[0] <= after[0] == len(data)


def line(read: Callable[[], tuple[int, int | None]]) -> str:
    """The status line after two seconds."""
    return Progress(read=read).line(Summary(), 2.0)


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    """On a terminal the line is shown and cleared again; in a file there is none of it."""
    path = tmp_path / "big.scap"
    path.write_bytes(scap(*(opened(f"/{i % 7}") for i in range(200_000))))

    code, shown = on_a_terminal("import", path, "-o", "out.kcap", folder=tmp_path)

    assert code == 0
    assert re.search(rb"\d+ % of [\d.]+ MiB  [\d.]+ MiB/s  00:00:0\d left", shown), shown
    quiet = run("import", path, "-o", tmp_path / "other.kcap")
    assert "left" not in quiet.stderr


def test_control_positions_move(inputs: dict[str, Path]) -> None:
    """Negative control: before anything is read the position is not at the end."""
    with ExitStack() as stack:
        found: Any = Inputs([str(inputs["good"])], stack, lenient=False, raw_pairs=False)
        stream = found._streams[0]
        stream.seek(0)
        assert found.position()[0] == 0
