"""Captures for the tests of kcap filter, and what can be found in a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from support import batch_of, opened

from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, Column, concat, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.state import State, fds, handles, processes, threads, users
from kcap.state.fds import Target
from kcap.state.handles import Handle
from kcap.state.processes import Process
from kcap.state.threads import Thread

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MINE = SourceInfo("test", host="mine", boot_id="boot", origin="0a" * 16)
OTHER = SourceInfo("test", host="other", boot_id="other", origin="0b" * 16)
NS = 1_700_000_000_000_000_000
HASHED = "0b" * 16


def events(
    records: list[dict[str, Any]], *, source: SourceInfo = MINE, first: int = 0, **columns: Any
) -> Batch:
    """Events with these arguments, and columns of one value."""
    batch = batch_of([(NS + (first + i) * 1000, record) for i, record in enumerate(records)])
    envelope = {"source": source.id, "origin": source.origin, **columns}
    made = {
        name: constant(TypeClass.I64 if isinstance(v, int) else TypeClass.STR, v, batch.rows)
        for name, v in envelope.items()
    }
    made["ord"] = Column(TypeClass.I64, pa.array(np.arange(first, first + batch.rows)))
    return batch.adding(made)


def written(batches: list[Batch], **options: Any) -> tuple[io.BytesIO, CaptureWriter]:
    """A capture that is not closed yet."""
    out = io.BytesIO()
    writer = CaptureWriter(out, **options)
    for batch in batches:
        writer.write(batch)
    return out, writer


def saved(path: Path, batches: list[Batch], **options: Any) -> Path:
    """A closed capture in a file."""
    out, writer = written(batches, **options)
    writer.close()
    path.write_bytes(out.getvalue())
    return path


def uncovered(data: bytes) -> bytes:
    """A file and all that is compressed in it."""
    found = [data]
    at = data.find(ZSTD_MAGIC)
    while at >= 0:
        try:
            stream = zstandard.ZstdDecompressor().decompressobj()
            found.append(stream.decompress(data[at:]))
        except zstandard.ZstdError:
            pass  # four bytes that only look like a frame
        at = data.find(ZSTD_MAGIC, at + 1)
    return b"\0".join(found)


_PLACES = (
    "argv environment path dns bytes nested name column exe cmdline event user container state_row"
    " process thread fd handle username source blob blob_path blob_details"
)
SECRETS = {n: f"{i:02}hidden{i:02}" for i, n in enumerate(_PLACES.split())}
"""A secret for each place; no two begin alike, so that no dictionary shares their beginnings."""


def planted(path: Path) -> Path:
    """A capture with a secret in every place that can hold text, none of them of process 1."""
    s = SECRETS
    mine = events([{"pathname": f"/tmp/{i}"} for i in range(5)], pid=1, ppid=7, event="open")
    other = [
        events(
            [
                {"argv": ["curl", s["argv"]], "env": [f"TOKEN={s['environment']}"]},
                {"pathname": f"/home/{s['path']}", "query": f"{s['dns']}.example"},
                {"data": s["bytes"].encode(), "nested": {"a": [s["nested"]]}, s["column"]: 1},
            ],
            first=5,
            pid=2,
            process_name=s["name"],
            exe=f"/bin/{s['exe']}",
            cmdline=f"x {s['cmdline']}",
            event=s["event"],
            user=s["user"],
            container_id=s["container"],
        ),
        events([{"cmdline": s["state_row"]}], first=8, pid=3, kind="state"),
        events([{"pathname": "/etc/passwd"}], first=9, pid=4, source=OTHER),
    ]
    last = events([{"pathname": "/tmp/last"}], first=10, pid=1, ppid=7, event="open")
    machine = State.machine(MINE)
    table = [
        Process(1, "k1", "k7", 7, "mine"),
        Process(2, "k2", "k1", 1, "other", cmdline=s["process"]),
        Process(7, "k7", None, 0, "parent"),
    ]
    start = Snapshot(
        {
            "processes": processes.to_batch([(machine, table)]),
            "threads": threads.to_batch([(machine, [Thread(2, 2, details=s["thread"])])]),
            "fds": fds.to_batch([(machine, [fds.Descriptor(2, 1, *Target("file", s["fd"]))])]),
            "handles": handles.to_batch([(machine, [Handle(2, 4, name=s["handle"])])]),
            "users": users.to_batch([(machine, {5: s["username"]})]),
        }
    )
    sides: list[Side] = [
        MINE,
        SourceInfo(
            OTHER.collector, OTHER.host, OTHER.boot_id, OTHER.origin, (), {"x": s["source"]}
        ),
        start,
        Loss("lost", 3, "ring full", source=MINE.id),
    ]
    whole = [mine.with_before(sides), concat(other), last]
    out, writer = written(whole)
    writer.blob([b"kept bytes"], path="/bin/kept", origin=MINE.origin, ord=1)
    details = {"note": s["blob_details"]}
    writer.blob(
        [s["blob"].encode()], path=s["blob_path"], origin=MINE.origin, ord=5, details=details
    )
    writer.close()
    path.write_bytes(out.getvalue())
    return path


def kept_by(path: Path) -> set[str]:
    """The secrets that are in any decompressed byte of a file."""
    plain = uncovered(path.read_bytes())
    return {name for name, secret in SECRETS.items() if secret.encode() in plain}


def tables(path: Path) -> list[Snapshot]:
    """The snapshots of a capture."""
    return [s for b in opened(path.read_bytes()).batches() for s in b.before if _is_state(s)]  # type: ignore[misc]


def _is_state(side: Side) -> bool:
    return isinstance(side, Snapshot)


def told(path: Path) -> list[dict[int, str | None]]:
    """Process ids and names in each snapshot of a capture."""
    found = []
    for snapshot in tables(path):
        assert set(snapshot.tables) == {"processes"}
        read_back = processes.from_batch(snapshot.tables["processes"])
        found.append({p.pid: p.name for all_ in read_back.values() for p in all_})
    return found
