"""Records of content as arrays: which stream each piece is of, and its bytes put together.

Nothing here is done once a record: many records may come of few bytes each.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.records import Block, layout

Int64s = npt.NDArray[np.int64]

DATA, UNREADABLE, BEYOND, UNSEEN, OPENED, ENDED, GONE, DONE = range(8)
"""``enum kcap_what``."""

READ, WRITTEN, PROGRAM, IMAGE = range(1, 5)
"""``enum kcap_direction``."""

_PIECE: Final = "kcap_piece"
_ALIGNED: Final = 8
_LONG: Final = 32
"""With longer pieces, on the average, one slice each is quicker than an index for each byte."""

_LAST: Final = DONE
_KEY: Final = ("generation", "inode", "dev", "owner", "direction")


class Layouts(NamedTuple):
    """How the structures of ``artifacts.h`` lie in memory."""

    piece: np.dtype[np.void]
    key: np.dtype[np.void]
    stream: np.dtype[np.void]


def layouts(types: Btf) -> Layouts:
    """How the structures of ``artifacts.h`` lie in memory.

    Args:
        types: Those of the programs' object.

    Returns:
        The layouts.

    Raises:
        KcapError: A structure is missing, or is not what this version of kcap reads.
    """
    found = Layouts(
        layout(types, _PIECE), layout(types, "kcap_stream_key"), layout(types, "kcap_stream")
    )
    if not set(_KEY) <= set(found.key.names or ()) & set(found.piece.names or ()):
        raise KcapError(f"{_PIECE} of the kernel program is not as it should be")
    return found


class Pieces:
    """The records of a block.

    Args:
        layouts: How they lie in memory.
        block: What the ring gave.
    """

    def __init__(self, layouts: Layouts, block: Block) -> None:
        data = np.frombuffer(block.data, np.uint8)
        offsets = np.asarray(block.offsets, np.int64)
        size = layouts.piece.itemsize
        inside = (offsets >= 0) & (offsets + size <= len(data)) & (offsets % _ALIGNED == 0)
        offsets = offsets[inside]
        heads = _heads(layouts.piece, data, offsets)
        starts = offsets + size
        good = starts + heads["bytes"] <= len(data)
        good &= heads["what"] <= _LAST
        of_none = (heads["direction"] < READ) | (heads["direction"] > IMAGE)
        good &= ~of_none | (heads["what"] == GONE)
        good &= (heads["what"] != DATA) | (heads["bytes"] == heads["length"])
        self.damaged = len(inside) - int(good.sum())
        """Records that are none."""
        self.heads: npt.NDArray[np.void] = heads[good]
        """What stands in each, as ``struct kcap_piece``."""
        self._starts = starts[good]
        self._data = data
        self._key = layouts.key

    def __len__(self) -> int:
        """The number of records."""
        return len(self.heads)

    def streams(self) -> list[tuple[bytes, Int64s]]:
        """The records of each stream, in the order of their offsets there.

        Returns:
            The stream as the kernel names it, and its records. One that the kernel had forgotten
            and saw again is two of the same name.
        """
        rows = np.flatnonzero(self.heads["what"] != GONE)
        return _grouped(_keys(self._key, self.heads[rows]), rows, self.heads)

    def gone(self) -> list[int]:
        """Processes that had streams, and have exited.

        Returns:
            Their pids, in order.
        """
        found: list[int] = self.heads["pid"][self.heads["what"] == GONE].tolist()
        return found

    def bytes_of(self, rows: Int64s) -> bytes:
        """What stands behind records, one behind the other.

        Args:
            rows: Which.

        Returns:
            Their bytes.
        """
        if len(rows) == 1:
            start = int(self._starts[rows[0]])
            return self._data[start : start + int(self.heads["bytes"][rows[0]])].tobytes()
        sizes = self.heads["bytes"][rows].astype(np.int64)
        if int(sizes.sum()) > _LONG * len(rows):
            starts = self._starts[rows]
            view = self._data.data
            places = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
            return b"".join([view[start:end] for start, end in places])
        ends = np.cumsum(sizes)
        # Where each byte stands: it counts on from the start of its record.
        shift = np.repeat(self._starts[rows] - (ends - sizes), sizes)
        found: bytes = self._data[np.arange(len(shift)) + shift].tobytes()
        return found


def _heads(
    kind: np.dtype[np.void], data: npt.NDArray[np.uint8], offsets: Int64s
) -> npt.NDArray[Any]:
    if not len(offsets):
        return np.empty(0, kind)
    items = (len(data) - kind.itemsize) // _ALIGNED + 1
    whole = np.dtype((np.void, kind.itemsize))
    every = np.ndarray((items,), whole, data, 0, (_ALIGNED,))
    found: npt.NDArray[Any] = every[offsets // _ALIGNED].view(kind)
    return found


def _keys(kind: np.dtype[np.void], heads: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    keys = np.zeros(len(heads), kind)
    for name in _KEY:
        keys[name] = heads[name]
    return keys


def _grouped(
    keys: npt.NDArray[np.void], rows: Int64s, heads: npt.NDArray[np.void]
) -> list[tuple[bytes, Int64s]]:
    if not len(rows):
        return []
    whole = keys.view(np.dtype((np.void, keys.dtype.itemsize)))
    _, which = np.unique(whole, return_inverse=True)
    which, born = which.reshape(-1), heads["born_ns"][rows]
    order = np.lexsort((heads["offset"][rows], born, which))
    rows, which, born = rows[order], which[order], born[order]
    cuts = np.flatnonzero((which[1:] != which[:-1]) | (born[1:] != born[:-1])) + 1
    names = keys[order]
    return [
        (names[at].tobytes(), some)
        for at, some in zip([0, *cuts.tolist()], np.split(rows, cuts), strict=True)
    ]
