"""The artifacts of a run by what events know of them: their place in a recording, hash, path."""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kcap import limits
from kcap.binaries.parts import CONTENT_BYTES
from kcap.errors import KcapError
from kcap.model.artifact import Artifact, Gap
from kcap.model.side import Loss

if TYPE_CHECKING:
    from kcap.format.blobs import Manifest
    from kcap.format.reader import CaptureReader
    from kcap.model.side import Side
    from kcap.model.stream import Source

_OF_FILES: Final = frozenset({"exec", "write", "module"})
"""Kinds whose content is that of the file at their path."""

LIVE_BYTES: Final = 256 << 20
"""What is kept in memory of artifacts of a recorder."""

_ZEROS: Final = bytes(1 << 20)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """An artifact."""

    number: int
    """The how manieth it is."""
    kind: str
    path: str | None
    origin: str | None
    ord: int | None
    sha256: str | None
    """Of its content, in hex; None where not all of it is there."""
    size: int
    """In bytes, as far as it was taken."""
    details: Mapping[str, Any]
    parts: Callable[[], Iterable[bytes]] = field(repr=False)
    """Gives its bytes, zeros for what is missing."""

    @property
    def key(self) -> object:
        """What only artifacts of the same content share."""
        return self.sha256 or self.number

    def content(self) -> bytes:
        """Its bytes, of a long one the first `CONTENT_BYTES`.

        Raises:
            KcapError: It can't be read.
        """
        found = bytearray()
        for part in self.parts():
            found += part[: CONTENT_BYTES - len(found)]
            if len(found) >= CONTENT_BYTES:
                break
        return bytes(found)


class Library:
    """The artifacts of captures, and those that a recorder gives on its way."""

    def __init__(self) -> None:
        self.losses: list[Loss] = []
        """Artifacts that can't be looked at."""
        self.by_sha256: dict[str, Entry] = {}
        self.unnamed: list[Entry] = []
        """Those of no event."""
        self.added: list[Entry] = []
        """Those that a recorder gave with the last events."""
        self._by_event: dict[str, dict[int, list[Entry]]] = {}
        self._by_path: dict[tuple[str, str], list[tuple[int, int, Entry]]] = {}
        self._readers: list[CaptureReader] = []
        self._held: OrderedDict[int, tuple[Entry, int]] = OrderedDict()
        self._held_bytes = 0
        self._count = 0
        self._given_up = 0

    def bind(self, sources: Iterable[Source]) -> None:
        """Take notice of the artifacts of captures.

        Args:
            sources: The sources of a run; those that are no captures have none. A capture that
                comes out of a pipe can't be asked for its artifacts.
        """
        from kcap.format.reader import CaptureReader

        for source in sources:
            if not isinstance(source, CaptureReader) or source in self._readers:
                continue
            self._readers.append(source)
            if not source.window.seekable:
                reason = "the artifacts of a pipe are not looked at: save it to a file first"
                self.losses.append(Loss("blind", None, reason))
                continue
            for manifest in source.manifests():
                self._count += 1
                self._add(_entry(self._count, source, manifest))

    @property
    def all_losses(self) -> list[Loss]:
        """What could not be looked at, damaged blobs included."""
        found = [*self.losses, *(loss for r in self._readers for loss in r.blobs.losses)]
        if self._given_up:
            reason = "artifacts that came before were forgotten: they are too much for the memory"
            found.append(Loss("evicted", self._given_up, reason))
        return list(dict.fromkeys(found))

    def note(self, sides: Iterable[Side]) -> None:
        """Take notice of artifacts that a recorder gives.

        Args:
            sides: What stands beside events.
        """
        self.added = []
        for side in sides:
            if isinstance(side, Artifact):
                self._count += 1
                entry = _live(self._count, side)
                self._add(entry)
                self.added.append(entry)
                self._hold(entry, side.content.nbytes)

    def events(self, origin: str) -> Mapping[int, list[Entry]]:
        """The artifacts of a recording by the event that each belongs to.

        Args:
            origin: The recording.

        Returns:
            By ``ord``.
        """
        return self._by_event.get(origin, {})

    def at(self, origin: str, path: str) -> list[tuple[int, Entry]]:
        """What was taken at a path.

        Args:
            origin: The recording.
            path: The path.

        Returns:
            Each artifact with the ``ord`` of its event, ascending.
        """
        return [(ord_, entry) for ord_, _, entry in self._by_path.get((origin, path), ())]

    def before(self, origin: str, path: str, ord_: int) -> Entry | None:
        """What was taken last at a path.

        Args:
            origin: The recording.
            path: The path.
            ord_: No later than at this event.

        Returns:
            The artifact; None where there is none.
        """
        found = self._by_path.get((origin, path), [])
        at = bisect_right(found, ord_, key=lambda item: item[0])
        return found[at - 1][2] if at else None

    def paths(self, origin: str) -> Iterator[str]:
        """The paths at which artifacts were taken.

        Args:
            origin: The recording.

        Yields:
            Each once.
        """
        for known, path in self._by_path:
            if known == origin:
                yield path

    def __iter__(self) -> Iterator[Entry]:
        for by_ord in self._by_event.values():
            for entries in by_ord.values():
                yield from entries
        yield from self.unnamed

    def _add(self, entry: Entry) -> None:
        if entry.sha256 is not None:
            self.by_sha256.setdefault(entry.sha256, entry)
        if entry.origin is None or entry.ord is None:
            self.unnamed.append(entry)
            return
        self._by_event.setdefault(entry.origin, {}).setdefault(entry.ord, []).append(entry)
        if entry.path is not None and entry.kind in _OF_FILES:
            found = self._by_path.setdefault((entry.origin, entry.path), [])
            insort(found, (entry.ord, entry.number, entry), key=lambda item: item[:2])

    def _hold(self, entry: Entry, nbytes: int) -> None:
        """Forget the oldest artifacts of a recorder where they are too many."""
        self._held[entry.number] = entry, nbytes
        self._held_bytes += nbytes
        while self._held and (self._held_bytes > LIVE_BYTES or len(self._held) > limits.BLOBS):
            _, (oldest, size) = self._held.popitem(last=False)
            self._held_bytes -= size
            self._given_up += 1
            self._forget(oldest)

    def _forget(self, entry: Entry) -> None:
        if entry.sha256 is not None and self.by_sha256.get(entry.sha256) is entry:
            del self.by_sha256[entry.sha256]
        if entry.origin is None or entry.ord is None:
            self.unnamed.remove(entry)
            return
        self._by_event[entry.origin][entry.ord].remove(entry)
        if not self._by_event[entry.origin][entry.ord]:
            del self._by_event[entry.origin][entry.ord]
        key = entry.origin, entry.path or ""
        kept = [item for item in self._by_path.get(key, ()) if item[2] is not entry]
        if kept:
            self._by_path[key] = kept
        else:
            self._by_path.pop(key, None)


