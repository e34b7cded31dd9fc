"""A folder of packet captures: by process, container and command, named as Tracee names them.

A packet stands in the file of each of its owners, of the one that sent it and of the one that got
it, once in each; ``single`` has it once. What no process owns, as whoever recorded it says (resets
of closed ports), goes to ``unowned`` and nowhere else. Where it is only not known whose a packet
is, as in a capture of tcpdump's, ``single`` has it, and ``unowned`` in place of an owner's file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from kcap.errors import OutputError
from kcap.model.side import Loss
from kcap.model.tracee_names import PACKETS, PCAP, UNOWNED
from kcap.packets.frames import I64, NONE, Frames, LinkType, Owner
from kcap.packets.identity import WINDOW
from kcap.writers.pcap import PcapBytes, timed
from kcap.writers.pcap_single import Remembered, Singles, copied
from kcap.writers.pcap_sink import CUT, PacketSink
from kcap.writers.pcapng import UNTIMED, PcapngBytes, untimed

MODES: Final = ("single", "process", "container", "command")
"""What packets can be split by."""

MANIFEST: Final = PACKETS
"""The file that says what is in the folder."""

FILES_MAX: Final = 65_536
"""Files of one export."""

COMPONENT_BYTES: Final = 120
"""Longest part of a file's name that comes from the capture."""

HOST: Final = "host"

_CONTAINER: Final = 11
"""Characters of a container's id in names."""
_BUFFERED_BYTES: Final = 16 << 20
_HELD_BYTES: Final = 32 << 20
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9_.+=@,-]")
_DEVICES: Final = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(?=$|\.)")
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)

U64 = npt.NDArray[np.uint64]


def component(text: str) -> str:
    """A part of a file's name for text of a capture: never one that leads elsewhere.

    Args:
        text: The text.

    Returns:
        Letters, digits and ``_.+=@,-`` as they are and every other byte as ``%HH``, so that
        different texts have different names; one that is too long is cut, and ends with ``~`` and
        a part of its SHA-256.
    """
    raw = text.encode("utf-8", "surrogatepass")
    spelled = _UNSAFE.sub(lambda m: b"%%%02X" % m[0][0], raw).decode("ascii")
    if spelled[:1] in {".", ""} or _DEVICES.match(spelled):
        # Hidden, nothing, or what Windows takes for a device.
        spelled = f"%{ord(spelled[0]):02X}{spelled[1:]}" if spelled else "%"
    if len(spelled) > COMPONENT_BYTES:
        spelled = f"{spelled[: COMPONENT_BYTES - 17]}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return spelled


class _File:
    """What waits to be written into one file."""

    def __init__(self, path: str, contents: PcapBytes | PcapngBytes) -> None:
        self.path = path
        self.contents = contents
        self.parts: list[bytes] = [contents.head()]
        self.packets = 0
        self.made = False


