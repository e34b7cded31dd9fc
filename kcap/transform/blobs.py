"""Blobs of a capture that is redacted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kcap.format.blobs import Manifest
from kcap.format.reader import CaptureReader
from kcap.replay.artifacts import Artifacts
from kcap.transform.hiding import Hider

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source

DIGEST: Final = "redacted_sha256"
"""Detail of a blob with the token of the hash of what is not there."""

_REASON: Final = "left out of this redacted copy"


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
        return sum(1 for reader in self._readers for _ in reader.manifests())

    def carry(self, writer: CaptureWriter) -> None:
        """See `kcap.replay.artifacts.Artifacts.carry`."""
        if self._blobs is not Blobs.DROP:
            super().carry(writer)

    def _copy(self, reader: CaptureReader, manifest: Manifest, writer: CaptureWriter) -> None:
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
            super()._copy(reader, bare, writer)
            return
        details = dict(bare.details)
        if manifest.sha256 is not None:
            details[DIGEST] = hider.key.token(manifest.sha256)
        blob = writer.blobs.begin(
            path=bare.path, origin=manifest.origin, ord=manifest.ord, details=details
        )
        blob.gap(manifest.size, _REASON)
        blob.close(truncated=bare.truncated)
