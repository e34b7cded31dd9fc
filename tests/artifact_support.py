"""Captures with artifacts, and made output directories of Tracee."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blob_support import Parts, content
from support import FILE_ID, SOURCE, make_events

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import constant
from kcap.model.classes import TypeClass

ORIGIN = "00" * 16


class Made(NamedTuple):
    """An artifact to put into a capture."""

    parts: Parts
    path: str | None
    ord: int | None = None
    truncated: str | None = None
    details: dict[str, Any] = {}  # noqa: RUF012  (nobody changes it)

    @property
    def sha256(self) -> str:
        """Of its content."""
        return hashlib.sha256(content(self.parts)).hexdigest()


def artifact(
    data: bytes | Parts, path: str | None, ord_: int | None = None, **details: Any
) -> Made:
    """An artifact; ``cut`` says why its end is missing."""
    cut = details.pop("cut", None)
    parts = [data] if isinstance(data, bytes) else data
    return Made(parts, path, ord_, cut, details)


def capture_of(made: Sequence[Made], *, events: int = 20, closed: bool = True) -> bytes:
    """A capture with events of the origin `ORIGIN`, and artifacts."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID)
    batch = make_events(events)
    columns = {"origin": constant(TypeClass.STR, ORIGIN, events)}
    writer.write(batch.adding(columns).with_before([SOURCE]))
    for one in made:
        origin = None if one.ord is None else ORIGIN
        with writer.blobs.begin(
            path=one.path, origin=origin, ord=one.ord, details=one.details
        ) as blob:
            for part in one.parts:
                if isinstance(part, bytes):
                    blob.write(part)
                else:
                    blob.gap(*part)
            blob.close(truncated=one.truncated)
    if closed:
        writer.close()
    return out.getvalue()


def reader_of(data: bytes) -> CaptureReader:
    """A capture's reader."""
    return CaptureReader(io.BytesIO(data), "made.kcap")


def listing_of(folder: Path) -> list[dict[str, Any]]:
    """What an extraction says of its files."""
    text = (folder / "MANIFEST.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the listing; nothing there may be anything else."""
    found = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink(), path
        if path.is_file() and path.name != "MANIFEST.jsonl":
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def tracee_event(name: str, ts: int, args: dict[str, Any] | None = None, **said: Any) -> str:
    """An event as the releases 0.13 to 0.15 print it, as a line."""
    event = {
        "timestamp": ts,
        "threadStartTime": 1,
        "processorId": 0,
        "processId": 7,
        "threadId": 7,
        "parentProcessId": 1,
        "hostProcessId": 7,
        "hostThreadId": 7,
        "hostParentProcessId": 1,
        "userId": 0,
        "mountNamespace": 4026531840,
        "pidNamespace": 4026531836,
        "processName": "sh",
        "hostName": "host",
        "container": {},
        "eventId": "1",
        "eventName": name,
        "argsNum": len(args or {}),
        "returnValue": 0,
        "args": [
            {"name": n, "type": "int" if isinstance(v, int) else "const char*", "value": v}
            for n, v in (args or {}).items()
        ],
        **said,
    }
    return json.dumps(event) + "\n"


def tracee_folder(folder: Path, files: dict[str, bytes], events: Sequence[str] = ()) -> Path:
    """A directory of files, and beside ``out`` events."""
    for name, data in files.items():
        path = folder / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if events:
        (folder / "events.json").write_text("".join(events))
    return folder
