"""What is at hand of a decompressed input, for readers that take records from its start."""

from __future__ import annotations

from typing import BinaryIO

from kcap.errors import DamagedError, KcapError, TruncatedError
from kcap.readers.textinput import TextInput


class Window:
    """Bytes of a stream, from where the last record ended.

    Args:
        stream: The bytes from their start, plain or compressed.
        file: Its name, for errors.
    """

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self.input = TextInput(stream, file)
        self.data = b""
        """What is at hand."""
        self.offset = 0
        """Where it starts, in bytes of decompressed input."""
        self.ended = False
        """Whether nothing comes behind it."""
        self.failure: KcapError | None = None
        """Why compressed input ends before its time."""
        self._pieces = self.input.pieces()
        self._waits = False

    def fill(self, count: int) -> bool:
        """Have so many bytes at hand, less at the end or where more would have to wait.

        A call that found nothing without waiting is followed by one that waits.

        Args:
            count: Bytes wanted.

        Returns:
            Whether they are there.
        """
        parts, size = [self.data], len(self.data)
        while size < count and not self.ended:
            try:
                piece = next(self._pieces, b"")
            except (TruncatedError, DamagedError) as error:
                self.failure = error
                piece = b""
            if piece is None:
                if not self._waits:
                    self._waits = True
                    break
                continue
            self._waits = False
            self.ended = not piece
            parts.append(piece)
            size += len(piece)
        if len(parts) > 1:
            self.data = b"".join(parts)
        return size >= count

    def drop(self, count: int) -> None:
        """Let go of the first bytes.

        Args:
            count: How many of them.
        """
        self.data = self.data[count:]
        self.offset += count
