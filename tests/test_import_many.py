"""``kcap import`` of several inputs: one capture, whatever order they are named in."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cli_support import rows_in, run, shell
from support import capture, make_events, opened, read, rows_of
from tracee_support import DNS, DOCS, DUMP, OPENED

from kcap.model.batch import Batch, Column, concat, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.state.state import PROCESSES

EXECUTED: dict[str, Any] = {
    **OPENED,
    "eventId": "59",
    "eventName": "sched_process_exec",
    "args": [
        {"name": "pathname", "type": "const char*", "value": "/usr/bin/top"},
        {"name": "argv", "type": "const char**", "value": ["top", "-b"]},
    ],
}


def write_tracee(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(e)}\n" for e in events))
    return path


def host_file(path: Path, number: int, count: int = 5) -> Path:
    """A host's Tracee file: a process that executes, and what it opens, at interleaved times."""
    base = {"hostName": f"host{number}", "processName": f"p{number}"}
    events = [EXECUTED | base | {"timestamp": 1000 + number}]
    events += [OPENED | base | {"timestamp": 1000 + 10 * i + number} for i in range(1, count)]
    return write_tracee(path, *events)


def content(path: Path) -> str:
    """The digest of a capture's rows, identity included."""
    result = run("info", "--json", path)
    assert result.exit_code == 0, result.output
    return str(json.loads(result.stdout)["content_hash"])


def imported(*words: str | Path, code: int = 0) -> Any:
    result = run("import", *words)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def hosts(tmp_path: Path) -> list[Path]:
    return [host_file(tmp_path / f"{i}.jsonl", i) for i in range(3)]


# One result


def test_the_order_of_arguments_does_not_show(hosts: list[Path], tmp_path: Path) -> None:
    """Any order of inputs gives the same events in the same order."""
    one, other = tmp_path / "1.kcap", tmp_path / "2.kcap"
    imported(*hosts, "-o", one)
    imported(*reversed(hosts), "-o", other)

    assert rows_in(one) == rows_in(other)
    assert content(one) == content(other)
    times = concat(read(one.read_bytes())[0]).numpy("ts", -1).tolist()
    assert times == sorted(times)
    assert len(set(times)) == 15


def test_importing_at_once_is_importing_each_and_joining(hosts: list[Path], tmp_path: Path) -> None:
    """Who did it is told by the own input alone, so both ways give the same content."""
    at_once, joined = tmp_path / "once.kcap", tmp_path / "joined.kcap"
    imported(*hosts, "-o", at_once)
    parts = [path.with_suffix(".kcap") for path in hosts]
    for path, part in zip(hosts, parts, strict=True):
        imported(path, "-o", part)
    imported(*parts, "-o", joined)

    assert rows_in(joined) == rows_in(at_once)
    assert content(joined) == content(at_once)
    assert "cmdline" in rows_in(at_once)[-1]  # the control: there was something to be told
    imported(parts[0], parts[1], "-o", joined, "--force")
    assert content(joined) != content(at_once)


def test_real_files_at_once_and_one_by_one(data: Callable[[str], Path], tmp_path: Path) -> None:
    """The same, with real events: 34,747 of three Tracee versions, times backward and in 2077."""
    paths = [data(name) for name in (DUMP, DNS, DOCS)]
    at_once, joined = tmp_path / "once.kcap", tmp_path / "joined.kcap"
    imported(*paths, "-o", at_once)
    parts = [tmp_path / f"{i}.kcap" for i in range(3)]
    for path, part in zip(paths, parts, strict=True):
        imported(path, "-o", part, "--chunk-events", "1000")
    imported(*parts[::-1], "-o", joined)

    assert content(joined) == content(at_once)
    batches, losses = read(at_once.read_bytes())
    assert not losses
    assert sum(b.rows for b in batches) == 34_747
    rows = concat(batches).select(["origin", "ord"]).to_pylist()
    assert len({row["origin"] for row in rows}) == 3
    for origin in {row["origin"] for row in rows}:
        ords = [row["ord"] for row in rows if row["origin"] == origin]
        assert ords == list(range(len(ords)))


def test_sources_and_states_of_all_inputs_are_there(hosts: list[Path], tmp_path: Path) -> None:
    """The SOURCE table has every input; the state describes the processes of each."""
    target = tmp_path / "all.kcap"
    imported(*hosts, "-o", target)
    found = json.loads(run("info", "--json", target).stdout)["sources"]

    assert {Path(s["details"]["file"]).name for s in found} == {"0.jsonl", "1.jsonl", "2.jsonl"}
    assert len({s["id"] for s in found}) == 3
    used = {row["source"] for row in concat(read(target.read_bytes())[0]).to_pylist()}
    assert used == {s["id"] for s in found}


