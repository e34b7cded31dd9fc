"""What an export takes: memory within 300 MiB whatever comes, and little more time than pyarrow."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from memory_cases import write
from test_memory import BOUND_MIB, run

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from export import measure  # type: ignore[import-not-found]  # the benchmark's own file

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc"
)

EVENTS = {"small": 2_000_000, "texts": 100_000, "dense": 1 << 14, "sparse": 1 << 17}
SLOWEST = 1.75
"""The aim is 1.5, which docs/export.md measures; a test must also hold on a busy machine."""


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Give the large capture of a kind, which is written when it is first asked for."""
    folder = tmp_path_factory.mktemp("exports")

    def find(name: str) -> Path:
        path = folder / f"{name}.kcap"
        if not path.exists():
            write(path, name, EVENTS[name])
        return path

    yield find
    shutil.rmtree(folder)


@pytest.mark.long
@pytest.mark.parametrize("words", ["parquet", "parquet narrow", "parquet map", "arrow", "csv"])
@pytest.mark.parametrize("events", EVENTS)
def test_memory(captures: Callable[[str], Path], events: str, words: str) -> None:
    """Many events, long texts, a thousand columns, dense or sparse: each form keeps the bound."""
    form, schema = (*words.split(), "wide")[:2]
    options = ("--format", form, "--schema", schema, "-o", "/dev/null")

    done = run("kcap", "export", captures(events), *options)

    assert done.result == 0
    assert done.peak_mib < BOUND_MIB


@pytest.mark.parametrize("schema", ["wide", "map"])
def test_memory_of_a_long_capture(captures: Callable[[str], Path], schema: str) -> None:
    """Two million events are exported within the bound."""
    options = ("--format", "parquet", "--schema", schema, "-o", "/dev/null")

    done = run("kcap", "export", captures("small"), *options)

    assert done.result == 0
    assert done.peak_mib < BOUND_MIB


def test_memory_of_a_stream(captures: Callable[[str], Path]) -> None:
    """What must be read before its columns are known waits in a file, not in memory."""
    with captures("small").open("rb") as stream:
        done = run("kcap", "export", "-", "--format", "parquet", "-o", "/dev/null", stdin=stream)

    assert done.result == 0
    assert done.peak_mib < BOUND_MIB


def test_memory_of_a_folder(captures: Callable[[str], Path], tmp_path: Path) -> None:
    """A thousand branches wait within the bound."""
    options = ("--format", "parquet", "--partition-by", "date,exe", "-o", tmp_path / "lake")

    done = run("kcap", "export", captures("small"), "-n", "200000", *options)

    assert done.result == 0
    assert done.peak_mib < BOUND_MIB


@pytest.mark.long
def test_all_batches_at_once_break_the_bound(captures: Callable[[str], Path]) -> None:
    """Negative control: who keeps every batch of the texts has more than the bound."""
    assert run("hold", captures("texts")).peak_mib > BOUND_MIB


@pytest.mark.host  # it compares times of tens of milliseconds
def test_speed(tmp_path: Path) -> None:
    """From a capture to Parquet takes little longer than pyarrow takes from columns in memory."""
    path = tmp_path / "part.kcap"
    write(path, "small", 300_000)
    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        found = measure(path, turns=5)
    finally:
        pa.set_cpu_count(threads)

    assert found.rows == 300_000
    assert found.kcap_s < SLOWEST * found.text_s
    assert found.kcap_bytes < 1.1 * min(found.text_bytes, found.coded_bytes)