class PacketFolder(PacketSink):
    """A sink that writes a folder of captures.

    Args:
        create: Makes a new file in the folder, by its path there, and gives a stream to write it.
        append: Opens one that `create` made, to write on at its end.
        modes: What to split by, some of `MODES`.
        form: ``pcapng`` or ``pcap``; frames of another link type than RAW have files of their own.

    Example:
        >>> sink = PacketFolder(folder.create, folder.append, ["single", "process"], "pcapng")
        >>> sink.write(batch)
        >>> sink.close()
    """

    def __init__(
        self,
        create: Callable[[str], BinaryIO],
        append: Callable[[str], BinaryIO],
        modes: Collection[str],
        form: str,
    ) -> None:
        super().__init__()
        self._create = create
        self._append = append
        self._modes = [mode for mode in MODES if mode in modes]
        self._form = form
        self._files: dict[tuple[object, ...], _File] = {}
        self._paths: set[str] = set()
        self._buffered = 0
        self._count = 0
        self._untimed = 0
        self._singles = {mode: Singles() for mode in self._modes}
        self._unowned = Remembered()
        self._placed = Remembered()
        """Packets that need not go to `UNOWNED`: they are where they were asked for."""
        self._held: list[tuple[int, Frames]] = []
        self._held_bytes = 0
        self._closed = False
        for mode in self._modes[:1]:
            if mode == MODES[0]:
                self._file((mode,), LinkType.RAW, lambda: MODES[0])

    def take(self, frames: Frames) -> None:
        """See `PacketSink.take`."""
        self._untimed += int((~timed(frames)).sum()) if self._form == "pcap" else untimed(frames)
        ids = self._ids(frames)
        self._count += len(frames)
        owner = np.full(len(frames), NONE) if frames.owner is None else frames.owner
        # (The last entry is that of packets without an owner.)
        nobody = np.array([*(o.nobody for o in frames.owners), False], np.bool_)[owner]
        owned = (owner >= 0) & ~nobody
        mine, known = np.flatnonzero(~nobody), np.flatnonzero(owned)
        for mode, singles in self._singles.items():
            if mode == MODES[0]:
                self._settle(mode, singles.put(frames.take(mine), ids[mine]))
            elif len(known):
                part = frames.take(known)
                self._settle(mode, singles.put(part, _of_owner(mode, part, ids[known])))
        placed = ~nobody if self._modes == [MODES[0]] else owned
        self._placed.fresh(ids[placed])
        rest = np.flatnonzero(~placed)
        if len(rest):
            held = copied(frames.take(rest))
            self._held.append((self._count, held))
            self._held_bytes += len(held.data)
        while self._held and (
            self._held[0][0] + WINDOW < self._count or self._held_bytes > _HELD_BYTES
        ):
            self._release()

    def close(self) -> None:
        """Write what waits, and what the folder holds.

        Raises:
            OutputError: A file can't be written.
        """
        if self._closed:
            return
        self._closed = True
        for mode, singles in self._singles.items():
            self._settle(mode, singles.end())
        while self._held:
            self._release()
        for file in self._files.values():
            file.parts.append(file.contents.tail())
            self._flush(file)
        if self._untimed:
            self.losses.append(Loss("cut", self._untimed, UNTIMED))
        cut = sum(file.contents.cut for file in self._files.values())
        if cut:
            self.losses.append(Loss("cut", cut, CUT))
        listed = [
            {"path": file.path, "packets": file.packets}
            for file in sorted(self._files.values(), key=lambda f: f.path)
        ]
        said = {"format": self._form, "split": self._modes, "files": listed}
        with self._create(MANIFEST) as stream:
            stream.write(json.dumps(said, indent=1, sort_keys=True).encode("ascii") + b"\n")

    def _ids(self, frames: Frames) -> U64:
        """The packets' ids; of one without any a number that no other has."""
        own = np.arange(self._count, self._count + len(frames)).astype(np.uint64)
        own |= np.uint64(1 << 63)
        if frames.packet_id is None:
            return own
        return np.where(frames.packet_id >= 0, frames.packet_id.astype(np.uint64), own)

    def _release(self) -> None:
        """Decide on packets that had no owner when they were seen."""
        _, frames = self._held.pop(0)
        self._held_bytes -= len(frames.data)
        # (Those without an id were given numbers as they came, which are not theirs any more.)
        ids = np.zeros(len(frames), np.uint64)
        if frames.packet_id is not None:
            ids = frames.packet_id.astype(np.uint64)
            known = frames.packet_id < 0
        else:
            known = np.ones(len(frames), np.bool_)
        rows = np.flatnonzero(~self._placed.has(ids) | known)
        fresh = self._unowned.fresh(ids[rows]) | known[rows]
        rows = rows[fresh]
        if len(rows):
            self._write((UNOWNED,), lambda: UNOWNED, frames.take(rows))

    def _settle(self, mode: str, decided: Sequence[Frames]) -> None:
        """Put packets into the file of all, or into those of their owners."""
        for frames in decided:
            if mode == MODES[0]:
                self._write((mode,), lambda: mode, frames)
                continue
            assert frames.owner is not None
            keys = [_key(mode, owner) for owner in frames.owners]
            numbers = {key: n for n, key in enumerate(dict.fromkeys(keys))}
            of = np.array([numbers[key] for key in keys], np.int64)[frames.owner]
            for key, rows in _groups(list(numbers), of):
                self._write(key, lambda key=key: _path(key), frames.take(rows))  # type: ignore[misc]

    def _write(self, key: tuple[object, ...], path: Callable[[], str], frames: Frames) -> None:
        kinds = np.unique(frames.link_type).tolist()
        for kind in kinds:
            part = frames
            if len(kinds) > 1:
                part = frames.take(np.flatnonzero(frames.link_type == kind))
            file = self._file(key, kind, path)
            body = file.contents.body(part)
            file.parts.append(body)
            file.packets += len(part)
            self._buffered += len(body)
        if self._buffered > _BUFFERED_BYTES:
            for waiting in self._files.values():
                self._flush(waiting)
            self._buffered = 0

    def _file(self, key: tuple[object, ...], kind: int, path: Callable[[], str]) -> _File:
        file = self._files.get((*key, kind))
        if file is None:
            if len(self._files) >= FILES_MAX:
                raise OutputError(
                    f"more than {FILES_MAX:,} files", hint="split by fewer things, or filter first"
                )
            contents = PcapBytes(kind) if self._form == "pcap" else PcapngBytes()
            link = "" if kind == LinkType.RAW else f".link-{kind}"
            name = base = f"{PCAP}/{path()}{link}"
            number = 1
            # Another container's id begins alike, or something else collides.
            while name.lower() in self._paths:
                number += 1
                name = f"{base}~{number}"
            self._paths.add(name.lower())
            file = self._files[*key, kind] = _File(f"{name}.{self._form}", contents)
        return file

    def _flush(self, file: _File) -> None:
        if any(file.parts):
            with (self._append if file.made else self._create)(file.path) as stream:
                stream.write(b"".join(file.parts))
            file.parts, file.made = [], True