def test_one_imported_file_has_its_source_too(foreign: Path, tmp_path: Path) -> None:
    """The `source` of every event points into the SOURCE table."""
    target = tmp_path / "one.kcap"
    imported(foreign, "-o", target)
    (batch,) = read(target.read_bytes())[0]
    (source,) = [s for s in batch.before if isinstance(s, SourceInfo)]

    assert {row["source"] for row in batch.to_pylist()} == {source.id}


def test_states_of_recordings_become_states_of_all(tmp_path: Path) -> None:
    """Captures that begin with a STATE each: the last STATE of the merged one has both hosts."""
    parts = []
    for i in range(2):
        source = SourceInfo("test", host=f"h{i}", boot_id=f"b{i}", origin=f"{i}" * 32)
        table = Batch(
            1,
            {
                "machine": constant(TypeClass.STR, f"b{i}", 1),
                "pid": constant(TypeClass.I64, 40 + i, 1),
            },
        )
        events = _identified(make_events(20, i), source)
        part = tmp_path / f"{i}.kcap"
        sides: list[Side] = [source, Snapshot({PROCESSES: table})]
        part.write_bytes(capture([events.with_before(sides)]))
        parts.append(part)
    target = tmp_path / "all.kcap"
    imported(*parts, "-o", target)
    batches = list(opened(target.read_bytes()).batches())
    states = [s for b in batches for s in b.before if isinstance(s, Snapshot)]
    machines = [[r["machine"] for r in s.tables[PROCESSES].to_pylist()] for s in states]

    assert machines[-1] == ["b0", "b1"]
    assert len(machines) == 2


def _identified(batch: Batch, source: SourceInfo) -> Batch:
    return batch.adding(
        {
            "origin": constant(TypeClass.STR, source.origin, batch.rows),
            "source": constant(TypeClass.STR, source.id, batch.rows),
        }
    )


def test_standard_input_may_be_one_of_them(hosts: list[Path], tmp_path: Path) -> None:
    """`-` among the inputs, gzip and plain, kcap and foreign, give what the files give."""
    expected, target = tmp_path / "files.kcap", tmp_path / "pipe.kcap"
    imported(*hosts, "-o", expected)
    hosts[1].with_suffix(".gz").write_bytes(gzip.compress(hosts[1].read_bytes()))
    imported(hosts[2], "-o", tmp_path / "c.kcap")
    result = shell(
        "cat 0.jsonl | kcap import c.kcap - 1.gz -o pipe.kcap",
        tmp_path,
    )

    assert result.returncode == 0, result.stderr
    assert content(target) == content(expected)


# What goes wrong


def test_a_torn_input_gives_the_rest(hosts: list[Path], tmp_path: Path) -> None:
    """All there is of it and of the others is delivered, exit code 3, and the file is named."""
    hosts[1].write_bytes(hosts[1].read_bytes()[:-20])
    target = tmp_path / "all.kcap"
    result = imported(*hosts, "-o", target, code=3)

    assert "3 inputs: torn: " in result.stderr
    assert "1.jsonl: the last line is not complete" in result.stderr
    batches = list(opened(target.read_bytes()).batches())
    assert sum(b.rows for b in batches) == 14
    (loss,) = [s for b in batches for s in b.before if isinstance(s, Loss)]
    assert loss.kind == "torn"


def test_a_bad_line_ends_it_with_what_came_before(hosts: list[Path], tmp_path: Path) -> None:
    """Exit code 1 and the place; the output is closed and says that it is incomplete."""
    hosts[1].write_text(hosts[1].read_text() + "no event\n" + hosts[1].read_text())
    target = tmp_path / "all.kcap"
    result = imported(*hosts, "-o", target, code=1)

    assert "1.jsonl: no JSON" in result.stderr
    assert "line 6" in result.stderr
    found = json.loads(run("info", "--json", target).stdout)
    assert found["state"] == "closed"
    assert [loss["kind"] for loss in found["loss"]] == ["torn"]
    assert found["events"] == 5 + 5 + 4  # of the third file one comes later than the bad line

    result = imported(*hosts, "-o", target, "--force", "--lenient", code=3)
    assert "skipped 1 event" in result.stderr
    assert len(rows_in(target)) == 20


def test_what_cannot_be_read_is_named_before_anything_is_written(
    hosts: list[Path], tmp_path: Path
) -> None:
    """An input that is missing, or is no capture, leaves no output."""
    strange = tmp_path / "strange"
    strange.write_text("nothing to see here")
    for bad in (strange, tmp_path / "missing"):
        result = imported(hosts[0], bad, "-o", tmp_path / "all.kcap", code=1)
        assert bad.name in result.stderr
    assert not (tmp_path / "all.kcap").exists()


