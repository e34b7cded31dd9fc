"""Redacted copies of captures: a sink for all that a capture has, and its blobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kcap import limits
from kcap.format.blobs import Gap, Manifest, holes_hashed
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Heartbeat, Loss
from kcap.replay.artifacts import Artifacts, Carrying
from kcap.replay.rebatch import Rebatcher, canonical
from kcap.transform.hiding import Hider

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source

DIGEST: Final = "redacted_sha256"
"""Detail of a blob with the token of the hash of what is not there."""

_REASON: Final = "left out of this redacted copy"
_ZEROS: Final = bytes(limits.BLOB_BLOCK_BYTES)


class Blobs(StrEnum):
    """What becomes of blobs."""

    DROP = "drop"
    """They are left out."""
    HASH = "hash"
    """Their size stays, and a token that equal ones have in common."""
    KEEP = "keep"
    """They stay as they are."""


class RedactedArtifacts(Artifacts):
    """The blobs of a capture, as its redacted copy has them: with nothing to hide in their names.

    Args:
        sources: The captures.
        hider: Hides.
        blobs: What becomes of them.
    """

    def __init__(self, sources: Iterable[Source], hider: Hider, blobs: Blobs) -> None:
        super().__init__(sources, unnamed=True)
        self._hider = hider
        self._blobs = blobs

    @property
    def number(self) -> int:
        """How many blobs the captures have."""
        return len(self._listed) + sum(1 for r in self._readers for _ in r.manifests())

    def carry(self, writer: CaptureWriter) -> None:
        """See `kcap.replay.artifacts.Artifacts.carry`."""
        if self._blobs is not Blobs.DROP:
            super().carry(writer)

    def _goes_along(self, manifest: Manifest) -> bool:
        return True

    def _copy(
        self, manifest: Manifest, parts: Iterable[bytes | Gap], writer: CaptureWriter
    ) -> None:
        hider = self._hider
        texts = [manifest.path or "", manifest.truncated or "", *manifest.reasons]
        path, truncated, *reasons = hider.texts(texts)
        bare = replace(
            manifest,
            path=None if manifest.path is None else path,
            truncated=None if manifest.truncated is None else truncated,
            reasons=tuple(reasons),
            details=hider.details(manifest.details),
        )
        if self._blobs is Blobs.KEEP:
            hidden = dict(zip(manifest.reasons, reasons, strict=True))
            super()._copy(bare, _renamed(parts, hidden), writer)
            return
        size, digest = manifest.size, manifest.sha256
        if not manifest.table:
            size, digest = _measured(parts)
        details = dict(bare.details)
        if digest is not None:
            details[DIGEST] = hider.key.token(digest)
        blob = writer.blobs.begin(
            path=bare.path, origin=manifest.origin, ord=manifest.ord, details=details
        )
        blob.gap(size, _REASON)
        blob.close(truncated=bare.truncated)


def _renamed(parts: Iterable[bytes | Gap], reasons: Mapping[str, str]) -> Iterator[bytes | Gap]:
    """The parts of a blob, why some are missing in other words."""
    for part in parts:
        if isinstance(part, Gap) and part.reason is not None:
            yield Gap(part.length, reasons.get(part.reason, part.reason))
        else:
            yield part


def _measured(parts: Iterable[bytes | Gap]) -> tuple[int, str | None]:
    """Size and hash of what is not in a capture yet; no hash where a part of it is missing."""
    size, holes, digest, whole = 0, 0, hashlib.sha256(), True
    for part in parts:
        if not isinstance(part, Gap):
            digest.update(part)
            size += len(part)
            continue
        holes += part.length
        size += part.length
        whole = whole and part.reason is None and holes_hashed(holes)
        for start in range(0, part.length if whole else 0, len(_ZEROS)):
            digest.update(_ZEROS[: part.length - start])
    return size, digest.hexdigest() if whole else None


class Copy(Carrying):
    """A sink before a writer that takes all of a capture but its heartbeats.

    Args:
        writer: The writer; closed with this.
        artifacts: The blobs.
        rows: Where not None, nothing may show how the events came: rows of the batches that are
            handed on.
        ending: What is to be said when all events have come.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        artifacts: Artifacts,
        *,
        rows: int | None = None,
        ending: Sequence[Loss] = (),
    ) -> None:
        super().__init__(writer, artifacts)
        self._rebatcher = None if rows is None else Rebatcher(rows)
        self._ending = ending

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        before = [side for side in batch.before if not isinstance(side, Heartbeat)]
        batch = batch.with_before(before)
        for part in [batch] if self._rebatcher is None else self._rebatcher.add(batch):
            super().write(canonical(part))

    def finish(self) -> None:
        """Say what was left out, then write the blobs."""
        if self._ending:
            self.write(EMPTY.with_before(self._ending))
        for part in self._rebatcher.end() if self._rebatcher else ():
            super().write(part)
        super().finish()
