"""Makes fixtures/vectors: small captures, each with what any reader must make of it.

    python tests/vectors.py            write what is missing
    python tests/vectors.py --again    write all of them anew

The files are committed once and never made again for a released version; tests/test_vectors.py
compares what this makes with them by content, as another libzstd may compress otherwise.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).resolve().parent
FOLDER = TESTS.parent / "fixtures" / "vectors"
FOLDERS = ("valid", "recoverable", "must_reject")

if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from kaitai.reader import Kcap, Reading, blobs, parsed  # noqa: E402
from support import FILE_ID, SOURCE  # noqa: E402

import kcap  # noqa: E402
from kcap.format import chunk, writer  # noqa: E402
from kcap.format.record import Kind  # noqa: E402
from kcap.format.writer import CaptureWriter  # noqa: E402
from kcap.model.batch import Batch, Column, dictionary  # noqa: E402
from kcap.model.classes import TypeClass  # noqa: E402

Row = dict[str, Any]


@dataclass(frozen=True)
class Vector:
    """A capture and what must come out of it."""

    folder: str
    name: str
    says: str
    """One sentence: what is special about it."""
    clauses: tuple[str, ...]
    """Of spec/kcap.md."""
    data: bytes = field(repr=False)
    rows: Sequence[Row]
    """What a reader delivers, in order."""
    exits: dict[str, int]
    """Exit code of each verb of kcap."""
    stream: Sequence[Row] | None = None
    """What a reader of a stream delivers, where it is less."""
    refused: str | None = None
    """``file``: a reader refuses all of it; ``record``: one record, and reads the others."""
    error: str | None = None
    """Part of what is said when the file is refused."""
    losses: list[list[Any]] = field(default_factory=list)
    """Kind and count of each loss that a reader tells of, in order."""
    findings: list[str] = field(default_factory=list)
    """Part of each finding that verify must have, among others."""
    deep_findings: list[str] = field(default_factory=list)
    """As findings, of ``verify --deep``."""

    @property
    def expected(self) -> dict[str, Any]:
        """What stands in the JSON file."""
        value = asdict(self)
        for name in ("data", "folder", "name"):
            del value[name]
        value["rows"] = rows_told(self.rows)
        value["stream"] = None if self.stream is None else rows_told(self.stream)
        if self.folder == "valid":
            value["forms"] = forms_of(self.data)
            value["blobs"] = blobs_of(self.data)
        return value


def row_line(row: Row) -> str:
    """A row as a line of JSON that tells all values apart."""
    return json.dumps(_plain(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def rows_told(rows: Sequence[Row]) -> dict[str, Any]:
    """Number, first one and digest of rows."""
    lines = [row_line(row) for row in rows]
    return {
        "count": len(lines),
        "first": json.loads(lines[0]) if lines and len(lines[0]) < 2000 else None,
        "sha256": rows_digest(lines),
    }


def rows_digest(lines: Sequence[str]) -> str:
    """SHA-256 over the rows, each with a line feed."""
    text = "".join(line + "\n" for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float):
        return {"f64": struct.pack("<d", value).hex()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def forms_of(data: bytes) -> dict[str, list[int]]:
    """Class, presence and encoding of each column in the first chunk that has it.

    Of a list also class and encoding of the items.
    """
    reading = Reading(data)
    forms: dict[str, list[int]] = {}
    for record in reading.records:
        if record.kind == Kind.CHUNK and record.version == 1:
            directory = record.payload.directory
            for entry, frame in zip(directory.entries, record.payload.frames, strict=True):
                form = [int(entry.type_class), int(entry.presence), entry.encoding]
                if entry.type_class >= Kcap.TypeClass.list:
                    form += reading.item_form(entry, directory.num_rows, frame)
                forms.setdefault(reading.names[entry.column_id], form)
    return dict(sorted(forms.items()))


def blobs_of(data: bytes) -> list[dict[str, Any]]:
    """Path, length and digest of the artifacts, zeros in place of what is not there."""
    return [
        {"path": said["path"], "sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        for said, raw in blobs(parsed(data))
    ]


# What captures are made of


def column(cls: str, values: Sequence[Any], rows: Sequence[int] | None = None) -> Column:
    """A column of a class."""
    import numpy as np
    import pyarrow as pa

    kind = TypeClass(cls)
    at = None if rows is None else np.array(rows, np.int32)
    if pa.types.is_dictionary(kind.arrow):
        return Column(kind, dictionary(pa.array(values, kind.arrow.value_type)), at)
    return Column(kind, pa.array(values, kind.arrow), at)


def events(count: int, first: int = 0) -> Batch:
    """Events with columns of several classes; what they hold follows from their number."""
    numbers = range(first, first + count)
    even = [i for i in range(count) if (first + i) % 2 == 0]
    made = {
        "arg_flag__bool": column("bool", [i % 3 == 0 for i in numbers]),
        "arg_words__list": column("list", [["sh", f"-{i % 5}"][: i % 3] for i in numbers]),
        "event": column("str", [("exec", "exit", "fork")[i % 3] for i in numbers]),
        "ord": column("i64", list(numbers)),
        "pid": column("i64", [100 + i % 4 for i in numbers]),
        "ts": column("i64", [1_700_000_000_000_000_000 + 250_000 * i * i for i in numbers]),
    }
    if even:
        made["arg_few__i64"] = column("i64", [(first + i) ** 3 for i in even], even)
    return Batch(count, made)


@contextmanager
def settled() -> Iterator[None]:
    """What a capture says of the kcap that wrote it does not change with versions."""
    with mock.patch.object(kcap, "__version__", "vectors"):
        yield


def made(
    *batches: Batch,
    rows: int = 4,
    close: bool = True,
    commit: bool = False,
    checkpoint: int | None = None,
    edit: Callable[[CaptureWriter], object] | None = None,
    **options: Any,
) -> bytes:
    """A capture of some batches.

    Args:
        batches: What is written.
        rows: Rows of a chunk.
        close: Write the FOOTER.
        commit: Behind every batch.
        checkpoint: Chunks behind which there is a CHECKPOINT.
        edit: Called before the end.
        options: As of the writer.
    """
    out = io.BytesIO()
    if not options.get("canonical"):
        options.setdefault("file_id", FILE_ID)
    often = mock.patch.object(writer, "CHECKPOINT_CHUNKS", checkpoint or writer.CHECKPOINT_CHUNKS)
    with settled(), often:
        taker = CaptureWriter(out, chunk_rows=rows, **options)
        for batch in batches:
            taker.write(batch)
            if commit:
                taker.commit()
        if edit is not None:
            edit(taker)
        if close:
            taker.close()
        elif not commit:
            taker.flush()
    return out.getvalue()


def base(count: int = 8, rows: int = 4, **options: Any) -> bytes:
    """The capture that most vectors start from: two chunks of four events."""
    return made(events(count).with_before([SOURCE]), rows=rows, **options)


def rows_of(*batches: Batch) -> list[Row]:
    """Batches as rows."""
    return [row for batch in batches for row in batch.to_pylist()]


EVENTS = rows_of(events(64))
"""The rows of `events`."""

GOOD = {"cat": 0, "info": 0, "recover": 0, "verify": 0}
DAMAGED = {"cat": 3, "info": 3, "recover": 3, "verify": 3}
REFUSED = {"cat": 1, "info": 1, "recover": 1, "verify": 1}


def head_bytes() -> int:
    """Length of a chunk directory without its entries."""
    return int(chunk.HEAD.sizeof())


def generated() -> dict[str, Vector]:
    """All vectors, by folder and name."""
    names = ("valid", "later", "damaged")
    names += ("refused", "refused_frames", "refused_chunks", "refused_index")
    parts = [importlib.import_module(f"vectors_{name}") for name in names]
    found: dict[str, Vector] = {}
    for part in parts:
        for vector in part.vectors():
            key = f"{vector.folder}/{vector.name}"
            assert key not in found, key
            found[key] = vector
    return found


def written(vector: Vector) -> str:
    """The JSON file of a vector."""
    return json.dumps(vector.expected, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(*, again: bool) -> None:
    """Write the files."""
    for key, vector in generated().items():
        path = FOLDER / f"{key}.kcap"
        path.parent.mkdir(parents=True, exist_ok=True)
        if again or not path.exists():
            path.write_bytes(vector.data)
        path.with_suffix(".json").write_text(written(vector), "utf-8")


if __name__ == "__main__":
    main(again="--again" in sys.argv)