def test_an_input_given_twice_is_refused(hosts: list[Path], tmp_path: Path) -> None:
    """Its events would come twice under one identity; copies can only be warned of."""
    link = tmp_path / "link.jsonl"
    link.symlink_to(hosts[0])
    for words in ((hosts[0], link), ("-", "-")):
        result = run("import", *words, "-o", tmp_path / "all.kcap")
        assert result.exit_code == 2
        assert "is given twice" in result.stderr
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(hosts[0].read_bytes())
    result = imported(hosts[0], copy, "-o", tmp_path / "all.kcap")
    assert "look like copies" in result.stderr
    assert "copies" not in imported(*hosts, "-o", tmp_path / "other.kcap").stderr


# How it is written


def test_chunks_have_the_events_asked_for(hosts: list[Path], tmp_path: Path) -> None:
    """--chunk-events and --level change the file, not what it holds."""
    plain, small = tmp_path / "plain.kcap", tmp_path / "small.kcap"
    imported(*hosts, "-o", plain)
    imported(*hosts, "-o", small, "--chunk-events", "4", "--level", "19")

    rows = [b.rows for b in opened(small.read_bytes()).batches() if b.rows]
    assert rows == [4, 4, 4, 3]
    assert content(small) == content(plain)
    assert run("import", hosts[0], "-o", tmp_path / "x", "--chunk-events", "65537").exit_code == 2
    assert run("import", hosts[0], "-o", tmp_path / "x", "--level", "0").exit_code == 2


def test_the_digest_of_the_file_is_told(hosts: list[Path], tmp_path: Path) -> None:
    """The line on standard error is what sha256sum says."""
    target = tmp_path / "all.kcap"
    printed = imported(*hosts, "-o", target).stderr
    summed = subprocess.run(["sha256sum", target], capture_output=True, text=True, check=True)

    assert f"kcap: sha256 {summed.stdout.split()[0]}\n" in printed


@pytest.mark.parametrize("count", [1, 3])
def test_canonical_files_are_equal(hosts: list[Path], tmp_path: Path, count: int) -> None:
    """Equal bytes over hash seeds, time zones, folders, pipes that wait, orders of arguments."""
    names = [f"{i}.jsonl" for i in range(count)]
    first = shell(f"kcap import {' '.join(names)} --canonical -o 1.kcap", tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "other").mkdir()
    others = " ".join(f"../{name}" for name in reversed(names[1:]))
    slow = "(head -c 700 0.jsonl; sleep 0.3; tail -c +701 0.jsonl) | "
    slow += f"(cd other && kcap import - {others} --canonical -o ../2.kcap)"
    second = shell(slow, tmp_path, PYTHONHASHSEED="7", TZ="Asia/Kathmandu", LC_ALL="tr_TR.UTF-8")
    assert second.returncode == 0, second.stderr

    one, two = ((tmp_path / f"{i}.kcap").read_bytes() for i in (1, 2))
    assert one == two
    plain = [tmp_path / f"{i}.kcap" for i in (3, 4)]
    for path in plain:  # the control: without it each file has an id and a time of its own
        imported(*hosts[:count], "-o", path)
    assert plain[0].read_bytes() != plain[1].read_bytes()


# Size


def test_memory_does_not_grow_with_the_inputs(tmp_path: Path) -> None:
    """Four times the events, all at the same times, take no more memory."""
    peaks = []
    for times in (2, 8):
        for part in "ab":
            (tmp_path / f"{part}.kcap").write_bytes(large(times, part))
        code = (
            "import sys, resource; from click.testing import CliRunner\n"
            "from kcap.tools.cli import main\n"
            "done = CliRunner().invoke(main, sys.argv[1:])\n"
            "assert done.exit_code == 0, done.output\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        words = ["import", "a.kcap", "b.kcap", "-o", f"{times}.kcap"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] * 1.25


def large(times: int, origin: str) -> bytes:
    """A capture of so many chunks' events, a hundred of which share each time."""
    events = make_events(65_536)
    batches = []
    for i in range(times):
        first = i * events.rows
        numbers = np.arange(first, first + events.rows)
        batches.append(
            events.adding(
                {
                    "ts": Column(TypeClass.I64, pa.array(numbers // 100)),
                    "ord": Column(TypeClass.I64, pa.array(numbers)),
                    "origin": constant(TypeClass.STR, origin, events.rows),
                }
            )
        )
    return capture(batches, file_id=origin.encode() * 16)


def test_rows_are_told_apart() -> None:
    """Negative control: what is compared above sees a changed value and a changed order."""
    batch = make_events(10)
    swapped = concat([batch.slice(1, 2), batch.slice(0, 1)])

    assert rows_of([batch.slice(0, 2)]) != rows_of([swapped])
    assert rows_of([make_events(10, 2)]) != rows_of([batch])
