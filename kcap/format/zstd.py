"""zstd frames as the format uses them: one shot, content size, no checksum (clause 6.3)."""

from __future__ import annotations

from functools import cache
from typing import Final

import zstandard

from kcap.errors import DamagedError

LEVEL: Final = 3

_DECOMPRESSOR: Final = zstandard.ZstdDecompressor(max_window_size=1 << 27)


def compress(raw: bytes | memoryview, level: int = LEVEL) -> bytes:
    """Compress to one frame.

    Args:
        raw: The bytes.
        level: zstd's level.

    Returns:
        The frame.
    """
    return _compressor(level).compress(raw)


@cache
def _compressor(level: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(
        level=level, write_checksum=False, write_content_size=True, write_dict_id=False
    )


def decompress(frame: bytes | memoryview, length: int) -> bytes:
    """Decompress one frame whose decoded length is known and within its limit.

    Args:
        frame: The frame, and nothing behind it.
        length: What it must decode to.

    Returns:
        ``length`` bytes.

    Raises:
        DamagedError: It is no such frame.
    """
    try:
        # The announced size is compared before anything of that size is allocated.
        size = zstandard.frame_content_size(frame)
        if size != length:
            raise DamagedError(f"a zstd frame announces {size} bytes", expected=str(length))
        return _DECOMPRESSOR.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise DamagedError(f"a zstd frame is damaged: {e}") from e
