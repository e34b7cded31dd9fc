"""A whole Tracee output directory: its events, and the artifacts beside them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, ClassVar, Final, cast

from kcap import limits
from kcap.errors import KcapError
from kcap.model import tracee_names
from kcap.model.artifact import Artifact, Gap
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import I64_MIN
from kcap.model.side import Loss, Side, SourceInfo
from kcap.model.stream import Source, StreamInfo
from kcap.model.text import clean, printable
from kcap.opening import HEAD_BYTES, decompressed, open_stream
from kcap.readers import tracee_folder_files as files
from kcap.readers.tracee import TraceeReader
from kcap.readers.tracee_folder_files import FileContent, Found
from kcap.readers.tracee_folder_join import Join, Match
from kcap.readers.tracee_folder_packets import Packets
from kcap.readers.tracee_gob import TraceeGobReader
from kcap.replay.merge import Merged
from kcap.replay.pipeline import Pipeline
from kcap.state import State

_EVENTS: Final = (TraceeReader, TraceeGobReader)
_QUIET: Final = {
    *(*tracee_names.INDEXES, tracee_names.PROFILE, "tracee.pid"),
    *("MANIFEST.jsonl", tracee_names.PACKETS),
}
_NAMED: Final = 5


class TraceeFolder:
    """A source of the events and artifacts of a Tracee output directory.

    The directory is the one that Tracee was given, or the ``out`` in it. Events are what of
    Tracee's JSON or gob lies there, or a file that is named. They are read twice: at first to see
    which of them each artifact belongs to. No link, pipe or device in it is opened.

    Args:
        path: The directory.
        lenient: Go on past what are no events, and past damage.
        events: A file with the events.

    Raises:
        KcapError: It can't be read.
    """

    name: ClassVar[str] = "tracee-folder"
    reads: ClassVar[str] = "Tracee output directories (--capture dir:DIR) of all versions"

    def __init__(self, path: str, *, lenient: bool = False, events: str | None = None) -> None:
        self._path = path
        self._lenient = lenient
        self._out = files.below(path) or ()
        self._listing = files.listing(path, self._out)
        if events == "-":
            raise KcapError("events are read twice, so they can't come from a pipe", file=events)
        self._given = events
        self._open: list[Source] = []
        self._losses: list[Loss] = []
        self._packets = (
            Packets(path, self._listing.packets, lenient=lenient) if self._listing.packets else None
        )
        self._refuse()

    @staticmethod
    def sniff(path: str) -> bool:
        """Whether a directory is one of Tracee's.

        Args:
            path: The directory.

        Returns:
            True where it holds artifacts, packets or their index as Tracee lays them out.
        """
        return files.below(path) is not None

    @functools.cached_property
    def _events(self) -> list[tuple[type[TraceeReader], str]]:
        """The files that hold events: reader and path."""
        if self._given is not None:
            with contextlib.closing(open_stream(self._given)) as stream:
                head = decompressed(stream.read(HEAD_BYTES))
            for reader in _EVENTS:
                if reader.sniff(head):
                    return [(reader, self._given)]
            raise KcapError("this holds no events of Tracee", file=self._given)
        found = []
        for parts in self._listing.others:
            if parts[-1] in _QUIET:
                continue
            try:
                with files.opened(self._path, parts) as stream:
                    head = decompressed(stream.read(HEAD_BYTES))
            except OSError as e:
                self._lose(f"{_text(parts)} can't be read: {e.strerror or e}")
                continue
            for reader in _EVENTS:
                if reader.sniff(head):
                    found.append((reader, "/".join(parts)))
                    break
            else:
                self._lose(f"{_text(parts)} is no file of Tracee's")
        return found

    def _sources(self) -> Iterator[Source]:
        """The files with events, opened."""
        for reader, name in self._events:
            made = reader(self._stream(name), self._shown(name), lenient=self._lenient)
            self._open.append(made)
            yield made

    def _stream(self, name: str) -> BinaryIO:
        if self._given is not None:
            return open_stream(name)
        try:
            stream = files.opened(self._path, name.split("/"))
        except OSError as e:
            why = e.strerror or str(e)
            raise KcapError(f"can't be opened: {why}", file=self._shown(name)) from e
        return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", stream)))

    def _shown(self, name: str) -> str:
        return name if self._given is not None else f"{self._path}/{name}"

    @functools.cached_property
    def info(self) -> StreamInfo:
        """The sources of the events; where there are none, the directory itself."""
        sources: tuple[SourceInfo, ...] = ()
        for one in self._sources():
            with contextlib.closing(one):
                sources += one.info.sources
        if self._packets is not None:
            sources += self._packets.info.sources
        if not sources:
            names = "\n".join(one.shown for one in self._listing.artifacts)
            origin = hashlib.sha256(f"{self.name}{names}".encode()).digest()[:16].hex()
            sources = (SourceInfo("tracee", origin=origin, details={"file": self._path}),)
        return StreamInfo(self._path, self.name, sources)

    @functools.cached_property
    def artifacts(self) -> Sequence[Artifact]:
        """The artifacts, each with its event where that is known; in order of their names."""
        found = self._listing.artifacts
        join = Join(found)
        for source in self._sources() if found else ():
            # What ends it early ends the next pass at the same place.
            with contextlib.suppress(KcapError), contextlib.closing(source):
                Pipeline(source, [join]).run()
        paths = self._paths()
        return [
            self._artifact(one, join.matches.get(index), paths) for index, one in enumerate(found)
        ]

    def _artifact(
        self,
        one: Found,
        match: Match | None,
        paths: dict[str, list[str]],
    ) -> Artifact:
        named = one.named
        content = FileContent(self._path, one.parts)
        told = paths.get("/".join(one.parts[-2:]), [])
        details: dict[str, Any] = {"file": one.shown, **(match.told if match else {})}
        if match is not None:
            details["joined_by"] = match.how
        if named.dev is not None:
            details["dev"] = tracee_names.user_device(named.dev)
        details |= {n: v for n in ("inode", "pid") if (v := getattr(named, n)) is not None}
        if named.time is not None:
            details["time_ns"] = named.time
        if named.name is not None:
            details["name"] = clean(os.fsencode(named.name))[0]
        if len(one.container) > 11:  # noqa: PLR2004  (ids have 12 characters or more)
            details["container_id"] = one.container
        elif one.container != "host":
            details["mount_ns"] = int(one.container)
        if len(told) > 1:
            details["other_paths"] = told[:-1]
        self._verify(one, content)
        path = told[-1] if told else match.path if match else None
        origin, ord_ = (match.origin, match.ord) if match else (None, None)
        details = {n: v for n, v in details.items() if v not in (None, "")}
        return Artifact(named.kind, content, path, origin, ord_, None, details)

    def _verify(self, one: Found, content: FileContent) -> None:
        """Compare a content with the hash in its name."""
        if one.named.sha256 is None:
            return
        digest = hashlib.sha256()
        zeros = bytes(limits.BLOB_BLOCK_BYTES)
        holes = 0
        try:
            for part in content.parts():
                if not isinstance(part, Gap):
                    digest.update(part)
                    continue
                holes += part.length
                if holes > limits.BLOB_HASHED_HOLES:
                    self._lose(f"{one.shown}: too long for its SHA-256 to be compared")
                    return
                for start in range(0, part.length, len(zeros)):
                    digest.update(zeros[: part.length - start])
        except OSError as e:
            self._lose(f"{one.shown} can't be read: {e.strerror or e}")
            return
        if digest.hexdigest() != one.named.sha256:
            self._lose(f"{one.shown}: its content does not have the SHA-256 of its name", "damaged")

    def _paths(self) -> dict[str, list[str]]:
        """What the index files say."""
        paths: dict[str, list[str]] = {}
        here = {"/".join(one.parts[-2:]) for one in self._listing.artifacts}
        gone: list[str] = []
        count = 0
        for name in tracee_names.INDEXES:
            if (*self._out, name) not in self._listing.others:
                continue
            try:
                said = files.indexed(self._path, self._out, name, here)
            except OSError as e:
                self._lose(f"{name} can't be read: {e.strerror or e}")
                continue
            paths |= said.paths
            gone += said.gone
            count += said.gone_count
            if said.cut:
                self._lose(f"{name} is longer than the {files.INDEX_BYTES:,} bytes that are read")
        if gone:
            lines = f"{count:,} line" + "s" * (count > 1)
            reason = f"{lines} of the index name what is not there: {', '.join(gone[:_NAMED])}"
            self._lose(reason, "lost")
        return paths

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`: the artifacts stand before the events that they belong to."""
        waiting: dict[str, dict[int, list[Artifact]]] = {}
        rest: list[Artifact] = []
        for one in self.artifacts:
            if one.origin is None or one.ord is None:
                rest.append(one)
            else:
                waiting.setdefault(one.origin, {}).setdefault(one.ord, []).append(one)
        for source in self._streams():
            mine = [a for s in source.info.sources for a in (waiting.pop(s.origin or "", {}),) if a]
            for batch in source.batches():
                sides: list[Side] = list(batch.before)
                ords = batch.numpy("ord", I64_MIN).tolist() if mine and batch.rows else ()
                for place in ords:
                    for known in mine:
                        sides += known.pop(place, ())
                yield batch.with_before(sides)
        rest += [a for by_ord in waiting.values() for found in by_ord.values() for a in found]
        announced: Sequence[Side] = () if self._events or self._packets else self.info.sources
        if self._packets is not None and self._packets.unread:
            self._lose(f"not read: {_some(self._packets.unread)}")
        if rest or self._losses or announced:
            yield EMPTY.with_before([*announced, *rest, *self._losses])

    def _streams(self) -> Iterator[Source]:
        """What is read one after the other: packets stand among the events by their time."""
        if self._packets is None:
            yield from self._sources()
        elif not self._events:
            yield self._packets
        else:
            yield Merged([*self._sources(), self._packets], State())

    def close(self) -> None:
        """See `Source.close`."""
        for source in self._open:
            source.close()

    def _refuse(self) -> None:
        """Say what was not opened."""
        if self._listing.refused:
            names = [clean(os.fsencode(name))[0] for name in self._listing.refused]
            self._lose(f"no files of Tracee's, or links, pipes or devices: {_some(names)}")

    def _lose(self, reason: str, kind: str = "skipped") -> None:
        loss = Loss(kind, None, printable(reason))
        if loss not in self._losses:
            self._losses.append(loss)


def _text(parts: Sequence[str]) -> str:
    return clean(os.fsencode("/".join(parts)))[0]


def _some(names: Sequence[str]) -> str:
    """The first of some names."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
