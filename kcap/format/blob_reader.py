"""Reading and checking the blobs of a capture (spec/kcap.md, clause 9)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kcap import limits
from kcap.errors import DamagedError, KcapError, LimitError
from kcap.format import blobs, record, scan
from kcap.format.blobs import Block, Extent, Manifest
from kcap.format.record import HEADER_BYTES, Kind
from kcap.model.side import Loss

if TYPE_CHECKING:
    from kcap.format.reader import CaptureReader

_KINDS: Final = frozenset({Kind.BLOB_BLOCK, Kind.BLOB_MANIFEST})
_ZEROS: Final = bytes(limits.BLOB_BLOCK_BYTES)
_LISTED: Final = 1000


@dataclass
class _Places:
    """Where blocks and manifests are in a file."""

    blocks: dict[bytes, int] = field(default_factory=dict)
    manifests: list[int] = field(default_factory=list)


class BlobReader:
    """The blobs of a capture.

    Of a file any blob can be read at any time: one pass over the headers of its records, which
    reads no events, finds them all. A stream can be read once: `records` gives what comes.
    """

    def __init__(self, reader: CaptureReader) -> None:
        self._reader = reader
        self._known: _Places | None = None
        self.passing: Callable[[Manifest], object] | None = None
        """Is given each manifest that a reading of all events in file order comes by: of a stream
        events and blobs can't be read one after the other."""
        self.losses: list[Loss] = []
        """What is damaged or gone of the blobs, as far as they were read."""
        self.passed = 0
        """Blobs of a stream that went by while its events were read."""

    def records(self) -> Iterator[Block | Manifest]:
        """Blocks and manifests in file order; also of a stream, as it comes.

        Yields:
            Each block once, before the first manifest that names it.
        """
        for item in self._reader.scanner(kinds=_KINDS).records():
            if isinstance(item, scan.Damage):
                self._note(item)
            elif item.header.kind in _KINDS and _known(item):
                try:
                    made = _unpacked(item)
                except KcapError as e:
                    self._lose(f"{e} at byte {item.offset} (record {item.header.number})")
                    continue
                yield made

    def manifests(self) -> Iterator[Manifest]:
        """What blobs there are.

        Yields:
            Their manifests in file order; of a stream as they come.
        """
        if not self._reader.window.seekable:
            yield from (made for made in self.records() if isinstance(made, Manifest))
            return
        for offset in self._places().manifests:
            try:
                manifest = Manifest.unpack(self._reader.payload_at(offset, Kind.BLOB_MANIFEST))
            except KcapError as e:
                self._lose(f"{e} at byte {offset}")
                continue
            yield manifest

    def read(self, manifest: Manifest, *, lenient: bool = False) -> Iterator[bytes]:
        """The content of a blob.

        Args:
            manifest: Which one.
            lenient: Give zeros for blocks that are damaged or gone, and add them to `losses`.

        Yields:
            Its bytes, at most 1 MiB at a time, each block compared with its hash. Zeros stand for
            holes, and for what the manifest says is missing.

        Raises:
            DamagedError: A block is damaged or gone.
            KcapError: The capture is a stream.
        """
        if not self._reader.window.seekable:
            raise KcapError(
                "a stream's blobs can't be read by name",
                file=self._reader.file,
                hint="save it to a file first, or take blobs.records() as they come",
            )
        for extent in manifest.extents():
            if extent.sha256 is None:
                yield from _zeros(extent.length)
                continue
            try:
                yield self.block(extent)
            except KcapError as e:
                what = f"{_range(extent)} of {manifest.title} can't be read: {e.what}"
                if not lenient:
                    raise DamagedError(
                        what,
                        file=self._reader.file,
                        offset=e.offset,
                        hint="blob(manifest, lenient=True) gives zeros there",
                    ) from e
                self._lose(what + (f" at byte {e.offset}" if e.offset is not None else ""))
                yield from _zeros(extent.length)

    def block(self, extent: Extent) -> bytes:
        """The bytes of a range of a file's blob.

        Args:
            extent: One that has a block.

        Returns:
            Its bytes.

        Raises:
            DamagedError: The block is damaged or gone.
        """
        assert extent.sha256 is not None
        offset = self._places().blocks.get(extent.sha256)
        if offset is None:
            raise DamagedError(f"the block {extent.sha256.hex()} is not in the capture")
        try:
            payload = self._reader.payload_at(
                offset, Kind.BLOB_BLOCK, most=blobs.BLOCK_PAYLOAD_BYTES
            )
            block = blobs.unpack_block(payload)
        except KcapError as e:
            e.offset = offset
            raise
        if len(block.data) != extent.length:
            what = f"the block has {len(block.data)} bytes"
            raise DamagedError(what, offset=offset, expected=str(extent.length))
        return block.data

    def _places(self) -> _Places:
        """Where everything is; by one pass, and by none where the FOOTER counts no blobs."""
        if self._known is None:
            self._known = _Places()
            footer = self._reader.footer
            counts = footer.totals["records"] if footer else dict.fromkeys(k.name for k in _KINDS)
            if any(kind.name in counts for kind in _KINDS):
                self._find(self._known)
        return self._known

    def _find(self, places: _Places) -> None:
        window = self._reader.window
        for item in self._reader.scanner(kinds=()).records():
            if isinstance(item, scan.Damage):
                self._note(item)
            elif not _known(item):
                continue
            elif item.header.kind == Kind.BLOB_MANIFEST:
                places.manifests.append(item.offset)
            elif item.header.kind == Kind.BLOB_BLOCK:
                head = window.read_at(item.offset + HEADER_BYTES, blobs.BLOCK_HEAD_BYTES)
                try:
                    digest = blobs.block_hash(head)
                except KcapError as e:
                    self._lose(f"{e} at byte {item.offset} (record {item.header.number})")
                    continue
                places.blocks.setdefault(digest, item.offset)
            if len(places.blocks) > limits.BLOB_BLOCKS or len(places.manifests) > limits.BLOBS:
                raise LimitError(
                    "more blobs than a capture can hold",
                    file=self._reader.file,
                    offset=item.offset,
                    expected=f"at most {limits.BLOB_BLOCKS:,} blocks and {limits.BLOBS:,} blobs",
                )

    def _note(self, damage: scan.Damage) -> None:
        """Take note of damage that a block or a manifest may have come to."""
        if damage.kind in (None, *_KINDS) and not damage.harmless:
            kind = "torn" if damage.torn else "damaged"
            self._lose(f"{damage.reason} at byte {damage.offset} (record {damage.number})", kind)

    def _lose(self, reason: str, kind: str = "damaged") -> None:
        loss = Loss(kind, None if kind == "torn" else 0, reason)
        if loss not in self.losses:
            self.losses.append(loss)


