"""Encoded values, and taking them apart again with every length checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import DamagedError


@dataclass(frozen=True, slots=True)
class Encoded:
    """Values as bytes, with what a directory entry must say of them."""

    data: bytes
    encoding: int = 0
    base: int = 0
    """Modulo 2**64; of lists of text the bytes of all items."""
    distinct: int = 0
    """Entries of a dictionary; of lists the number of items."""
    plain: Encoded | None = None
    """Integers in their plain form, where ``data`` may have another."""
    frame: bytes | None = None
    """``data`` compressed at level 3, where that was tried already."""
    entries: pa.Array | None = None
    """The distinct values of text, where they were worked out."""


class Cursor:
    """Takes bytes off the front of a decoded frame and checks that they are there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def array(self, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
        """Numbers, without a copy.

        Args:
            dtype: Their type.
            count: How many.

        Returns:
            A read-only array.

        Raises:
            DamagedError: The frame is shorter.
        """
        size = np.dtype(dtype).itemsize * count
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise DamagedError(
                f"a frame ends after {len(self._data)} bytes", expected=str(self._at)
            )
        return np.frombuffer(self._data, dtype, count, start)

    def buffer(self, size: int) -> pa.Buffer:
        """Bytes as an Arrow buffer, without a copy.

        Args:
            size: How many.

        Returns:
            The buffer.
        """
        self.array(np.uint8, size)
        return pa.py_buffer(self._data).slice(self._at - size, size)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            DamagedError: Something is.
        """
        if self._at != len(self._data):
            raise DamagedError(f"a frame has {len(self._data)} bytes", expected=str(self._at))
