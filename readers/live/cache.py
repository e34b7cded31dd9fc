"""What a recorder remembers of a host, within limits: a hostile one must not fill our memory."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Final, Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

BYTES_MAX: Final = 16 << 20
"""What one of these may take."""

_ENTRY_BYTES: Final = 200
"""What an entry takes beside its texts, roughly."""


class Cache(Generic[_K, _V]):
    """Remembers the latest entries; the oldest ones are forgotten, and counted.

    Args:
        entries_max: How many.
        bytes_max: What they may take together.

    Example:
        >>> cache = Cache[int, str](2)
        >>> for number in range(3):
        ...     cache.put(number, "x")
        >>> cache.get(0), cache.get(2), cache.evicted
        (None, 'x', 1)
    """

    def __init__(self, entries_max: int, bytes_max: int = BYTES_MAX) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._entries: OrderedDict[_K, tuple[_V, int]] = OrderedDict()
        self.bytes = 0
        """What the entries take, roughly."""
        self.evicted = 0
        """Entries that were forgotten for want of room."""

    def __len__(self) -> int:
        """Entries that are remembered."""
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        """Whether there is an entry of a key."""
        return key in self._entries

    def get(self, key: _K) -> _V | None:
        """An entry.

        Args:
            key: Its key.

        Returns:
            Its value, None where there is none.
        """
        found = self._entries.get(key)
        return None if found is None else found[0]

    def put(self, key: _K, value: _V) -> None:
        """Enter something, as the latest.

        Args:
            key: Its key.
            value: Its value; a text, or a tuple that may have texts in it.
        """
        self.drop(key)
        size = _ENTRY_BYTES + _texts(key) + _texts(value)
        self._entries[key] = value, size
        self.bytes += size
        while len(self._entries) > self._entries_max or self.bytes > self._bytes_max:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed
            self.evicted += 1

    def drop(self, key: _K) -> None:
        """Take an entry out.

        Args:
            key: Its key; one that is not there is no error.
        """
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= found[1]

    def clear(self) -> None:
        """Take all out."""
        self._entries.clear()
        self.bytes = 0


def _texts(value: object) -> int:
    """Bytes of the texts in a value."""
    if isinstance(value, str | bytes):
        return sys.getsizeof(value)
    if not isinstance(value, tuple):
        return 0
    # Most keys are numbers alone, and some tens of thousands are entered a second.
    return sum([_texts(each) for each in value if type(each) is not int])
