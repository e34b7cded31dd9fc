"""The packets in a Tracee output directory: each once, however many files hold it.

Tracee can write all packets into one file, and the same ones again into a file for each process,
command and container. Only the names of those say whose a packet is. What kcap has laid out has one
more file, of packets that nobody owns.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import KcapError
from kcap.model import tracee_names
from kcap.model.batch import Batch, Column, coded
from kcap.model.classes import I64_MIN, TypeClass
from kcap.model.side import SourceInfo
from kcap.model.stream import Source, StreamInfo
from kcap.model.text import clean
from kcap.opening import HEAD_BYTES, decompressed
from kcap.packets import encode
from kcap.readers import tracee_folder_files as files
from kcap.readers.pcap import PcapReader
from kcap.readers.pcap_source import PacketSource
from kcap.readers.pcapng import PcapngReader
from kcap.replay.merge import Merged
from kcap.replay.pipeline import Pipeline
from kcap.state import State

KEYS_MAX: Final = 32 << 20
"""Packets whose owners are remembered, 12 bytes each."""

_READERS: Final = (PcapngReader, PcapReader)
_SUFFIX: Final = re.compile(r"\.pcap(?:ng)?\Z")
_ALL: Final = re.compile(rf"(single|{tracee_names.UNOWNED})(?:\.link-[0-9]{{1,5}})?\.pcap(?:ng)?")
"""What is not split by owners; of frames of another link type kcap makes files of their own."""
_PROCESS: Final = re.compile(r"(?P<comm>.+)_(?P<tid>[0-9]{1,10})_[0-9]{1,20}", re.DOTALL)
_DATA: Final = "arg_data"
_NOBODY, _SEVERAL = -1, -2

U64 = npt.NDArray[np.uint64]
_NO_KEYS: Final = np.zeros(0, np.uint64)


class Owner(NamedTuple):
    """Whose packets a file holds."""

    comm: str | None
    tid: int | None
    container: str | None


def owner_of(parts: Sequence[str]) -> Owner | None:
    """What the name of a file says of its packets' owner.

    Args:
        parts: The way to it below ``pcap``.

    Returns:
        The owner; None where it holds those of all.
    """
    place = [clean(os.fsencode(part))[0] for part in (*parts[:-1], _SUFFIX.sub("", parts[-1]))]
    if place[0] in {"processes", "commands"} and len(place) > 2:  # noqa: PLR2004
        place = place[1:]
    elif place[0] == "containers" and len(place) > 1:
        return Owner(None, None, _container(place[1]))
    if len(place) < 2:  # noqa: PLR2004
        return None
    if found := _PROCESS.fullmatch(place[1]):
        return Owner(found["comm"], int(found["tid"]), _container(place[0]))
    # Up to 0.10 this is a container's.
    comm = None if place[1] == "capture" else place[1]
    return Owner(comm, None, _container(place[0]))


def _container(name: str) -> str | None:
    return None if name == "host" else name


def opened(root: str, parts: tuple[str, ...], *, lenient: bool) -> PacketSource | None:
    """Open a file of packets.

    Args:
        root: The directory.
        parts: The way to the file.
        lenient: Go on past damage.

    Returns:
        What reads it; None where it holds no packets.

    Raises:
        OSError: It can't be opened.
    """
    raw = cast("io.RawIOBase", files.opened(root, parts))
    stream = cast("BinaryIO", io.BufferedReader(raw))
    head = decompressed(stream.read(HEAD_BYTES))
    for reader in _READERS:
        if reader.sniff(head):
            stream.seek(0)
            shown = clean(os.fsencode("/".join((root, *parts))))[0]
            return reader(stream, shown, lenient=lenient)
    stream.close()
    return None


class Owners:
    """Who has which packets: a sink that the files of processes are read into."""

    def __init__(self) -> None:
        self.owners: list[Owner] = []
        self.full = False
        """More packets than are remembered."""
        self._keys: list[U64] = []
        self._codes: list[npt.NDArray[np.int32]] = []
        self._count = 0
        self._sorted: tuple[U64, npt.NDArray[np.int32]] | None = None

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        if self._count + batch.rows > KEYS_MAX:
            self.full = True
            return
        self._count += batch.rows
        self._keys.append(keys(batch))
        self._codes.append(np.full(batch.rows, len(self.owners) - 1, np.int32))

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""

    def of(self, batch: Batch) -> npt.NDArray[np.int32]:
        """The owners of packets.

        Args:
            batch: The packets.

        Returns:
            Position in `owners`, less than 0 for none and where several have it.
        """
        if self._sorted is None:
            every = np.concatenate([np.zeros(0, np.uint64), *self._keys])
            codes = np.concatenate([np.zeros(0, np.int32), *self._codes])
            order = np.lexsort((codes, every))
            every, codes = every[order], codes[order]
            fresh = np.flatnonzero(np.r_[True, every[1:] != every[:-1]]) if len(every) else order
            last = np.maximum.reduceat(codes, fresh) if len(fresh) else codes
            least = codes[fresh]
            self._sorted = every[fresh], np.where(least == last, least, _SEVERAL).astype(np.int32)
            self._keys, self._codes = [], []
        known, owners = self._sorted
        mine = keys(batch)
        at = np.searchsorted(known, mine)
        found = np.full(len(mine), _NOBODY, np.int32)
        inside = at < len(known)
        hit = np.flatnonzero(inside)[known[at[inside]] == mine[inside]]
        found[hit] = owners[at[hit]]
        return found


def keys(batch: Batch) -> U64:
    """What tells packets apart: time and content.

    Args:
        batch: The packets.

    Returns:
        A hash each.
    """
    times = batch.numpy("ts", I64_MIN).astype("<i8")
    data = batch.array(_DATA).to_pylist() if batch.get(_DATA) is not None else [None] * batch.rows
    made = bytearray()
    for time, content in zip(times.tolist(), data, strict=True):
        start = time.to_bytes(8, "little", signed=True)
        made += hashlib.blake2b(start + (content or b""), digest_size=8).digest()
    return np.frombuffer(bytes(made), "<u8").astype(np.uint64)


class Packets:
    """A source of the packets below ``pcap``: of ``single.pcap``, else of all files, each once.

    Args:
        root: The directory.
        listed: The ways to the files.
        lenient: Go on past damage.
    """

    name = "tracee-packets"

    def __init__(self, root: str, listed: Sequence[tuple[str, ...]], *, lenient: bool) -> None:
        self._root = root
        self._lenient = lenient
        depth = max((parts.index(tracee_names.PCAP) for parts in listed), default=0) + 1
        self.unread: list[str] = []
        """Files that can't be opened, or hold no packets."""
        self._owned = [(parts, owner_of(parts[depth:])) for parts in listed]
        whole = {p: m[1] for p in listed if (m := _ALL.fullmatch("/".join(p[depth:])))}
        self._unowned = {parts for parts, name in whole.items() if name == tracee_names.UNOWNED}
        self._alone = whole.keys() - self._unowned
        self._main = [
            parts
            for parts, _ in self._owned
            if not self._alone or parts in self._alone or parts in self._unowned
        ]
        self._infos: dict[tuple[str, ...], tuple[SourceInfo, ...]] = {}
        self._seen: list[U64] = []
        for parts in self._main:
            source = self._opened(parts)
            if source is not None:
                with contextlib.closing(source):
                    self._begin(parts, source)

    def _begin(self, parts: tuple[str, ...], source: PacketSource) -> None:
        """Take note of what a file says of itself; one that can't even do that holds nothing."""
        shown = clean(os.fsencode("/".join(parts)))[0]
        if self._alone and parts in self._unowned and isinstance(source, PcapReader):
            self.unread.append(f"{shown} (it can't say which of its packets are in no other file)")
            return
        try:
            self._infos[parts] = source.info.sources
        except KcapError as e:
            self.unread.append(f"{shown} ({e.what})")

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        sources = tuple(info for infos in self._infos.values() for info in infos)
        return StreamInfo(self._root, self.name, sources)

    def _opened(self, parts: tuple[str, ...]) -> PacketSource | None:
        why = "it holds no packets"
        try:
            source = opened(self._root, parts, lenient=self._lenient)
        except OSError as e:
            source, why = None, e.strerror or str(e)
        if source is None:
            told = f"{clean(os.fsencode('/'.join(parts)))[0]} ({why})"
            self.unread += [told] if told not in self.unread else []
        return source

    def _owners(self) -> Owners:
        """Read the files of processes, else those of commands, to see whose a packet is."""
        made = Owners()
        for wanted in (True, False):
            for parts, owner in self._owned:
                if owner is None or owner.comm is None or (owner.tid is not None) != wanted:
                    continue
                source = self._opened(parts)
                if source is None:
                    continue
                made.owners.append(owner)
                # What ends it early is said where its packets are what is read.
                with contextlib.suppress(KcapError), contextlib.closing(source):
                    Pipeline(source, [made]).run()
            if made.owners:
                break
        return made

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        owners = self._owners()
        if owners.full:
            self.unread.append(f"whose packets those beyond {KEYS_MAX:,} are")
        if self._alone and len(self._infos) > 1:
            with contextlib.ExitStack() as stack:
                for batch in self._with_unowned(stack).batches():
                    yield _told(batch, owners) if batch.rows else batch
            return
        several = len(self._infos) > 1
        for parts in self._infos:
            source = self._opened(parts)
            if source is None:
                continue
            fresh: list[U64] = []
            with contextlib.closing(source):
                for batch in source.batches():
                    made = batch
                    if several and batch.rows:
                        made = self._unseen(batch, fresh)
                    yield _told(made, owners) if made.rows else made
            self._remember(fresh)

    def _with_unowned(self, stack: contextlib.ExitStack) -> Source:
        """The packets of all, and in their order those that nobody owns."""
        sources: list[Source] = []
        for parts in self._infos:
            source = self._opened(parts)
            if source is not None:
                stack.enter_context(contextlib.closing(source))
                sources.append(_Nobodys(source) if parts in self._unowned else source)
        return Merged(sources, State())

    def _unseen(self, batch: Batch, fresh: list[U64]) -> Batch:
        """The packets that no other file had before; one file may well have two that are equal."""
        mine = keys(batch)
        rows = np.ones(len(mine), np.bool_)
        for known in self._seen:
            rows &= known[np.minimum(np.searchsorted(known, mine), len(known) - 1)] != mine
        fresh.append(mine[rows])
        return batch.take(np.flatnonzero(rows).astype(np.int32))

    def _remember(self, fresh: list[U64]) -> None:
        """Take note of a file's packets: in few ordered runs, each twice as long as the next."""
        run = np.unique(np.concatenate([_NO_KEYS, *fresh]))
        while self._seen and len(self._seen[-1]) <= 2 * len(run):
            run = np.unique(np.concatenate([self._seen.pop(), run]))
        if len(run):
            self._seen.append(run)

    def close(self) -> None:
        """See `Source.close`."""


