"""Durability at length: as many kills, power cuts, chunks and bytes as take minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from badinput_support import ROOT
from durability_support import (
    check_killed,
    check_power_cut,
    check_quiet_hour,
    check_small_chunks,
    killed,
    power_cut,
    process_events,
    quiet_hour,
)

from kcap.format.record import HEADER_BYTES
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Column, dictionary
from kcap.model.classes import TypeClass

pytestmark = pytest.mark.long

INFO_S = 0.3
"""What `kcap info` may take of a processor, its start included."""


def test_a_whole_quiet_hour() -> None:
    """10 events/s for an hour: under 200 bytes each, nothing lost at any of 300 cuts."""
    data, promises, taken = quiet_hour()
    print(f"{taken} events, {len(data) / taken:.1f} bytes each")
    assert len(data) / taken < 200
    check_quiet_hour(data, promises, cuts=300, seed=2)


def test_two_hundred_kills(tmp_path: Path) -> None:
    """kill -9 at a random commit, 200 times."""
    total = 0
    for seed in range(200):
        path = tmp_path / "r.kcap"
        committed = killed(path, seed, Random(seed).randrange(1, 100))
        check_killed(path, committed)
        total += committed
    print(f"{total:,} events committed before 200 kills")
    assert total > 100_000


def test_a_thousand_power_cuts() -> None:
    """Any part of what was not synced is gone, in any order, 1,000 times."""
    acknowledged = 0
    for seed in range(1000, 2000):
        data, promised, taken = power_cut(Random(seed))
        check_power_cut(data, promised, taken)
        acknowledged += promised
    assert acknowledged > 20_000


def test_the_index_grows_linearly_to_ten_thousand_chunks() -> None:
    """100, 1,000 and 10,000 chunks: a hundred times the bytes, not ten thousand times."""
    print(check_small_chunks([100, 1000, 10_000]))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of more than 1 GB in some 2,000 chunks, closed."""
    path = tmp_path_factory.mktemp("large") / "large.kcap"
    random = np.random.default_rng(1)
    rows = 128
    events = process_events(rows * 2100, 1000.0)
    with path.open("wb") as stream:
        writer = CaptureWriter(stream, chunk_rows=rows)
        for at in range(0, events.rows, rows):
            noise = random.bytes(4096 * rows)
            values = [noise[i : i + 4096] for i in range(0, len(noise), 4096)]
            column = Column(TypeClass.BIN, dictionary(pa.array(values, pa.binary())))
            writer.write(events.slice(at, at + rows).adding({"arg_data__bin": column}))
        writer.close()
    assert path.stat().st_size > 1 << 30
    return path


def _info(path: Path, code: int) -> tuple[float, dict[str, object]]:
    """What `kcap info` takes of a processor, at best, and what it says."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    times = []
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-m", "kcap.tools", "info", "--json", path],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            said = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == code
        times.append(used.ru_utime + used.ru_stime)
    return min(times), json.loads(said)


def test_info_of_a_gigabyte_is_quick(large: Path, tmp_path: Path) -> None:
    """The FOOTER alone of a closed file; without it the CHECKPOINTs and what follows the last."""
    took_s, told = _info(large, 0)
    print(f"closed: {took_s:.3f} s, {told['chunks']} chunks, {told['bytes']} bytes")
    assert took_s < INFO_S

    cut = tmp_path / "cut.kcap"
    os.link(large, cut)  # the same bytes: cutting one file is enough
    records = told["records"]
    footer = _footer_offset(large)
    os.truncate(cut, footer)
    open_s, also = _info(cut, 3)
    print(f"without its FOOTER: {open_s:.3f} s")
    assert (also["state"], also["records"]) == ("open", records)
    for name in ("chunks", "events", "types", "ts", "sources", "columns", "backward_steps"):
        assert also[name] == told[name], name
    os.truncate(cut, footer - HEADER_BYTES)
    torn_s, torn = _info(cut, 3)
    print(f"torn: {torn_s:.3f} s")
    assert torn["state"] == "torn"
    assert max(open_s, torn_s) < 2 * INFO_S


def _footer_offset(path: Path) -> int:
    with path.open("rb") as stream:
        stream.seek(-24, os.SEEK_END)
        return int.from_bytes(stream.read(8), "little")
