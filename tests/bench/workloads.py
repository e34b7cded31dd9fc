"""What is measured: real events as plain columns, the same for every format."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.format.reader import CaptureReader
from kcap.model import catalogue
from kcap.model.classes import TypeClass

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = Path(os.environ.get("KCAP_TEST_DATA") or ROOT.parent / "shared" / "data")
RECORD_S = 20
REPEATED = "Tracee dump, repeated"
REPEATED_EVENTS = 500_000
VARIED_SHARE = 0.3
SEED = 20260801

LOAD = """
while :; do
    /bin/true
    ls / >/dev/null
    sh -c 'echo $$ | cat >/dev/null'
    date >/dev/null
done
"""
"""A busy host: every turn starts six processes."""

FIXED = frozenset(
    {"ts_raw", "origin", "source", "host", "event", "action", "category", "kind", "syscall"}
    | {"provenance", "shape"}
)
"""Text that says what sort of event it is, or where it comes from: the same in every copy."""

PIDS = frozenset({"pid", "tid", "ppid", "ns_pid", "ns_tid", "ns_ppid", "arg_pid", "arg_child_tid"})
TIMES = frozenset({"ts", "process_start_ns", "thread_start_ns", "arg_ctime"})
PID_MAX = 1 << 22


class Workload(NamedTuple):
    """Events to measure with."""

    name: str
    table: pa.Table
    """Plain columns: int64, utf8 …, nulls where there is no value."""


def workloads(folder: Path) -> Iterator[Workload]:
    """All workloads; those whose input is not at hand are named on standard error.

    Args:
        folder: Where captures may be put.

    Yields:
        Workloads, the smallest first.
    """
    dump = DATA / "tracee" / "tracee_event_dump_2022-10.jsonl.gz"
    dns = DATA / "tracee" / "tracee_dns_events_gotypes_2025-04.jsonl.gz"
    yield _recording(folder)
    fibratus = DATA / "fibratus" / "v1.6.0-test.kcap"
    for name, path in (("Tracee dump", dump), ("Tracee DNS", dns), ("Fibratus", fibratus)):
        if not path.exists():
            print(f"no {path}: {name} is not measured", file=sys.stderr)
            continue
        capture = folder / f"{path.name}.kcap"
        kcap("import", path, "-o", capture)
        yield Workload(name, plain_table(capture))
    if dump.exists():
        table = plain_table(folder / f"{dump.name}.kcap")
        yield Workload(REPEATED, repeated(table, REPEATED_EVENTS))


def kcap(*words: object) -> None:
    """Run a kcap command.

    Args:
        *words: Its words.

    Raises:
        RuntimeError: It failed; losses (exit code 3) are no failure here.
    """
    command = [sys.executable, "-m", "kcap.tools", *map(str, words)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True)
    if done.returncode not in {0, 3}:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()}")


def _recording(folder: Path) -> Workload:
    """A busy host, as kcap records it; without root the capture that is shipped."""
    if sys.platform != "linux" or os.geteuid() != 0:
        print("recording needs root: fixtures/first.kcap instead", file=sys.stderr)
        return Workload("fixtures/first.kcap", plain_table(ROOT / "fixtures" / "first.kcap"))
    capture = folder / "host.kcap"
    with _load():
        kcap("record", "--duration", RECORD_S, "-o", capture)
    return Workload(f"own recording, {RECORD_S} s", plain_table(capture))


@contextlib.contextmanager
def _load() -> Iterator[None]:
    """A shell that starts programs as fast as it can."""
    with subprocess.Popen(["sh", "-c", LOAD], start_new_session=True) as load:
        try:
            yield
        finally:
            load.kill()


def plain_table(path: Path) -> pa.Table:
    """The events of a capture as a database would hold them, without dictionaries.

    Args:
        path: The capture.

    Returns:
        One table, columns by name.
    """
    with path.open("rb") as stream:
        reader = CaptureReader(stream, str(path))
        names = sorted(reader.columns())
        schema = pa.schema([(n, _plain_type(reader.columns()[n].arrow)) for n in names])
        batches = [b.to_arrow(names) for b in reader.batches() if b.rows]
    return pa.concat_tables([pa.Table.from_batches([b]).cast(schema) for b in batches])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def repeated(table: pa.Table, count: int) -> pa.Table:
    """Copies of the events one after another, each a little different.

    In every copy times go on, pids are others, and 30 % of the different texts of each column that
    holds names, paths or contents are others; the positions count on. All by one seed.

    Args:
        table: The events.
        count: About how many are wanted.

    Returns:
        The copies as one table.
    """
    rng = np.random.default_rng(SEED)
    times = table["ts"].to_numpy()
    span = int(times.max() - times.min()) + 1
    copies = [table]
    for turn in range(1, round(count / len(table))):
        columns = [
            _varied(name, values.combine_chunks(), turn, span, rng)
            for name, values in zip(table.schema.names, table.columns, strict=True)
        ]
        copies.append(pa.table(columns, schema=table.schema))
    whole = pa.concat_tables(copies).combine_chunks()
    ords = pa.array(np.arange(len(whole)))
    return whole.set_column(whole.schema.get_field_index("ord"), "ord", ords)


def _varied(
    name: str, values: pa.Array, turn: int, span: int, rng: np.random.Generator
) -> pa.Array:
    """A column of one copy."""
    if name in TIMES:
        return pc.add(values, turn * span)
    if name in PIDS:
        moved = pc.add(values, turn * 7919)
        return pc.subtract(moved, pc.multiply(pc.divide(moved, PID_MAX), PID_MAX))
    if catalogue.class_of(name) is TypeClass.STR and name not in FIXED:
        coded = values.dictionary_encode()
        share = 1.0 if name == "process_key" else VARIED_SHARE
        entries = _other_texts(coded.dictionary, share, rng)
        return pa.DictionaryArray.from_arrays(coded.indices, entries).dictionary_decode()
    return values


def _other_texts(entries: pa.Array, share: float, rng: np.random.Generator) -> pa.Array:
    """A share of the texts with another end of the same length."""
    texts = entries.to_pylist()
    chosen: npt.NDArray[np.bool_] = rng.random(len(texts)) < share
    for i in np.flatnonzero(chosen):
        text = texts[i]
        if text:
            tail = min(len(text), 16 if share == 1.0 else 6)
            texts[i] = text[: len(text) - tail] + rng.bytes(8).hex()[:tail]
    return pa.array(texts, pa.utf8())
