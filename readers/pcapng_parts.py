"""Packets of a pcapng file that are read run by run, put together to one batch of frames.

A file may change the kind of its blocks, or describe a process, with every packet. Each of these
ends a run; if it also ended a batch, a small file could take minutes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kcap.packets.frames import I32, I64, NONE, U16, Bytes, Frames, Mask
from kcap.readers.pcapng_options import Owned

_Entry = TypeVar("_Entry", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Part:
    """The packets of a run; arrays have one entry a packet."""

    offsets: I64
    captured: I64
    length: I64
    link_type: U16
    ts_ns: I64
    timed: Mask
    interface: I32
    """Number of the name, `NONE` for an interface without one; see `Parts.place`."""
    direction: Bytes | None
    packet_id: I64 | None
    owned: Owned


class Parts:
    """What is found in a window of the file.

    Args:
        raw: The window.
    """

    def __init__(self, raw: Bytes) -> None:
        self._raw = raw
        self._parts: list[Part] = []
        self._places: dict[str, int] = {}

    def place(self, name: str, known: Mapping[str, int]) -> int:
        """The number of an interface that a comment names.

        Args:
            name: What it says; empty for none.
            known: Numbers of those that have been described.

        Returns:
            Its number, less than `NONE` where it is this window's own, `NONE` for none.
        """
        if not name or name in known:
            return known.get(name, NONE)
        return NONE - 1 - self._places.setdefault(name, len(self._places))

    def add(self, part: Part) -> None:
        """Take a run.

        Args:
            part: Its packets.
        """
        self._parts.append(part)

    def joined(self, interfaces: Sequence[str]) -> Frames | None:
        """All packets, in the order of the file.

        Args:
            interfaces: Names by number.

        Returns:
            Frames; None where there are none.
        """
        parts = self._parts
        if not parts:
            return None
        counts = [len(part.offsets) for part in parts]
        names = np.concatenate([part.interface for part in parts])
        used, place = np.unique(names, return_inverse=True)
        named = used != NONE
        every = [*interfaces, *self._places]
        timed = np.concatenate([part.timed for part in parts])
        owner, owners = _shared([(p.owned.owner, p.owned.owners) for p in parts], counts)
        comment, comments = _shared([(p.owned.comment, p.owned.comments) for p in parts], counts)
        frames = Frames(
            data=self._raw,
            offsets=np.concatenate([part.offsets for part in parts]),
            captured=np.concatenate([part.captured for part in parts]).astype(np.int32),
            length=np.concatenate([part.length for part in parts]),
            ts_ns=np.concatenate([part.ts_ns for part in parts]),
            link_type=np.concatenate([part.link_type for part in parts]),
            timed=None if timed.all() else timed,
            interface=(np.cumsum(named) * named - 1).astype(np.int32)[place.reshape(-1)]
            if named.any()
            else None,
            interfaces=[
                every[n if n >= 0 else len(interfaces) + NONE - 1 - n] for n in used[named].tolist()
            ],
            direction=_filled([part.direction for part in parts], counts, np.uint8, 0),
            packet_id=_filled([part.packet_id for part in parts], counts, np.int64, NONE),
            owner=owner,
            owners=owners,
            comment=comment,
            comments=comments,
        )
        if (frames.offsets[1:] < frames.offsets[:-1]).any():
            # Kinds of blocks that take turns are read kind by kind.
            frames = frames.take(np.argsort(frames.offsets))
        return frames


def _filled(
    columns: Sequence[npt.NDArray[Any] | None], counts: Sequence[int], kind: type[Any], gap: int
) -> npt.NDArray[Any] | None:
    """A column of all parts, with something else where a part has none."""
    if all(column is None for column in columns):
        return None
    each = zip(columns, counts, strict=True)
    return np.concatenate([np.full(n, gap, kind) if c is None else c for c, n in each])


def _shared(
    columns: Sequence[tuple[I32 | None, list[_Entry]]], counts: Sequence[int]
) -> tuple[I32 | None, list[_Entry]]:
    """Codes of all parts as codes of one table."""
    if len(columns) == 1:
        return columns[0]
    table: dict[_Entry, int] = {}
    codes: list[npt.NDArray[Any] | None] = []
    for own, entries in columns:
        # A code of NONE takes the last entry, which is NONE.
        numbers = [*(table.setdefault(entry, len(table)) for entry in entries), NONE]
        codes.append(None if own is None else np.array(numbers, np.int32)[own])
    return _filled(codes, counts, np.int32, NONE), list(table)
