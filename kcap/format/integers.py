"""Integer columns to bytes and back (spec/kcap.md, clause 6.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.errors import DamagedError
from kcap.format import zstd
from kcap.format.cursor import Cursor, Encoded

DELTA: Final = 0x10
HUNDREDS: Final = 0x20
PLANES: Final = 0x40
_WIDTHS: Final = (None, np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))
_MASK: Final = (1 << 64) - 1


def _width(span: int) -> int:
    """The least width code for offsets from 0 to ``span``."""
    return (
        0 if span == 0 else 1 if span < 1 << 8 else 2 if span < 1 << 16 else 3 + (span >= 1 << 32)
    )


def _bytes(width: int) -> int:
    return (0, 1, 2, 4, 8)[width]


def _offsets(values: npt.NDArray[Any], low: int, width: int) -> bytes:
    """Values less the lowest, at a width."""
    dtype = _WIDTHS[width]
    if dtype is None:
        return b""
    return (values.view(np.uint64) - np.uint64(low & _MASK)).astype(dtype).tobytes()


def encode_integers(values: npt.NDArray[Any], *, deltas: bool = True) -> Encoded:
    """int64 or uint64 values in the form that compresses best (clause 6.5).

    Args:
        values: At least one, of type int64 or uint64.
        deltas: False for the plain form in any case.

    Returns:
        The bytes.
    """
    low, high = int(values.min()), int(values.max())
    width = _width(high - low)
    plain = Encoded(_offsets(values, low, width), width, low & _MASK)
    if len(values) == 1 or not width or not deltas:
        return plain
    # Interleaved counters are as wide as their differences, and only these repeat: it takes a try.
    tried = _compressed(plain)
    steps = _compressed(_deltas(values))
    chosen = tried if len(tried.frame or b"") <= len(steps.frame or b"") else steps
    if chosen.encoding & 0x0F > 1:
        planes = _compressed(_planes(chosen))
        chosen = planes if len(planes.frame or b"") < len(chosen.frame or b"") else chosen
    return replace(chosen, plain=plain)


def _compressed(form: Encoded) -> Encoded:
    """A form with its frame."""
    return Encoded(form.data, form.encoding, form.base, frame=zstd.compress(form.data))


def _planes(form: Encoded) -> Encoded:
    """A form with the bytes of its offsets by significance, all lowest ones first."""
    at = 8 if form.encoding & DELTA else 0
    offsets = np.frombuffer(form.data, np.uint8, offset=at).reshape(
        -1, _bytes(form.encoding & 0x0F)
    )
    data = form.data[:at] + offsets.T.tobytes()
    return replace(form, data=data, encoding=form.encoding | PLANES)


def _deltas(values: npt.NDArray[Any]) -> Encoded:
    """The first value and the differences, at least one."""
    numbers: npt.NDArray[np.int64] = values.view(np.int64)
    steps = numbers[1:] - numbers[:-1]  # modulo 2**64
    least, most = int(steps.min()), int(steps.max())
    width, flags = _width(most - least), DELTA
    # A division is slow, and where the first ones leave a rest the others need none.
    if width and not (steps[:64] % 100).any() and not (steps % 100).any():
        divided = _width(most // 100 - least // 100)
        if divided < width:
            width, flags = divided, DELTA | HUNDREDS
            steps, least = steps // 100, least // 100
    data = values[:1].tobytes() + _offsets(steps, least, width)
    return Encoded(data, flags | width, least & _MASK)


def decode_integers(
    encoding: int, base: int, count: int, cursor: Cursor, *, signed: bool
) -> npt.NDArray[Any]:
    """`encode_integers` undone.

    Args:
        encoding: Form and width.
        base: What offsets count from, modulo 2**64.
        count: Number of values.
        cursor: The frame.
        signed: int64 or uint64.

    Returns:
        The values.

    Raises:
        DamagedError: There is no such encoding.
    """
    width = encoding & 0x0F
    known = width < len(_WIDTHS) and not encoding & 0x80 and encoding & 0x30 != HUNDREDS
    if not known or (encoding & PLANES and width <= 1):
        raise DamagedError(f"there is no integer encoding {encoding}")
    delta = bool(encoding & DELTA)
    out = np.empty(count, np.uint64)
    dtype = _WIDTHS[width]
    if delta and count:
        out[0] = cursor.array("<u8", 1)[0]
    rest = out[1:] if delta else out
    if dtype is None:
        rest[:] = base
    else:
        offsets = cursor.array(dtype, len(rest))
        if encoding & PLANES:
            planes = offsets.view(np.uint8).reshape(dtype.itemsize, len(rest))
            offsets = np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
        np.add(offsets, np.uint64(base), out=rest, dtype=np.uint64)
    if encoding & HUNDREDS:
        np.multiply(rest, np.uint64(100), out=rest)
    if delta:
        np.cumsum(out, out=out)
    return out.view(np.int64) if signed else out
