"""zstd frames as the format uses them: one shot, content size, no checksum (clause 6.3)."""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from kcap.errors import DamagedError

LEVEL: Final = 3


class _Contexts(threading.local):
    """zstd's working memory, of each thread its own: used by two at once it crashes Python."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}


_CONTEXTS: Final = _Contexts()


def compress(raw: bytes | memoryview, level: int = LEVEL) -> bytes:
    """Compress to one frame.

    Args:
        raw: The bytes.
        level: zstd's level.

    Returns:
        The frame.
    """
    return _compressor(level).compress(raw)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    known = _CONTEXTS.compressors
    if level not in known:
        known[level] = zstandard.ZstdCompressor(
            level=level, write_checksum=False, write_content_size=True, write_dict_id=False
        )
    return known[level]


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
        return _CONTEXTS.decompressor.decompress(
            frame, max_output_size=length, allow_extra_data=False
        )
    except zstandard.ZstdError as e:
        raise DamagedError(f"a zstd frame is damaged: {e}") from e