class _Nobodys:
    """The packets of a source that nobody owns; of others, whose owner is not known, all has those.

    Args:
        source: The source.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.info = source.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for batch in self._source.batches():
            frames, rows = encode.frames(batch)
            nobody = np.array([*(o.nobody for o in frames.owners), False], np.bool_)
            codes = np.full(len(rows), _NOBODY) if frames.owner is None else frames.owner
            yield batch.take(rows[nobody[codes]])

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()


def _told(batch: Batch, owners: Owners) -> Batch:
    """Packets with what is known of their owners, where they say nothing of them themselves."""
    if not owners.owners:
        return batch
    codes = owners.of(batch)
    whole = np.maximum(codes, _NOBODY)
    made: dict[str, Column | None] = {
        "process_name": coded([*(o.comm for o in owners.owners), None], whole),
        "container_id": coded([*(o.container for o in owners.owners), None], whole),
    }
    tids = np.array([-1 if o.tid is None else o.tid for o in owners.owners], np.int64)
    rows = np.flatnonzero((codes >= 0) & (tids[np.maximum(codes, 0)] >= 0)).astype(np.int32)
    if len(rows):
        every = None if len(rows) == batch.rows else rows
        made["tid"] = Column(TypeClass.I64, pa.array(tids[codes[rows]]), every)
    return batch.adding({n: c for n, c in made.items() if c is not None and batch.get(n) is None})
