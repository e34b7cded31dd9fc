"""Artifacts on their way into a capture: those whose event goes there, too.

Those of captures are its blobs. A foreign source that has artifacts beside its events has a list
of them, ``artifacts``; it gives them between its events, too, where nothing chooses among those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.errors import KcapError
from kcap.format.blobs import Gap, Manifest
from kcap.format.reader import CaptureReader
from kcap.model.artifact import Artifact
from kcap.model.classes import I64_MIN
from kcap.model.side import Loss

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.batch import Batch
    from kcap.model.stream import Source

_ZEROS: Final = bytes(1 << 16)
_Content = tuple[str | None, int | None, str | None, str | None, bytes, str]


class Artifacts:
    """The blobs of some captures, and which of them go along.

    Args:
        sources: The captures, and foreign sources. The blobs of a pipe, which stand among its
            events, are counted.
        unnamed: Take the blobs too that belong to no event.
    """

    def __init__(self, sources: Iterable[Source], *, unnamed: bool) -> None:
        self.losses: list[Loss] = []
        """What is damaged or gone of the blobs that went along."""
        sources = list(sources)
        captures = [s for s in sources if isinstance(s, CaptureReader)]
        foreign = [s for s in sources if not isinstance(s, CaptureReader)]
        self._listed: list[Artifact] = [a for s in foreign for a in listed(s)]
        self._readers = [s for s in captures if s.window.seekable]
        self._pipes = [s for s in captures if not s.window.seekable]
        self._wanted: dict[str, npt.NDArray[np.int64]] = {}
        self._chosen: set[tuple[str, int]] = set()
        found: dict[str, set[int]] = {}
        for reader in self._readers:
            for manifest in reader.manifests():
                if manifest.origin is not None and manifest.ord is not None:
                    found.setdefault(manifest.origin, set()).add(manifest.ord)
        for artifact in self._listed:
            if artifact.origin is not None and artifact.ord is not None:
                found.setdefault(artifact.origin, set()).add(artifact.ord)
        for origin, ords in found.items():
            self._wanted[origin] = np.array(sorted(ords), np.int64)
        self._unnamed = unnamed

    def another(self, *, unnamed: bool) -> Artifacts:
        """The same captures for another copy of theirs.

        Args:
            unnamed: As for this.

        Returns:
            Their blobs, of which none goes along yet.
        """
        made = Artifacts((), unnamed=unnamed)
        made._readers, made._pipes = self._readers, self._pipes
        made._wanted, made._listed = self._wanted, self._listed
        return made

    def without(self, batch: Batch) -> Batch:
        """Leave to `carry` the artifacts that come between the events.

        Args:
            batch: Events and side records.

        Returns:
            The batch without those that a source has listed.
        """
        if not self._listed or not batch.before:
            return batch
        return batch.with_before([s for s in batch.before if not isinstance(s, Artifact)])

    def includes(self, manifest: Manifest) -> bool:
        """Whether an artifact goes along, by the events so far.

        Args:
            manifest: The artifact.

        Returns:
            True where its event does.
        """
        return self._goes_along(manifest)

    def follow(self, batch: Batch) -> None:
        """Take note of the events that go along.

        Args:
            batch: The events.
        """
        column = batch.get("origin")
        if not self._wanted or column is None:
            return
        ords = batch.numpy("ord", I64_MIN)
        codes = np.full(batch.rows, -1, np.int64)
        codes[slice(None) if column.rows is None else column.rows] = column.codes()
        for code, origin in enumerate(column.values.dictionary.to_pylist()):
            if origin in self._wanted:
                mine = np.intersect1d(ords[codes == code], self._wanted[origin])
                self._chosen.update((origin, ord_) for ord_ in mine.tolist())

    def carry(self, writer: CaptureWriter) -> None:
        """Write the blobs of the events that went along.

        Args:
            writer: The capture to write them to; all events are in it.
        """
        for pipe in self._pipes:
            if pipe.blobs.passed:
                what = f"{pipe.blobs.passed:,} blobs of a pipe stayed behind"
                self.losses.append(Loss("skipped", None, f"{what}; save it to a file first"))
                pipe.blobs.passed = 0
        if not self._chosen and not self._unnamed:
            return
        written: set[_Content] = set()
        for reader in self._readers:
            for manifest in reader.manifests():
                if self._goes_along(manifest) and (same := _content(manifest)) not in written:
                    written.add(same)
                    self._copy(manifest, self._parts(reader, manifest), writer)
            self.losses += reader.blobs.losses
        for artifact in self._listed:
            manifest = described(artifact)
            if self._goes_along(manifest) and (same := _content(manifest)) not in written:
                written.add(same)
                self._copy(manifest, artifact.content.parts(), writer)

    def _goes_along(self, manifest: Manifest) -> bool:
        if manifest.origin is None or manifest.ord is None:
            return self._unnamed
        return (manifest.origin, manifest.ord) in self._chosen

    def _copy(
        self, manifest: Manifest, parts: Iterable[bytes | Gap], writer: CaptureWriter
    ) -> None:
        """Write a blob as its parts come."""
        blob = writer.blobs.begin(
            path=manifest.path, origin=manifest.origin, ord=manifest.ord, details=manifest.details
        )
        truncated = manifest.truncated
        try:
            for part in parts:
                if isinstance(part, Gap):
                    blob.gap(*part)
                else:
                    blob.write(part)
        except OSError as e:
            truncated = f"reading it failed: {e.strerror or e}"
            self.losses.append(Loss("damaged", None, f"{manifest.title}: {truncated}"))
        blob.close(truncated=truncated)

    def _parts(self, reader: CaptureReader, manifest: Manifest) -> Iterator[bytes | Gap]:
        """The parts of a capture's blob, a block at a time; what is damaged is missing."""
        for extent in manifest.extents():
            if extent.sha256 is None:
                yield Gap(extent.length, extent.reason)
                continue
            try:
                data = reader.blobs.block(extent)
            except KcapError as e:
                why = f"{e.what}{f' at {e.place}' if e.place else ''}"
                self.losses.append(Loss("damaged", 0, f"{manifest.title}: {why}"))
                yield Gap(extent.length, "damaged in the capture that this one is made from")
            else:
                yield data


