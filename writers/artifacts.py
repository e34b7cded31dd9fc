"""Artifacts out of a capture: into a folder, byte for byte, each compared with its hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from kcap import limits
from kcap.errors import DamagedError, FullError, KcapError, LimitError, OutputError
from kcap.model import tracee_names
from kcap.model.side import Loss
from kcap.model.text import json_safe, printable
from kcap.writers import artifacts_names
from kcap.writers.artifacts_clear import clear_output
from kcap.writers.artifacts_folder import RefusedError, SafeFolder

if TYPE_CHECKING:
    from kcap.format.blobs import Manifest
    from kcap.format.reader import CaptureReader

__all__ = ["BYTES_MAX", "LISTING", "Layout", "Report", "clear_output", "described", "extract"]

LISTING: Final = "MANIFEST.jsonl"
"""The file that says for each artifact what it is, and where."""

BYTES_MAX: Final = 1 << 40
"""What an extraction writes at most, holes not counted: one block may stand in a blob a million
times."""

RANGES_SHOWN: Final = 100
"""Missing ranges of one artifact that are listed."""

Layout = Literal["flat", "tracee"]
_Place = tuple[str, ...]
_NAMES: Final[Mapping[Layout, Callable[[Manifest], _Place]]] = {
    "flat": artifacts_names.flat,
    "tracee": artifacts_names.tracee,
}
_ZEROS: Final = bytes(limits.BLOB_BLOCK_BYTES)
_EXECUTE_BITS: Final = 0o111


@dataclass
class Report:
    """What an extraction did."""

    artifacts: int = 0
    """Those that were chosen and are in the folder."""
    files: int = 0
    """Files written; artifacts of the same content and name share one."""
    bytes: int = 0
    """Bytes written, holes not counted."""
    left: int = 0
    """Incomplete artifacts that were not asked for."""
    losses: list[Loss] = field(default_factory=list)
    """What could not be written, or is damaged."""


def extract(
    reader: CaptureReader,
    folder: str,
    *,
    layout: Layout = "flat",
    chosen: Callable[[Manifest], bool] | None = None,
    incomplete: bool = False,
    executable: bool = False,
    force: bool = False,
    bytes_max: int = BYTES_MAX,
) -> Report:
    """Write artifacts of a capture into a folder.

    Nothing is written outside of it, no link in it is followed, no file in it is overwritten,
    whatever the capture holds and whoever else may write there.

    Args:
        reader: The capture, which must be a file.
        folder: The folder; made where it is not there.
        layout: ``flat``, or ``tracee``: as Tracee lays out its output directory.
        chosen: Which ones; all where None.
        incomplete: Those too that lack a part, with zeros in its place and a name that says so.
        executable: Let the owner execute what was executed.
        force: Replace files of the same name.
        bytes_max: What may be written, holes not counted.

    Returns:
        What was done.

    Raises:
        OutputError: The folder can't be written, or holds an extraction already.
        FullError: There is no room left.
    """
    target = SafeFolder(folder, force=force)
    with contextlib.closing(target):
        run = _Extraction(reader, target, layout, incomplete, executable, bytes_max)
        wanted = chosen or _everything
        with target.created((LISTING,), keep=True) as listing:
            run.plan(wanted)
            run.write(wanted, listing)
        run.write_indexes()
    run.report.losses += reader.blobs.losses
    return run.report


def _everything(_: Manifest) -> bool:
    return True


class _Extraction:
    """One extraction."""

    def __init__(
        self,
        reader: CaptureReader,
        folder: SafeFolder,
        layout: Layout,
        incomplete: bool,
        executable: bool,
        bytes_max: int,
    ) -> None:
        self.report = Report()
        self._reader = reader
        self._folder = folder
        self._layout = layout
        self._incomplete = incomplete
        self._executable = executable
        self._room = bytes_max
        self._places: dict[tuple[_Place, str], _Place] = {}
        self._done: dict[tuple[_Place, str], _Place | None] = {}
        self._index: dict[str, dict[str, str]] = {name: {} for name in tracee_names.INDEXES}

    def _wanted(self, manifest: Manifest) -> bool:
        return manifest.complete or self._incomplete

    def plan(self, chosen: Callable[[Manifest], bool]) -> None:
        """Give each artifact a place: by what all of them are called, not by what comes first."""
        named: dict[_Place, dict[str, _Place]] = {}
        for manifest in self._reader.manifests():
            if chosen(manifest) and self._wanted(manifest):
                place = _NAMES[self._layout](manifest)
                same = named.setdefault(artifacts_names.folded(place), {})
                name = artifacts_names.artifact_id(manifest)
                same.pop(name, None)  # the last one counts
                same[name] = place
        taken = set(named)
        for key, contents in named.items():
            # The state that a file had last has the name that Tracee would give it.
            last, *others = reversed(contents.items())
            self._places[key, last[0]] = last[1]
            for name, place in reversed(others):
                count = 2
                while artifacts_names.folded(artifacts_names.numbered(place, count)) in taken:
                    count += 1
                found = artifacts_names.numbered(place, count)
                taken.add(artifacts_names.folded(found))
                self._places[key, name] = found

    def write(self, chosen: Callable[[Manifest], bool], listing: BinaryIO) -> None:
        """Write the files, and a line for each artifact."""
        for manifest in self._reader.manifests():
            if not chosen(manifest):
                continue
            place, why = None, None
            if self._wanted(manifest):
                place, why = self._placed(manifest)
            else:
                self.report.left += 1
                why = "it is not complete"
            if place is not None:
                self.report.artifacts += 1
                self._note(manifest, place)
            entry = {"file": place and "/".join(place), **described(manifest)}
            if why:
                entry["why"] = why
            _write_all(listing, f"{json_safe(json.dumps(entry, ensure_ascii=False))}\n".encode())

    def _placed(self, manifest: Manifest) -> tuple[_Place | None, str | None]:
        """Where an artifact is written to, None and why where it can't be."""
        place = _NAMES[self._layout](manifest)
        key = artifacts_names.folded(place), artifacts_names.artifact_id(manifest)
        if key not in self._done:
            self._done[key] = None
            try:
                self._done[key] = self._file(manifest, self._places[key])
            except FullError:
                raise
            except KcapError as e:
                kind = "skipped" if isinstance(e, OutputError | LimitError) else "damaged"
                why = _reason(e)
                self.report.losses.append(Loss(kind, None, f"{manifest.title}: {why}"))
                return None, why
        found = self._done[key]
        return found, None if found else "as another of this content and name"

    def _file(self, manifest: Manifest, place: _Place) -> _Place:
        """Write the file of an artifact."""
        bits = artifacts_names.number(manifest.details, "mode") or 0
        runs = artifacts_names.kind_of(manifest) == "exec" or bool(bits & _EXECUTE_BITS)
        executable = self._executable and runs
        try:
            with self._folder.created(place, executable=executable) as stream:
                self._content(manifest, stream, lenient=False)
        except DamagedError as e:
            if not self._incomplete:
                raise
            self.report.losses.append(Loss("damaged", None, f"{manifest.title}: {_reason(e)}"))
            if not place[-1].endswith(artifacts_names.INCOMPLETE):
                place = (*place[:-1], place[-1] + artifacts_names.INCOMPLETE)
            with self._folder.created(place, executable=executable) as stream:
                self._content(manifest, stream, lenient=True)
        self.report.files += 1
        return place

    def _content(self, manifest: Manifest, stream: BinaryIO, *, lenient: bool) -> None:
        """Write the bytes; holes stay holes."""
        digest = hashlib.sha256()
        hashed = manifest.sha256 is not None and not lenient
        written = 0
        for extent in manifest.extents():
            data = None
            if extent.sha256 is not None:
                if written + extent.length > self._room:
                    raise LimitError("it does not fit what may be written")
                try:
                    data = self._reader.blobs.block(extent)
                except KcapError as e:
                    if not lenient:
                        raise DamagedError(e.what, offset=e.offset) from e
            if data is None:
                stream.seek(extent.length, os.SEEK_CUR)
                for start in range(0, extent.length if hashed else 0, len(_ZEROS)):
                    digest.update(_ZEROS[: extent.length - start])
                continue
            if hashed:
                digest.update(data)
            _write_all(stream, data)
            written += len(data)
        stream.truncate(manifest.size)
        if hashed and digest.hexdigest() != manifest.sha256:
            raise DamagedError("its content does not have its SHA-256")
        self._room -= written
        self.report.bytes += written

    def _note(self, manifest: Manifest, place: _Place) -> None:
        """Take note of a line of Tracee's index."""
        kind = artifacts_names.kind_of(manifest)
        if self._layout == "tracee" and manifest.path:
            for index, told in tracee_names.INDEXES.items():
                if told == kind:
                    self._index[index]["/".join(place[1:])] = printable(manifest.path)

    def write_indexes(self) -> None:
        """Write the index files of Tracee's layout that have a line."""
        for index, lines in self._index.items():
            if not lines:
                continue
            try:
                with self._folder.created((tracee_names.OUT, index)) as stream:
                    for name in sorted(lines):
                        _write_all(stream, f"{name} {lines[name]}\n".encode())
            except RefusedError as e:
                self.report.losses.append(Loss("skipped", None, f"{index}: {_reason(e)}"))


def described(manifest: Manifest) -> dict[str, Any]:
    """All that a capture says of an artifact.

    Args:
        manifest: The artifact.

    Returns:
        Plain JSON values; of the missing ranges the first hundred.
    """
    missing = manifest.missing
    return {
        "id": artifacts_names.artifact_id(manifest),
        "kind": artifacts_names.kind_of(manifest),
        "sha256": manifest.sha256,
        "size": manifest.size,
        "path": manifest.path,
        "complete": manifest.complete,
        "truncated": manifest.truncated,
        "missing_bytes": sum(extent.length for extent in missing),
        "missing": [
            {"offset": extent.offset, "length": extent.length, "reason": extent.reason}
            for extent in missing[:RANGES_SHOWN]
        ],
        "hole_bytes": sum(extent.length for extent in manifest.holes),
        "origin": manifest.origin,
        "ord": manifest.ord,
        "details": dict(manifest.details),
    }


def _write_all(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _reason(error: KcapError) -> str:
    place = f" at {error.place}" if error.place else ""
    return f"{error.what}{place}"
