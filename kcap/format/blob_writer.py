"""Writing blobs: blocks as their bytes come, then the manifest (spec/kcap.md, clause 9)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from kcap import limits
from kcap.errors import FullError, LimitError, OutputError
from kcap.format import blobs, body
from kcap.format.blobs import Block, Gap, Manifest
from kcap.format.record import Kind
from kcap.model.artifact import Artifact

_REASON_CHARS: Final = 800
_DESCRIPTION_BYTES: Final = 512 << 10
"""JSON of a blob's path and details: the other half of the body is for reasons."""

_ZEROS: Final = bytes(limits.BLOB_BLOCK_BYTES)


class BlobStore:
    """The blobs of a capture that is being written; blocks of several, and events, may alternate.

    It remembers the hash of every block, about 130 bytes for each: 13 MB for 100 GiB of blobs.
    """

    def __init__(self, append: Callable[[Kind, bytes], object], level: int) -> None:
        """Begin with none.

        Args:
            append: Appends a record to the capture.
            level: zstd's level.
        """
        self._append = append
        self._level = level
        self._known: set[bytes] = set()
        self._open: list[BlobWriter] = []
        self._begun = 0

    def begin(
        self,
        *,
        path: str | None = None,
        origin: str | None = None,
        ord: int | None = None,  # noqa: A002
        details: Mapping[str, Any] | None = None,
    ) -> BlobWriter:
        """Begin a blob whose bytes come while events are written.

        Args:
            path: Where the artifact was.
            origin: With ``ord`` the event for which it is taken.
            ord: See ``origin``.
            details: Anything else worth keeping, as plain JSON values.

        Returns:
            Where its bytes go; a context manager.

        Raises:
            LimitError: Path and details are more than a capture can hold, or it has as many blobs
                as it can have.
        """
        fields = {"details": dict(details or {}), "ord": ord, "origin": origin, "path": path}
        # What no reader would take is refused before there are blocks that belong to nothing.
        text = body.pack(fields, _DESCRIPTION_BYTES)
        if self._begun >= limits.BLOBS:
            raise LimitError(f"the capture has {limits.BLOBS:,} blobs, the most it can")
        self._begun += 1
        made = BlobWriter(self, body.unpack_object(text, "a blob's description"))
        self._open.append(made)
        return made

    def write(
        self,
        parts: Iterable[bytes | Gap],
        *,
        path: str | None = None,
        origin: str | None = None,
        ord: int | None = None,  # noqa: A002
        details: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write a blob as its bytes come.

        Args:
            parts: Its bytes in any division, with a `Gap` for each range that has none.
            path: As for `begin`.
            origin: As for `begin`.
            ord: As for `begin`.
            details: As for `begin`.

        Returns:
            What is in the capture now. Where ``parts`` fails that is what came before, and the
            failure goes on to the caller.

        Raises:
            LimitError: Path and details are more than a capture can hold, or it has as many blobs
                as it can have.
        """
        with self.begin(path=path, origin=origin, ord=ord, details=details) as blob:
            self._take(blob, parts)
        return blob.close()

    def artifact(self, side: Artifact) -> str | None:
        """Write an artifact that came with events.

        Args:
            side: The artifact.

        Returns:
            Why it is not in the capture, or not whole; None where all that there is of it is.

        Raises:
            OutputError: Nothing can be written any more.
        """
        name = side.path or "of no path"
        try:
            with self.begin(
                path=side.path, origin=side.origin, ord=side.ord, details=side.described
            ) as blob:
                self._take(blob, side.content.parts())
                blob.close(truncated=side.truncated)
        # What happened is worth more than that one file is whole: events go on.
        except FullError:
            why = "there was no room left for it"
            try:
                blob.close(truncated=why)
            except FullError:
                self._open.remove(blob)
            return why
        except (LimitError, OSError) as e:
            return f"{name}: {e}"
        return None

    @staticmethod
    def _take(blob: BlobWriter, parts: Iterable[bytes | Gap]) -> None:
        for part in parts:
            if blob.full:
                break
            if isinstance(part, Gap):
                blob.gap(*part)
            else:
                blob.write(part)

    def block(self, data: bytes) -> bytes | None:
        """Put a block into the capture, unless it is there already.

        Args:
            data: 1 byte to 1 MiB.

        Returns:
            Its SHA-256; None where the capture has as many blocks as it may have.
        """
        block = Block.of(data)
        if block.sha256 not in self._known:
            if len(self._known) >= limits.BLOB_BLOCKS:
                return None
            self._append(Kind.BLOB_BLOCK, blobs.pack_block(block, self._level))
            self._known.add(block.sha256)
        return block.sha256

    def end(self, blob: BlobWriter, manifest: Manifest) -> None:
        """Put a manifest into the capture.

        Args:
            blob: Whose it is.
            manifest: The manifest.
        """
        self._append(Kind.BLOB_MANIFEST, manifest.pack())
        self._open.remove(blob)

    def close(self) -> None:
        """End the blobs that nobody ended."""
        for blob in list(self._open):
            blob.close(truncated="the capture ended before")


class BlobWriter:
    """Takes the bytes of one blob, in any division; events may be written in between.

    As a context manager it ends the blob, also where reading the artifact fails: what came before
    that is kept, with the failure as the reason why the rest is not there.
    """

    def __init__(self, store: BlobStore, fields: Mapping[str, Any]) -> None:
        """Begin; see `BlobStore.begin`.

        Args:
            store: The capture's blobs.
            fields: What is known of the blob.
        """
        self._fields = fields
        self._store = store
        self._held = bytearray()
        self._hash = hashlib.sha256()
        self._ranges = bytearray()
        self._reasons: dict[str, int] = {}
        self._gap: Gap | None = None
        self._size = 0
        self._hole_bytes = 0
        self._count = 0
        self._full: str | None = None
        self._manifest: Manifest | None = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the blob."""
        if error is None:
            self.close()
        elif not isinstance(error, OutputError):  # where nothing can be written any more
            self.close(truncated=f"reading it failed: {str(error) or type(error).__name__}")

    @property
    def full(self) -> bool:
        """The format can hold no more of it: more bytes are counted as cut off."""
        return self._full is not None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Args:
            data: Any number of them.
        """
        view = memoryview(data).cast("B")
        if len(view):
            self._end_gap()
        while len(view) and not self.full:
            room = limits.BLOB_BLOCK_BYTES - len(self._held)
            self._held += view[:room]
            view = view[room:]
            if len(self._held) == limits.BLOB_BLOCK_BYTES:
                self._end_block()

    def gap(self, length: int, reason: str | None = None) -> None:
        """Pass over a range that has no bytes.

        Args:
            length: Its length.
            reason: Why its bytes are missing; None for a hole of a sparse artifact.
        """
        assert length >= 0
        if not length:
            return
        self._end_block()
        if self._gap is not None and self._gap.reason == reason:
            length += self._gap.length
        else:
            self._end_gap()
        self._gap = Gap(length, reason)

    def close(self, *, truncated: str | None = None) -> Manifest:
        """End the blob.

        Args:
            truncated: Why the rest of it is not there, where its length is not known.

        Returns:
            What is in the capture now.
        """
        if self._manifest is not None:
            return self._manifest
        self._end_block()
        self._end_gap()
        truncated = self._full or (truncated and truncated[:_REASON_CHARS])
        complete = truncated is None and not self._reasons
        hashed = complete and blobs.holes_hashed(self._hole_bytes)
        made = Manifest(
            self._hash.hexdigest() if hashed else None,
            self._size,
            truncated=truncated,
            reasons=tuple(self._reasons),
            table=bytes(self._ranges),
            **self._fields,
        )
        self._store.end(self, made)
        self._manifest = made
        return made

    def _end_block(self) -> None:
        """Write the bytes held as a block."""
        data = bytes(self._held)
        self._held.clear()
        if not data or not self._has_room(len(data)):
            return
        digest = self._store.block(data)
        if digest is None:
            self._full = f"a capture holds {limits.BLOB_BLOCKS:,} different blocks at most"
            return
        self._hash.update(data)
        self._add(len(data), digest)

    def _end_gap(self) -> None:
        """Write the range without bytes that has come to its end."""
        gap, self._gap = self._gap, None
        if gap is None or not self._has_room(gap.length):
            return
        if gap.reason is not None:
            self._add(gap.length, None, self._reason(gap.reason))
            return
        self._hole_bytes += gap.length
        if blobs.holes_hashed(self._hole_bytes):
            for start in range(0, gap.length, len(_ZEROS)):
                self._hash.update(_ZEROS[: gap.length - start])
        self._add(gap.length, None)

    def _has_room(self, length: int) -> bool:
        """Whether the format can hold a range more."""
        if self._count >= limits.BLOB_RANGES:
            self._full = f"a blob has {limits.BLOB_RANGES:,} ranges at most"
        elif self._size + length > limits.BLOB_BYTES:
            self._full = f"a blob has {limits.BLOB_BYTES:,} bytes at most"
        return not self.full

    def _add(self, length: int, digest: bytes | None, reason: int | None = None) -> None:
        self._ranges += blobs.pack_range(length, digest, reason)
        self._size += length
        self._count += 1

    def _reason(self, reason: str) -> int:
        """The number of a reason; those that are too many share one."""
        reason = reason[:_REASON_CHARS]
        if reason not in self._reasons and len(self._reasons) >= limits.BLOB_REASONS - 1:
            reason = "and others"
        return self._reasons.setdefault(reason, len(self._reasons))
