"""The entries of dictionaries: each once."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_HEAD_BYTES: Final = 64
"""By these most long values differ; of packets they are the headers, with their numbers."""

_LONG_BYTES: Final = 256
"""From this mean length on it pays to look at the heads first."""


def unified(entries: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Leave out what comes again.

    Args:
        entries: Text or bytes, without nulls.

    Returns:
        The different ones in the order in which they come first, and for each entry the place of
        its like among them.
    """
    count = len(entries)
    if entries.nbytes < _LONG_BYTES * count:
        unique = pc.dictionary_encode(entries)
        return unique.dictionary, np.asarray(unique.indices)
    # To hash whole packets takes as long as to compress them.
    heads = pc.dictionary_encode(pc.binary_slice(entries.cast(pa.binary()), 0, _HEAD_BYTES))
    every = np.arange(count, dtype=np.int32)
    if len(heads.dictionary) == count:
        return entries, every
    codes = np.asarray(heads.indices)
    alike = np.flatnonzero((np.bincount(codes) > 1)[codes])
    found = pc.dictionary_encode(entries.take(pa.array(alike)))
    numbers = np.asarray(found.indices)
    first = np.zeros(len(found.dictionary), np.int32)
    first[numbers[::-1]] = alike[::-1].astype(np.int32)
    firsts = every.copy()
    firsts[alike] = first[numbers]
    kept = firsts == every
    return entries.filter(pa.array(kept)), (np.cumsum(kept, dtype=np.int32) - 1)[firsts]
