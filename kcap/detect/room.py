"""State of rules within bounds: what is oldest is forgotten first, and that is said.

A rule that counts, or waits for a next step, must remember. How much, is decided by whoever makes
the events; so there is a most for each rule and for all of them together, in entries and in bytes.
What is forgotten depends on the events and on nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from kcap.detect.rule import Context

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_ENTRY_BYTES: Final = 200
"""What an entry takes beside its values."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be remembered."""

    rule_entries: int = 100_000
    rule_bytes: int = 32 << 20
    entries: int = 1_000_000
    """Of all rules together."""
    bytes: int = 128 << 20
    """Of all rules together."""
    deadlines: int = 1_000_000
    """Of all rules together; what is asked for beyond is left out, and counted."""


class _Held(NamedTuple):
    """One entry of some table."""

    drop: Callable[[int], None]
    """Lets its table forget it, and say so."""
    size: int


class Room:
    """What all rules of a run remember together.

    Args:
        bounds: How much that may be.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.bytes = 0
        """What is held now, as far as it is counted."""
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._next = 0

    def __len__(self) -> int:
        """Entries that are held now."""
        return len(self._held)

    def number(self) -> int:
        """The number of the next entry; later ones are greater."""
        self._next += 1
        return self._next

    def take(self, number: int, size: int, drop: Callable[[int], None]) -> None:
        """Hold an entry; the oldest of all are forgotten where there is no room.

        Args:
            number: What `number` gave for it.
            size: Its bytes.
            drop: Called with its number where it has to be forgotten.
        """
        self._held[number] = _Held(drop, size)
        self.bytes += size
        self._shrink()

    def grow(self, number: int, size: int) -> None:
        """Take notice that an entry has become larger; it keeps its age.

        Args:
            number: Its number.
            size: By so many bytes.
        """
        held = self._held[number]
        self._held[number] = held._replace(size=held.size + size)
        self.bytes += size
        self._shrink()

    def _shrink(self) -> None:
        while len(self._held) > self.bounds.entries or self.bytes > self.bounds.bytes:
            oldest, held = self._held.popitem(last=False)
            self.bytes -= held.size
            held.drop(oldest)

    def release(self, number: int) -> None:
        """Let go of an entry that its table no longer needs.

        Args:
            number: Its number.
        """
        self.bytes -= self._held.pop(number).size


class Table(Generic[K, V]):
    """What one machine remembers, by keys, the oldest first.

    Args:
        dropped: Called with the key and value of what had to be forgotten.

    Example:
        >>> from kcap.detect.room import Bounds, Table
        >>> len(Table())
        0
    """

    def __init__(self, dropped: Callable[[K, V], None] | None = None) -> None:
        self._dropped = dropped
        self._entries: OrderedDict[K, tuple[V, int, int]] = OrderedDict()
        self._keys: dict[int, K] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """The keys, the oldest first."""
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        """A value.

        Args:
            key: Its key.

        Returns:
            It; None where there is none.
        """
        found = self._entries.get(key)
        return None if found is None else found[0]

    def oldest(self) -> tuple[K, V] | None:
        """The entry that would be forgotten first; None where there is none."""
        for key, (value, _, _) in self._entries.items():
            return key, value
        return None

    def put(self, context: Context, key: K, value: V, size: int = 0) -> None:
        """Remember something; the oldest is forgotten where there is no room.

        Args:
            context: The rule's.
            key: Its key; what was there under it goes without being counted.
            value: It.
            size: Bytes of it beyond what any entry takes.
        """
        self.pop(context, key)
        size += _ENTRY_BYTES
        room = context.room
        number = room.number()
        self._entries[key] = (value, number, size)
        self._keys[number] = key
        self._bytes += size

        room.take(number, size, lambda oldest: self._drop(context, oldest))
        self._shrink(context)

    def grow(self, context: Context, key: K, size: int) -> None:
        """Take notice that a value has become larger; it keeps its age.

        Args:
            context: The rule's.
            key: Its key.
            size: By so many bytes.
        """
        value, number, before = self._entries[key]
        self._entries[key] = (value, number, before + size)
        self._bytes += size
        context.room.grow(number, size)
        self._shrink(context)

    def _shrink(self, context: Context) -> None:
        bounds = context.room.bounds
        while len(self._entries) > bounds.rule_entries or self._bytes > bounds.rule_bytes:
            _, oldest, _ = next(iter(self._entries.values()))
            context.room.release(oldest)
            self._drop(context, oldest)

    def _drop(self, context: Context, number: int) -> None:
        """Forget an entry that the room has let go of."""
        key = self._keys.pop(number)
        value, _, size = self._entries.pop(key)
        self._bytes -= size
        context.dropped()
        if self._dropped is not None:
            self._dropped(key, value)

    def pop(self, context: Context, key: K) -> V | None:
        """Forget something that is no longer needed.

        Args:
            context: The rule's.
            key: Its key.

        Returns:
            It; None where there was none.
        """
        found = self._entries.pop(key, None)
        if found is None:
            return None
        value, number, size = found
        del self._keys[number]
        self._bytes -= size
        context.room.release(number)
        return value
