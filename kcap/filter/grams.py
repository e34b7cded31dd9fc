"""Where parts stand in one long text, of which many are asked for.

A part that is there has all its runs of four bytes there. Places are sorted by the run that begins
at them, once; a part is then looked for only where its rarest run is, which mostly is nowhere.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int32]

RUN: Final = 4
"""Bytes of a run: shorter parts can't be asked for."""

BYTES_MAX: Final = 1 << 21
"""The longest text: while it is sorted, some twenty bytes are taken for each of it."""

_MIXER: Final = 0x9E3779B1
_BITS: Final = 16
_ONE_BY_ONE: Final = 32
"""So few places are compared one after another."""


class Grams:
    """The places of all runs of a text.

    Args:
        blob: The text, of at most `BYTES_MAX` bytes.
    """

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._bytes = np.frombuffer(blob, np.uint8)
        mixed = _mixed(self._bytes)
        # Numbers of 16 bits are sorted by counting, in a tenth of the time that others take.
        self._order: Places = np.argsort(mixed, kind="stable").astype(np.int32)
        self._counts = np.bincount(mixed, minlength=1 << _BITS)
        self._ends = np.cumsum(self._counts)

    def places(self, part: bytes) -> Places:
        """Where a part begins.

        Args:
            part: At least `RUN` bytes.

        Returns:
            The places, ascending.
        """
        runs = _mixed(np.frombuffer(part, np.uint8))
        counts = self._counts[runs]
        rarest = counts.argmin()
        if not counts[rarest]:
            return np.zeros(0, np.int32)
        end = self._ends[runs[rarest]]
        found = self._order[end - counts[rarest] : end] - np.int32(rarest)
        if len(found) <= _ONE_BY_ONE:
            at = [p for p in found.tolist() if p >= 0 and self._blob.startswith(part, p)]
            return np.array(at, np.int32)
        found = found[(found >= 0) & (found <= len(self._blob) - len(part))]
        for shift, byte in enumerate(part):
            found = found[self._bytes[found + np.int32(shift)] == byte]
        return found


def _mixed(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """The run at each place, as a number of 16 bits that others may share."""
    if len(text) < RUN:
        return np.zeros(0, np.uint16)
    wide = text.astype(np.uint32)
    runs = wide[:-3] | wide[1:-2] << 8 | wide[2:-1] << 16 | wide[3:] << 24
    return np.asarray((runs * np.uint32(_MIXER) >> np.uint32(32 - _BITS)).astype(np.uint16))
