"""Files made to do harm: every verb ends in order, within 512 MiB of address space and 10 s.

No traceback, no hang, no exit code but 0, 1 and 3 (spec 3.1). The verbs run in a child process,
which `hostile_child` is, as the limits are those of a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mutations
import pytest
import vectors
from support import capture, read, rows_of

HERE = Path(__file__).resolve().parent
MEMORY = 512 << 20
SECONDS = 10
QUICK, LONG, PORTION = 100, 10_000, 500
A_CHILD = 250
"""Files for one process: what thousands of runs leave behind would be counted against a file."""
VERBS = ("cat,info,tree,timeline,verify,recover,export", "query")
"""For a process each: DuckDB alone takes most of the address space that there is."""

WITHOUT_COLUMNS = {"no-columns", "no-events"}
VECTORS = sorted(vectors.FOLDER.rglob("*.kcap"))

# Reserved for every thread and never used, this would be most of the address space there is.
LEAN = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")


def stood(
    paths: Iterable[Path], folder: Path, *, memory: int = MEMORY, seconds: int = SECONDS
) -> dict[str, dict[str, Any]]:
    """What came of every verb on some files, by the file's name."""
    names = [str(path) for path in paths]
    found: dict[str, dict[str, Any]] = {name: {"exits": {}, "wrong": {}} for name in names}
    for verbs in VERBS:
        for start in range(0, len(names), A_CHILD):
            part = names[start : start + A_CHILD]
            for entry in _stood(part, folder, verbs, memory, seconds):
                for key in ("exits", "wrong"):
                    found[entry["file"]][key] |= entry[key]
    return found


def _stood(
    wanted: list[str], folder: Path, verbs: str, memory: int, seconds: int
) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, HERE / "hostile_child.py", folder, str(memory), str(seconds), verbs],
        input="".join(f"{name}\n" for name in wanted),
        env={**os.environ, **LEAN, "PYTHONPATH": f"{HERE.parent}:{HERE}"},
        capture_output=True,
        text=True,
        timeout=len(wanted) * 14 * SECONDS,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if len(found) < len(wanted):
        last = wanted[len(found)]
        raise AssertionError(f"ended by {done.returncode} at {last}: {done.stderr[-2000:]}")
    return found


def wrong(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What went wrong, by file."""
    return {name: entry["wrong"] for name, entry in found.items() if entry["wrong"]}


def written(seeds: Iterable[int], folder: Path) -> Iterator[Path]:
    """Changed captures as files."""
    for seed in seeds:
        path = folder / f"{seed}.kcap"
        path.write_bytes(mutations.mutated(seed))
        yield path


def test_vectors_end_as_they_say(tmp_path: Path) -> None:
    """Every verb, on every vector, with the exit codes of its JSON file."""
    found = stood(VECTORS, tmp_path)

    assert wrong(found) == {}
    for path in VECTORS:
        said = json.loads(path.with_suffix(".json").read_text("utf-8"))
        exits = found[str(path)]["exits"]
        assert {verb: exits[verb] for verb in said["exits"]} == said["exits"], path
        deep = 3 if said["deep_findings"] else said["exits"]["verify"]
        assert exits["verify --deep"] == deep, path
        assert exits["info --json"] == exits["info"], path
        for verb in ("cat --format", "tree", "export", "export --arrow"):
            assert exits[verb] == exits["cat"], (path, verb)
        if path.parent.name == "valid":
            # The second query asks for columns that a capture need not have, and DuckDB takes no
            # table without any.
            asked = {"query --where"} | ({"query"} if path.stem in WITHOUT_COLUMNS else set())
            assert {code for verb, code in exits.items() if verb not in asked} == {0}, path


def test_changed_captures_end_in_order(tmp_path: Path) -> None:
    """Some of the changed captures; `make test-long` has them all."""
    assert wrong(stood(written(range(QUICK), tmp_path), tmp_path)) == {}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("start", range(QUICK, QUICK + LONG, PORTION))
def test_very_many_changed_captures_end_in_order(start: int, tmp_path: Path) -> None:
    """10,000 changed captures."""
    paths = list(written(range(start, start + PORTION), tmp_path))

    assert wrong(stood(paths, tmp_path)) == {}


# Controls


def test_the_changes_go_deep() -> None:
    """Few of the changed captures are refused at once, few are read as if nothing were wrong."""
    rows = [len(rows_of(read(data)[0])) for data in _readable(range(100))]

    assert len(rows) > 50
    assert sum(count > 0 for count in rows) > 30


def _readable(seeds: Iterable[int]) -> Iterator[bytes]:
    from kcap.errors import KcapError

    for seed in seeds:
        data = mutations.mutated(seed)
        try:
            read(data)
        except KcapError:
            continue
        yield data


def test_changes_are_the_same_every_time() -> None:
    """A number stands for one capture; two numbers rarely for the same one."""
    assert mutations.mutated(7) == mutations.mutated(7)
    assert len({mutations.mutated(seed) for seed in range(50)}) > 45


def test_the_limit_of_memory_holds(tmp_path: Path) -> None:
    """Control: with far less there is no success."""
    path = tmp_path / "good.kcap"
    path.write_bytes(capture())

    assert wrong(stood([path], tmp_path)) == {}
    with pytest.raises(AssertionError):
        assert wrong(stood([path], tmp_path, memory=96 << 20)) == {}


def test_the_limit_of_time_holds(tmp_path: Path) -> None:
    """Control: a file that never ends is noticed, and named."""
    path = tmp_path / "endless.kcap"
    os.mkfifo(path)

    with pytest.raises(AssertionError, match=r"ended by -14 at .*endless\.kcap"):
        stood([path], tmp_path, seconds=1)
