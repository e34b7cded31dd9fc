"""The same output on any machine: hash seeds, zones, locales, threads, chunks; and no more asked.

Each cell of the matrix is a process of its own (`determinism_child`), in which the clock, the host
and the network are out of reach while a replay runs.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from determinism_child import CONTROLS, CUTS, MORE, OUTPUTS
from replay_support import with_states

SEEDS = ("0", "1", "random")
ZONES = ("UTC", "Asia/Tokyo", "America/St_Johns")
THREADS = ("1", "2", "4")
LOCALES = ("C", "C.UTF-8", "tr_TR.UTF-8")
CHILD = Path(__file__).parent / "determinism_child.py"
QUICK = ("line", "jsonl", "table", "csv", "kin", "filament")
"""Outputs that the quick tests look at."""

Cell = tuple[str, str, str]
Digests = dict[str, dict[str, list[str]]]
"""Capture and output to digest to who has it."""


def cell(
    who: Cell,
    folder: Path,
    files: Sequence[Path],
    *,
    cuts: Iterable[str] = CUTS,
    outputs: Iterable[str] = OUTPUTS,
    threads: str = "2",
) -> dict[str, str]:
    """Run a cell of the matrix, with so many threads of Arrow's, and give its digests."""
    seed, zone, locale = who
    folder.mkdir()
    paths = os.pathsep.join(map(str, (CHILD.parent, CHILD.parent.parent)))
    done = subprocess.run(
        [sys.executable, CHILD, folder, ",".join(cuts), ",".join(outputs), *files],
        env={
            **os.environ,
            "LC_ALL": locale,
            "OMP_NUM_THREADS": threads,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": paths,
            "TZ": zone,
        },
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, fixtures: Path) -> Digests:
    """Two machines that have nothing in common."""
    folder = tmp_path_factory.mktemp("two")
    cells = [
        (
            who,
            cell(
                who,
                folder / cut,
                [fixtures / "first.kcap"],
                cuts=[cut],
                outputs=QUICK,
                threads=threads,
            ),
        )
        for who, cut, threads in (
            (("0", "UTC", "C"), "whole", "1"),
            (("1", "America/St_Johns", "tr_TR.UTF-8"), "random", "4"),
        )
    ]
    return gathered(cells)


def gathered(cells: Iterable[tuple[Cell, dict[str, str]]]) -> Digests:
    """Who has which digest of the same output of the same rows."""
    found: Digests = {}
    for who, digests in cells:
        for name, digest in digests.items():
            capture, cut, output = name.split("|")
            of = found.setdefault(f"{capture} {output}", {})
            of.setdefault(digest, []).append(" ".join((*who, cut)))
    return found


def differing(found: Digests) -> Digests:
    """The outputs that are not the same everywhere."""
    return {name: digests for name, digests in found.items() if len(digests) > 1}


def real(found: Digests) -> Digests:
    """The outputs of kcap as it is."""
    return {name: of for name, of in found.items() if name.split(" ")[0] not in CONTROLS}


def test_output_depends_on_nothing_of_the_host(two: Digests) -> None:
    """Hash seed, zone, locale and cuts are others: the same bytes, those of filaments included."""
    found = real(two)

    assert differing(found) == {}
    assert len(found) == len(QUICK)
    said = [digest for digests in found.values() for digest in digests]
    assert all(int(one.split()[1]) > 50 for one in said), said


@pytest.fixture(scope="module")
def files(
    data: Callable[[str], Path], fixtures: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Events of Linux, of Windows, of sysdig."""
    folder = tmp_path_factory.mktemp("files")
    found = [fixtures / "first.kcap"]
    for name in ("fibratus/v2.0.0-cap.kcap", "scap/sample.scap"):
        found.append(folder / f"{name.partition('/')[0]}.kcap")
        found[-1].write_bytes(with_states(data(name), 65_536))
    return found


@pytest.fixture(scope="module")
def plain(
    files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Cell, dict[str, str]]:
    """The cell that all others are compared with."""
    who = ("0", "UTC", "C")
    return who, cell(who, tmp_path_factory.mktemp("plain") / "cell", files, cuts=["whole"])


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("zone", ZONES)
def test_the_whole_matrix(
    zone: str, files: list[Path], plain: tuple[Cell, dict[str, str]], tmp_path: Path
) -> None:
    """27 machines, each with two of four cuts; every output; events of Linux, Windows, sysdig."""
    cells = [plain]
    for number, (seed, locale) in enumerate(itertools.product(SEEDS, LOCALES)):
        who = seed, zone, locale
        cuts = {[*CUTS][number % len(CUTS)], "random"}
        threads = THREADS[(number + ZONES.index(zone)) % len(THREADS)]
        digests = cell(who, tmp_path / f"{number}", files, cuts=sorted(cuts), threads=threads)
        cells.append((who, digests))
    found = real(gathered(cells))

    assert differing(found) == {}
    assert len(found) == len(OUTPUTS) + 2 * len(MORE)
    assert all(len(who) > 9 for of in found.values() for who in of.values())
    assert not [name for name, of in found.items() for one in of if one.startswith("failed")]


@pytest.mark.parametrize("control", ["set", "state"])
def test_what_breaks_it_is_seen(control: str, two: Digests) -> None:
    """The controls: the order of a set shows with the seed, a state begun anew with the cuts."""
    name = f"{control} {CONTROLS[control][3]}"

    assert set(differing(two)) == {"set jsonl", "state kin"}
    assert len(two[name]) == 2
    assert not [one for one in two[name] if one.startswith("failed")]


@pytest.mark.parametrize(("control", "said"), [("clock", "time.time"), ("host", "/etc/hostname")])
def test_who_asks_the_world_is_caught(control: str, said: str, two: Digests) -> None:
    """The controls of the guard: reading the clock or a file of the host ends the run."""
    (digest,) = two[f"{control} jsonl"]

    assert digest.startswith("failed")
    assert said in digest