def _entry(number: int, reader: CaptureReader, manifest: Manifest) -> Entry:
    """A blob of a capture."""
    return Entry(
        number,
        str(manifest.details.get("kind", "")),
        manifest.path,
        manifest.origin,
        manifest.ord,
        manifest.sha256,
        manifest.size,
        manifest.details,
        lambda: reader.blob(manifest, lenient=True),
    )


def _live(number: int, artifact: Artifact) -> Entry:
    """An artifact that a recorder gives."""
    digest, size = hashlib.sha256(), 0
    whole = artifact.truncated is None
    try:
        for part in artifact.content.parts():
            if isinstance(part, Gap):
                whole = whole and part.reason is None and part.length <= limits.BLOB_HASHED_HOLES
                size += part.length
                for zeros in _zeros(part.length) if whole else ():
                    digest.update(zeros)
            else:
                size += len(part)
                digest.update(part)
    except OSError:
        whole = False
    return Entry(
        number,
        artifact.kind,
        artifact.path,
        artifact.origin,
        artifact.ord,
        digest.hexdigest() if whole else None,
        size,
        artifact.details,
        lambda: _bytes(artifact),
    )


def _bytes(artifact: Artifact) -> Iterator[bytes]:
    try:
        for part in artifact.content.parts():
            if isinstance(part, Gap):
                yield from _zeros(part.length)
            else:
                yield part
    except OSError as e:
        raise KcapError(f"an artifact can't be read any more: {e.strerror}") from e


def _zeros(length: int) -> Iterator[bytes]:
    for start in range(0, length, len(_ZEROS)):
        yield _ZEROS[: length - start]