class BlobCheck:
    """Checks blocks and manifests in file order."""

    def __init__(self, deep: CaptureReader | None = None) -> None:
        """Begin before the first record.

        Args:
            deep: The capture, where each blob of a file is also to be compared with the hash of
                its whole content.
        """
        self._reader = deep if deep and deep.window.seekable else None
        self._blocks: dict[bytes, tuple[int, int]] = {}
        self._unnamed: set[bytes] = set()
        self.recovered = False
        """A RECOVERY stands before: blocks may be gone."""
        self.lacking: list[str] = []
        """Blobs that lack blocks, the first ones where they are many."""

    @property
    def unnamed(self) -> int:
        """Blocks that no manifest names so far."""
        return len(self._unnamed)

    def block(self, item: scan.Record) -> Iterator[str]:
        """Check a BLOB_BLOCK.

        Args:
            item: Its record.

        Yields:
            What is wrong.

        Raises:
            KcapError: It can't be read.
        """
        digest, data = blobs.unpack_block(item.payload)
        if digest in self._blocks:
            yield f"the block stands at byte {self._blocks[digest][0]} already"
            return
        self._blocks[digest] = item.offset, len(data)
        self._unnamed.add(digest)

    def manifest(self, item: scan.Record) -> Iterator[str]:
        """Check a BLOB_MANIFEST.

        Args:
            item: Its record.

        Yields:
            What is wrong.

        Raises:
            KcapError: It can't be read.
        """
        manifest = Manifest.unpack(item.payload)
        whole = True
        for extent in manifest.extents():
            if extent.sha256 is None:
                continue
            self._unnamed.discard(extent.sha256)
            known = self._blocks.get(extent.sha256)
            if known is None:
                whole = False
                if not self.recovered:
                    yield f"no intact block before it holds {_range(extent)} of {manifest.title}"
            elif known[1] != extent.length:
                whole = False
                yield f"{_range(extent)} of {manifest.title} are not as long as their block"
        if not whole and len(self.lacking) < _LISTED:
            self.lacking.append(manifest.title)
        if self._reader and whole and manifest.sha256:
            content = self._digest(self._reader, manifest)
            if content != manifest.sha256:
                yield f"the SHA-256 of {manifest.title} is not that of its content"

    def _digest(self, reader: CaptureReader, manifest: Manifest) -> str:
        digest = hashlib.sha256()
        for extent in manifest.extents():
            if extent.sha256 is None:
                for zeros in _zeros(extent.length):
                    digest.update(zeros)
                continue
            offset, _ = self._blocks[extent.sha256]
            payload = reader.payload_at(offset, Kind.BLOB_BLOCK)
            digest.update(blobs.unpack_block(payload).data)
        return digest.hexdigest()


def _known(item: scan.Record) -> bool:
    """Whether a record is of a version that this kcap knows; all of blobs may be passed over."""
    return item.header.version == record.VERSION


def _unpacked(item: scan.Record) -> Block | Manifest:
    if item.header.kind == Kind.BLOB_BLOCK:
        return blobs.unpack_block(item.payload)
    return Manifest.unpack(item.payload)


def _range(extent: Extent) -> str:
    """A range in messages."""
    return f"bytes {extent.offset} to {extent.offset + extent.length - 1}"


def _zeros(length: int) -> Iterator[bytes]:
    """That many zeros, a part at a time."""
    for start in range(0, length, len(_ZEROS)):
        yield _ZEROS[: length - start]
