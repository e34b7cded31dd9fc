"""Copies of a .scap file that benchmarks read: as many events, other processes and paths."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from cli_support import run

import kcap

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import scapcopies  # type: ignore[import-not-found]  # the benchmark's own file

COPIES = 3
PATHS = ("arg_name", "arg_path", "arg_filename")


class Pair(NamedTuple):
    """A sample and its copies."""

    source: Path
    copies: Path
    one: pa.Table
    """The events of the sample, as imported."""
    all: pa.Table


@pytest.fixture(scope="module")
def pair(data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The sample and three copies of it."""
    folder = tmp_path_factory.mktemp("copies")
    source, copies = data("scap/full_capture.scap"), folder / "copies.scap"
    written = scapcopies.Copies(source).write(copies, COPIES)
    tables = [imported(path, folder) for path in (source, copies)]
    assert written == len(tables[1])
    return Pair(source, copies, *tables)


def imported(path: Path, folder: Path) -> pa.Table:
    """The events of a .scap file, enter and exit apart."""
    target = folder / f"{path.stem}.kcap"
    run("import", path, "--raw-pairs", "-o", target)
    with kcap.open(target) as capture:
        return capture.to_arrow()


def part(pair: Pair, number: int) -> pa.Table:
    """The events of one copy."""
    return pair.all.slice(number * len(pair.one), len(pair.one))


def counts(table: pa.Table, name: str) -> dict[str | None, int]:
    """How often each value of a column is there."""
    return {item["values"]: item["counts"] for item in table[name].value_counts().to_pylist()}


def ids(table: pa.Table, name: str) -> set[int]:
    """The process ids in a column, but for that of the idle process."""
    return set(pc.unique(table[name]).to_pylist()) - {0, None}


def test_one_copy(pair: Pair, tmp_path: Path) -> None:
    """A single copy is the file itself."""
    target = tmp_path / "one.scap"
    scapcopies.Copies(pair.source).write(target, 1)
    assert target.read_bytes() == pair.source.read_bytes()


def test_events(pair: Pair) -> None:
    """Each copy has the same kinds of events in the same order, at later times."""
    last = 0
    for number in range(COPIES):
        copy = part(pair, number)
        for name in ("event", "direction", "cpu", "retval" if number == 0 else "status"):
            assert copy[name].to_pylist() == pair.one[name].to_pylist()
        assert pc.min(copy["ts_ns"]).as_py() > last
        last = pc.max(copy["ts_ns"]).as_py()


def test_names_of_processes(pair: Pair) -> None:
    """kcap knows the processes of each copy by the same names."""
    for name in ("process_name", "user", "container_id"):
        assert part(pair, 1)[name].to_pylist() == part(pair, 2)[name].to_pylist()
        assert pc.count(part(pair, 1)[name]).as_py() >= pc.count(pair.one[name]).as_py() > 0
    assert counts(part(pair, 0), "process_name") == counts(pair.one, "process_name")


def test_ids_differ(pair: Pair) -> None:
    """No process of a copy has the id of another copy's; there are as many in each."""
    for name in ("pid", "tid", "arg_ptid", "arg_next"):
        each = [ids(part(pair, number), name) for number in range(COPIES)]
        assert len(set().union(*each)) == sum(map(len, each)) == COPIES * len(each[0]) > 0


def paths(table: pa.Table) -> list[str]:
    """All paths that are parameters; where a process works is given as plain text."""
    table = table.filter(pc.invert(pc.is_in(table["event"], pa.array(["chdir", "getcwd"]))))
    return [text for name in PATHS for text in table[name].drop_null().to_pylist()]


def test_paths_differ(pair: Pair) -> None:
    """In each copy other 30 % of the paths differ, as long, and alike wherever they stand."""
    whole = paths(pair.one)
    replaced = []
    for number in range(1, COPIES):
        copy = paths(part(pair, number))
        pairs = set(zip(whole, copy, strict=True))
        assert len(pairs) == len(set(whole))
        assert all(len(a) == len(b) and a.count("/") == b.count("/") for a, b in pairs)
        replaced.append({a for a, b in pairs if a != b})
        assert 0.2 < len(replaced[-1]) / len(pairs) < 0.4
    assert replaced[0] != replaced[1]


def test_hosts(pair: Pair, tmp_path: Path) -> None:
    """Where ids come again, the lists in front are no longer for more copies."""
    copies = scapcopies.Copies(pair.source)
    found = []
    for turns in (2, COPIES):
        path = tmp_path / f"{turns}.scap"
        copies.write(path, turns, hosts=2)
        found.append(imported(path, tmp_path))
    assert len(found[1]) == COPIES * len(pair.one)
    assert ids(found[0], "tid") == ids(found[1], "tid")
    third = found[1].slice(2 * len(pair.one))
    assert third["tid"].to_pylist() == pair.one["tid"].to_pylist()


@pytest.mark.parametrize("question", ["evt.type=open", "proc.name=httpd", "fd.net=172.17.0.0/16"])
def test_hits_of_sysdig(pair: Pair, program: Callable[[str], str], question: str) -> None:
    """sysdig knows the processes and connections of each copy."""
    command = [program("sysdig"), "-p", "%evt.num", "-r"]
    found = [
        subprocess.run([*command, path, question], capture_output=True, check=True).stdout
        for path in (pair.source, pair.copies)
    ]
    assert found[1].count(b"\n") == COPIES * found[0].count(b"\n") > 0


def test_lists_matter(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lists of the copies' processes some are not known by name."""
    monkeypatch.setattr(scapcopies.Copies, "_lists", lambda _self, _by: iter(()))
    path = tmp_path / "copies.scap"
    scapcopies.Copies(pair.source).write(path, COPIES)
    known = pc.count(imported(path, tmp_path)["process_name"]).as_py()
    assert known < pc.count(pair.all["process_name"]).as_py()


def test_other_blocks(data: Callable[[str], Path]) -> None:
    """A file with blocks of other versions is refused."""
    with pytest.raises(ValueError, match="can't be copied"):
        scapcopies.Copies(data("scap/rename.scap"))
