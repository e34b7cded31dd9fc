"""Times of pcapng files as ns, in whole numbers: no float holds one."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.packets.frames import I64, Mask

_NS: Final = 10**9
_I64_MAX: Final = (1 << 63) - 1
_POWER: Final = 9
_EXACT_BITS: Final = 34
"""Fractions of so many bits still fit 64 after they were multiplied with 10**9."""


def to_ns(units: npt.NDArray[np.uint64], resolution: int, offset_s: int) -> tuple[I64, Mask]:
    """Times in units of an interface's clock as ns since 1970.

    Args:
        units: The times.
        resolution: As ``if_tsresol`` has it: a negative power of ten, or with bit 7 of two.
        offset_s: What is to be added, in seconds.

    Returns:
        The times, and which of them fit 64 bits; what is finer than 1 ns is cut off.
    """
    power = resolution & 0x7F
    if resolution & 0x80:
        seconds = units >> np.uint64(power) if power else units
        part = units & np.uint64((1 << power) - 1)
        if power > _EXACT_BITS:
            part >>= np.uint64(power - _EXACT_BITS)
            power = _EXACT_BITS
        fraction = part * np.uint64(_NS) >> np.uint64(power)
    elif power <= _POWER:
        per_s, scale = np.uint64(10**power), np.uint64(10 ** (_POWER - power))
        seconds, fraction = units // per_s, units % per_s * scale
    elif power < 20:  # noqa: PLR2004 - beyond, 64 bits do not hold a second
        per_s, scale = np.uint64(10**power), np.uint64(10 ** (power - _POWER))
        seconds, fraction = units // per_s, units % per_s // scale
    else:
        drop = power - _POWER
        # 64 bits of such units are less than a second, and of most of them less than 1 ns.
        seconds = np.zeros_like(units)
        fraction = units // np.uint64(10**drop) if drop < 20 else seconds  # noqa: PLR2004
    limit = _I64_MAX // _NS
    fits = seconds < np.uint64(3 * limit)
    if abs(offset_s) > 2 * limit:
        fits[:] = False
        offset_s = 0
    whole = np.where(fits, seconds, np.uint64(0)).astype(np.int64) + offset_s
    fits &= (whole < limit) & (whole >= -limit)
    whole = np.where(fits, whole, 0)
    return whole * _NS + np.where(fits, fraction, np.uint64(0)).astype(np.int64), fits