def listed(source: Source) -> Sequence[Artifact]:
    """The artifacts that a foreign source has beside its events.

    Args:
        source: The source.

    Returns:
        Them, in an order of their own; none where it has no list.
    """
    found: Sequence[Artifact] = getattr(source, "artifacts", ())
    return found


def described(artifact: Artifact) -> Manifest:
    """What is known of an artifact before it is read.

    Args:
        artifact: The artifact.

    Returns:
        A manifest without hash and ranges.
    """
    return Manifest(
        None,
        0,
        path=artifact.path,
        origin=artifact.origin,
        ord=artifact.ord,
        truncated=artifact.truncated,
        details=artifact.described,
    )


def hashed(artifact: Artifact) -> Manifest:
    """What is known of an artifact, with the hashes of its content where all of it is there.

    Args:
        artifact: The artifact; it is read.

    Returns:
        A manifest without ranges.

    Raises:
        OSError: It can't be read any more.
    """
    manifest = described(artifact)
    if artifact.truncated is not None:
        return manifest
    holes = 0
    made = {name: hashlib.new(name, usedforsecurity=False) for name in ("sha256", "sha1", "md5")}
    for part in artifact.content.parts():
        if isinstance(part, Gap):
            holes += part.length
            if part.reason is not None or holes > limits.BLOB_HASHED_HOLES:
                return manifest
            left = part.length
            while left:
                zeros = _ZEROS[: min(left, len(_ZEROS))]
                for digest in made.values():
                    digest.update(zeros)
                left -= len(zeros)
        else:
            for digest in made.values():
                digest.update(part)
    told = {name: digest.hexdigest() for name, digest in made.items()}
    details = {**manifest.details, "sha1": told["sha1"], "md5": told["md5"]}
    return replace(manifest, sha256=told["sha256"], details=details)


class Carrying:
    """A sink before a writer: blobs go along with the events.

    Args:
        writer: The writer; closed with this.
        artifacts: The blobs.
    """

    def __init__(self, writer: CaptureWriter, artifacts: Artifacts) -> None:
        self.losses: list[Loss] = []
        """What could not be written."""
        self._writer = writer
        self._artifacts = artifacts
        self._closed = False

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        batch = self._artifacts.without(batch)
        self._artifacts.follow(batch)
        self._writer.write(batch)

    def finish(self) -> None:
        """Write the blobs: all events have come."""
        self._artifacts.carry(self._writer)

    def close(self) -> None:
        """Finish, close the writer."""
        if self._closed:
            return
        self._closed = True
        try:
            self.finish()
        finally:
            self._writer.close()
        self.losses += [*self._writer.losses, *self._artifacts.losses]


def _content(manifest: Manifest) -> _Content:
    """What two captures may both have."""
    table = hashlib.sha256(manifest.table).digest()
    where = str(manifest.details.get("file"))
    return manifest.origin, manifest.ord, manifest.path, manifest.sha256, table, where