def _key(mode: str, owner: Owner) -> tuple[object, ...]:
    """What tells the file of an owner from others."""
    container = owner.container_id or ""
    if mode == "container":
        return (mode, container)
    name = owner.name if isinstance(owner.name, str) else ""
    if mode == "command":
        return (mode, container, name)
    start = owner.thread_start_ns if owner.thread_start_ns is not None else owner.start_ns
    return (mode, container, name, owner.tid or owner.pid or 0, start or 0)


def _path(key: tuple[object, ...]) -> str:
    """Where Tracee puts such a file, without its suffix."""
    mode, container, *rest = key
    folder = component(str(container)[:_CONTAINER]) if container else HOST
    if mode == "container":
        return f"containers/{folder}"
    name = component(str(rest[0])) if rest[0] else "unknown"
    if mode == "command":
        return f"commands/{folder}/{name}"
    return f"processes/{folder}/{name}_{rest[1]}_{rest[2]}"


def _number(key: tuple[object, ...]) -> int:
    digest = hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big")


def _of_owner(mode: str, frames: Frames, ids: U64) -> U64:
    """What a packet is to each of its owners: a number that no other file has for it."""
    spelled = np.array([_number(_key(mode, owner)) for owner in frames.owners], np.uint64)
    return (ids ^ spelled[frames.owner]) * _ODD


def _groups(keys: Sequence[tuple[object, ...]], of: I64) -> list[tuple[tuple[object, ...], I64]]:
    """The rows of each key, in order."""
    order = np.argsort(of, kind="stable")
    codes, first = np.unique(of[order], return_index=True)
    parts = np.split(order, first[1:]) if len(codes) else []
    return [(keys[code], part) for code, part in zip(codes.tolist(), parts, strict=True)]
